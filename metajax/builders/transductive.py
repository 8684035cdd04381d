"""Learners that answer all queries of a task together, from embeddings.

What such methods share: the form of a learner whose answers are made when the queries
are known, prototypes that the queries rectify, and entropies.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax.builders.heads import Embedded, Head, cosines, head_learner, keep_support
from metajax.checks import check_optimizer
from metajax.inner.unroll import check_inner_loop, unroll
from metajax.masks import masked_mean
from metajax.types import Array, Learner, Model, Way

__all__ = [
    "descending_learner",
    "mean_entropy",
    "rectified_prototypes",
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

    return head_learner(model, Head(keep_support, classify), way=way)


def descending_learner(
    model: Model,
    logits: Callable[[Array, Array], Array],
    objective: Callable[[Array, Array, Array], Array],
    inner_optimizer: optax.GradientTransformation,
    *,
    inner_steps: int,
    way: Way,
    prepare: Callable[[Array], Array] = lambda rows: rows,
) -> Learner:
    """Builds a learner that tunes prototypes on a support set and on its queries.

    They start at the class means. The outer gradient is of first order: the path that
    they take is a constant to it.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      logits: `(prototypes [N, D], rows [m, D]) -> [m, N]`.
      objective: `(cross_entropy, chances [m, N], is_real [m]) -> scalar`: the mean
        cross-entropy of the support set in nats, and the softmax of queries.
      inner_optimizer: of Optax.
      inner_steps: its steps, at least 0.
      way: as for `metajax.builders.heads.head_learner`.
      prepare: what is done to embeddings `[m, D]` once, after the class means.

    Raises:
      ValueError: if `inner_steps` or `way` is out of range.
      TypeError: if `inner_optimizer` is none of Optax.
    """
    check_optimizer(inner_optimizer=inner_optimizer)
    check_inner_loop(inner_optimizer, inner_steps, "first_order")

    def present(prototypes: Array, rows: Array, support: Embedded) -> Array:
        outputs = logits(prototypes, rows)
        return jnp.where(support.is_present[None, :], outputs, -jnp.inf)

    def loss(prototypes: Array, args: tuple, key: Array | None) -> Array:
        del key
        support, rows, queries, is_real = args
        of_support = present(prototypes, rows, support)
        chances = jax.nn.softmax(present(prototypes, queries, support), axis=1)
        return objective(_cross_entropy(of_support, support), chances, is_real)

    def answer(support: Embedded, queries: Array, is_real: Array) -> Array:
        rows, queries = prepare(support.features), prepare(queries)
        prototypes = unroll(
            loss,
            inner_optimizer,
            support.means,
            (support, rows, queries, is_real),
            inner_steps=inner_steps,
            gradient="first_order",
        ).params
        return present(prototypes, queries, support)

    return transductive_learner(model, answer, way=way)


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


def mean_entropy(chances: Array, mask: Array) -> Array:
    """Averages the entropy of rows of probabilities `[n, N]` in nats, where real."""
    return masked_mean(-jnp.sum(chances * jnp.log(chances + LEAST), axis=1), mask)


def _cross_entropy(logits: Array, support: Embedded) -> Array:
    """Averages the cross-entropy of a support set's logits `[n, N]`, in nats.

    Args:
      logits: minus infinity for classes without a support example.
      support: the support set.
    """
    logs = jax.nn.log_softmax(logits, axis=1)
    # `where`, as for an absent class the product is 0 times infinity.
    losses = -jnp.sum(jnp.where(support.one_hot > 0, logs, 0), axis=1)
    return masked_mean(losses, support.is_real)
