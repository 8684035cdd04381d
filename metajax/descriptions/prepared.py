"""A support set prepared for meta-features: standard columns, masks, one-hot labels."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from metajax.checks import as_array, check_shapes
from metajax.objectives import class_vectors
from metajax.types import Array, Examples

__all__ = ["TIE", "Table", "mask_of", "mean_and_sd", "mean_where", "prepare", "ratio"]

# What counts as a tie, relative to the size of what is compared: above rounding.
TIE = 1e-4


class Table(NamedTuple):
    """A support set, ready to be described.

    Attributes:
      rows: bool `[n]`, real rows; below, `n` is also their number, `num_rows`.
      columns: bool `[D]`, real columns.
      varying: bool `[D]`, real columns with two values or more.
      numeric: bool `[D]`, varying columns that are not categorical.
      categorical: bool `[D]`, real columns that are.
      unit: `[n, D]`, columns scaled to [0, 1]; 0 in constant columns and in padding.
      standard: `[n, D]`, columns with mean 0 and variance 1, likewise.
      deviations: `[D]`, standard deviations of `unit`, 1 for constant columns.
      labels: one-hot `[n, N]`, 0 in padding.
      num_rows: scalar, at least 1.
    """

    rows: Array
    columns: Array
    varying: Array
    numeric: Array
    categorical: Array
    unit: Array
    standard: Array
    deviations: Array
    labels: Array
    num_rows: Array


def prepare(
    examples: Examples, num_classes: int, column_mask: Any, is_categorical: Any
) -> Table:
    """Standardises columns and works out masks; arguments as of `meta_features`."""
    x, y = jnp.asarray(examples.x), jnp.asarray(examples.y)
    check_shapes(x=(x, "n D"), y=(y, "n"))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float32)
    num, size = x.shape
    rows = mask_of(num, mask=examples.mask)
    columns = mask_of(size, column_mask=column_mask)
    categorical = mask_of(size, default=False, is_categorical=is_categorical)
    categorical &= columns
    is_real = rows[:, None] & columns[None, :]
    low = jnp.min(jnp.where(is_real, x, jnp.inf), axis=0)
    high = jnp.max(jnp.where(is_real, x, -jnp.inf), axis=0)
    # A range, not a variance: in 32 bits, that of a constant column may not be 0. For
    # hidden columns it is minus infinity.
    varying = high - low >= jnp.finfo(x.dtype).tiny
    extent = jnp.where(varying, high - low, 1)
    is_used = rows[:, None] & varying[None, :]
    unit = jnp.where(is_used, (x - low[None, :]) / extent[None, :], 0)
    num_rows = jnp.maximum(jnp.sum(rows), 1).astype(x.dtype)
    means = jnp.sum(unit, axis=0) / num_rows
    centered = jnp.where(is_used, unit - means[None, :], 0)
    variances = jnp.sum(jnp.square(centered), axis=0) / num_rows
    deviations = jnp.sqrt(jnp.where(varying, variances, 1))
    labels = class_vectors(y, num_classes, x.dtype)
    return Table(
        rows=rows,
        columns=columns,
        varying=varying,
        numeric=varying & ~categorical,
        categorical=categorical,
        unit=unit,
        standard=centered / deviations[None, :],
        deviations=deviations,
        labels=jnp.where(rows[:, None], labels, 0),
        num_rows=num_rows,
    )


def mask_of(size: int, *, default: bool = True, **masks: Any) -> Array:
    """Gives a mask, named by its argument, as bool `[size]`.

    Where there is none, all of it is `default`.
    """
    ((name, mask),) = masks.items()
    if mask is None:
        return jnp.full(size, default)
    mask = as_array(**masks)
    if mask.shape != (size,):
        raise AssertionError(
            f"`{name}` must be of the shape [{size}], got {list(mask.shape)}."
        )
    return mask.astype(bool)


def mean_where(values: Array, where: Array) -> Array:
    """Computes the mean of `values` `[D]` where `where` is True, 0 if it nowhere is."""
    count = jnp.maximum(jnp.sum(where), 1)
    return jnp.sum(jnp.where(where, values, 0)) / count


def mean_and_sd(values: Array, where: Array) -> tuple[Array, Array]:
    """Computes mean and standard deviation of `values` `[D]` where `where` is True."""
    mean = mean_where(values, where)
    return mean, jnp.sqrt(mean_where(jnp.square(values - mean), where))


def ratio(numerator: Array, denominator: Array) -> Array:
    """Computes the quotient, 0 where the denominator is not positive."""
    is_positive = denominator > 0
    return jnp.where(is_positive, numerator / jnp.where(is_positive, denominator, 1), 0)
