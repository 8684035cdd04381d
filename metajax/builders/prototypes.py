"""Prototypes: the mean embedding of a class, and the linear classifier that they are.

J. Snell, K. Swersky, R. Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS
2017, https://arxiv.org/abs/1703.05175, section 2.4.
"""

import jax.numpy as jnp

from metajax.builders.heads import check_vectors, embedded
from metajax.types import Array, Examples

__all__ = ["class_means", "linear_head"]


def class_means(
    features: Array, support: Examples, num_classes: int
) -> tuple[Array, Array]:
    """Prototypes `[N, D]` and presence of classes `[N]`, from features `[n, D]`.

    Raises:
      ValueError: at trace time, if features are no vectors.
    """
    check_vectors(features)
    seen = embedded(features, support, num_classes)
    return seen.means, seen.is_present


def linear_head(centers: Array) -> tuple[Array, Array]:
    """Gives kernel `[D, N]` and bias `[N]` that classify as squared distances do."""
    return 2 * centers.T, -jnp.sum(jnp.square(centers), axis=-1)
