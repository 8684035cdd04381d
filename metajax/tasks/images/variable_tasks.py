"""Few-shot tasks of any way and shot, drawn as Meta-Dataset draws them.

E. Triantafillou, T. Zhu, V. Dumoulin, P. Lamblin, U. Evci, K. Xu, R. Goroshin,
C. Gelada, K. Swersky, P.-A. Manzagol, H. Larochelle, "Meta-Dataset: A Dataset of
Datasets for Learning to Learn from Few Examples", ICLR 2020,
https://arxiv.org/abs/1903.03096, section 3.2 and its appendix:

    way       N' ~ U{low, ..., min(high, classes)}, classes without replacement
    queries   q = min(Q, min over c of floor(|c| / 2)), the same of every class
    size      s = min(max_support, sum over c of ceil(beta m_c)),  beta ~ U(0, 1],
              m_c = min(max_per_class, |c| - q)
    shots     k_c = min(floor(r_c (s - N')) + 1, |c| - q),
              r_c proportional to |c| exp(alpha_c),  alpha_c ~ U[log 0.5, log 2)

|c| is the number of examples of a class, and sums and minima are over the N' classes of
the task. So tasks are imbalanced, about as their classes are. `groups` are the paper's
hierarchy of Omniglot: a task then has classes of one group (alphabet) only, uniform
over groups, and `classes` in the first line are those of the group. Its hierarchy of
ImageNet, nodes of WordNet, is not here.

All tasks have one shape: support sets are packed, class after class, into as many rows
as the largest may have (500 and not 50 times 100), query sets have Q rows for each of
the N classes of the widest task, and masks say what is real. `metajax.tasks.buckets`
keeps small tasks from paying for rows that they do not fill.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_dtype, check_instances, check_integers, check_parts
from metajax.tasks.images.class_table import (
    ClassTable,
    as_data,
    as_floats,
    check_arrays,
    quarter_turns,
    take_images,
)
from metajax.tasks.images.few_shot import Augment, distinct
from metajax.tasks.sizes import as_range
from metajax.tasks.summaries import summary
from metajax.types import Array, Examples, Task

__all__ = ["Composition", "MetaDatasetTasks", "RowIndices", "meta_dataset_tasks"]

_LOG_WEIGHTS = (math.log(0.5), math.log(2.0))


class Composition(NamedTuple):
    """What a task is made of, before examples are drawn.

    Attributes:
      class_ids: int32 `[N]`, of which the classes with shots are in the task.
      shots: int32 `[N]`, support examples of each class; 0 after the last class.
      num_queries: int32 scalar, query examples of each class.
    """

    class_ids: Array
    shots: Array
    num_queries: Array


class RowIndices(NamedTuple):
    """Which images make up a task, for support rows and then query rows, `[R]` in all.

    Attributes:
      labels: int32 `[R]`, place of the class in the task; 0 in padding.
      class_ids: int32 `[R]`, in [0, num_classes) of the table.
      example_ids: int32 `[R]`, distinct among the real rows of a class.
      support_mask: bool, of the first rows.
      query_mask: bool, of the other rows.
    """

    labels: Array
    class_ids: Array
    example_ids: Array
    support_mask: Array
    query_mask: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["table", "members", "group_sizes"],
    meta_fields=[
        "way",
        "num_queries",
        "support_rows",
        "max_support",
        "max_per_class",
        "augment",
        "dtype",
    ],
)
@dataclasses.dataclass(frozen=True, eq=False)
class MetaDatasetTasks:
    """A `TaskDistribution`; build it with `meta_dataset_tasks`, which checks it.

    It is a pytree: hand it to `jit` as an argument, so that the images are not copied
    into the compiled program. `way` is an inclusive `(low, high)` range here, whose end
    is N, and `members` int32 `[groups, classes]` are the class ids of each group.
    """

    table: ClassTable
    members: Array
    group_sizes: Array
    way: tuple[int, int]
    num_queries: int
    support_rows: int
    max_support: int
    max_per_class: int
    augment: Augment | None
    dtype: Any

    __repr__ = summary

    def __call__(self, key: Array) -> Task:
        """Draws one task; the key is consumed. See `meta_dataset_tasks` for shapes."""
        indices = self.indices(key)
        # Without the barrier XLA may compute the indices anew for every pixel.
        places = jax.lax.optimization_barrier(self.places(indices))
        return self.assemble(key, indices, take_images(self.table, *places))

    def composition(self, key: Array) -> Composition:
        """Draws classes and numbers of examples of the task of this key."""
        key_group, key_way, key_class, key_size, key_shot, _, _ = _split(key)
        low, high = self.way
        group = jax.random.randint(key_group, (), 0, len(self.group_sizes))
        size = self.group_sizes[group]
        way = jax.random.randint(key_way, (), low, jnp.minimum(high, size) + 1)
        members = distinct(key_class, size, high)
        class_ids = self.members[group, jnp.minimum(members, size - 1)]
        is_real = jnp.arange(high) < way

        counts = self.table.counts[class_ids // self.table.rotations]
        smallest = jnp.min(counts, where=is_real, initial=jnp.iinfo(jnp.int32).max)
        num_queries = jnp.minimum(self.num_queries, smallest // 2)
        left = counts - num_queries

        beta = 1 - jax.random.uniform(key_size)
        shares = jnp.ceil(beta * jnp.minimum(left, self.max_per_class))
        total = jnp.sum(shares, where=is_real)
        total = jnp.minimum(total, self.max_support)
        low_log, high_log = _LOG_WEIGHTS
        alpha = jax.random.uniform(key_shot, (high,), minval=low_log, maxval=high_log)
        weights = jnp.where(is_real, counts * jnp.exp(alpha), 0)
        shots = jnp.floor(weights / jnp.sum(weights) * (total - way)).astype(int) + 1
        shots = jnp.where(is_real, jnp.minimum(shots, left), 0)
        return Composition(class_ids, shots, num_queries)

    def indices(self, key: Array) -> RowIndices:
        """Tells which images the task of this key holds, without touching images."""
        class_ids, shots, num_queries = self.composition(key)
        ends = jnp.cumsum(shots)
        row = jnp.arange(self.support_rows)
        place = jnp.searchsorted(ends, row, side="right", method="compare_all")
        place = jnp.minimum(place, len(shots) - 1)
        support_mask = row < ends[-1]

        query_place, draw = jnp.divmod(
            jnp.arange(len(shots) * self.num_queries), self.num_queries
        )
        query_mask = (draw < num_queries) & (shots[query_place] > 0)

        # Examples of a class are drawn without replacement, support before query.
        place = jnp.concatenate([place, query_place])
        number = jnp.concatenate(
            [row - (ends - shots)[place[: len(row)]], shots[query_place] + draw]
        )
        is_real = jnp.concatenate([support_mask, query_mask])
        class_ids = class_ids[place]
        counts = self.table.counts[class_ids // self.table.rotations]
        example_ids = _distinct_in_groups(
            _split(key)[5], counts, jnp.where(is_real, place, -1), number
        )
        return RowIndices(
            jnp.where(is_real, place, 0),
            class_ids,
            example_ids,
            support_mask,
            query_mask,
        )

    def places(self, indices: RowIndices) -> tuple[Array, Array]:
        """Gives rows and columns `[R]` of the images of a task in the table."""
        return indices.class_ids // self.table.rotations, indices.example_ids

    def assemble(self, key: Array, indices: RowIndices, images: Array) -> Task:
        """Turns gathered images into a task: rotates, scales, augments, splits.

        Args:
          key: the key that gave `indices`.
          indices: what `indices(key)` returned.
          images: `[R, ...]`, what the table holds at `places`.

        Returns:
          The task that calling this distribution with `key` returns.
        """
        chex.assert_equal_shape_prefix([images, indices.labels], 1)
        if self.table.rotations > 1:
            images = quarter_turns(images, indices.class_ids % self.table.rotations)
        keys = jax.random.split(_split(key)[6])
        sets = []
        for part, mask in enumerate((indices.support_mask, indices.query_mask)):
            rows = slice(None, len(mask)) if part == 0 else slice(-len(mask), None)
            x = as_floats(images[rows], self.dtype)
            if self.augment is not None:
                x = self.augment(keys[part], x)
            x = jnp.where(mask.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)
            sets.append(Examples(x, indices.labels[rows], mask))
        return Task(*sets)


def meta_dataset_tasks(
    table: ClassTable,
    *,
    way: int | tuple[int, int] = (5, 50),
    max_support: int = 500,
    max_per_class: int = 100,
    num_queries: int = 10,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    augment: Augment | None = None,
    dtype: Any = jnp.float32,
) -> MetaDatasetTasks:
    """Draws tasks of variable way and imbalanced shots by the protocol of Meta-Dataset.

    Take learners without a head of fixed size (`prototypical`, `proto_maml`, `ridge`).
    Masks are never None here.

    Args:
      table: images by class (or embeddings, see `embed_table`).
      way: inclusive range of the number of classes; its end is lowered to the number of
        classes that there are. An integer makes tasks of one way.
      max_support: most support examples of a task, at least its number of classes.
      max_per_class: a class contributes at most this to the size of the support set;
        at least 1. It does not bound the shots of the class, which share that size.
      num_queries: query examples of each class at most, at least 1.
      groups: a label for each row of the table, such as the alphabet of a character,
        `[name.split("/")[0] for name in table.class_names]`; a task has classes of one
        group. None makes one group of all. The labels are only compared.
      augment: as for `few_shot`.
      dtype: as for `few_shot`.

    Returns:
      A callable `(key) -> Task`, itself a pytree. Support `x` `[S, H, W, C]` and `y`
      int32 `[S]` in [0, N), sorted by class and without gaps, S at most `max_support`;
      query the same with `[N * Q]`, Q rows for each class. Padding is 0 in both.

    Raises:
      ValueError: if a number is out of range, a class has a single example, the table
        or a group has fewer classes than the range of `way` begins with, or `groups`
        has not a label for each row.

    Example:
      >>> from metajax.tasks.images.class_table import class_table
      >>> table = class_table(np.zeros((8, 20, 28, 28, 1), np.uint8))
      >>> task = meta_dataset_tasks(table)(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.shape
      ((80, 28, 28, 1), (80, 28, 28, 1))
    """
    check_instances(ClassTable, "`metajax.tasks.from_arrays` makes one", table=table)
    check_arrays(table.images, table.counts, table.rotations, table.class_names)
    low, high = as_range("way", way)
    check_integers(
        1, max_support=max_support, max_per_class=max_per_class, num_queries=num_queries
    )
    check_dtype(dtype)
    if augment is not None:
        check_parts(augment=augment)
    counts = np.asarray(table.counts)
    row = int(np.argmin(counts))
    if counts[row] < 2:
        name = "" if table.class_names is None else f" ({table.class_names[row]!r})"
        raise ValueError(
            "Every class needs at least 2 examples, one to learn from and one to ask "
            f"for, but class row {row}{name} has {counts[row]}; leave out small "
            "classes with `table.take`."
        )
    rows = _rows_of_groups(groups, len(counts))
    rotated = np.arange(table.rotations)
    members = [
        (rows_of[:, None] * table.rotations + rotated).ravel()
        for rows_of in rows.values()
    ]
    group, classes = min(zip(rows, members, strict=True), key=lambda item: len(item[1]))
    if len(classes) < low:
        what = "the table" if groups is None else f"group {group!r}"
        if table.origin is not None:
            what += f", of {table.origin},"
        raise ValueError(
            f"`way` asks for at least {low} classes but {what} has {len(classes)}; "
            "lower `way` or leave out small groups with `table.take`."
        )
    high = min(high, max(map(len, members)))
    if max_support < high:
        raise ValueError(
            f"`max_support` must leave an example for each of up to {high} classes, "
            f"got {max_support}; raise it or lower `way`."
        )
    # The least that is left for support, and so the largest sets that can be drawn.
    least_queries = min(num_queries, int(counts.min()) // 2)
    most_queries, most_support = 1, 0
    for classes in members:
        sizes = np.sort(counts[classes // table.rotations])[::-1]
        most_queries = max(most_queries, min(num_queries, int(sizes[low - 1]) // 2))
        shares = np.minimum(sizes[:high] - least_queries, max_per_class)
        most_support = max(most_support, min(max_support, int(shares.sum())))
    padded = np.zeros((len(members), max(map(len, members))), np.int32)
    for place, classes in enumerate(members):
        padded[place, : len(classes)] = classes
    return MetaDatasetTasks(
        as_data(table),
        jnp.asarray(padded),
        jnp.asarray([len(classes) for classes in members], jnp.int32),
        (low, high),
        most_queries,
        most_support,
        int(max_support),
        int(max_per_class),
        augment,
        jnp.dtype(dtype),
    )


def _rows_of_groups(
    groups: Sequence[Hashable] | np.ndarray | None, num_rows: int
) -> dict[Hashable, np.ndarray]:
    """Rows of the table by group, groups in the order of their first row."""
    labels = [0] * num_rows if groups is None else np.asarray(groups, object).tolist()
    if not isinstance(labels, list) or len(labels) != num_rows:
        got = len(labels) if isinstance(labels, list) else 0
        raise ValueError(
            f"`groups` must have a label for each of the {num_rows} rows of the table, "
            f"got {got}."
        )
    rows: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return {label: np.asarray(of_label) for label, of_label in rows.items()}


def _split(key: Array) -> Array:
    """Keys of group, way, classes, size, shots, examples and augmentation."""
    return jax.random.split(key, 7)


def _distinct_in_groups(
    key: Array, sizes: Array, groups: Array, numbers: Array
) -> Array:
    """Draws integers that differ within each group, uniform over all ordered choices.

    As `metajax.tasks.images.class_table.distinct`, for groups with other numbers of
    draws: draw number `i` of a group is an index into the `size - i` integers that the
      group
    has not drawn yet, and earlier draws are put back, the latest first.

    Args:
      key: random key, consumed.
      sizes: int32 `[R]`, how many integers the group of the draw has.
      groups: int32 `[R]`, which group a draw is of; negative for none.
      numbers: int32 `[R]`, 0, 1, ... within each group, in the order of the draws.

    Returns:
      int32 `[R]` in [0, size); 0 for draws of no group.
    """
    is_real = groups >= 0
    left = jnp.where(is_real, sizes - numbers, 1)
    draws = jax.random.randint(key, groups.shape, 0, left)
    places = jnp.arange(len(groups))

    def put_back(i: Array, values: Array) -> Array:
        earlier = len(groups) - 1 - i
        is_later = (places > earlier) & (groups == groups[earlier]) & is_real
        return values + (is_later & (values >= draws[earlier]))

    return jax.lax.fori_loop(0, len(groups), put_back, draws, unroll=4)
