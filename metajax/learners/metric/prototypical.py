"""Prototypical Networks: a class is the mean of its support embeddings.

J. Snell, K. Swersky, R. Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS
2017, https://arxiv.org/abs/1703.05175.

    c_k = mean of f(x_i) over support examples i of class k                     Eq. (1)
    p(y = k | x) = softmax over k of -d(f(x), c_k)                              Eq. (2)

f is `model`, c_k `Prototypes.centers`; d is the squared Euclidean distance, or minus
the scaled cosine similarity. The squared distance is computed as the linear classifier
that it is (section 2.4): -||f - c||^2 = 2 c.f - ||c||^2 - ||f||^2, whose last term is
the same for all classes and falls out of the softmax.

Differs from the paper's code: support and query set are embedded in two passes, so a
model with batch statistics normalises each by its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.models.normalization import freeze_support_statistics
from metajax.objectives import cross_entropy, query_loss
from metajax.prototypes import check_way, class_means, linear_head
from metajax.types import Array, Examples, Learner, Model, PyTree, Task

__all__ = ["Prototypes", "prototypical"]

DISTANCES = ("squared_euclidean", "cosine")


class Prototypes(NamedTuple):
    """What one task teaches.

    Attributes:
      params: parameters of the embedding.
      centers: `[N, D]`; rows of classes without a support example are 0.
      is_present: bool `[N]`, whether the class has a support example.
    """

    params: PyTree
    centers: Array
    is_present: Array


def prototypical(
    model: Model,
    *,
    way: int | None = None,
    distance: str = "squared_euclidean",
    scale: float = 1.0,
) -> Learner:
    """Builds Prototypical Networks.

    Choose it first for few-shot classification: it has no inner loop, and it takes
    another way or shot at evaluation than in training (training with more classes than
    evaluation is the paper's best setting).

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. None takes the
        number of support examples, which always suffices.
      distance: `"squared_euclidean"` or `"cosine"`.
      scale: factor of the logits, above 0. Cosine similarities lie in [-1, 1] and need
        about 10 to be able to express certainty.

    Returns:
      A learner whose `meta_params` are parameters of `model`; `predict` gives logits
      `[n, N]`, minus infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax import conv4, prototypical
      >>> learner = prototypical(conv4(normalization="calibrated"))
    """
    check_way(way)
    if distance not in DISTANCES:
        raise ValueError(
            f"`distance` must be one of {', '.join(DISTANCES)}, got {distance!r}."
        )
    if not scale > 0:
        raise ValueError(f"`scale` must be above 0, got {scale!r}.")

    def init(key: Array, task: Task) -> PyTree:
        return model.init(key, task.support.x)

    def adapt(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> Prototypes:
        params = freeze_support_statistics(model, meta_params, support)
        features = model.apply(params, support.x, mask=support.mask, key=key)
        num_classes = len(support.y) if way is None else way
        return Prototypes(params, *class_means(features, support, num_classes))

    def predict(
        adapted: Prototypes,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        features = model.apply(adapted.params, inputs, mask=mask, key=key)
        if distance == "cosine":
            logits = _unit(features) @ _unit(adapted.centers).T
        else:
            kernel, bias = linear_head(adapted.centers)
            logits = features @ kernel + bias[None, :]
        return jnp.where(adapted.is_present[None, :], scale * logits, -jnp.inf)

    return Learner(init, adapt, predict, query_loss(adapt, predict, cross_entropy))


def _unit(vectors: Array) -> Array:
    """Vectors `[n, D]` scaled to length 1; the gradient is finite at 0 too."""
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(squares + 1e-12)
