"""Implicit MAML: an anchor to which each task's solution is tied.

A. Rajeswaran, C. Finn, S. Kakade, S. Levine, "Meta-Learning with Implicit Gradients",
NeurIPS 2019, https://arxiv.org/abs/1909.04630, Algorithms 1 and 2.

    inner   phi* = argmin over phi of L_support(phi) + lambda / 2 ||phi - theta||^2
    outer   min over theta of the mean over tasks of L_query(phi*)
            d phi* / d theta = (I + 1 / lambda * grad^2 L_support(phi*))^-1      Eq. (6)

theta is `meta_params`, phi* what `adapt` returns, lambda `strength`. The inverse is
applied by conjugate gradients (`metajax.inner.implicit`), so that the inner steps are
not
differentiated: memory does not grow with them, and any optimizer may take them. phi* is
as good as the inner steps make it, and so is the gradient. Differs from the paper:
lambda is not learned, and Eq. (6) may have a larger one than the inner problem, as the
authors' code has it.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from metajax.builders.descent import (
    Run,
    check_descent,
    learner_of_run,
    score,
    support_curve,
    support_loss_fn,
)
from metajax.checks import (
    check_flags,
    check_integers,
    check_not_negative,
    check_parts,
    check_positive,
)
from metajax.filters import combine, partition
from metajax.inner.implicit import check_solve, implicit_loss
from metajax.inner.unroll import GradientMode, Unrolled, unroll
from metajax.objectives import cross_entropy, split_key
from metajax.types import (
    Array,
    CommandLine,
    Examples,
    Learner,
    Metrics,
    Model,
    Objective,
    PyTree,
    Task,
)

__all__ = ["imaml"]


def imaml(
    model: Model,
    inner_optimizer: optax.GradientTransformation,
    *,
    inner_steps: Annotated[int, CommandLine(16)],
    eval_inner_steps: int | None = None,
    strength: float = 2.0,
    damping: float = 0.0,
    cg_iterations: int = 10,
    max_residual: float = 1.0,
    skips_failed: bool = False,
    objective: Objective = cross_entropy,
    gradient: GradientMode | Literal["implicit"] = "implicit",
) -> Learner:
    """Builds implicit MAML.

    Choose it where a task takes many inner steps, and memory for them is what MAML
    lacks.

    Args:
      model: the network.
      inner_optimizer: what solves the inner problem; it is not differentiated, so
        anything goes: `optax.sgd(0.1)`, `optax.adam(0.01)`, `optax.lbfgs()`.
      inner_steps: inner steps in training, at least 1; as many as come near the
        minimum.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      strength: lambda, above 0: 2 is the paper's for 20-way Omniglot. The inner problem
        has a minimum for sure only if lambda is more than minus the smallest curvature
        of the support loss. The authors' code takes inner steps without the pull and
        one of it at their end, which 0.2 is nearer to.
      damping: what Eq. (6) adds to lambda, at least 0. Above 0 the gradient is no
        longer that of the inner problem, but of one that is tied more strongly and has
        the same solution. Networks with batch statistics need it, as their curvature is
        often far below -2: 24 in sum with `strength` is what the authors' code has.
      cg_iterations: steps of conjugate gradients, at least 1; the paper takes 5.
      max_residual: the largest relative residual of the linear solve, in (0, 1]; 1 is
        that of no solution at all. Above it the solve has failed and the gradient is
        NaN, at which `train` stops.
      skips_failed: whether a task whose solve has failed has a gradient of 0 instead,
        as if it had not been drawn, but that the mean is still over all tasks. Networks
        with batch statistics meet such a task now and then.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      gradient: `"implicit"`, or one of `metajax.inner.unroll.GRADIENT_MODES` to
        differentiate through the inner steps on the same problem, undamped, for
        comparison.

    Returns:
      A learner whose `meta_params` and `adapted` are parameters of `model`. Its loss
      reports `implicit_residual`, that of the linear solve, `implicit_failed`, the
      share of tasks where it is above `max_residual`, and `support_loss_t`, the inner
      objective before inner step t.

    Raises:
      ValueError: if a number is out of range.
      TypeError: if `inner_optimizer` is not an Optax transformation.

    Example:
      >>> import optax
      >>> from metajax.learners import imaml
      >>> from metajax.models import mlp
      >>> learner = imaml(mlp(5), optax.sgd(0.1), inner_steps=16)
    """
    check_flags(skips_failed=skips_failed)
    check_parts(model=model, objective=objective)
    is_implicit = gradient == "implicit"
    mode: GradientMode = "first_order" if gradient == "implicit" else gradient
    check_integers(1, inner_steps=inner_steps)
    check_descent(inner_optimizer, mode, inner_steps, eval_inner_steps)
    check_solve(cg_iterations, max_residual)
    check_positive(strength=strength)
    check_not_negative(damping=damping)
    support_loss = support_loss_fn(model, objective)

    def proximal_loss(phi: PyTree, theta: PyTree, others: PyTree, pull: float) -> Array:
        """Takes floating-point leaves as `phi` and `theta`, the others as `rest`."""
        rest, support, key = others
        distance = optax.tree.norm(optax.tree.sub(phi, theta), squared=True)
        return support_loss(combine(phi, rest), support, key) + pull / 2 * distance

    def run(
        meta_params: PyTree, support: Examples, key: Array | None, how: Run
    ) -> Unrolled:
        if is_implicit:
            meta_params = jax.lax.stop_gradient(meta_params)
        theta, rest = partition(meta_params)

        # One key for all steps: with dropout too there is then one inner problem.
        def loss(params: PyTree, args: PyTree, _: Array | None) -> Array:
            theta, *others = args
            return proximal_loss(partition(params)[0], theta, others, strength)

        return unroll(
            loss,
            inner_optimizer,
            meta_params,
            (theta, rest, support, key),
            inner_steps=how.inner_steps,
            gradient=mode,
            keep_path=how.keep_path,
        )

    def init(key: Array, task: Task) -> PyTree:
        return model.init(key, task.support.x)

    learner = learner_of_run(
        model,
        init,
        run,
        objective,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
    )

    def loss(
        meta_params: PyTree, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        key_adapt, key_predict = split_key(key, 2)
        result = run(meta_params, task.support, key_adapt, Run(inner_steps))
        theta, rest = partition(meta_params)
        solution, _ = partition(result.params)

        def outer(phi: PyTree, others: PyTree) -> tuple[Array, Metrics]:
            rest, task, _, key = others
            return score(model, objective, combine(phi, rest), task, key)

        def inner(phi: PyTree, theta: PyTree, others: PyTree) -> Array:
            rest, task, key, _ = others
            others = (rest, task.support, key)
            return proximal_loss(phi, theta, others, strength + damping)

        value, metrics, residual = implicit_loss(  # Eq. (6)
            outer,
            inner,
            cg_iterations,
            max_residual,
            0.0 if skips_failed else jnp.nan,
            solution,
            theta,
            (rest, task, key_adapt, key_predict),
        )
        metrics |= support_curve(result.losses)
        failed = jnp.float32(~(residual <= max_residual))  # also where it is NaN
        return value, metrics | {
            "implicit_residual": residual,
            "implicit_failed": failed,
        }

    return learner._replace(loss=loss) if is_implicit else learner
