"""Transductive Propagation Network: labels spread over a graph of all examples.

Y. Liu, J. Lee, M. Park, S. Kim, E. Yang, S. J. Hwang, Y. Yang, "Learning to Propagate
Labels: Transductive Propagation Network for Few-shot Learning", ICLR 2019,
https://arxiv.org/abs/1805.10002.

    W_ij = exp(-||f(x_i) / s_i - f(x_j) / s_j||^2 / 2),  s_i = g(f(x_i))        Eq. (1)
    S = D^(-1/2) W D^(-1/2), with the largest `neighbors` of each row of W kept
    F = (I - alpha S)^-1 Y                                                      Eq. (3)

Rows of Y are the labels of support examples as one-hot, and 0 for queries; rows of F
are logits. The queries are nodes as well, so they see one another: transductive.

Differs from the paper: g is an MLP with a softplus on embeddings, and not a
convolutional network on feature maps, so any embedding will do.
"""

from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.heads import Embedded, Head, head_learner, keep_support
from metajax.checks import check_integers, check_parts, is_number
from metajax.inner.solvers import solve
from metajax.types import Array, Embedding, Learner, PyTree, Way

__all__ = ["label_propagation", "propagate"]


class Width(nn.Module):
    """g: the length scale of every example, a number above 0."""

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Maps `[n, D]` to `[n, 1]`."""
        hidden = nn.relu(nn.Dense(64)(features))
        return nn.softplus(nn.Dense(1, bias_init=nn.initializers.ones_init())(hidden))


def label_propagation(
    model: Embedding, *, way: Way = "support", neighbors: int = 20, alpha: float = 0.99
) -> Learner:
    """Builds a Transductive Propagation Network.

    Choose it where many queries arrive at once and there are few shots: queries that
    lie close together are answered alike.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples, which always suffices.
      neighbors: edges of each node that are kept, at least 1; all if there are fewer.
      alpha: how far labels spread, in (0, 1).

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams`; `predict` gives logits `[n,
      N]`, minus infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import label_propagation
      >>> from metajax.models import conv4
      >>> learner = label_propagation(conv4(normalization="calibrated"), way=5)
    """
    check_parts(model=model)
    check_integers(1, neighbors=neighbors)
    if not is_number(alpha) or not 0 < alpha < 1:
        raise ValueError(f"`alpha` must be above 0 and below 1, got {alpha!r}.")
    width = Width()

    def init(key: Array, support: Embedded) -> PyTree:
        return width.init(key, support.features)

    def classify(
        head_params: PyTree,
        support: Embedded,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del key
        nodes = jnp.concatenate([support.features, features])
        real = jnp.ones(len(features), bool) if mask is None else mask
        is_real = jnp.concatenate([support.is_real, real])
        labels = jnp.pad(support.one_hot, ((0, len(features)), (0, 0)))
        scaled = nodes / cast(Array, width.apply(head_params, nodes))
        spread = propagate(scaled, labels, is_real, neighbors=neighbors, alpha=alpha)
        return spread[len(support.features) :]

    return head_learner(model, Head(keep_support, classify, init), way=way)


def propagate(
    nodes: Array, labels: Array, is_real: Array, *, neighbors: int, alpha: float
) -> Array:
    """Spreads labels `[n, N]` over a graph of nodes `[n, D]`.

    Args:
      nodes: embeddings in units of their length scales.
      labels: one-hot, or 0 where they are not known.
      is_real: bool `[n]`; others have no edges.
      neighbors: edges of each node that are kept; an edge stays if either end keeps it.
      alpha: in (0, 1).
    """
    num = len(nodes)
    differences = nodes[:, None] - nodes[None]
    weights = jnp.exp(-jnp.sum(jnp.square(differences), -1) / 2)  # Eq. (1)
    # A node is no neighbour of its own.
    has_edge = is_real[:, None] & is_real[None] & ~jnp.eye(num, dtype=bool)
    weights = jnp.where(has_edge, weights, 0)
    if neighbors < num:
        least = jax.lax.top_k(weights, neighbors)[0][:, -1:]
        kept = weights >= least
        weights = jnp.where(kept | kept.T, weights, 0)
    degrees = jax.lax.rsqrt(jnp.sum(weights, 1) + 1e-12)
    smooth = degrees[:, None] * weights * degrees[None]
    # Positive, as no eigenvalue of `smooth` is above 1.
    identity = jnp.eye(num, dtype=smooth.dtype)
    return solve(identity - alpha * smooth, labels, is_positive=True)  # Eq. (3)
