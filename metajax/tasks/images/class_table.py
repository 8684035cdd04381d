"""A table of images by class, on the device or in memory maps on the host.

Images stay uint8 and become floats in [0, 1] only where they are used. `H, W, C` are
height, width and channels of an image. A class is numbered by `class_ids` in
[0, num_classes), of which `class_id // rotations` is the row of the table and
`class_id % rotations` the number of counter-clockwise quarter turns: rotated copies are
classes of their own (A. Santoro et al., "Meta-Learning with Memory-Augmented Neural
Networks", ICML 2016) and cost no memory. `few_shot.py` draws tasks from it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from metajax.checks import (
    as_numbers,
    check_instances,
    check_lists,
    check_words,
    is_integer,
)
from metajax.tasks.summaries import summary
from metajax.types import Array

__all__ = [
    "ClassTable",
    "Rotations",
    "as_data",
    "as_floats",
    "check_arrays",
    "class_table",
    "join_classes",
    "quarter_turns",
    "split_classes",
    "take_images",
    "too_few_classes",
]


Rotations = Literal[1, 2, 4]
"""How many quarter turns of an image are classes of their own."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["images", "counts"],
    meta_fields=["rotations", "class_names", "origin"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class ClassTable:
    """Images by class; build it with `class_table`, which checks them.

    Attributes:
      images: uint8 `[rows, max_per_class, H, W, C]`; a row that holds fewer examples is
        padded at the end. A numpy array (or a memory map) may stand here for
        `metajax.tasks.images.grain_source`, which keeps it off the device. Or
        signals, which have no range: vectors, such as embeddings of images
        (`metajax.tasks.images.embedded`), floating `[rows, max_per_class, D]`, or
        series `[rows, max_per_class, L, C]`.
      counts: int32 `[rows]`, how many examples of each row are real, at least 1.
      rotations: 1, 2 or 4, how many quarter turns of each row are classes of their own.
      class_names: a name for each row, or None.
      origin: which part of a larger table it is, for errors, or None.
    """

    images: Any
    counts: Any
    rotations: Rotations = 1
    class_names: tuple[str, ...] | None = None
    origin: str | None = None

    def __repr__(self) -> str:
        shape = getattr(self.images, "shape", None)
        if shape is None:  # without its images, or with what `jax.tree.map` made
            return summary(self)
        kind = "images" if len(shape) == 5 else "examples"
        size = " x ".join(map(str, shape[2:]))
        turned = f", {self.rotations} rotations each" * (self.rotations > 1)
        return (
            f"ClassTable({shape[0]} classes, up to {shape[1]} {kind} of {size} each, "
            f"{self.images.dtype}{turned})"
        )

    @property
    def num_classes(self) -> int:
        """How many classes there are to draw from, rotated ones included."""
        return self.counts.shape[0] * self.rotations

    def take(self, rows: Sequence[int] | np.ndarray) -> "ClassTable":
        """Takes some rows (with all their rotations) as a table, in the given order.

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
    rotations: Rotations = 1,
    class_names: Sequence[str] | None = None,
) -> ClassTable:
    """Checks a class-major array and puts it on the device.

    Args:
      images: uint8 `[rows, max_per_class, H, W, C]`, all sizes at least 1; or vectors
        or series, floating `[rows, max_per_class, D]` or `[rows, max_per_class, L, C]`,
        which tasks give unscaled.
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
    table: ClassTable,
    key: Array,
    fractions: Sequence[float],
    names: Sequence[str] | None = None,
) -> tuple[ClassTable, ...]:
    """Splits a table by class into parts that share none; rotations stay together.

    Rows are shuffled once and cut, so the parts are disjoint by construction. The same
    key gives the same parts.

    Args:
      table: what to split.
      key: random key, consumed.
      fractions: the share of the rows in each part, positive, with a sum of at most 1;
        with a sum of 1 every row is in one part.
      names: of the parts, for errors; None numbers them.

    Returns:
      A `ClassTable` for each fraction, rows in the order of `table`.

    Raises:
      ValueError: if fractions are out of range, a part would hold no row, or there is
        not a name for each part.
    """
    check_instances(ClassTable, "`metajax.tasks.from_arrays` makes one", table=table)
    check_lists(fractions=fractions)
    if names is not None:
        check_words(names=names)
    shares = as_numbers(fractions=fractions)
    if shares.ndim != 1 or not np.all(shares > 0) or not np.sum(shares) <= 1 + 1e-9:
        raise ValueError(
            "`fractions` must be positive with a sum of at most 1, got "
            f"{tuple(fractions)}."
        )
    if names is None:
        names = [f"part {place}" for place in range(len(shares))]
    if isinstance(names, str) or len(names) != len(shares):
        raise ValueError(
            f"`names` must be one for each of the {len(shares)} `fractions`, got "
            f"{names!r}."
        )
    rows = table.images.shape[0]
    ends = np.concatenate([[0.0], np.cumsum(shares)]) * rows
    bounds = np.floor(ends + 0.5).astype(int)
    sizes = np.diff(bounds)
    if np.any(sizes < 1):
        told = ", ".join(
            f"{name} {size}" for name, size in zip(names, sizes, strict=True)
        )
        raise ValueError(
            f"`fractions` {tuple(fractions)} leave a part of the {rows} rows empty "
            f"({told}); use fewer parts or a larger fraction."
        )
    order = np.asarray(jax.random.permutation(key, rows))
    return tuple(
        dataclasses.replace(
            table.take(np.sort(order[start:stop])),
            origin=f"{name} ({share:g} of {rows} by `fractions`)",
        )
        for start, stop, name, share in zip(
            bounds[:-1], bounds[1:], names, shares, strict=True
        )
    )


def join_classes(tables: Sequence[ClassTable]) -> ClassTable:
    """Builds one table with the classes of several, for one classifier of all of them.

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
    check_lists(tables=tables)
    for place, table in enumerate(tables):
        named = {f"tables[{place}]": table}
        check_instances(ClassTable, "`metajax.tasks.from_arrays` makes one", **named)
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


def as_data(table: ClassTable) -> ClassTable:
    """Makes a table what a distribution holds: counts on the device, and no names.

    Names, as static data, would make equal programs compile twice.
    """
    counts = jnp.asarray(table.counts, jnp.int32)
    return dataclasses.replace(table, counts=counts, class_names=None, origin=None)


def too_few_classes(table: ClassTable, way: int) -> ValueError:
    """Makes the error of a table with too few classes; it names the part that it is."""
    rows = table.counts.shape[0]
    turned = f" ({rows}, each in {table.rotations} rotations)" * (table.rotations > 1)
    part, remedy = "the table", "use a larger table"
    if table.origin is not None:
        part = f"the table, {table.origin},"
        remedy = "give this part a larger fraction"
    return ValueError(
        f"`way` asks for {way} classes but {part} has {table.num_classes}{turned}; "
        f"lower `way` or {remedy}."
    )


def take_images(table: ClassTable, rows: Array, columns: Array) -> Array:
    """Images `[n, ...]` of a table on the device, as they are, at `[n]` places."""
    # One index for all images and one axis for all pixels: on CPU the gather alone
    # is three times as fast as with the axes of images.
    images = table.images
    if isinstance(rows, jax.core.Tracer):
        images = jnp.asarray(images)  # NumPy's cannot be indexed by what is traced
    flat = images.reshape(images.shape[0] * images.shape[1], -1)
    taken = flat[rows * images.shape[1] + columns]
    return taken.reshape(-1, *images.shape[2:])


def as_floats(images: Array, dtype: Any) -> Array:
    """Converts images from bytes to [0, 1].

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


def check_arrays(
    images: Any, counts: Any, rotations: int, class_names: Sequence[str] | None
) -> None:
    """Raises ValueError unless these can be the fields of a `ClassTable`."""
    shape, dtype = getattr(images, "shape", None), getattr(images, "dtype", None)
    embeds = (
        dtype is not None
        and jnp.issubdtype(dtype, jnp.floating)
        and np.ndim(images) in (3, 4)
    )
    if shape is None or not (embeds or dtype == np.uint8):
        raise ValueError(
            f"`images` must be a uint8 array, got {dtype or type(images).__name__}; "
            "`metajax.tasks.images.loaders.from_arrays` converts floats in [0, 1]."
        )
    if embeds and (0 in shape or rotations > 1):
        raise ValueError(
            "Vectors `[rows, max_per_class, D]` and series `[rows, max_per_class, L, "
            "C]` must have no empty axes and no rotations, got shape "
            f"{tuple(shape)} and {rotations} rotations."
        )
    if not embeds and (len(shape) != 5 or 0 in shape):
        raise ValueError(
            "`images` must have shape [rows, max_per_class, H, W, C] without empty "
            f"axes, got {tuple(shape)}."
        )
    if not is_integer(rotations) or rotations not in (1, 2, 4):
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
