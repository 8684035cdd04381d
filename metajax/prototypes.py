"""Prototypes: the mean embedding of a class, and the linear classifier that they are.

J. Snell, K. Swersky, R. Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS
2017, https://arxiv.org/abs/1703.05175, section 2.4.
"""

import jax
import jax.numpy as jnp

from metajax.types import Array, Examples

__all__ = ["check_way", "class_means", "linear_head"]


def check_way(way: int | None) -> None:
    """Raises a ValueError unless `way` is None or an integer of at least 1."""
    if way is not None and (not isinstance(way, int) or way < 1):
        raise ValueError(
            f"`way` must be None or an integer of at least 1, got {way!r}."
        )


def class_means(
    features: Array, support: Examples, num_classes: int
) -> tuple[Array, Array]:
    """Prototypes `[N, D]` and presence of classes `[N]`, from features `[n, D]`."""
    one_hot = jax.nn.one_hot(support.y, num_classes, dtype=features.dtype)
    if support.mask is not None:
        # `where` rather than a product: what stands in padding may be anything.
        features = jnp.where(support.mask[:, None], features, 0)
        one_hot = jnp.where(support.mask[:, None], one_hot, 0)
    counts = jnp.sum(one_hot, axis=0)
    centers = one_hot.T @ features / jnp.maximum(counts, 1)[:, None]  # Eq. (1)
    return centers, counts > 0


def linear_head(centers: Array) -> tuple[Array, Array]:
    """Kernel `[D, N]` and bias `[N]` that classify as the squared distances do."""
    return 2 * centers.T, -jnp.sum(jnp.square(centers), axis=-1)
