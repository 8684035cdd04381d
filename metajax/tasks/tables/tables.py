"""Tables of one problem each, from files, data frames or columns.

A `Table` is numbers only: text becomes indicator columns (one-hot), gaps are filled
and marked; `columns.py` has the rule. All of that looks at the columns of the whole
table and never at the target, so what a task later calls support has seen medians and
values of its query rows, but not their labels. `metajax.tasks.tables.table_tasks` draws
tasks from tables, and `read_rows` reads a second file as the first was read.

The Penn Machine Learning Benchmarks (R. S. Olson et al., "PMLB: a large benchmark suite
for machine learning evaluation and comparison", BioData Mining 2017,
https://doi.org/10.1186/s13040-017-0154-4) are files that `from_table` reads as they
are: tab-separated, gzipped, with a target of that name. Its `schizo` has two columns
`target`, of which the last is the class: `target="target.1", drop=["target"]`.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.checks import check_flags, check_integers, check_words
from metajax.tasks.tables.columns import (
    Cells,
    Column,
    Decimal,
    encode,
    plain_number,
    read_column,
)
from metajax.tasks.tables.delimited import MISSING, listing
from metajax.tasks.tables.sources import (
    SourceText,
    check_all_there,
    check_columns,
    read_source,
    without_columns,
)

__all__ = ["Encoding", "Rows", "Table", "from_table", "read_rows"]

# Far below the largest float32, so that sums over rows stay finite in float32 too.
_LARGEST = 1e30
# float32 has 24 bits: integers beyond are rounded.
_LARGEST_INTEGER = 2**24


class Encoding(NamedTuple):
    """How the text of a source became the numbers of a `Table`, for the next source.

    Attributes:
      columns: of the inputs.
      target: name of the target column.
      target_column: how a real target was read; None for classes.
      missing: cells that count as gaps.
    """

    columns: tuple[Column, ...]
    target: str
    target_column: Column | None
    missing: tuple[str, ...]


class Rows(NamedTuple):
    """New rows in the columns and classes of a table.

    Attributes:
      x: float32 `[rows, D]`.
      y: targets `[rows]` as the table has them; None where the source has none.
    """

    x: np.ndarray
    y: np.ndarray | None

    def __repr__(self) -> str:
        told = "no targets" if self.y is None else f"targets {self.y.dtype}"
        return f"Rows({len(self.x)} rows, {self.x.shape[1]} columns, {told})"


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """One problem in numbers; `from_table` makes it from a file.

    Arrays of your own may be given directly; they are checked and become what is said
    here. It is not a pytree: `table_tasks` puts its arrays on the device.

    Attributes:
      x: float32 `[rows, D]`, finite. A warning names columns that lose by it: integers
        above 2**24, and more than a tenth of different numbers that become one.
      y: int32 `[rows]`, classes in [0, len(class_names)), each of which has a row; or,
        of a regression table, float32 `[rows]`.
      column_names: D names.
      class_names: a name for each class; none, `()`, for a regression table.
      name: of the table, for errors.
      encoding: how it was read, for `read_rows`; None for arrays of your own.

    Raises:
      ValueError: if shapes do not fit, `x` is empty or holds NaN, infinity or numbers
        beyond 1e30, or `y` leaves its range or a class without rows.
    """

    x: np.ndarray
    y: np.ndarray
    column_names: tuple[str, ...]
    class_names: tuple[str, ...]
    name: str = "table"
    encoding: Encoding | None = None

    def __repr__(self) -> str:
        rows, columns = self.x.shape
        names = self.class_names
        target = f"{len(names)} classes" if names else "a real target"
        return f"Table({self.name!r}, {rows} rows, {columns} columns, {target})"

    def __post_init__(self):
        x, y = np.asarray(self.x), np.asarray(self.y)
        names = tuple(self.column_names)
        if x.ndim != 2 or x.size == 0 or x.dtype.kind not in "biuf":
            raise ValueError(
                f"`x` of table {self.name!r} must be numbers [rows, D], at least one "
                f"of each, got {x.dtype} {list(x.shape)}."
            )
        classes = tuple(self.class_names)
        kind, kinds = ("integers", "iu") if classes else ("numbers", "iuf")
        if y.shape != x.shape[:1] or y.dtype.kind not in kinds:
            raise ValueError(
                f"`y` of table {self.name!r} must be {kind} [{len(x)}], one for each "
                f"row of `x`, got {y.dtype} {list(y.shape)}; real targets have no "
                "`class_names`."
            )
        if len(names) != x.shape[1]:
            raise ValueError(
                f"`column_names` of table {self.name!r} must have one name for each of "
                f"the {x.shape[1]} columns of `x`, got {len(names)}."
            )
        _check_finite(x, names, self.name, lambda row: f"row {row}")
        # The way to set what a frozen dataclass makes of its arguments.
        object.__setattr__(self, "x", _in_float32(x, names, self.name))
        object.__setattr__(self, "column_names", names)
        object.__setattr__(self, "class_names", classes)
        if not classes:
            _check_finite(y[:, None], ["y"], self.name, lambda row: f"row {row}")
            y = _in_float32(y[:, None], ["y"], self.name)[:, 0]
            object.__setattr__(self, "y", y)
            return
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
        object.__setattr__(self, "y", y.astype(np.int32))


def _is_one_of(value: Any, words: Sequence[str]) -> bool:
    """Whether it is a word among these; an array may not be compared with them."""
    return isinstance(value, str) and value in words


def from_table(
    source: Any,
    *,
    target: str,
    regression: bool = False,
    name: str | None = None,
    delimiter: str | None = None,
    decimal: Decimal | None = None,
    column_names: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    categories: Sequence[str] = (),
    categorical: str | None = "one_hot",
    max_categories: int = 64,
    missing: Sequence[str] = MISSING,
) -> Table:
    """Reads one table of numbers and text.

    A column whose every value is a number is numeric. One whose every value is a number
    in one other notation (decimal commas, thousands with separators, one unit or
    currency), or an ISO date, is numeric too, and a warning says so. One with numbers
    for at least half of its different values, but not all, is refused, as some cell is
    odd, unless `categories` or `missing` tells what it means. Any other is text, with a
    warning if half of the values begin as numbers do (`40-49`, `<5`). A column becomes,
    in its place:

    * numeric: itself, with gaps filled by the median of its values (0 if it has none).
      If there are gaps, a column `<column> is missing` of 0 and 1 follows. Dates count
      in days since the earliest.
    * text: a column `<column>=<value>` of 0 and 1 for each of its values, in the order
      of characters, and `<column> is missing` last if there are gaps. True and False
      are text.

    Columns that are constant are kept, though they tell nothing, so that files of one
    kind give tables of one width; `table_tasks` standardises them to 0.

    Args:
      source: a path of a CSV or TSV file, gzipped or not, in UTF-8; a pandas DataFrame
        (its index is not read); or a mapping of column names to sequences of one
        length. A name that repeats is `name.1` the second time, then `name.2`.
      target: name of the column of classes, numbers or text, or of real targets.
        Classes are in order of size if all are numbers, else in the order of
        characters.
      regression: whether targets are real numbers, for `row_tasks`.
      name: of the table; None for the name of the file up to its first dot, or
        `"table"`.
      delimiter: one character for files, or None to tell it from the first line.
      decimal: `"."` or `","`, the decimal sign, where the other one may group
        thousands; None to tell it from each column, where only one reading makes sense.
      column_names: of a file that has no header; None if its first line names them.
      drop: names of columns to leave out, such as those that number the rows. Of a name
        that repeats, all but the target.
      categories: names of columns that are text, whatever they look like, such as codes
        written in digits; those of pandas's type `category` are anyway, with all of
        its categories, in their order.
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
        a column mixes numbers and text or its numbers can be read in two ways, a number
        is infinite or beyond 1e30, or text has too many values. The message names the
        column, and the line of a file or the row, counted from 0.

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
    if categorical is not None and not _is_one_of(categorical, ("one_hot",)):
        raise ValueError(
            f"`categorical` must be 'one_hot' or None, got {categorical!r}."
        )
    if decimal is not None and not _is_one_of(decimal, (".", ",")):
        raise ValueError(f"`decimal` must be '.', ',' or None, got {decimal!r}.")
    check_integers(1, max_categories=max_categories)
    check_words(drop=drop, missing=missing, categories=categories)
    check_flags(regression=regression)
    text = read_source(source, delimiter, column_names, frozenset(missing))
    if name is not None:
        text = text._replace(name=name)
    # Data frames may name columns by numbers.
    target = str(target)
    text = without_columns(text, target, {str(column) for column in drop})
    declared = {str(column) for column in categories}
    check_columns(text, target, declared)

    def read(column: str, cells: Cells) -> Column:
        values = text.categories.get(column)
        if column in declared and values is None:
            values = ()
        return read_column(
            column,
            cells,
            categories=values,
            decimal=decimal,
            table=text.name,
            place=text.place,
        )

    class_names: tuple[str, ...] = ()
    target_column = None
    if regression:
        y, target_column = _real_targets(text, target, read)
    else:
        y, class_names = _classes(text, target)
    columns, blocks = [], []
    for name_of, cells in text.columns.items():
        if name_of == target:
            continue
        column = read(name_of, cells)
        if column.values is not None:
            _check_text(text, column, categorical, max_categories)
        block = encode(column, cells, text.name, text.place)
        if column.values is None:
            _check_finite(block, column.names, text.name, text.place)
        columns.append(column)
        blocks.append(block)
    return Table(
        np.concatenate(blocks, axis=1),
        y,
        tuple(name for column in columns for name in column.names),
        class_names,
        text.name,
        Encoding(tuple(columns), target, target_column, tuple(missing)),
    )


def read_rows(
    source: Any,
    table: Table,
    *,
    delimiter: str | None = None,
    column_names: Sequence[str] | None = None,
) -> Rows:
    """Reads new rows as the rows of a table were read, with or without their targets.

    Numbers are read in the notation that the first table was written in, gaps get its
    medians, text its indicator columns, and classes its numbers. Columns that it does
    not have are left out.

    Args:
      source: as for `from_table`.
      table: what `from_table` gave.
      delimiter: as for `from_table`.
      column_names: as for `from_table`.

    Returns:
      The rows in their order. A value that the first table does not have becomes 0 in
      all indicator columns, and a warning names it.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the table is of your own arrays, a file is malformed, a column of
        the table is not there, a cell of a numeric column is no number in the notation
        of the first table, a number is infinite or beyond 1e30, or a target is missing
        (in some rows, but not all) or no class of the table; the message says where.

    Example:
      >>> table = from_table(
      ...     {"size": [1, 2, None, 4], "kind": ["a", "b", "b", "a"]}, target="kind"
      ... )
      >>> rows = read_rows({"size": [None, 7]}, table)
      >>> rows.x.tolist(), rows.y
      ([[2.0, 1.0], [7.0, 0.0]], None)
    """
    if not isinstance(table, Table):
        raise ValueError(
            f"`table` must be a `Table` of `from_table`, got {type(table).__name__}."
        )
    encoding = table.encoding
    if encoding is None:
        raise ValueError(
            f"`table` must be what `from_table` gave, but {table.name!r} was made of "
            "arrays, so that nothing tells how rows became numbers."
        )
    text = read_source(source, delimiter, column_names, frozenset(encoding.missing))
    absent = [c.name for c in encoding.columns if c.name not in text.columns]
    if absent:
        raise ValueError(
            f"{text.name!r} must have the columns of table {table.name!r}, but has no "
            f"{listing([repr(name) for name in absent])}; its columns are "
            f"{listing([repr(name) for name in text.columns])}."
        )
    if not next(iter(text.columns.values())):
        raise ValueError(f"Table {text.name!r} has column names but no rows.")
    blocks = []
    for column in encoding.columns:
        cells = text.columns[column.name]
        block = encode(column, cells, text.name, text.place)
        _check_finite(block, column.names, text.name, text.place)
        blocks.append(block)
    x = _in_float32(np.concatenate(blocks, axis=1), table.column_names, text.name)
    cells = text.columns.get(encoding.target, [])
    if not any(cell is not None for cell in cells):
        return Rows(x, None)
    check_all_there(text, encoding.target)
    if not table.class_names:
        assert encoding.target_column is not None  # what `from_table` gives
        y = encode(encoding.target_column, cells, text.name, text.place)
        _check_finite(y, [encoding.target], text.name, text.place)
        return Rows(x, _in_float32(y, [encoding.target], text.name)[:, 0])
    numbers: dict[Any, int] = {
        name: number for number, name in enumerate(table.class_names)
    }
    if all(plain_number(name) is not None for name in numbers):
        # `1` and `1.0` are one class.
        numbers = {_class_key(name): number for name, number in numbers.items()}
        keys = [_class_key(cell) for cell in cells]
    else:
        keys = list(cells)
    for row, key in enumerate(keys):
        if key not in numbers:
            raise ValueError(
                f"The target {encoding.target!r} of {text.name!r} is {cells[row]!r} at "
                f"{text.place(row)}, which is no class of table {table.name!r}; these "
                f"are {listing([repr(name) for name in table.class_names])}."
            )
    return Rows(x, np.asarray([numbers[key] for key in keys], np.int32))


def _real_targets(
    text: SourceText, target: str, read: Callable[[str, Cells], Column]
) -> tuple[np.ndarray, Column]:
    """Real targets float64 `[rows]`, and how they were read."""
    check_all_there(text, target)
    cells = text.columns[target]
    column = read(target, cells)
    if column.values is not None:
        raise ValueError(
            f"The target {target!r} of table {text.name!r} must be numbers for "
            f"`regression=True`, but holds {cells[0]!r} at {text.place(0)}; use "
            "another target, or `regression=False` for classes."
        )
    y = encode(column, cells, text.name, text.place)
    _check_finite(y, [target], text.name, text.place)
    return y[:, 0], column


def _classes(text: SourceText, target: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers `[rows]` and class names."""
    check_all_there(text, target)
    cells = [cell for cell in text.columns[target] if cell is not None]
    keys: Any = cells
    if all(plain_number(cell) is not None for cell in cells):
        keys = [_class_key(cell) for cell in cells]
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    y = np.asarray([places[key] for key in keys])
    if len(places) == 1:
        raise ValueError(
            f"The target {target!r} of table {text.name!r} has one class only, "
            f"{cells[0]!r}; there is nothing to tell apart, so use another target."
        )
    if len(places) > len(cells) / 2:
        raise ValueError(
            f"The target {target!r} of table {text.name!r} has {len(places)} values in "
            f"{len(cells)} rows, so it looks like a target of regression: read it by "
            "`regression=True`. (Classes have two rows each on average; else cut the "
            "range into classes, or use another target.)"
        )
    return y, tuple(cells[keys.index(key)] for key in places)


def _class_key(cell: str | None) -> Any:
    """A class by its number; whole ones exactly, however large; text as it is."""
    try:
        return int(str(cell))
    except ValueError:
        number = plain_number(str(cell))
        return cell if number is None else number


def _in_float32(x: np.ndarray, names: Sequence[str], table: str) -> np.ndarray:
    """Numbers `[rows, D]` as float32; warns of columns that lose by it.

    That is of changed integers, and where more than a tenth of the different numbers
    are different no more.
    """
    rounded = x.astype(np.float32)
    if x.dtype == np.float32 or x.dtype.kind == "b":
        return rounded
    is_other = rounded != x if x.dtype.kind == "f" else rounded.astype(x.dtype) != x
    size = np.abs(x.astype(np.float64))
    is_whole = (_LARGEST_INTEGER < size) & (size < 2.0**53) & (size == np.floor(size))
    lost = [
        column
        for column in map(int, np.flatnonzero(is_other.any(axis=0)))
        if (is_other & is_whole)[:, column].any()
        or _num_different(rounded[:, column]) < 0.9 * _num_different(x[:, column])
    ]
    if lost:
        before, after = x[:, lost[0]], rounded[:, lost[0]]
        row = int(np.argmax(is_other[:, lost[0]]))
        warnings.warn(
            f"Columns {listing([repr(names[column]) for column in lost], 5)} of table "
            f"{table!r} hold more digits than float32 can: {before[row]:.17g} becomes "
            f"{after[row]:.12g}, and of {_num_different(before)} different numbers "
            f"{_num_different(after)} are left. "
            "Subtract an offset, or, if they number something, leave them out by "
            "`drop` or name them in `categories`.",
            UserWarning,
            stacklevel=4,
        )
    return rounded


def _num_different(values: np.ndarray) -> int:
    return len(np.unique(values))


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


def _check_text(
    text: SourceText, column: Column, categorical: str | None, max_categories: int
) -> None:
    """Raises a ValueError if a text column is not wanted, or has too many values."""
    assert column.values is not None
    cells = text.columns[column.name]
    row = next((i for i, c in enumerate(cells) if c and plain_number(c) is None), 0)
    what = (
        f"Column {column.name!r} of table {text.name!r} holds text, such as "
        f"{cells[row]!r} at {text.place(row)}"
    )
    if categorical is None:
        raise ValueError(
            f"{what}, which `categorical=None` refuses; make it numbers, leave the "
            "column out by `drop`, or use `categorical='one_hot'`."
        )
    if len(column.values) > max_categories:
        raise ValueError(
            f"{what}, with {len(column.values)} different values, and `max_categories` "
            f"allows {max_categories}. If it should hold numbers, repair those cells; "
            "if it names rows or is free text, leave it out by `drop`; else raise "
            "`max_categories`."
        )
