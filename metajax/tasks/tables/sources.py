"""What a table is before its cells mean anything: names of columns, and text.

A source is a file, a data frame or columns by name. Text loses the blanks around it,
and what stands for a gap becomes None; `tables.py` makes numbers of the rest.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.checks import check_words
from metajax.tasks.tables.columns import Cells, plain_number
from metajax.tasks.tables.delimited import (
    check_distinct,
    listing,
    number_repeats,
    read_delimited,
)

__all__ = [
    "SourceText",
    "check_all_there",
    "check_columns",
    "read_source",
    "without_columns",
]


class SourceText(NamedTuple):
    """A table before its cells mean anything.

    Attributes:
      name: of the table.
      columns: the cells of each, text without blanks around it, None where missing.
      place: says where a row stands in the source.
      original: the name of each column in the source, where names may repeat.
      categories: those of columns that the source declares to be categories.
    """

    name: str
    columns: dict[str, Cells]
    place: Callable[[int], str]
    original: dict[str, str]
    categories: dict[str, tuple[str, ...]]


def read_source(
    source: Any,
    delimiter: str | None,
    column_names: Sequence[str] | None,
    missing: frozenset[str],
) -> SourceText:
    """Reads names and cells.

    Args:
      source: path of a file, data frame, or mapping of names to columns.
      delimiter: of a file; None finds it.
      column_names: of a file without a header.
      missing: text that stands for a gap.

    Raises:
      ValueError: if `source` is something else, or no table.
    """

    def cells(values: Any) -> Cells:
        return [_cell(value, missing) for value in values]

    if column_names is not None:
        check_words(column_names=column_names)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        names, rows, lines = read_delimited(path, delimiter, column_names)
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        numbered = number_repeats(names)
        if column_names is None:
            _warn_of_no_header(path, names, columns)
        return SourceText(
            path.name.split(".")[0] or path.name,
            {name: cells(c) for name, c in zip(numbered, columns, strict=True)},
            lambda row: f"line {lines[row]}",
            dict(zip(numbered, names, strict=True)),
            {},
        )
    if column_names is not None:
        raise ValueError(
            "`column_names` are for files without a header, got "
            f"{type(source).__name__}; name its columns there."
        )
    # A mapping, or a data frame, whose columns may repeat.
    keys = list(source if isinstance(source, Mapping) else _frame_columns(source))
    names = [str(key) for key in keys]
    if len(set(names)) < len(names) and hasattr(source, "iloc"):
        values = [source.iloc[:, place] for place in range(len(keys))]
    else:
        check_distinct(names, "`source`")
        values = [source[key] for key in keys]
    numbered = number_repeats(names)
    for name, column in zip(numbered, values, strict=True):
        if np.ndim(column) != 1:
            raise ValueError(
                f"Column {name!r} must be a sequence of cells, one for each row, "
                f"got {type(column).__name__}; give one column for each name."
            )
        if len(column) != len(values[0]):
            raise ValueError(
                f"Columns must have one length, but {names[0]!r} has "
                f"{len(values[0])} cells and {name!r} has {len(column)}."
            )
    return SourceText(
        "table",
        {name: cells(v) for name, v in zip(numbered, values, strict=True)},
        lambda row: f"row {row}",
        dict(zip(numbered, names, strict=True)),
        {
            name: tuple(str(value).strip() for value in _declared(column))
            for name, column in zip(numbered, values, strict=True)
            if _declared(column) is not None
        },
    )


def _declared(column: Any) -> Any:
    """The categories that pandas declares for a column, or None."""
    return getattr(getattr(column, "dtype", None), "categories", None)


def _warn_of_no_header(
    path: Path, names: Sequence[str], columns: Sequence[Sequence[str]]
) -> None:
    """Warns of a first line that looks like the rows below it."""
    alike = [
        name
        for place, (name, cells) in enumerate(zip(names, columns, strict=True))
        # Columns may be numbered, from 0 or 1, after one that numbers the rows.
        if name not in map(str, (place - 1, place, place + 1))
        and cells
        and (plain_number(name) is not None or (name and name in cells))
    ]
    if 2 * len(alike) > len(names):
        warnings.warn(
            f"The first line of {str(path)!r} names the columns, but "
            f"{listing([repr(name) for name in alike], 5)} look like its cells; if the "
            "file has no header, give `column_names`.",
            UserWarning,
            stacklevel=4,
        )


def _frame_columns(source: Any) -> Any:
    if hasattr(source, "columns") and hasattr(source, "__getitem__"):
        return source.columns
    raise ValueError(
        "`source` must be the path of a file, a pandas DataFrame or a mapping of names "
        f"to columns, got {type(source).__name__}; for arrays use `Table`."
    )


def _cell(value: Any, missing: frozenset[str]) -> str | None:
    # By name, as pandas is not imported here; its NA cannot even be compared.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    # HDF5 and ARFF files give text as bytes.
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = text.strip()
    is_nan = text.lower().lstrip("+-") == "nan"
    return None if is_nan or text in missing else text


def without_columns(text: SourceText, target: str, drop: set[str]) -> SourceText:
    """Leaves out columns, and checks that what is left has one name each."""
    known = listing([repr(name) for name in text.columns])
    if target not in text.columns:
        raise ValueError(
            f"`target` must be one of the columns of table {text.name!r}, {known}, got "
            f"{target!r}; if these are not its columns, give another `delimiter`, or "
            "`column_names` if the file has no header."
        )
    names = text.original
    inputs = text.columns.keys() - {target}
    if not drop <= inputs | {names[name] for name in inputs}:
        raise ValueError(
            f"`drop` must name columns of table {text.name!r} other than the target "
            f"{target!r}, of {known}, got {sorted(drop)}."
        )
    # By its own name, or by the one that it shares.
    kept = {
        name: cells
        for name, cells in text.columns.items()
        if name == target or not drop & {name, names[name]}
    }
    check_distinct([names[name] for name in kept], f"table {text.name!r}")
    return text._replace(columns=kept)


def check_columns(text: SourceText, target: str, categories: set[str]) -> None:
    """Raises a ValueError unless there are named inputs, and `categories` are some."""
    if not categories <= text.columns.keys() - {target}:
        raise ValueError(
            f"`categories` must name columns of table {text.name!r} that are inputs, "
            f"of {listing([repr(name) for name in text.columns])}, got "
            f"{sorted(categories)}."
        )
    if "" in text.columns:
        number = list(text.original).index("")
        raise ValueError(
            f"Column {number} of table {text.name!r} has no name; name it, or, if it "
            "only numbers the rows, leave it out by `drop=['']`."
        )
    if len(text.columns) == 1:
        raise ValueError(
            f"Table {text.name!r} has no column besides the target {target!r}; at "
            "least one must say something about it."
        )
    if not text.columns[target]:
        raise ValueError(f"Table {text.name!r} has column names but no rows.")


def check_all_there(text: SourceText, target: str) -> None:
    """Raises a ValueError if the target is missing in a row."""
    cells = text.columns[target]
    if None in cells:
        row = cells.index(None)
        raise ValueError(
            f"The target {target!r} of table {text.name!r} is missing at "
            f"{text.place(row)}, and in {cells.count(None)} of {len(cells)} rows; "
            "remove these rows."
        )
