"""Files of delimited text (CSV, TSV, also gzipped), read without pandas.

The first line that is not blank names the columns, if names are not given. Blank lines
are skipped, blanks around a cell are removed, and cells may be quoted by `"`, as in RFC
4180.
"""

import csv
import gzip
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "MISSING",
    "Delimited",
    "check_distinct",
    "listing",
    "number_repeats",
    "read_delimited",
]

MISSING = ("", "?", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null")
"""Cells that count as gaps, in tables and in assays of molecules."""


class Delimited(NamedTuple):
    """The text of a table.

    Attributes:
      names: of the columns, as they stand there; `check_distinct` refuses repeats.
      rows: the cells of each row, as many as names.
      lines: the line of the file at which each row ends, counted from 1.
    """

    names: list[str]
    rows: list[list[str]]
    lines: list[int]


def read_delimited(
    path: str | os.PathLike[str],
    delimiter: str | None = None,
    column_names: Sequence[str] | None = None,
) -> Delimited:
    """Reads a table of text and checks its shape.

    Args:
      path: of a file in UTF-8, gzipped or not (its first bytes tell).
      delimiter: one character, or None for that of comma, tab and semicolon which
        splits the first line into most columns.
      column_names: of a file without a header; None if its first line names them.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it cannot be unpacked or decoded, is empty, a quote is not closed,
        or rows differ in length; the message says at which line.
    """
    path = Path(path)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(
            f"`delimiter` must be one character (',', ';', '\\t') or None, got "
            f"{delimiter!r}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; check the path.")
    text = _text(path)
    lines, rows = [], []
    try:
        reader = _reader(text, delimiter or _find_delimiter(text), strict=True)
        for row in reader:
            if row:
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as delimited text near line "
            f"{reader.line_num} ({error}); check the quotes there."
        ) from error
    if not rows:
        raise ValueError(
            f"{str(path)!r} is empty; its first line must name the columns."
        )
    has_header = column_names is None
    names = rows[0] if column_names is None else [str(name) for name in column_names]
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            raise ValueError(
                f"{str(path)!r} has {len(names)} columns by "
                f"{'its header' if has_header else '`column_names`'}, but line {line} "
                f"has {len(row)} cells; repair that line, quote cells that hold the "
                "delimiter, or give another `delimiter`."
            )
    return Delimited(names, rows[has_header:], lines[has_header:])


def number_repeats(names: Sequence[str]) -> list[str]:
    """Names repeated columns as pandas does: the second `x` is `x.1`, then `x.2`."""
    numbered: list[str] = []
    taken = set(names)
    seen: set[str] = set()
    for name in names:
        own, number = name, 0
        while own in seen or (number and own in taken):
            number += 1
            own = f"{name}.{number}"
        seen.add(own)
        numbered.append(own)
    return numbered


def check_distinct(names: Sequence[str], what: str) -> None:
    """Raises a ValueError if a column name of `what` occurs twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(
                f"Column names of {what} must be distinct, but {name!r} occurs "
                f"{list(names).count(name)} times; rename them, or leave out all but "
                f"one by `drop`, to which they are {name!r}, '{name}.1' and so on. (If "
                "the first line of a file is no header, give `column_names`.)"
            )
        seen.add(name)


def listing(items: Sequence[str], most: int = 20) -> str:
    """Joins the first `most` of some words, and says how many more there are."""
    if not items:
        return "none"
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def _text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{str(path)!r} is a broken gzip file ({error}); get it again."
            ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error


def _reader(text: str, delimiter: str, *, strict: bool) -> Any:
    return csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=True,
        strict=strict,
    )


def _find_delimiter(text: str) -> str:
    def num_names(delimiter: str) -> int:
        # Not strict: under the wrong delimiter good quotes may look bad.
        header = filter(None, _reader(text, delimiter, strict=False))
        return len(next(header, []))

    return max(",\t;", key=num_names)
