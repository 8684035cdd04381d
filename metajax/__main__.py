"""`python -m metajax`: see `metajax.cli`."""

import sys

from metajax.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
