"""Clipping by the norm of a whole gradient, differentiable where that is 0."""

import jax
import jax.numpy as jnp
import optax

from metajax.checks import check_positive
from metajax.types import PyTree

__all__ = ["clip_by_global_norm"]


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales a gradient down to a norm, as `optax.clip_by_global_norm` does.

    That one divides by the norm, and its derivative is NaN where all gradients are 0:
    in an inner loop, where a support set is fitted exactly. Here they are multiplied by
    max_norm / sqrt(max(|g|^2, max_norm^2)).

    Args:
      max_norm: of all arrays together, above 0.

    Raises:
      ValueError: if `max_norm` is not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> inner_optimizer = optax.chain(clip_by_global_norm(1.0), optax.sgd(0.1))
      >>> state = inner_optimizer.init(jnp.zeros(2))
      >>> updates, state = inner_optimizer.update(jnp.array([3.0, 4.0]), state)
      >>> [f"{update:.2f}" for update in updates]  # -0.1 times (0.6, 0.8), of norm 1
      ['-0.06', '-0.08']
    """
    check_positive(max_norm=max_norm)

    def clip(updates: PyTree, params: PyTree) -> PyTree:
        del params
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(updates))
        factor = max_norm / jnp.sqrt(jnp.maximum(squares, max_norm**2))
        return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), updates)

    return optax.stateless(clip)
