"""Pairs of samples of tables, to learn whether both come from the same one.

The auxiliary task of H. Jomaa et al., "Dataset2Vec", 2021,
https://arxiv.org/abs/1905.11063: each task has a sample of one table as its support set
and two queries, another sample of the same table without a row in common (target 1),
and a sample of another table (target 0). Axis letters: `D` columns, `T` tables.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_integers
from metajax.tasks.images.few_shot import distinct
from metajax.tasks.sizes import as_range
from metajax.tasks.summaries import summary
from metajax.tasks.tables.delimited import listing
from metajax.tasks.tables.stacked_tables import StackedTables, as_tables, stack_tables
from metajax.tasks.tables.tables import Table
from metajax.types import Array, Examples, Task

__all__ = ["TablePairs", "table_pairs"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tables", "widths"],
    meta_fields=["num_rows", "num_columns"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class TablePairs:
    """A `TaskDistribution` over tables; build it with `table_pairs`, which checks it.

    It is a pytree: hand it to `jit` as an argument. `widths`, int32 `[T]`, are the
    numbers of columns of the tables, and `num_rows` is an inclusive range.
    """

    tables: StackedTables
    widths: Any
    num_rows: tuple[int, int]
    num_columns: int

    __repr__ = summary

    def __call__(self, key: Array) -> Task:
        """Draws one task; the key is consumed. Shapes are in `table_pairs`."""
        key_table, key_row, key_size, key_column = jax.random.split(key, 4)
        own, other = distinct(key_table, self.widths.shape[0], 2)
        places = jnp.stack([own, own, other])
        totals = jnp.sum(self.tables.counts, axis=1)[places]
        low, most = self.num_rows
        # Two samples of the same table share no row, so none has more than half of it.
        limits = jnp.minimum(most, totals // 2)
        power = jax.random.uniform(key_size, (3,))
        sizes = (low * ((limits + 1) / low) ** power).astype(jnp.int32)
        sizes = jnp.clip(sizes, low, limits)  # for rounding

        # Only the first `totals` of the draws are distinct, and no more are taken.
        draws = distinct(key_row, totals[1:], 2 * most)
        second = jnp.minimum(limits[0] + jnp.arange(most), 2 * most - 1)
        rows = jnp.stack([draws[0, :most], draws[0, second], draws[1, :most]])
        mask = jnp.arange(most)[None, :] < sizes[:, None]
        rows = jnp.where(mask, rows, 0) + self.tables.starts[places][:, None]

        widths = self.widths[places]
        columns = distinct(key_column, widths, self.num_columns)
        is_column = jnp.arange(self.num_columns)[None, :] < widths[:, None]
        columns = jnp.where(is_column, columns, 0)
        x = self.tables.x[rows[:, :, None], columns[:, None, :]]
        is_cell = mask[:, :, None] & is_column[:, None, :]
        samples = Examples(jnp.where(is_cell, x, 0), self.tables.y[rows], mask)
        support, query = (
            jax.tree.map(lambda leaf, part=part: leaf[part], samples)
            for part in (0, slice(1, 3))
        )
        return Task(support, Examples(query, jnp.asarray([1, 0], jnp.int32)))


def table_pairs(
    tables: Sequence[Table],
    *,
    rows: int | tuple[int, int],
    max_columns: int | None = None,
) -> TablePairs:
    """Draws tasks of whether two samples come from the same table, for `dataset2vec`.

    Both tables are uniform over all pairs of different ones, rows uniform over those of
    the table. The numbers of rows of the three samples are independent, and uniform in
    their logarithm over the range, up to half of the table.

    Args:
      tables: two or more, of any widths.
      rows: of a sample, or an inclusive `(low, high)`.
      max_columns: a sample of a wider table has this many of its columns, drawn anew
        for each sample; in any case columns come in random order. None takes all of
        them.

    Returns:
      A callable `(key) -> Task`, itself a pytree: support `x` float32 `[high, D]`, `y`
      int32 `[high]`, classes as the table numbers them, and `mask` bool `[high]`; the
      query `x` is `Examples` of two samples, `[2, high, D]` and `[2, high]`, its `y`
      `[1, 0]`.
      Columns are as in the table, not standardised; padding is 0.

    Raises:
      ValueError: if a number is out of range, there are fewer than two tables, or one
        has fewer than twice the low end of `rows`; tables are named.

    Example:
      >>> pairs = table_pairs(tables, rows=(20, 40), max_columns=5)
      >>> task = pairs(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.x.shape, task.query.y.tolist()
      ((40, 5), (2, 40, 5), [1, 0])
    """
    tables = as_tables(tables)
    num_rows = as_range("rows", rows)
    if len(tables) < 2:
        raise ValueError(f"Pairs of tables need at least 2 of them, got {len(tables)}.")
    few = [
        f"{table.name!r} has {len(table.y)}"
        for table in tables
        if len(table.y) < 2 * num_rows[0]
    ]
    if few:
        raise ValueError(
            f"Two samples of at least {num_rows[0]} rows need {2 * num_rows[0]} rows "
            f"of every table, but {listing(few, 5)}; lower `rows` or leave out these "
            "tables."
        )
    widths = np.asarray([table.x.shape[1] for table in tables], np.int32)
    num_columns = int(widths.max())
    if max_columns is not None:
        check_integers(1, max_columns=max_columns)
        num_columns = min(num_columns, max_columns)
    return TablePairs(
        stack_tables(tables, None, None, 1),
        jnp.asarray(widths),
        num_rows,
        num_columns,
    )
