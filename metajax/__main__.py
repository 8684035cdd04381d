"""`python -m metajax`: see `metajax.command_line.cli`."""

import sys

from metajax.command_line.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
