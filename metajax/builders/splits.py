"""Candidate splits of the columns of a table, and what each would do in a node.

A split sends the rows with a value of at most its threshold to the left. Candidates lie
midway between neighbouring values of a column, so that there are at most n of them for
n rows, which keeps shapes fixed.
"""

from typing import NamedTuple

import jax.numpy as jnp

from metajax.builders.heads import Embedded
from metajax.types import Array

__all__ = ["FEATURES", "Candidates", "candidate_splits", "describe_splits"]

FEATURES = (
    "gain",  # information gain of all rows, in nats
    "gain per row",
    "gini",  # fall of the Gini impurity, of all rows
    "gini per row",
    "saved errors",  # rows that the majority gets right after but not before
    "lighter",  # mass of the lighter leaf, logarithm
    "balance",  # share of the lighter leaf
    "gap",  # between the values on both sides, in deviations, logarithm
    "values",  # thresholds that the column has in the node, logarithm
    "eta",  # share of the column's variance that is between classes
    "eta of ranks",  # the same of its ranks
)


class Candidates(NamedTuple):
    """Where columns may be split: T = n places, between neighbouring values.

    Attributes:
      low: `[T, D]`, the values of each column in order; infinite for padding.
      high: `[T, D]`, the next ones; infinite where there is none.
      thresholds: `[T, D]`, midway; 0 where both are equal or one is infinite.
      is_left: bool `[n, T, D]`, rows at or below the threshold.
      scale: `[D]`, standard deviations, 1 for constant columns.
      centred: `[n, D]`, the rows in deviations from their mean.
      ranks: `[n, D]`, ranks of the rows, ties in the middle, in [0, 1).
    """

    low: Array
    high: Array
    thresholds: Array
    is_left: Array
    scale: Array
    centred: Array
    ranks: Array


def candidate_splits(rows: Array, is_real: Array) -> Candidates:
    """Finds the candidate splits of rows `[n, D]`, of which some are real."""
    padded = jnp.where(is_real[:, None], rows, jnp.inf)
    low = jnp.sort(padded, axis=0)
    high = jnp.pad(low[1:], ((0, 1), (0, 0)), constant_values=jnp.inf)
    exists = (low < high) & jnp.isfinite(high)
    thresholds = _middle(jnp.where(exists, low, 0), jnp.where(exists, high, 0))

    num = jnp.maximum(jnp.sum(is_real), 1)
    mean = jnp.sum(jnp.where(is_real[:, None], rows, 0), axis=0) / num
    centred = jnp.where(is_real[:, None], rows - mean[None, :], 0)
    # In units of the largest, so that squares neither overflow nor vanish.
    is_varied = jnp.any(exists, axis=0)
    unit = jnp.where(is_varied, jnp.max(jnp.abs(centred), axis=0), 1)
    squares = jnp.sum(jnp.square(centred / unit[None, :]), axis=0)
    scale = jnp.where(is_varied, unit * jnp.sqrt(squares / num), 1)

    lower = jnp.sum(padded[:, None, :] > padded[None, :, :], axis=1)
    equal = jnp.sum(padded[:, None, :] == padded[None, :, :], axis=1)
    return Candidates(
        low,
        high,
        thresholds,
        rows[:, None, :] <= thresholds[None, :, :],
        scale,
        centred / scale[None, :],
        ranks=jnp.where(is_real[:, None], (lower + equal / 2) / num, 0),
    )


def describe_splits(
    mass: Array, support: Embedded, candidates: Candidates
) -> tuple[Array, Array, Array, Array]:
    """Describes what each split would do in some nodes.

    Args:
      mass: `[m, n]`, 1 for the rows that are in a node, 0 for others.
      support: the rows.
      candidates: splits.

    Returns:
      Features `[m, T, D, F]`, each of the order of 1; gain and mass of the lighter leaf
      `[m, T, D]`; and whether there is such a split, bool `[m, T, D]`.
    """
    rows, one_hot, _ = support
    total = mass @ one_hot
    num = jnp.sum(total, axis=1)[:, None, None]
    is_left = candidates.is_left.astype(rows.dtype)
    left = jnp.einsum("mn,nk,ntd->mtdk", mass, one_hot, is_left)
    right = total[:, None, None, :] - left
    lighter = jnp.minimum(jnp.sum(left, axis=-1), jnp.sum(right, axis=-1))

    # Between two rows of a node there may be values of rows that are elsewhere. One
    # threshold is taken there, of the two values around the middle.
    is_here = (mass > 0)[:, :, None, None]
    is_left, values = candidates.is_left[None], rows[None, :, None, :]
    low = jnp.max(jnp.where(is_here & is_left, values, -jnp.inf), axis=1)
    high = jnp.min(jnp.where(is_here & ~is_left, values, jnp.inf), axis=1)
    has_both = jnp.isfinite(low) & jnp.isfinite(high)
    low, high = jnp.where(has_both, low, 0), jnp.where(has_both, high, 0)
    middle = _middle(low, high)
    is_around = (candidates.low[None] <= middle) & (middle < candidates.high[None])
    is_pure = (jnp.sum(total > 0, axis=1) < 2)[:, None, None]
    exists = (low < high) & is_around & ~is_pure

    parent = total[:, None, None, :]

    def entropy(counts: Array) -> Array:
        """Computes the entropy of all rows together, in nats."""
        inside = jnp.sum(_x_log_x(counts), axis=-1)
        return _x_log_x(jnp.sum(counts, axis=-1)) - inside

    def agreement(counts: Array) -> Array:
        """Counts rows, less their Gini impurity."""
        squares = jnp.sum(jnp.square(counts), axis=-1)
        return squares / jnp.maximum(jnp.sum(counts, axis=-1), 1)

    gain = jnp.maximum(entropy(parent) - entropy(left) - entropy(right), 0)
    gini = agreement(left) + agreement(right) - agreement(parent)
    saved = left.max(-1) + right.max(-1) - parent.max(-1)
    some = jnp.maximum(num, 1)

    def of_column(values: Array) -> Array:
        """Gives the between-class share of variance of columns `[n, D]` in a node."""
        sums = jnp.einsum("mn,nk,nd->mkd", mass, one_hot, values)
        squares = mass @ jnp.square(values)
        level = jnp.square(jnp.sum(sums, axis=1)) / some[:, 0]
        means = jnp.sum(jnp.square(sums) / jnp.maximum(total, 1)[..., None], axis=1)
        # Constant columns have no variance to share, and rounding leaves them some.
        share = (means - level) / jnp.maximum(squares - level, 1e-4)
        return jnp.clip(share, 0, 1)[:, None, :]

    features = {
        "gain": gain / 3,
        "gain per row": 3 * gain / some,
        "gini": gini / 2,
        "gini per row": 4 * gini / some,
        "saved errors": saved / 3,
        "lighter": jnp.log1p(lighter),
        "balance": 2 * lighter / some,
        "gap": jnp.log((high - low) / candidates.scale[None, None, :] + 0.01),
        "values": jnp.log1p(jnp.sum(exists, axis=1, keepdims=True)) - 2,
        "eta": 2 * of_column(candidates.centred),
        "eta of ranks": 2 * of_column(candidates.ranks),
    }
    stacked = [jnp.broadcast_to(features[name], gain.shape) for name in FEATURES]
    return jnp.stack(stacked, axis=-1), gain, lighter, exists


def _middle(low: Array, high: Array) -> Array:
    """Midway between two numbers, but below the upper one: what is there goes left."""
    middle = low + (high - low) / 2
    return jnp.where(middle < high, middle, low)


def _x_log_x(counts: Array) -> Array:
    is_some = counts > 0
    return jnp.where(is_some, counts * jnp.log(jnp.where(is_some, counts, 1)), 0)
