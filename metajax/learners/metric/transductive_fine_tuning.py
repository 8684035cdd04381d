"""Transductive fine-tuning: prototypes tuned until queries are answered with certainty.

G. S. Dhillon, P. Chaudhari, A. Ravichandran, S. Soatto, "A Baseline for Few-Shot Image
Classification", ICLR 2020, https://arxiv.org/abs/1909.02729, section 3.

    p(k | x) = softmax over k of -tau ||f(x) - c_k||
    minimise over c   cross-entropy of the support set + mean entropy of the queries

c starts at the class means; tau = `temperature`, which multiplies.

Differs from the paper, as easyfsl 1.5 does: it tunes the prototypes and not the whole
network, so that it works on embeddings that were computed once, by distances and not
by a linear head on the logits. 25 steps of Adam at 5e-5 are the paper's. The outer
gradient is of first order: the path that the prototypes take is a constant to it.
"""

from typing import Annotated

import jax.numpy as jnp
import optax

from metajax.builders.transductive import descending_learner, mean_entropy
from metajax.checks import check_positive
from metajax.types import Array, CommandLine, Embedding, Learner, Way

__all__ = ["transductive_fine_tuning"]


def transductive_fine_tuning(
    model: Embedding,
    *,
    way: Way = "support",
    inner_optimizer: Annotated[
        optax.GradientTransformation | None,
        CommandLine({"name": "adam", "learning_rate": 5e-5}),
    ] = None,
    inner_steps: int = 25,
    temperature: float = 1.0,
) -> Learner:
    """Builds transductive fine-tuning.

    Choose it as a baseline of descent for other transductive methods: it assumes
    nothing of how many queries each class has.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples, which always suffices.
      inner_optimizer: tunes the prototypes; None takes Adam with a rate of 5e-5.
      inner_steps: its steps, at least 0.
      temperature: tau, factor of the distances, above 0.

    Returns:
      A transductive learner whose `meta_params` are parameters of `model`; `predict`
      gives logits `[n, N]`, minus infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.
      TypeError: if `inner_optimizer` is none of Optax.

    Example:
      >>> from metajax.learners import transductive_fine_tuning
      >>> from metajax.models import identity
      >>> learner = transductive_fine_tuning(identity(), way=5)
    """
    optimizer = optax.adam(5e-5) if inner_optimizer is None else inner_optimizer
    check_positive(temperature=temperature)

    def logits(prototypes: Array, rows: Array) -> Array:
        return -temperature * distances(rows, prototypes)

    def objective(cross_entropy: Array, chances: Array, is_real: Array) -> Array:
        return cross_entropy + mean_entropy(chances, is_real)

    return descending_learner(
        model, logits, objective, optimizer, inner_steps=inner_steps, way=way
    )


def distances(rows: Array, centers: Array) -> Array:
    """Computes Euclidean distances `[n, N]`, whose gradient is 0 where they are 0.

    A single example is its class's mean, so that its distance is 0 at the start: it is
    computed from differences, which are then exactly 0.
    """
    differences = rows[:, None, :] - centers[None, :, :]
    squares = jnp.sum(jnp.square(differences), axis=-1)
    is_zero = squares == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squares)))
