"""Pages that are made from results: one command rewrites them, or checks them."""

import argparse
import pathlib
import sys

__all__ = ["rewrite_or_check"]


def rewrite_or_check(path: pathlib.Path, text: str, module: str, doc: str) -> None:
    """Writes a page; with `--check` on the command line, fails if that would change it.

    Args:
      path: of the page.
      text: what the results give.
      module: that is run, for the message.
      doc: help of the command.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--check", action="store_true", help="change nothing")
    if not parser.parse_args().check:
        path.write_text(text)
    elif not path.exists() or text != path.read_text():
        sys.exit(f"{path.name} is not what the results give; run python -m {module}")
