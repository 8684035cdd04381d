"""CAVIA: only a small context vector adapts, the network is shared by all tasks.

L. Zintgraf, K. Shiarlis, V. Kurin, K. Hofmann, S. Whiteson, "Fast Context Adaptation
via Meta-Learning", ICML 2019, https://arxiv.org/abs/1810.03642, Algorithm 1.

    inner   phi_0 = 0,  phi_{t+1} = phi_t - alpha * grad_phi L_support(phi_t, theta)
    outer   min over theta of the mean over tasks of  L_query(phi_T, theta)

theta is `meta_params`, phi the context. The network takes pairs `(x, context)`: the
first layer of `mlp` reads it beside its inputs, as the paper has it for regression, and
`conv4` modulates its third block with it (FiLM), as the paper does for images. Checked
against the sinusoid results; see the README's table.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from metajax.builders.descent import check_descent, learner_of_start
from metajax.checks import check_integers, check_parts
from metajax.inner.unroll import GradientMode
from metajax.models.adapters import within
from metajax.objectives import cross_entropy
from metajax.types import (
    Array,
    CommandLine,
    Examples,
    Learner,
    Model,
    Objective,
    PyTree,
    Task,
)

__all__ = ["cavia"]


def cavia(
    model: Model,
    inner_optimizer: Annotated[
        optax.GradientTransformation, CommandLine({"learning_rate": 1.0})
    ],
    *,
    context_size: int = 5,
    inner_steps: int = 1,
    eval_inner_steps: int | None = None,
    objective: Objective = cross_entropy,
    gradient: GradientMode = "remat",
    check_mixed: bool = True,
) -> Learner:
    """Builds CAVIA.

    Choose it where tasks differ in few ways, as members of one parametric family do: it
    then beats MAML, overfits less, and `adapted` tells what a task is in a few numbers.

    Args:
      model: a network of pairs `(x, context)`, `[n, ...]` and `[n, context_size]`; all
        rows of the context are equal. Ours take such pairs as they are.
      inner_optimizer: what adapts the context, such as `optax.sgd(1.0)`, the paper's.
      context_size: numbers in the context, at least 1.
      inner_steps: inner steps in training, at least 0.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`.
      check_mixed: see `metajax.inner.unroll.unroll`.

    Returns:
      A learner whose `meta_params` are parameters of `model`, and whose `adapted` is
      `{"network": meta_params, "context": [context_size]}`.

    Raises:
      ValueError: if a number is out of range.
      TypeError: if `inner_optimizer` is not an Optax transformation.

    Example:
      >>> import optax
      >>> from metajax.learners import cavia
      >>> from metajax.models import mlp
      >>> from metajax.objectives import squared_error
      >>> learner = cavia(mlp(1), optax.sgd(1.0), objective=squared_error)
    """
    check_parts(model=model, objective=objective)
    check_descent(inner_optimizer, gradient, inner_steps, eval_inner_steps)
    check_integers(1, context_size=context_size)
    conditioned = within(
        model, "network", before=lambda params, x: _pair(x, params["context"])
    )

    def start(meta_params: PyTree, support: Examples) -> PyTree:
        del support
        return {"network": meta_params, "context": jnp.zeros(context_size)}

    def init(key: Array, task: Task) -> PyTree:
        return model.init(key, _pair(task.support.x, jnp.zeros(context_size)))

    return learner_of_start(
        conditioned,
        init,
        start,
        inner_optimizer,
        objective=objective,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        gradient=gradient,
        adapts=lambda path: path == "context",
        check_mixed=check_mixed,
    )


def _pair(x: PyTree, context: Array) -> tuple[PyTree, Array]:
    """Every row of the inputs `[n, ...]` beside the context `[c]`."""
    num = jax.tree.leaves(x)[0].shape[0]
    return x, jnp.broadcast_to(context, (num, *context.shape))
