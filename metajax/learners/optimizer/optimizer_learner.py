"""Learned optimizers: tasks start anywhere, and how to descend is what is learned.

M. Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
NeurIPS 2016, https://arxiv.org/abs/1606.04474, Eqs. (1) to (3); L. Franceschi,
M. Donini, P. Frasconi, M. Pontil, "Forward and Reverse Gradient-Based Hyperparameter
Optimization", ICML 2017, https://arxiv.org/abs/1703.01785.

    phi_0 drawn at random for each task,   phi_{t+1} = phi_t + m_t(grad L(phi_t), w)
    outer   min over w of the mean over tasks of
            mean over t = 1 .. T of L_support(phi_t)        judges="path",  Eq. (3)
            or L_query(phi_T)                               judges="query"

w are the parameters of a `LearnedOptimizer`. With `lstm_optimizer` this is learning to
learn by gradient descent; with `learned(optax.sgd, learning_rate=..., momentum=...)` it
is the bilevel learning of an optimizer's hyper-parameters, or of its schedule where
they are per step. Differs from the first paper: the loss is a mean over steps, not a
sum.
"""

from typing import Annotated, Literal, get_args

from metajax.builders.descent import descent
from metajax.checks import check_choice, check_integers, check_parts
from metajax.inner.learned_optimizer import LearnedOptimizer
from metajax.inner.unroll import GradientMode
from metajax.objectives import cross_entropy
from metajax.types import CommandLine, Learner, Model, Objective

__all__ = ["optimizer_learner"]

Judge = Literal["path", "query"]
JUDGES: tuple[Judge, ...] = get_args(Judge)


def optimizer_learner(
    model: Model,
    inner_optimizer: Annotated[LearnedOptimizer, CommandLine({"learned": "optimizer"})],
    *,
    inner_steps: Annotated[int, CommandLine(20)],
    eval_inner_steps: int | None = None,
    judges: Judge = "path",
    objective: Objective = cross_entropy,
    gradient: GradientMode = "remat",
) -> Learner:
    """Builds a learner of optimizers.

    Choose it where tasks share no solution to start from, but do share how to get to
    theirs. Where they share a start, `maml` with a learned optimizer learns both.

    Args:
      model: the network; each task starts from its `init`, with the task's key, or with
        always the same one where `adapt` and `loss` are given none.
      inner_optimizer: what is learned.
      inner_steps: inner steps in training, at least 1. Long ones are better cut into
        pieces: `metajax.training.outer_gradients.truncated` and `pes` use the learner's
        `segments`.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      judges: `"path"` for the mean support loss over the inner steps, `"query"` for
        the query loss at their end.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`. `"first_order"` ignores how gradients depend on
        parameters, as the first paper does.

    Returns:
      A learner whose `meta_params` are `DescentParams(None, optimizer)`, whose
      `adapted` are parameters of `model`, and which has `segments`.

    Raises:
      ValueError: if an argument is out of range.
      TypeError: if `inner_optimizer` is not a `LearnedOptimizer`.

    Example:
      >>> import optax
      >>> from metajax.learners import optimizer_learner
      >>> from metajax.models import mlp
      >>> from metajax.optimizers import HyperParameter, learned
      >>> rate = HyperParameter(0.1, domain="positive")
      >>> inner_optimizer = learned(optax.sgd, learning_rate=rate)
      >>> learner = optimizer_learner(mlp(5), inner_optimizer, inner_steps=20)
    """
    check_parts(model=model, objective=objective)
    if not isinstance(inner_optimizer, LearnedOptimizer):
        raise TypeError(
            "`inner_optimizer` must be a LearnedOptimizer, such as "
            "learned(optax.sgd, learning_rate=HyperParameter(0.1)), as it is all that "
            f"is learned; got {inner_optimizer!r}."
        )
    check_choice(JUDGES, judges=judges)
    check_integers(1, inner_steps=inner_steps)
    return descent(
        model,
        inner_optimizer,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        objective=objective,
        gradient=gradient,
        starts_at_random=True,
        judges_path=judges == "path",
    )
