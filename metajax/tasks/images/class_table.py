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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from metajax.checks import check_integers
from metajax.tasks.sizes import as_range, check_num_queries, size_masks
from metajax.types import Array, Examples, Task

__all__ = [
    "ClassTable",
    "ClassTableTasks",
    "TaskIndices",
    "WholeClasses",
    "as_floats",
    "check_arrays",
    "check_floating",
    "class_table",
    "distinct",
    "few_shot",
    "join_classes",
    "quarter_turns",
    "split_classes",
    "take_images",
    "whole_classes",
]

Augment = Callable[[Array, Array], Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["images", "counts"],
    meta_fields=["rotations", "class_names"],
)
@dataclasses.dataclass(frozen=True)
class ClassTable:
    """Images by class; build it with `class_table`, which checks them.

    Attributes:
      images: uint8 `[rows, max_per_class, H, W, C]`; a row that holds fewer examples is
        padded at the end. A numpy array (or a memory map) may stand here for
        `metajax.tasks.images.grain_source`, which keeps it off the device. Or embeddings of images,
        floating `[rows, max_per_class, D]`, see `metajax.tasks.images.embedded`.
      counts: int32 `[rows]`, how many examples of each row are real, at least 1.
      rotations: 1, 2 or 4, how many quarter turns of each row are classes of their own.
      class_names: a name for each row, or None.
    """

    images: Any
    counts: Any
    rotations: int = 1
    class_names: tuple[str, ...] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes there are to draw from, rotated ones included."""
        return self.counts.shape[0] * self.rotations

    def take(self, rows: Sequence[int] | np.ndarray) -> "ClassTable":
        """The table of some rows (with all their rotations), in the given order.

        Args:
          rows: distinct integers in [0, number of rows), at least one.

        Raises:
          ValueError: if `rows` is empty, repeats a row, or leaves the range.
        """
        rows = np.asarray(rows)
        total = self.counts.shape[0]
        if (
            rows.ndim != 1
            or rows.size == 0
            or not np.issubdtype(rows.dtype, np.integer)
        ):
            raise ValueError(
                "`rows` must be a non-empty list of integers, got an array of shape "
                f"{rows.shape} and dtype {rows.dtype}."
            )
        if rows.min() < 0 or rows.max() >= total:
            raise ValueError(
                f"`rows` must lie in [0, {total}), the rows of this table, got values "
                f"from {rows.min()} to {rows.max()}."
            )
        if np.unique(rows).size != rows.size:
            raise ValueError(
                "`rows` must be distinct: a repeated row would be two classes that no "
                "learner can tell apart."
            )
        names = self.class_names
        return dataclasses.replace(
            self,
            images=self.images[rows],
            counts=self.counts[rows],
            class_names=None if names is None else tuple(names[row] for row in rows),
        )


def class_table(
    images: Any,
    counts: Any = None,
    *,
    rotations: int = 1,
    class_names: Sequence[str] | None = None,
) -> ClassTable:
    """Checks a class-major array and puts it on the device.

    Args:
      images: uint8 `[rows, max_per_class, H, W, C]`, all sizes at least 1; or
        embeddings, floating `[rows, max_per_class, D]`, which tasks give unscaled.
      counts: integers `[rows]` in [1, max_per_class]; None means that all are real.
      rotations: 1, 2 or 4; more than 1 needs square images.
      class_names: a name for each row, or None.

    Returns:
      A `ClassTable` whose arrays are JAX arrays.

    Raises:
      ValueError: for any other dtype, rank, count or number of rotations.
    """
    check_arrays(images, counts, rotations, class_names)
    if counts is None:
        counts = np.full(images.shape[0], images.shape[1])
    return ClassTable(
        jnp.asarray(images),
        jnp.asarray(counts, jnp.int32),
        rotations,
        None if class_names is None else tuple(class_names),
    )


def split_classes(
    table: ClassTable, key: Array, fractions: Sequence[float]
) -> tuple[ClassTable, ...]:
    """Splits a table by class into parts that share none; rotations stay together.

    Rows are shuffled once and cut, so the parts are disjoint by construction. The same
    key gives the same parts.

    Args:
      table: what to split.
      key: random key, consumed.
      fractions: the share of the rows in each part, positive, with a sum of at most 1;
        with a sum of 1 every row is in one part.

    Returns:
      A `ClassTable` for each fraction, rows in the order of `table`.

    Raises:
      ValueError: if fractions are out of range or a part would hold no row.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or not np.all(shares > 0) or not np.sum(shares) <= 1 + 1e-9:
        raise ValueError(
            "`fractions` must be positive with a sum of at most 1, got "
            f"{tuple(fractions)}."
        )
    rows = table.images.shape[0]
    ends = np.concatenate([[0.0], np.cumsum(shares)]) * rows
    bounds = np.floor(ends + 0.5).astype(int)
    if np.any(np.diff(bounds) < 1):
        raise ValueError(
            f"`fractions` {tuple(fractions)} leave a part of the {rows} rows empty; "
            "use fewer parts or a larger fraction."
        )
    order = np.asarray(jax.random.permutation(key, rows))
    return tuple(
        table.take(np.sort(order[start:stop]))
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
    )


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
@dataclasses.dataclass(frozen=True)
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

    def __call__(self, key: Array) -> Task:
        """Draws one task; the key is consumed. Shapes are in `few_shot`."""
        # Without the barrier XLA may compute the indices anew for every pixel.
        indices = jax.lax.optimization_barrier(self.indices(key))
        images = take_images(self.table, *self.places(indices))
        return self.assemble(key, indices, images)

    def indices(self, key: Array) -> TaskIndices:
        """Which images the task of this key is made of, without touching images."""
        key_class, key_example, key_size, _ = jax.random.split(key, 4)
        way, shot = self.way[1], self.shot[1]
        class_ids = distinct(key_class, self.table.num_classes, way)
        counts = self.table.counts[class_ids // self.table.rotations]
        example_ids = distinct(key_example, counts, shot + self.num_queries)
        masks = size_masks(key_size, self.way, self.shot, self.num_queries)
        return TaskIndices(class_ids, example_ids, *masks)

    def places(self, indices: TaskIndices) -> tuple[Array, Array]:
        """Where the images of a task lie in the table.

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
    """Few-shot classification tasks over the classes of a table.

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
      >>> table = class_table(np.zeros((8, 20, 28, 28, 1), np.uint8), rotations=4)
      >>> tasks = few_shot(table, way=5, shot=1, num_queries=15)
      >>> task = tasks(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.shape
      ((5, 28, 28, 1), (75, 28, 28, 1))
    """
    check_arrays(table.images, table.counts, table.rotations, table.class_names)
    way_range, shot_range = as_range("way", way), as_range("shot", shot)
    check_num_queries(num_queries)
    check_floating(dtype)
    if way_range[1] > table.num_classes:
        raise ValueError(
            f"`way` asks for {way_range[1]} classes but the table has "
            f"{table.num_classes}; lower `way` or use a larger table."
        )
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
    # Names are dropped: as static data they would make equal programs compile twice.
    table = dataclasses.replace(table, class_names=None)
    return ClassTableTasks(
        table, way_range, shot_range, num_queries, augment, jnp.dtype(dtype)
    )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["table"],
    meta_fields=["batch_size", "augment", "dtype"],
)
@dataclasses.dataclass(frozen=True)
class WholeClasses:
    """Batches for ordinary classification; build it with `whole_classes`."""

    table: ClassTable
    batch_size: int
    augment: Augment | None
    dtype: Any

    def __call__(self, key: Array) -> Task:
        """Draws one batch, support and query alike; the key is consumed."""
        key_class, key_example, key_augment = jax.random.split(key, 3)
        table, num = self.table, (self.batch_size,)
        class_ids = jax.random.randint(key_class, num, 0, table.num_classes, jnp.int32)
        rows = class_ids // table.rotations
        columns = jax.random.randint(key_example, num, 0, table.counts[rows])
        images = table.images[rows, columns]
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
    """Ordinary classification of all classes of a table, for `baseline`.

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
    check_arrays(table.images, table.counts, table.rotations, table.class_names)
    check_integers(1, batch_size=batch_size)
    check_floating(dtype)
    table = dataclasses.replace(table, class_names=None)
    return WholeClasses(table, batch_size, augment, jnp.dtype(dtype))


def join_classes(tables: Sequence[ClassTable]) -> ClassTable:
    """One table with the classes of several, for one classifier of all of them.

    A task from it may mix their classes; `metajax.tasks.mixture` keeps them apart.

    Args:
      tables: at least one, with images (or embeddings) of one shape and the same number
        of rotations.

    Returns:
      A table with the rows of the first, then those of the second, and so on, padded to
      the largest class. It has names if all of them have.

    Raises:
      ValueError: if there is no table, or they differ in shape, dtype or rotations.
    """
    if not tables:
        raise ValueError("`tables` must hold at least one table, got none.")
    kinds = [(t.images.shape[2:], str(t.images.dtype), t.rotations) for t in tables]
    for number, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                "`tables` must agree in shape, dtype and rotations of their images, "
                f"but table 0 has {kinds[0]} and table {number} has {kind}; the "
                "readers convert by `size` and `channels`."
            )
    most = max(table.images.shape[1] for table in tables)
    images = [
        np.pad(
            np.asarray(table.images),
            [(0, 0), (0, most - table.images.shape[1])]
            + [(0, 0)] * (table.images.ndim - 2),
        )
        for table in tables
    ]
    counts = np.concatenate([np.asarray(table.counts) for table in tables])
    names: list[str] | None = []
    for table in tables:
        if table.class_names is None or names is None:
            names = None
        else:
            names += table.class_names
    return class_table(
        np.concatenate(images),
        counts,
        rotations=tables[0].rotations,
        class_names=names,
    )


def take_images(table: ClassTable, rows: Array, columns: Array) -> Array:
    """Images `[n, ...]` of a table on the device, as they are, at `[n]` places."""
    # One index for all images and one axis for all pixels: on CPU the gather alone
    # is three times as fast as with the axes of images.
    images = table.images
    flat = images.reshape(images.shape[0] * images.shape[1], -1)
    taken = flat[rows * images.shape[1] + columns]
    return taken.reshape(-1, *images.shape[2:])


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


def as_floats(images: Array, dtype: Any) -> Array:
    """From bytes to [0, 1].

    On CPU a loop over the short axes of images, to which XLA otherwise comes back by a
    choice of layout, is several times slower than one over all pixels of an image.
    """
    # XLA makes this product of a division anyway, but only inside `jit`.
    if images.dtype != jnp.uint8:  # embeddings, which have no range
        return images.astype(dtype)
    pixels = images.reshape(len(images), -1).astype(dtype)
    pixels = _row_major(pixels * jnp.asarray(1 / 255, dtype))
    return _row_major(pixels.reshape(images.shape))


def _row_major(values: Array) -> Array:
    layout = Layout(tuple(range(values.ndim)))
    return jax.lax.platform_dependent(
        values,
        cpu=lambda values: with_layout_constraint(values, layout),
        default=lambda values: values,
    )


def quarter_turns(images: Array, turns: Array) -> Array:
    """Turns each of `[n, H, H, C]` counter-clockwise by its `[n]` quarters."""
    turns = turns[:, None, None, None]
    images = jnp.where(turns % 2 == 1, jnp.swapaxes(images, 1, 2), images)
    images = jnp.where((turns == 1) | (turns == 2), jnp.flip(images, 1), images)
    return jnp.where(turns >= 2, jnp.flip(images, 2), images)


def check_floating(dtype: Any) -> None:
    """Raises a ValueError unless it is a floating type."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`dtype` must be a floating type, got {dtype!r}.")


def check_arrays(
    images: Any, counts: Any, rotations: int, class_names: Sequence[str] | None
) -> None:
    """Raises ValueError unless these can be the fields of a `ClassTable`."""
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    embeds = shape is not None and len(shape) == 3 and np.issubdtype(dtype, np.floating)
    if shape is None or not (embeds or dtype == np.uint8):
        raise ValueError(
            f"`images` must be a uint8 array, got {dtype or type(images).__name__}; "
            "`metajax.tasks.images.loaders.from_arrays` converts floats in [0, 1]."
        )
    if embeds and (0 in shape or rotations > 1):
        raise ValueError(
            "Embeddings `[rows, max_per_class, D]` must have no empty axes and no "
            f"rotations, got shape {tuple(shape)} and {rotations} rotations."
        )
    if not embeds and (len(shape) != 5 or 0 in shape):
        raise ValueError(
            "`images` must have shape [rows, max_per_class, H, W, C] without empty "
            f"axes, got {tuple(shape)}."
        )
    if rotations not in (1, 2, 4):
        raise ValueError(f"`rotations` must be 1, 2 or 4, got {rotations!r}.")
    if rotations > 1 and shape[2] != shape[3]:
        raise ValueError(
            f"`rotations` of {rotations} needs square images, got {shape[2]} x "
            f"{shape[3]}; use `rotations=1` or resize."
        )
    if counts is not None:
        counts = np.asarray(counts)
        if counts.shape != shape[:1] or not np.issubdtype(counts.dtype, np.integer):
            raise ValueError(
                f"`counts` must be {shape[0]} integers, one for each row of `images`, "
                f"got shape {counts.shape} and dtype {counts.dtype}."
            )
        if counts.min() < 1 or counts.max() > shape[1]:
            raise ValueError(
                f"`counts` must lie in [1, {shape[1]}], the examples a row can hold, "
                f"got values from {counts.min()} to {counts.max()}."
            )
    if class_names is not None and len(class_names) != shape[0]:
        raise ValueError(
            f"`class_names` must name each of the {shape[0]} rows, got "
            f"{len(class_names)} names."
        )
