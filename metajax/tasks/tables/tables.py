"""Tables of one classification problem each, from files, data frames or columns.

A `Table` is numbers only: text becomes indicator columns (one-hot), gaps are filled
and marked. All of that looks at the columns of the whole table and never at the target,
so what a task later calls support has seen medians and values of its query rows, but
not their labels. `metajax.tasks.tables.table_tasks` draws tasks from tables.

The Penn Machine Learning Benchmarks (R. S. Olson et al., "PMLB: a large benchmark suite
for machine learning evaluation and comparison", BioData Mining 2017,
https://doi.org/10.1186/s13040-017-0154-4) are files that `from_table` reads as they
are: tab-separated, gzipped, with a target of that name. Its `schizo` has two columns
`target`, of which the last is the class, and is refused until one is renamed.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metajax.checks import check_integers
from metajax.tasks.tables.delimited import check_distinct, listing, read_delimited

__all__ = ["Table", "from_table"]

# Far below the largest float32, so that sums over rows stay finite in float32 too.
_LARGEST = 1e30

Cells = list[str | None]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """One classification problem in numbers; `from_table` makes it from a file.

    Arrays of your own may be given directly; they are checked and become what is said
    here. It is not a pytree: `table_tasks` puts its arrays on the device.

    Attributes:
      x: float32 `[rows, D]`, finite. Integers above 2**24 are rounded, as float32 has
        24 bits: subtract an offset from columns such as times in seconds.
      y: int32 `[rows]`, classes in [0, len(class_names)), each of which has a row.
      column_names: D names.
      class_names: a name for each class.
      name: of the table, for errors.

    Raises:
      ValueError: if shapes do not fit, `x` is empty or holds NaN, infinity or numbers
        beyond 1e30, or `y` leaves its range or a class without rows.
    """

    x: np.ndarray
    y: np.ndarray
    column_names: tuple[str, ...]
    class_names: tuple[str, ...]
    name: str = "table"

    def __repr__(self) -> str:
        rows, columns = self.x.shape
        return (
            f"Table({self.name!r}, {rows} rows, {columns} columns, "
            f"{len(self.class_names)} classes)"
        )

    def __post_init__(self):
        x, y = np.asarray(self.x), np.asarray(self.y)
        names, classes = tuple(self.column_names), tuple(self.class_names)
        if x.ndim != 2 or x.size == 0 or x.dtype.kind not in "biuf":
            raise ValueError(
                f"`x` of table {self.name!r} must be numbers [rows, D], at least one "
                f"of each, got {x.dtype} {list(x.shape)}."
            )
        if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
            raise ValueError(
                f"`y` of table {self.name!r} must be integers [{len(x)}], one for each "
                f"row of `x`, got {y.dtype} {list(y.shape)}."
            )
        if len(names) != x.shape[1]:
            raise ValueError(
                f"`column_names` of table {self.name!r} must have one name for each of "
                f"the {x.shape[1]} columns of `x`, got {len(names)}."
            )
        _check_finite(x, names, self.name, lambda row: f"row {row}")
        if y.min() < 0 or y.max() >= len(classes):
            raise ValueError(
                f"`y` of table {self.name!r} must lie in [0, {len(classes)}), as there "
                f"are {len(classes)} `class_names`, got values from {y.min()} to "
                f"{y.max()}."
            )
        counts = np.bincount(y, minlength=len(classes))
        if counts.min() == 0:
            raise ValueError(
                f"Class {classes[int(np.argmin(counts))]!r} of table {self.name!r} has "
                "no row; leave it out of `class_names` and number the others anew."
            )
        # The way to set what a frozen dataclass makes of its arguments.
        object.__setattr__(self, "x", x.astype(np.float32))
        object.__setattr__(self, "y", y.astype(np.int32))
        object.__setattr__(self, "column_names", names)
        object.__setattr__(self, "class_names", classes)


def from_table(
    source: Any,
    *,
    target: str,
    name: str | None = None,
    delimiter: str | None = None,
    drop: Sequence[str] = (),
    categorical: str | None = "one_hot",
    max_categories: int = 64,
    missing: Sequence[str] = ("", "?", "NA"),
) -> Table:
    """Reads one classification table of numbers and text.

    A column whose every value is a number is numeric; any other is text. A column
    becomes, in its place:

    * numeric: itself, with gaps filled by the median of its values (0 if it has none).
      If there are gaps, a column `<column> is missing` of 0 and 1 follows.
    * text: a column `<column>=<value>` of 0 and 1 for each of its values, in the order
      of characters, and `<column> is missing` last if there are gaps. True and False
      are text.

    Columns that are constant are kept, though they tell nothing, so that files of one
    kind give tables of one width; `table_tasks` standardises them to 0.

    Args:
      source: a path of a CSV or TSV file with a header, gzipped or not, in UTF-8; a
        pandas DataFrame (its index is not read); or a mapping of column names to
        sequences of one length.
      target: name of the column of classes, numbers or text. Classes are in order of
        size if all are numbers, else in the order of characters.
      name: of the table; None for the name of the file up to its first dot, or
        `"table"`.
      delimiter: one character for files, or None to tell it from the header.
      drop: names of columns to leave out, such as those that number the rows.
      categorical: `"one_hot"` as above, or None to refuse text.
      max_categories: a text column with more values is refused, at least 1.
      missing: cells that count as gaps, besides None, NaN (in any case of letters) and
        the NA and NaT of pandas.

    Returns:
      The rows in their order, as a `Table`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a file is malformed, columns differ in length, names repeat or are
        empty, there is no such target or no other column, a target is missing, there is
        one class only, more classes than half the rows (as for a target of regression),
        an infinite number, one beyond 1e30, or text with too many values. The message
        names the column, and the line of a file or the row, counted from 0.

    Example:
      >>> table = from_table(
      ...     {"size": [1, 2, None, 4], "color": ["red", "blue", "red", "red"],
      ...      "kind": ["a", "b", "b", "a"]},
      ...     target="kind",
      ... )
      >>> table.column_names
      ('size', 'size is missing', 'color=blue', 'color=red')
      >>> table.x.tolist()[2], table.y.tolist()
      ([2.0, 1.0, 0.0, 1.0], [0, 1, 1, 0])

      A folder of PMLB's files, `*.tsv.gz`:

      >>> import pathlib
      >>> paths = sorted(pathlib.Path("pmlb").glob("*.tsv.gz"))
      >>> tables = [from_table(path, target="target") for path in paths]
    """
    if categorical not in ("one_hot", None):
        raise ValueError(
            f"`categorical` must be 'one_hot' or None, got {categorical!r}."
        )
    check_integers(1, max_categories=max_categories)
    if isinstance(drop, str) or isinstance(missing, str):
        raise ValueError(
            "`drop` and `missing` must be lists of words, got one word; write "
            "`['word']`."
        )
    text = _read(source, delimiter, frozenset(missing))
    if name is not None:
        text = text._replace(name=name)
    # Data frames may name columns by numbers.
    target, dropped = str(target), {str(column) for column in drop}
    _check_columns(text, target, dropped)
    y, class_names = _classes(text, target)
    names: list[str] = []
    blocks: list[np.ndarray] = []
    for column, cells in text.columns.items():
        if column == target or column in dropped:
            continue
        numbers = _numbers(cells)
        if numbers is not None:
            known = np.where(np.isnan(numbers), 0.0, numbers)[:, None]
            _check_finite(known, [column], text.name, text.place)
            new, block = _fill(column, numbers)
        else:
            _check_text(text, column, categorical, max_categories)
            new, block = _one_hot(column, cells)
        names += new
        blocks.append(block)
    return Table(
        np.concatenate(blocks, axis=1), y, tuple(names), class_names, text.name
    )


class _Text(NamedTuple):
    """A table before its cells mean anything.

    Attributes:
      name: of the table.
      columns: the cells of each, text without blanks around it, None where missing.
      place: says where a row stands in the source.
    """

    name: str
    columns: dict[str, Cells]
    place: Callable[[int], str]


def _read(source: Any, delimiter: str | None, missing: frozenset[str]) -> _Text:
    def cells(values: Any) -> Cells:
        return [_cell(value, missing) for value in values]

    if isinstance(source, str | os.PathLike):
        path = Path(source)
        names, rows, lines = read_delimited(path, delimiter)
        columns = zip(*rows, strict=True) if rows else [()] * len(names)
        return _Text(
            path.name.split(".")[0] or path.name,
            {name: cells(c) for name, c in zip(names, columns, strict=True)},
            lambda row: f"line {lines[row]}",
        )
    # A mapping, or a data frame, whose columns may repeat.
    keys = list(source if isinstance(source, Mapping) else _frame_columns(source))
    check_distinct([str(key) for key in keys], "`source`")
    for key in keys:
        values = source[key]
        if np.ndim(values) != 1:
            raise ValueError(
                f"Column {str(key)!r} must be a sequence of cells, one for each row, "
                f"got {type(values).__name__}; give one column for each name."
            )
        if len(values) != len(source[keys[0]]):
            raise ValueError(
                f"Columns must have one length, but {str(keys[0])!r} has "
                f"{len(source[keys[0]])} cells and {str(key)!r} has {len(values)}."
            )
    return _Text(
        "table",
        {str(key): cells(source[key]) for key in keys},
        lambda row: f"row {row}",
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
    text = str(value).strip()
    is_nan = text.lower().lstrip("+-") == "nan"
    return None if is_nan or text in missing else text


def _check_columns(text: _Text, target: str, drop: set[str]) -> None:
    known = listing([repr(name) for name in text.columns])
    if target not in text.columns:
        raise ValueError(
            f"`target` must be one of the columns of table {text.name!r}, {known}, got "
            f"{target!r}; if these are not its columns, give another `delimiter`."
        )
    if not drop <= text.columns.keys() - {target}:
        raise ValueError(
            f"`drop` must name columns of table {text.name!r} other than the target "
            f"{target!r}, of {known}, got {sorted(drop)}."
        )
    kept = text.columns.keys() - drop
    if "" in kept:
        number = list(text.columns).index("")
        raise ValueError(
            f"Column {number} of table {text.name!r} has no name; name it, or, if it "
            "only numbers the rows, leave it out by `drop=['']`."
        )
    if len(kept) == 1:
        raise ValueError(
            f"Table {text.name!r} has no column besides the target {target!r}; at "
            "least one must say something about it."
        )
    if not text.columns[target]:
        raise ValueError(f"Table {text.name!r} has column names but no rows.")


def _classes(text: _Text, target: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers `[rows]` and class names."""
    cells = text.columns[target]
    if None in cells:
        row = cells.index(None)
        raise ValueError(
            f"The target {target!r} of table {text.name!r} is missing at "
            f"{text.place(row)}, and in {cells.count(None)} of {len(cells)} rows; "
            "remove these rows."
        )
    numbers = _numbers(cells)
    keys = np.asarray(cells) if numbers is None else numbers
    _, first, y = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == 1:
        raise ValueError(
            f"The target {target!r} of table {text.name!r} has one class only, "
            f"{cells[0]!r}; there is nothing to tell apart, so use another target."
        )
    if len(first) > len(cells) / 2:
        raise ValueError(
            f"The target {target!r} of table {text.name!r} has {len(first)} values in "
            f"{len(cells)} rows, so it looks like a target of regression, and a "
            "`Table` is for classification, with two rows for each class on average; "
            "cut its range into classes, or use another target."
        )
    return y, tuple(str(cells[row]) for row in first)


def _numbers(cells: Cells) -> np.ndarray | None:
    """Numbers `[rows]` with NaN where a cell is missing; None if any cell is text."""
    numbers = [_number(cell) for cell in cells]
    return None if None in numbers else np.asarray(numbers, np.float64)


def _number(cell: str | None) -> float | None:
    if cell is None:
        return np.nan
    # Python reads "1_2" as 12, which nobody means in data.
    if "_" in cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _check_finite(
    x: np.ndarray, names: Sequence[str], table: str, place: Callable[[int], str]
) -> None:
    """Raises a ValueError for NaN, infinity or numbers beyond 1e30 in `[rows, D]`."""
    is_bad = ~(np.abs(x) <= _LARGEST)
    if is_bad.any():
        row, column = np.argwhere(is_bad)[0]
        raise ValueError(
            f"Column {names[column]!r} of table {table!r} holds {x[row, column]} at "
            f"{place(row)}, and {is_bad.sum()} such numbers are in {len(x)} rows; "
            f"numbers must be finite and within {_LARGEST:g}. Repair them, or make "
            "them gaps."
        )


def _fill(column: str, numbers: np.ndarray) -> tuple[list[str], np.ndarray]:
    is_missing = np.isnan(numbers)
    if not is_missing.any():
        return [column], numbers[:, None]
    median = 0.0 if is_missing.all() else np.median(numbers[~is_missing])
    filled = np.where(is_missing, median, numbers)
    return (
        [column, f"{column} is missing"],
        np.stack([filled, is_missing], axis=1),
    )


def _check_text(
    text: _Text, column: str, categorical: str | None, max_categories: int
) -> None:
    """Raises a ValueError if a text column is not wanted, or has too many values."""
    cells = text.columns[column]
    row = next(i for i, cell in enumerate(cells) if _number(cell) is None)
    what = (
        f"Column {column!r} of table {text.name!r} holds text, such as {cells[row]!r} "
        f"at {text.place(row)}"
    )
    num_values = len(set(cells) - {None})
    if categorical is None:
        raise ValueError(
            f"{what}, which `categorical=None` refuses; make it numbers, leave the "
            "column out by `drop`, or use `categorical='one_hot'`."
        )
    if num_values > max_categories:
        raise ValueError(
            f"{what}, with {num_values} different values, and `max_categories` allows "
            f"{max_categories}. If it should hold numbers, repair those cells; if it "
            "names rows or is free text, leave it out by `drop`; else raise "
            "`max_categories`."
        )


def _one_hot(column: str, cells: Cells) -> tuple[list[str], np.ndarray]:
    values: Cells = [*sorted({cell for cell in cells if cell is not None})]
    names = [f"{column}={value}" for value in values]
    if None in cells:
        values.append(None)
        names.append(f"{column} is missing")
    return names, np.asarray([[cell == value for value in values] for cell in cells])
