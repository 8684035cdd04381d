"""Few-shot classification tasks drawn from the rows of one or several tables.

Two ways to draw, both inside `jit` and of fixed shapes:

* `table_tasks`: `way` classes of a table and as many rows of each, as in few-shot
  classification of images. Labels are the places of the classes in the draw, so they
  mean nothing from one task to the next.
* `row_tasks`: a small sample of a whole table, all classes in their proportions, as
  one who has 5 to 50 rows of it would hold. Labels are the table's own.

Tables of any number of columns share one width by columns of 0. Axis letters: `N` way,
`K` shot, `Q` queries (of each class, or of the task), `D` columns, `T` tables, `C`
classes of the table that has most.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_choice, is_integer
from metajax.masks import hide_padding
from metajax.tasks.images.few_shot import distinct
from metajax.tasks.sizes import as_range, check_num_queries, size_masks
from metajax.tasks.summaries import summary
from metajax.tasks.tables.delimited import listing
from metajax.tasks.tables.stacked_tables import (
    StackedTables,
    as_tables,
    by_support,
    class_counts,
    stack_tables,
)
from metajax.tasks.tables.tables import Table
from metajax.tasks.tables.units import Units, target_units
from metajax.types import Array, Examples, Task

__all__ = [
    "RowTasks",
    "TableRows",
    "TableTasks",
    "row_tasks",
    "table_tasks",
]


class TableRows(NamedTuple):
    """Which rows make up a task.

    Attributes:
      table: int32 scalar, place of the table in the list that was given.
      support: int32 `[support]`, numbers of rows of that table, padding included.
      query: int32 `[query]`, likewise; no real one is in the real support.
      support_mask: bool `[support]`, or None where all are real.
      query_mask: bool `[query]`, or None where all are real.
    """

    table: Array
    support: Array
    query: Array
    support_mask: Array | None
    query_mask: Array | None


_Tasks = TypeVar("_Tasks", "TableTasks", "RowTasks")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tables", "choices"],
    meta_fields=["way", "shot", "num_queries", "standardize"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class TableTasks:
    """A `TaskDistribution` over tables; build it with `table_tasks`, which checks it.

    It is a pytree: hand it to `jit` as an argument, so that tables are not copied into
    the compiled program. `way` and `shot` are inclusive `(low, high)` ranges here, and
    `choices`, int32 `[any]`, are the tables to draw from.
    """

    tables: StackedTables
    choices: Any
    way: tuple[int, int]
    shot: tuple[int, int]
    num_queries: int
    standardize: str | None

    __repr__ = summary

    def __call__(self, key: Array) -> Task:
        """Draws one task; the key is consumed. Shapes are in `table_tasks`."""
        rows = jax.lax.optimization_barrier(self.rows(key))
        labels = jnp.arange(self.way[1], dtype=jnp.int32)
        support_y = jnp.repeat(labels, self.shot[1])
        query_y = jnp.repeat(labels, self.num_queries)
        return _assemble(self.tables, rows, support_y, query_y, self.standardize)

    def rows(self, key: Array) -> TableRows:
        """Tells which rows the task of this key is made of, in order of label."""
        key_table, key_class, key_row, key_size = jax.random.split(key, 4)
        table = jax.random.choice(key_table, self.choices)
        counts = self.tables.counts[table]
        num_classes = jnp.sum(counts > 0)
        way, shot = self.way[1], self.shot[1]
        # Where `way` is above the classes of this table, the surplus is masked below.
        classes = jnp.minimum(distinct(key_class, num_classes, way), num_classes - 1)
        places = distinct(key_row, counts[classes], shot + self.num_queries)
        places += (jnp.cumsum(counts) - counts)[classes][:, None]
        rows = self.tables.by_class[self.tables.starts[table] + places]
        support_mask, query_mask = size_masks(
            key_size, self.way, self.shot, self.num_queries
        )
        if support_mask is not None and query_mask is not None:
            has_class = jnp.arange(way) < num_classes
            support_mask &= jnp.repeat(has_class, shot)
            query_mask &= jnp.repeat(has_class, self.num_queries)
        return TableRows(
            table,
            rows[:, :shot].reshape(-1),
            rows[:, shot:].reshape(-1),
            support_mask,
            query_mask,
        )

    def only(self, table: int) -> "TableTasks":
        """Restricts tasks to one table, by its place in the list; see `row_tasks`."""
        return _only(self, table)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tables", "choices"],
    meta_fields=["num_rows", "num_queries", "standardize"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class RowTasks:
    """A `TaskDistribution` over tables; build it with `row_tasks`, which checks it.

    It is a pytree: hand it to `jit` as an argument. `num_rows` is an inclusive range,
    and `choices`, int32 `[any]`, are the tables to draw from.
    """

    tables: StackedTables
    choices: Any
    num_rows: tuple[int, int]
    num_queries: int
    standardize: str | None

    __repr__ = summary

    def __call__(self, key: Array) -> Task:
        """Draws one task; the key is consumed. Shapes are in `row_tasks`."""
        rows = jax.lax.optimization_barrier(self.rows(key))
        support_y, query_y = self._targets(rows)
        if self.tables.scales is not None:
            units = self._units(rows)
            support_y, query_y = (
                units.standardize(support_y),
                units.standardize(query_y),
            )
            support_y = hide_padding(support_y, rows.support_mask)
        return _assemble(self.tables, rows, support_y, query_y, self.standardize)

    def units(self, key: Array) -> Units:
        """Tells how the real targets of the task of this key were standardised.

        Raises:
          ValueError: if targets are classes.
        """
        if self.tables.scales is None:
            raise ValueError(
                "`units` are those of real targets, but these tables have classes; "
                "read them by `from_table(..., regression=True)`."
            )
        return self._units(self.rows(key))

    def _targets(self, rows: TableRows) -> tuple[Array, Array]:
        start = self.tables.starts[rows.table]
        targets = self.tables.y[start + rows.support], self.tables.y[start + rows.query]
        if self.tables.scales is None:
            return targets
        return targets[0][:, None], targets[1][:, None]

    def _units(self, rows: TableRows) -> Units:
        if self.standardize == "support":
            return target_units(self._targets(rows)[0], rows.support_mask)
        table = rows.table
        return Units(self.tables.centers[table][None], self.tables.scales[table][None])

    def rows(self, key: Array) -> TableRows:
        """Tells which rows the task of this key is made of."""
        key_table, key_size, key_tie, key_support, key_query = jax.random.split(key, 5)
        table = jax.random.choice(key_table, self.choices)
        counts, start = self.tables.counts[table], self.tables.starts[table]
        most = self.num_rows[1]
        size = jax.random.randint(key_size, (), self.num_rows[0], most + 1)

        classes, nth = _seats(key_tie, counts, most)
        places = distinct(key_support, counts, most)[classes, nth]
        places += (jnp.cumsum(counts) - counts)[classes]
        is_real = jnp.arange(most) < size

        # Draws are places among what support leaves; each support row at or before one
        # moves it by one, the lowest first.
        taken = jnp.sort(jnp.where(is_real, places, jnp.iinfo(jnp.int32).max))
        free = distinct(key_query, jnp.sum(counts) - size, self.num_queries)
        free = jax.lax.fori_loop(
            0, most, lambda i, values: values + (values >= taken[i]), free
        )
        return TableRows(
            table,
            self.tables.by_class[start + places],
            self.tables.by_class[start + free],
            None if self.num_rows[0] == most else is_real,
            None,
        )

    def only(self, table: int) -> "RowTasks":
        """Restricts tasks to one table, by its place in the list; see `row_tasks`."""
        return _only(self, table)


def table_tasks(
    tables: Table | Sequence[Table],
    *,
    way: int | tuple[int, int],
    shot: int | tuple[int, int],
    num_queries: int,
    num_columns: int | None = None,
    standardize: str | None = "support",
    small_classes: str = "error",
) -> TableTasks:
    """Draws few-shot tasks: some classes of one table, and as many rows of each.

    The table of a task is uniform over `tables`, its classes are uniform over all sets
    of `N` classes of the table, rows are uniform over those of the class, and support
    and query share none. With a range for `way` or `shot`, values are uniform over the
    range and independent, each task is padded to the largest, and masks say what is
    real; a table with fewer classes than the way drawn gives all of its classes.

    Args:
      tables: one or several, of any widths.
      way: N, classes in a task, at least 1; or an inclusive `(low, high)`. Each table
        must have at least `low` classes.
      shot: K, support rows of each class, at least 1; or an inclusive range.
      num_queries: Q, query rows of each class, at least 1.
      num_columns: D, to which tables are padded by columns of 0; None for the widest.
      standardize: what a column is centred and divided by. `"support"`: mean and
        standard deviation over the real support rows of the task, so that nothing else
        enters; `"table"`: over all rows of the table, query rows included; None: leave
        columns as they are. A column that is constant there becomes 0. Of few support
        rows that nearly agree, query values may lie very far.
      small_classes: of a class with fewer rows than `shot + num_queries`. `"error"`
        refuses it; `"drop"` leaves it out, as if the table did not have it.

    Returns:
      A callable `(key) -> Task`, itself a pytree. Sets are in order of label: support
      `x` float32 `[N * K, D]` and `y` int32 `[N * K]` in [0, N), query the same with Q.
      Padding is 0 in `x`. `mask` is None unless `way` (or, for support, `shot`) is a
      range. Its `only(i)` draws from table `i` alone, see `row_tasks`, and `rows(key)`
      tells which rows the task of a key holds.

    Raises:
      ValueError: if a number is out of range, a table is wider than `num_columns`, has
        too few classes, or has a small class; tables and classes are named.

    Example:
      >>> tasks = table_tasks(tables, way=3, shot=5, num_queries=10)
      >>> task = tasks(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.shape
      ((15, 6), (30, 6))
    """
    tables = as_tables(tables)
    way_range, shot_range = as_range("way", way), as_range("shot", shot)
    check_num_queries(num_queries)
    check_choice(("error", "drop"), small_classes=small_classes)
    needed = shot_range[1] + num_queries
    if small_classes == "error":
        small = [
            f"class {name!r} of {table.name!r} has {count}"
            for table in tables
            for name, count in zip(table.class_names, class_counts(table), strict=True)
            if count < needed
        ]
        if small:
            raise ValueError(
                f"`shot + num_queries` needs {needed} rows of every class, but "
                f"{listing(small, 5)}; lower `shot` or `num_queries`, leave such "
                "classes out by `small_classes='drop'`, or leave out the tables."
            )
    ways = [int(np.sum(class_counts(table) >= needed)) for table in tables]
    few = [
        f"{table.name!r} has {num}"
        for table, num in zip(tables, ways, strict=True)
        if num < way_range[0]
    ]
    if few:
        large_enough = f" of at least {needed} rows" * (small_classes == "drop")
        raise ValueError(
            f"`way` needs {way_range[0]} classes{large_enough} in every table, but "
            f"{listing(few, 5)}; lower `way` or leave out these tables."
        )
    if max(ways) < way_range[1]:
        raise ValueError(
            f"`way` goes up to {way_range[1]} classes, but no table has more than "
            f"{max(ways)}; lower `way`."
        )
    stacked = stack_tables(tables, num_columns, standardize, needed)
    choices = jnp.arange(len(tables), dtype=jnp.int32)
    return TableTasks(stacked, choices, way_range, shot_range, num_queries, standardize)


def row_tasks(
    tables: Table | Sequence[Table],
    *,
    rows: int | tuple[int, int],
    num_queries: int,
    num_columns: int | None = None,
    standardize: str | None = "support",
) -> RowTasks:
    """Draws small-data tasks: a few rows of one table, and others of it to predict.

    The table of a task is uniform over `tables`, and the number of support rows uniform
    over the range. These seats are given to classes as a parliament's are to parties:
    one each, and the next always to the class with the largest `rows / (seats + 1/2)`
    (the method of Webster and Sainte-Laguë), ties at random. Rows are then uniform over
    those of their class, and query rows uniform over all other rows of the table. Rows
    with real targets are uniform over all rows of the table.

    Args:
      tables: one or several, of any widths; all have classes, or all real targets.
      rows: support rows of the task, or an inclusive `(low, high)`; at least as many as
        any table has classes.
      num_queries: Q, query rows of the task (not of each class), at least 1.
      num_columns: as for `table_tasks`.
      standardize: as for `table_tasks`; real targets likewise, but with a standard
        deviation of 1 where they are constant.

    Returns:
      A callable `(key) -> Task`, itself a pytree: support `x` float32 `[high, D]` and
      `y` int32 `[high]`, classes as the table numbers them, or float32 `[high, 1]`,
      standardised real targets; query the same with Q. `units(key)` are those of the
      targets, whose `restore` brings predictions back to the table's.
      Padding is 0 in `x`. `mask` is None but for the support of a range. `only(i)`
      draws from table `i` alone; all of these share one compiled program. `rows(key)`
      tells which rows the task of a key holds.

    Raises:
      ValueError: if a number is out of range, tables of classes and of real targets are
        mixed, or a table is wider than `num_columns`, has more classes than the low end
        of `rows`, or fewer rows than its high end and `num_queries` together; tables
        are named.

    Example:
      >>> tasks = row_tasks(tables, rows=(5, 50), num_queries=30)
      >>> tasks.only(1)(jax.random.key(0)).support.x.shape
      (50, 6)

      A neural process on a table with a real target, and its predictions in units:

      >>> from metajax.learners import conditional_np
      >>> from metajax.tasks import from_table
      >>> columns = {"size": range(40), "price": [3.5 * i for i in range(40)]}
      >>> prices = from_table(columns, target="price", regression=True)
      >>> tasks = row_tasks(prices, rows=10, num_queries=5)
      >>> key, learner = jax.random.key(0), conditional_np(code_size=16)
      >>> task = tasks(key)
      >>> meta_params = learner.init(key, task)  # or those that `train` learned
      >>> adapted = learner.adapt(meta_params, task.support)
      >>> outputs = tasks.units(key).restore(learner.predict(adapted, task.query.x))
      >>> outputs.mean.shape
      (5, 1)
    """
    tables = as_tables(tables, regression=None)
    low, high = as_range("rows", rows)
    check_num_queries(num_queries)
    many = [
        f"{table.name!r} has {len(table.class_names)}"
        for table in tables
        if len(table.class_names) > low
    ]
    if many:
        raise ValueError(
            f"`rows` must be at least the number of classes of every table, but it may "
            f"be {low}, and {listing(many, 5)}; raise `rows` or leave out these tables."
        )
    short = [
        f"{table.name!r} has {len(table.y)}"
        for table in tables
        if len(table.y) < high + num_queries
    ]
    if short:
        raise ValueError(
            f"`rows + num_queries` needs {high + num_queries} rows of every table, but "
            f"{listing(short, 5)}; lower `rows` or `num_queries`, or leave out these "
            "tables."
        )
    stacked = stack_tables(tables, num_columns, standardize, 1)
    choices = jnp.arange(len(tables), dtype=jnp.int32)
    return RowTasks(stacked, choices, (low, high), num_queries, standardize)


def _only(tasks: _Tasks, table: int) -> _Tasks:
    num = tasks.tables.starts.shape[0]
    if not is_integer(table) or not 0 <= table < num:
        raise ValueError(
            f"`table` must be an integer in [0, {num}), the place of a table, got "
            f"{table!r}."
        )
    return dataclasses.replace(tasks, choices=jnp.asarray([table], jnp.int32))


def _seats(key: Array, counts: Array, num_seats: int) -> tuple[Array, Array]:
    """Gives seats to classes; the first `n` are the seats that `n` would give.

    A seat is worth `rows / (seats that the class has + 1/2)`, its first one infinitely
    much; seats are given in order of worth.

    Args:
      key: random key for ties, consumed.
      counts: int32 `[C]`, rows of each class.
      num_seats: at most the sum of `counts`.

    Returns:
      int32 `[num_seats]` each: the class, and how many seats it has already.
    """
    seats = jnp.arange(num_seats)[None, :]
    ties = jax.random.uniform(key, (len(counts), 1), minval=1.0, maxval=1.0001)
    worth = jnp.where(seats == 0, jnp.inf, counts[:, None] * ties / (seats + 0.5))
    worth = jnp.where(seats < counts[:, None], worth, -1.0)
    _, best = jax.lax.top_k(worth.reshape(-1), num_seats)
    return best // num_seats, best % num_seats


def _assemble(
    tables: StackedTables,
    rows: TableRows,
    support_y: Array,
    query_y: Array,
    standardize: str | None,
) -> Task:
    """Gathers the rows of a task, standardises them, and puts 0 into padding."""
    start = tables.starts[rows.table]
    support, query = tables.x[start + rows.support], tables.x[start + rows.query]
    if standardize == "support":
        support, query = by_support(support, query, rows.support_mask)
    return Task(
        Examples(
            hide_padding(support, rows.support_mask), support_y, rows.support_mask
        ),
        Examples(hide_padding(query, rows.query_mask), query_y, rows.query_mask),
    )
