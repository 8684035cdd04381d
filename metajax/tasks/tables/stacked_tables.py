"""Tables of any number of columns one below the other, on the device.

They share one width by columns of 0. `D` are columns.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_fits, check_integers
from metajax.tasks.summaries import brief
from metajax.tasks.tables.delimited import listing
from metajax.tasks.tables.tables import Table
from metajax.types import Array

__all__ = [
    "StackedTables",
    "as_tables",
    "by_support",
    "class_counts",
    "column_scales",
    "stack_tables",
]

_STANDARDIZE = ("support", "table", None)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "y", "by_class", "starts", "counts", "centers", "scales"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class StackedTables:
    """Tables one below the other, on the device.

    Attributes:
      x: float32 `[rows of all, D]`, each table in the order of its rows.
      y: int32 `[rows of all]`, classes as each table numbers them; or float32, real
        targets.
      by_class: int32 `[rows of all]`, for each table its row numbers in order of class;
        classes that are left out stand last.
      starts: int32 `[T]`, where each table begins.
      counts: int32 `[T, C]`, rows of each class that is not left out, in the order of
        `by_class`; 0 where a table has no further class. Rows with real targets are all
        of one.
      centers: float32 `[T]`, of real targets, the mean over the table if it is to be
        standardised by that, else 0; None for classes.
      scales: float32 `[T]`, likewise the standard deviation, else 1.
    """

    x: Any
    y: Any
    by_class: Any
    starts: Any
    counts: Any
    centers: Any = None
    scales: Any = None

    def __repr__(self) -> str:
        return f"StackedTables(starts={brief(self.starts)}, x={brief(self.x)})"


def as_tables(tables: Any, *, regression: bool | None = False) -> list[Table]:
    """Lists one or several tables.

    Args:
      tables: a table, or a list of them.
      regression: whether they have real targets; None if either will do.

    Raises:
      ValueError: if they are anything else, have other targets, or of both kinds.
    """
    is_one = isinstance(tables, Table) or not isinstance(tables, Iterable)
    is_one |= getattr(tables, "shape", None) == ()  # an array without axes
    tables = [tables] if is_one else list(tables)
    if not tables or not all(isinstance(table, Table) for table in tables):
        raise ValueError(
            "`tables` must be a `Table` or a non-empty list of them, got "
            f"{listing([type(table).__name__ for table in tables], 5)}; `from_table` "
            "makes them."
        )
    kinds = {bool(table.class_names): repr(table.name) for table in tables}
    if len(kinds) == 2:
        raise ValueError(
            "`tables` must all have classes, or all have real targets, but "
            f"{kinds[True]} has classes and {kinds[False]} has not."
        )
    if regression is not None and regression is not (False in kinds):
        raise ValueError(
            f"`tables` must have classes, but table {kinds[False]} has real targets; "
            "`row_tasks` draws tasks from these."
        )
    return tables


def class_counts(table: Table) -> np.ndarray:
    """Counts the rows of each class; with real targets all rows are one."""
    if not table.class_names:
        return np.asarray([len(table.y)])
    return np.bincount(table.y, minlength=len(table.class_names))


def stack_tables(
    tables: list[Table], num_columns: int | None, standardize: str | None, needed: int
) -> StackedTables:
    """Puts tables on the device, without classes of fewer than `needed` rows."""
    if standardize not in _STANDARDIZE:
        raise ValueError(
            f"`standardize` must be 'support', 'table' or None, got {standardize!r}."
        )
    widest = max(tables, key=lambda table: table.x.shape[1])
    width = widest.x.shape[1]
    if num_columns is not None:
        check_integers(1, num_columns=num_columns)
        if num_columns < width:
            raise ValueError(
                f"`num_columns` is {num_columns}, and table {widest.name!r} has "
                f"{width}; raise it, or leave out columns or tables."
            )
        width = num_columns
        rows = sum(len(table.x) for table in tables)
        check_fits(
            f"Tables of `num_columns` = {num_columns}",
            jax.ShapeDtypeStruct((rows, width), "float32"),
            "lower `num_columns`",
        )
    x, by_class, counts, units = [], [], [], []
    for table in tables:
        columns = _by_table(table.x) if standardize == "table" else table.x
        x.append(np.pad(columns, ((0, 0), (0, width - columns.shape[1]))))
        sizes = class_counts(table)
        is_small = sizes < needed
        if table.class_names:
            by_class.append(np.lexsort((table.y, is_small[table.y])))
        else:
            by_class.append(np.arange(len(table.y)))
            y = table.y.astype(np.float64)
            of_table = standardize == "table" and np.ptp(y) > 0
            mean = y.mean() if standardize == "table" else 0.0
            units.append((mean, y.std() if of_table else 1.0))
        counts.append(sizes[~is_small])
    most = max(map(len, counts))
    lengths = np.asarray([len(table.y) for table in tables])
    kind = jnp.float32 if units else jnp.int32
    centers, scales = jnp.asarray(units, jnp.float32).T if units else (None, None)
    return StackedTables(
        x=jnp.asarray(np.concatenate(x), jnp.float32),
        y=jnp.asarray(np.concatenate([table.y for table in tables]), kind),
        by_class=jnp.asarray(np.concatenate(by_class), jnp.int32),
        starts=jnp.asarray(np.cumsum(lengths) - lengths, jnp.int32),
        counts=jnp.asarray(
            [np.pad(row, (0, most - len(row))) for row in counts], jnp.int32
        ),
        centers=centers,
        scales=scales,
    )


def _by_table(x: np.ndarray) -> np.ndarray:
    """Columns by their mean and standard deviation over all rows."""
    x = x.astype(np.float64)
    is_constant = np.ptp(x, axis=0) == 0
    scale = np.where(is_constant, 1.0, x.std(axis=0))
    return np.where(is_constant, 0.0, (x - x.mean(axis=0)) / scale)


def column_scales(support: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Computes mean and standard deviation of real rows, and which are constant.

    Args:
      support: float32 `[n, D]`.
      mask: bool `[n]`, or None where all are real.

    Returns:
      `[D]` each.
    """
    if mask is None:
        mask = jnp.ones(len(support), bool)
    where = mask[:, None]
    mean = jnp.mean(support, axis=0, where=where)
    low = jnp.min(support, axis=0, where=where, initial=jnp.inf)
    spread = jnp.max(support, axis=0, where=where, initial=-jnp.inf) - low
    # Rounding gives constant columns a small deviation, so ask for their spread.
    is_constant = spread == 0
    spread = jnp.where(is_constant, 1.0, spread)
    # In units of the spread, so that squares can neither overflow nor vanish.
    squares = ((support - mean[None, :]) / spread[None, :]) ** 2
    scale = spread * jnp.sqrt(jnp.mean(squares, axis=0, where=where))
    return mean, scale, is_constant


def by_support(support: Array, query: Array, mask: Array | None) -> tuple[Array, Array]:
    """Scales both sets by the mean and standard deviation of real support columns."""
    mean, scale, is_constant = column_scales(support, mask)

    def standardize(x: Array) -> Array:
        x = (x - mean[None, :]) / jnp.where(is_constant, 1.0, scale)[None, :]
        return jnp.where(is_constant[None, :], 0.0, x)

    return standardize(support), standardize(query)
