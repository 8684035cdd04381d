"""Learners that answer all queries of a task together, from embeddings.

What such methods share: the form of a learner whose answers are made when the queries
are known, prototypes that the queries rectify, and entropies.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.builders.heads import Embedded, Head, cosines, head_learner
from metajax.masks import masked_mean
from metajax.types import Array, Learner, Metrics, Model, Way

__all__ = [
    "mean_entropy",
    "rectified_prototypes",
    "squared_distances",
    "support_cross_entropy",
    "transductive_learner",
]

LEAST = 1e-12  # added to probabilities under a logarithm


def transductive_learner(
    model: Model, answer: Callable[[Embedded, Array, Array], Array], *, way: Way
) -> Learner:
    """Builds a learner that keeps the support set until the queries are known.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      answer: `(support, queries, is_real) -> logits [m, N]`, for embeddings `[m, D]` of
        which those are queries where `is_real` `[m]` is True; others are 0.
      way: as for `metajax.builders.heads.head_learner`.

    Raises:
      ValueError: if `way` is out of range.
    """

    def fit(
        head_params: tuple, support: Embedded, key: Array | None
    ) -> tuple[Embedded, Metrics]:
        del head_params, key
        return support, {}

    def classify(
        head_params: tuple,
        support: Embedded,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del head_params, key
        return answer(
            support, features, jnp.ones(len(features), bool) if mask is None else mask
        )

    return head_learner(model, Head(fit, classify), way=way)


def rectified_prototypes(
    support: Embedded, queries: Array, is_real: Array, *, sharpness: float
) -> Array:
    """Computes prototypes of a support set and of queries that are moved and guessed.

    J. Liu, L. Song, Y. Qin, "Prototype Rectification for Few-Shot Learning", ECCV 2020,
    https://arxiv.org/abs/1911.10713, section 3; see `bd_cspn` for the equations.

    Args:
      support: the support set.
      queries: `[m, D]`, 0 where `is_real` is False.
      is_real: bool `[m]`.
      sharpness: of the weights, at least 0.

    Returns:
      `[N, D]`, 0 for a class without a support example.
    """
    means = support.means
    num_support = jnp.maximum(jnp.sum(support.is_real), 1)
    num_queries = jnp.maximum(jnp.sum(is_real), 1)
    shift = (
        jnp.sum(support.features, 0) / num_support - jnp.sum(queries, 0) / num_queries
    )
    moved = jnp.where(is_real[:, None], queries + shift[None, :], 0)

    of_support, of_queries = (
        cosines(rows, means) for rows in (support.features, moved)
    )
    guesses = jnp.argmax(
        jnp.where(support.is_present[None, :], of_queries, -jnp.inf), axis=1
    )
    guessed = jax.nn.one_hot(guesses, len(means), dtype=queries.dtype)
    guessed = jnp.where(is_real[:, None], guessed, 0)

    # A factor that all weights of a class share falls out; so none overflows.
    of_support = support.one_hot * jnp.exp(sharpness * (of_support - 1))
    of_queries = guessed * jnp.exp(sharpness * (of_queries - 1))
    total = jnp.sum(of_support, 0) + jnp.sum(of_queries, 0)
    weighted = of_support.T @ support.features + of_queries.T @ moved
    return weighted / jnp.where(total > 0, total, 1)[:, None]


def squared_distances(rows: Array, centers: Array) -> Array:
    """Computes squared Euclidean distances `[n, N]` from `[n, D]` to `[N, D]`.

    By a product of matrices, after a shift of both that keeps the terms, whose
    difference a distance is, about as large as distances.
    """
    origin = jax.lax.stop_gradient(jnp.mean(centers, axis=0, keepdims=True))
    rows, centers = rows - origin, centers - origin
    products = jnp.matmul(rows, centers.T, precision="highest")
    squares = (jnp.sum(jnp.square(x), axis=1) for x in (rows, centers))
    of_rows, of_centers = squares
    return jnp.maximum(of_rows[:, None] + of_centers[None, :] - 2 * products, 0)


def mean_entropy(chances: Array, mask: Array) -> Array:
    """Averages the entropy of rows of probabilities `[n, N]` in nats, where real."""
    return masked_mean(-jnp.sum(chances * jnp.log(chances + LEAST), axis=1), mask)


def support_cross_entropy(logits: Array, support: Embedded) -> Array:
    """Averages the cross-entropy of a support set's logits `[n, N]`, in nats.

    Args:
      logits: minus infinity for classes without a support example.
      support: the support set.
    """
    logs = jax.nn.log_softmax(logits, axis=1)
    # `where`, as for an absent class the product is 0 times infinity.
    losses = -jnp.sum(jnp.where(support.one_hot > 0, logs, 0), axis=1)
    return masked_mean(losses, support.is_real)
