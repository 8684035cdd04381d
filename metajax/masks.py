"""Padding: masks that keep it out of means, gradients and comparisons.

A mask is bool `[n]`, True where an example is real and False where it is padding; None
says that all are real. A set in which nothing is real has no mean: the result is NaN,
which the trainer reports, and not a zero that would look like success.
"""

import jax
import jax.numpy as jnp

from metajax.checks import check_shapes
from metajax.types import Array, PyTree

__all__ = ["expand", "hide_padding", "masked_mean"]


def expand(mask: Array, leaf: Array) -> Array:
    """Adds trailing axes of size 1 to `mask`, up to the rank of `leaf`."""
    check_shapes(mask=(mask, "..."), leaf=(leaf, "..."))
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))


def hide_padding(x: PyTree, mask: Array | None) -> PyTree:
    """Puts zeros in the rows of a pytree `[n, ...]` where `mask` `[n]` is False.

    Padding may hold anything. Even where it takes no part in a result, its NaN would
    reach the gradient, as 0 * NaN in the product rule.
    """
    if mask is None:
        return x

    def hide(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)  # NumPy's may have 64 bits
        return jnp.where(expand(mask, leaf), leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(hide, x)


def masked_mean(values: Array, mask: Array | None) -> Array:
    """Averages `values` `[n]` over real examples; NaN if `mask` hides all of them."""
    if mask is None:
        return jnp.mean(values)
    check_shapes(values=(values, "n"), mask=(mask, "n"))
    return jnp.mean(values, where=mask)
