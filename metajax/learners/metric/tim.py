"""Transductive Information Maximisation (TIM): prototypes tuned on support and queries.

M. Boudiaf, I. M. Ziko, J. Rony, J. Dolz, P. Piantanida, I. Ben Ayed, "Transductive
Information Maximization For Few-Shot Learning", NeurIPS 2020,
https://arxiv.org/abs/2008.11297; this is its gradient descent, TIM-GD.

    p(k | x) = softmax over k of tau cos(f(x), c_k)
    minimise over c   lambda CE - (mu H(Y) - alpha H(Y | X))

CE is the cross-entropy of the support set, H(Y) the entropy of the mean prediction of
the queries, H(Y | X) the mean entropy of their predictions; c starts at the class
means. tau = `temperature`, which multiplies; lambda = `cross_entropy_weight`, mu =
`marginal_entropy_weight`, alpha = `conditional_entropy_weight`.

Differs from the paper: cosines to prototypes in place of squared distances, and the
weights, tau and 50 steps of easyfsl 1.5; the authors take 1,000 steps at the same rate
and lambda = 0.1. As in both, the embedding is not tuned. The outer gradient is of first
order: the path that the prototypes take is a constant to it.
"""

from typing import Annotated

import jax.numpy as jnp
import optax

from metajax.builders.heads import unit
from metajax.builders.transductive import LEAST, descending_learner, mean_entropy
from metajax.checks import check_not_negative, check_positive
from metajax.types import Array, CommandLine, Embedding, Learner, Way

__all__ = ["tim"]


def tim(
    model: Embedding,
    *,
    way: Way = "support",
    inner_optimizer: Annotated[
        optax.GradientTransformation | None,
        CommandLine({"name": "adam", "learning_rate": 1e-4}),
    ] = None,
    inner_steps: int = 50,
    temperature: float = 10.0,
    cross_entropy_weight: float = 1.0,
    marginal_entropy_weight: float = 1.0,
    conditional_entropy_weight: float = 0.1,
) -> Learner:
    """Builds TIM.

    Choose it where queries arrive together and are of all classes about alike, which
    H(Y) rewards; it descends for every set of queries.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples, which always suffices.
      inner_optimizer: tunes the prototypes; None takes Adam with a rate of 1e-4.
      inner_steps: its steps, at least 0.
      temperature: tau, factor of the cosines, above 0.
      cross_entropy_weight: lambda, at least 0.
      marginal_entropy_weight: mu, at least 0.
      conditional_entropy_weight: alpha, at least 0.

    Returns:
      A transductive learner whose `meta_params` are parameters of `model`; `predict`
      gives logits `[n, N]`, minus infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.
      TypeError: if `inner_optimizer` is none of Optax.

    Example:
      >>> from metajax.learners import tim
      >>> from metajax.models import identity
      >>> learner = tim(identity(), way=5)
    """
    optimizer = optax.adam(1e-4) if inner_optimizer is None else inner_optimizer
    check_positive(temperature=temperature)
    check_not_negative(
        cross_entropy_weight=cross_entropy_weight,
        marginal_entropy_weight=marginal_entropy_weight,
        conditional_entropy_weight=conditional_entropy_weight,
    )

    def logits(prototypes: Array, directions: Array) -> Array:
        return temperature * directions @ unit(prototypes).T

    def objective(cross_entropy: Array, chances: Array, is_real: Array) -> Array:
        marginal = jnp.mean(chances, axis=0, where=is_real[:, None])
        return (
            cross_entropy_weight * cross_entropy
            + marginal_entropy_weight * jnp.sum(marginal * jnp.log(marginal + LEAST))
            + conditional_entropy_weight * mean_entropy(chances, is_real)
        )

    return descending_learner(
        model,
        logits,
        objective,
        optimizer,
        inner_steps=inner_steps,
        way=way,
        prepare=unit,
    )
