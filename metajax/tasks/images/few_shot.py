"""Few-shot classification tasks from a class-major table of images on the device.

A task takes `way` classes without replacement and, of each, `shot + num_queries`
examples without replacement; labels are the places of the classes in that draw, so they
mean nothing from one task to the next (O. Vinyals, C. Blundell, T. Lillicrap,
K. Kavukcuoglu, D. Wierstra, "Matching Networks for One Shot Learning", NeurIPS 2016,
https://arxiv.org/abs/1606.04080, section 2.2). All of it happens inside `jit`: images
stay uint8 on the device, are gathered, and become floats in [0, 1] only then.

Axis letters: `N` way, `K` shot, `Q` queries per class, `H, W, C` height, width and
channels of an image. An example is numbered within its class, `example_ids` in
[0, counts[row]). A class is numbered by `class_ids` in [0, num_classes), of which
`class_id // rotations` is the row of the table and `class_id % rotations` the number of
counter-clockwise quarter turns: rotated copies are classes of their own (A. Santoro et
al., "Meta-Learning with Memory-Augmented Neural Networks", ICML 2016) and cost no
memory.
"""

import dataclasses
import functools
from collections.abc import Callable
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
    too_few_classes,
)
from metajax.tasks.sizes import as_range, check_num_queries, size_masks
from metajax.tasks.summaries import summary
from metajax.types import Array, Examples, Task

__all__ = [
    "Augment",
    "ClassTableTasks",
    "TaskIndices",
    "WholeClasses",
    "distinct",
    "few_shot",
    "whole_classes",
]

Augment = Callable[[Array, Array], Array]


class TaskIndices(NamedTuple):
    """Which images make up a task.

    Attributes:
      class_ids: int32 `[N]`, distinct, in [0, num_classes).
      example_ids: int32 `[N, K + Q]`, distinct within a row; the first K are support.
      support_mask: bool `[N * K]`, or None where way and shot are fixed.
      query_mask: bool `[N * Q]`, or None where way is fixed.
    """

    class_ids: Array
    example_ids: Array
    support_mask: Array | None = None
    query_mask: Array | None = None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["table"],
    meta_fields=["way", "shot", "num_queries", "augment", "dtype"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class ClassTableTasks:
    """A `TaskDistribution` over a table; build it with `few_shot`, which checks it.

    It is a pytree: hand it to `jit` as an argument, so that the images are not copied
    into the compiled program. `way` and `shot` are inclusive `(low, high)` ranges here.
    """

    table: ClassTable
    way: tuple[int, int]
    shot: tuple[int, int]
    num_queries: int
    augment: Augment | None
    dtype: Any

    __repr__ = summary

    def __call__(self, key: Array) -> Task:
        """Draws one task; the key is consumed. Shapes are in `few_shot`."""
        # Without the barrier XLA may compute the indices anew for every pixel.
        indices = jax.lax.optimization_barrier(self.indices(key))
        images = take_images(self.table, *self.places(indices))
        return self.assemble(key, indices, images)

    def indices(self, key: Array) -> TaskIndices:
        """Tells which images the task of this key holds, without touching images."""
        key_class, key_example, key_size, _ = jax.random.split(key, 4)
        way, shot = self.way[1], self.shot[1]
        class_ids = distinct(key_class, self.table.num_classes, way)
        counts = self.table.counts[class_ids // self.table.rotations]
        example_ids = distinct(key_example, counts, shot + self.num_queries)
        masks = size_masks(key_size, self.way, self.shot, self.num_queries)
        return TaskIndices(class_ids, example_ids, *masks)

    def places(self, indices: TaskIndices) -> tuple[Array, Array]:
        """Tells where the images of a task lie in the table.

        Returns:
          Rows and columns, int32 `[N * (K + Q)]` each: all support examples by class,
          then all query examples by class.
        """
        rows = indices.class_ids // self.table.rotations
        columns = indices.example_ids
        return self._in_order(jnp.broadcast_to(rows[:, None], columns.shape)), (
            self._in_order(columns)
        )

    def assemble(self, key: Array, indices: TaskIndices, images: Array) -> Task:
        """Turns gathered images into a task: rotates, scales, augments, splits.

        Args:
          key: the key that gave `indices`.
          indices: what `indices(key)` returned.
          images: uint8 `[N * (K + Q), H, W, C]`, what the table holds at `places`.

        Returns:
          The task that calling this distribution with `key` returns.
        """
        chex.assert_axis_dimension(images, 0, indices.example_ids.size)
        if self.table.rotations > 1:
            turns = (indices.class_ids % self.table.rotations)[:, None]
            turns = jnp.broadcast_to(turns, indices.example_ids.shape)
            images = quarter_turns(images, self._in_order(turns))
        way, shot = self.way[1], self.shot[1]
        support = as_floats(images[: way * shot], self.dtype)
        query = as_floats(images[way * shot :], self.dtype)
        if self.augment is not None:
            key_support, key_query = jax.random.split(jax.random.split(key, 4)[3])
            support = self.augment(key_support, support)
            query = self.augment(key_query, query)
        labels = jnp.arange(way, dtype=jnp.int32)
        return Task(
            Examples(support, jnp.repeat(labels, shot), indices.support_mask),
            Examples(query, jnp.repeat(labels, self.num_queries), indices.query_mask),
        )

    def _in_order(self, values: Array) -> Array:
        """From `[N, K + Q]` to `[N * (K + Q)]` with all of support before query."""
        shot = self.shot[1]
        return jnp.concatenate(
            [values[:, :shot].reshape(-1), values[:, shot:].reshape(-1)]
        )


def few_shot(
    table: ClassTable,
    *,
    way: int | tuple[int, int],
    shot: int | tuple[int, int],
    num_queries: int,
    augment: Augment | None = None,
    dtype: Any = jnp.float32,
) -> ClassTableTasks:
    """Draws few-shot classification tasks over the classes of a table.

    The `N` classes are uniform over all sets of `N` classes, and so are the examples of
    each class over its real ones; support and query of a task share no image. With a
    range for `way` or `shot`, their values are uniform over the range and independent,
    each task is padded to the largest, and masks say what is real; every class of a
    task has the same number of shots.

    Args:
      table: images by class.
      way: N, classes in a task, at least 1; or an inclusive `(low, high)`.
      shot: K, support examples of each class, at least 1; or an inclusive range.
      num_queries: Q, query examples of each class (not of the task), at least 1.
      augment: `(key, images) -> images`, applied to the float images `[n, H, W, C]` of
        support and query with different keys; a pure function.
      dtype: floating type of `x`.

    Returns:
      A callable `(key) -> Task`, itself a pytree. Both sets are ordered by class:
      support `x` `[N * K, H, W, C]` in [0, 1] and `y` int32 `[N * K]` in [0, N), query
      the same with Q. `mask` is None unless `way` (or, for support, `shot`) is a range.

    Raises:
      ValueError: if a number is out of range, there are fewer classes than `way`, or a
        class holds fewer examples than `shot + num_queries`.

    Example:
      >>> from metajax.tasks.images.class_table import class_table
      >>> table = class_table(np.zeros((8, 20, 28, 28, 1), np.uint8), rotations=4)
      >>> tasks = few_shot(table, way=5, shot=1, num_queries=15)
      >>> task = tasks(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.shape
      ((5, 28, 28, 1), (75, 28, 28, 1))
    """
    check_instances(ClassTable, "`metajax.tasks.from_arrays` makes one", table=table)
    check_arrays(table.images, table.counts, table.rotations, table.class_names)
    way_range, shot_range = as_range("way", way), as_range("shot", shot)
    check_num_queries(num_queries)
    check_dtype(dtype)
    if augment is not None:
        check_parts(augment=augment)
    if way_range[1] > table.num_classes:
        raise too_few_classes(table, way_range[1])
    counts = np.asarray(table.counts)
    row = int(np.argmin(counts))
    needed = shot_range[1] + num_queries
    if counts[row] < needed:
        name = "" if table.class_names is None else f" ({table.class_names[row]!r})"
        raise ValueError(
            f"`shot + num_queries` needs {needed} examples of every class but class "
            f"row {row}{name} has {counts[row]}; lower `shot` or `num_queries`, or "
            "leave out the small classes with `table.take`."
        )
    return ClassTableTasks(
        as_data(table), way_range, shot_range, num_queries, augment, jnp.dtype(dtype)
    )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["table"],
    meta_fields=["batch_size", "augment", "dtype"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class WholeClasses:
    """Batches for ordinary classification; build it with `whole_classes`."""

    table: ClassTable
    batch_size: int
    augment: Augment | None
    dtype: Any

    __repr__ = summary

    def __call__(self, key: Array) -> Task:
        """Draws one batch, support and query alike; the key is consumed."""
        key_class, key_example, key_augment = jax.random.split(key, 3)
        table, num = self.table, (self.batch_size,)
        class_ids = jax.random.randint(key_class, num, 0, table.num_classes, jnp.int32)
        rows = class_ids // table.rotations
        columns = jax.random.randint(key_example, num, 0, table.counts[rows])
        images = take_images(table, rows, columns)
        if table.rotations > 1:
            images = quarter_turns(images, class_ids % table.rotations)
        images = as_floats(images, self.dtype)
        if self.augment is not None:
            images = self.augment(key_augment, images)
        batch = Examples(images, class_ids)
        return Task(batch, batch)


def whole_classes(
    table: ClassTable,
    *,
    batch_size: int,
    augment: Augment | None = None,
    dtype: Any = jnp.float32,
) -> WholeClasses:
    """Draws ordinary classification of all classes of a table, for `baseline`.

    Classes are uniform, and so are the examples of each; both with replacement.

    Args:
      table: images by class.
      batch_size: examples of a batch, at least 1.
      augment: as for `few_shot`.
      dtype: as for `few_shot`.

    Returns:
      A callable `(key) -> Task`, itself a pytree. Support and query are the same
      `Examples`: `x` `[batch_size, H, W, C]`, and `y` int32 in [0, num_classes), which
      means the same in every batch.

    Raises:
      ValueError: if an argument is out of range.
    """
    check_instances(ClassTable, "`metajax.tasks.from_arrays` makes one", table=table)
    check_arrays(table.images, table.counts, table.rotations, table.class_names)
    if augment is not None:
        check_parts(augment=augment)
    check_integers(1, batch_size=batch_size)
    check_dtype(dtype)
    return WholeClasses(as_data(table), batch_size, augment, jnp.dtype(dtype))


def distinct(key: Array, size: Array | int, num_draws: int) -> Array:
    """Draws different integers, in random order, uniform over all ordered choices.

    Draw `i` is an index into the `size - i` integers not drawn yet; putting the earlier
    draws back, the latest first, turns it into the integer itself. That takes
    `num_draws ** 2` comparisons and no sort, and unlike the largest of random numbers
    it has no ties.

    Args:
      key: random key, consumed.
      size: integers `[...]`, how many integers to draw from; may be traced. Draws for
        different sizes are independent.
      num_draws: how many to draw, at most `size` (not checked when traced: of more, the
        first `size` are as they should be, and the others mean nothing).

    Returns:
      int32 `[..., num_draws]` in [0, size), distinct along the last axis.
    """
    size = jnp.asarray(size)[..., None]
    places = jnp.broadcast_to(jnp.arange(num_draws), (*size.shape[:-1], num_draws))
    draws = jax.random.randint(key, places.shape, 0, size - places)

    def put_back(i: Array, values: Array) -> Array:
        earlier = num_draws - 1 - i
        draw = jax.lax.dynamic_slice_in_dim(draws, earlier, 1, axis=-1)
        return values + ((places > earlier) & (values >= draw))

    return jax.lax.fori_loop(0, num_draws, put_back, draws, unroll=num_draws <= 32)
