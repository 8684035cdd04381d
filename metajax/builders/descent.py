"""What learners that descend on the support loss share, whatever they learn of it.

    phi_0 = theta, or drawn at random;   phi_{t+1} = phi_t + u_t(grad L_support(phi_t))

u_t is any Optax optimizer, or one that is learned itself. `maml`, `meta_sgd` and the
learned optimizers are each a choice of arguments of `descent`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from metajax.checks import check_functions, check_integers, check_optimizer, check_parts
from metajax.filters import everything, partition
from metajax.inner.learned_optimizer import LearnedOptimizer
from metajax.inner.unroll import GradientMode, Unrolled, check_inner_loop, unroll
from metajax.masks import masked_mean
from metajax.models.normalization import freeze_support_statistics
from metajax.objectives import example_losses, query_score, split_key
from metajax.types import (
    Array,
    Examples,
    Filter,
    Learner,
    Metrics,
    Model,
    Objective,
    PyTree,
    Segments,
    Task,
)

__all__ = [
    "DescentParams",
    "InnerOptimizer",
    "Run",
    "check_descent",
    "descent",
    "learner_of_run",
    "learner_of_start",
    "optimizer_of",
    "params_of",
    "score",
    "support_curve",
    "support_loss_fn",
]

InnerOptimizer: TypeAlias = optax.GradientTransformation | LearnedOptimizer


class DescentParams(NamedTuple):
    """What is learned, where it is not an initialisation alone.

    Attributes:
      params: the initialisation; None where each task starts at random.
      optimizer: parameters of the `LearnedOptimizer`; of Reptile, numbers of the state
        of its inner optimizer.
    """

    params: PyTree
    optimizer: PyTree


class Run(NamedTuple):
    """How an inner loop is asked to run.

    Attributes:
      inner_steps: its length.
      is_training: whether it is part of the outer loss, or of `adapt`.
      keep_path: whether every phi_t is wanted.
    """

    inner_steps: int
    is_training: bool = True
    keep_path: bool = False


def check_descent(
    optimizer: InnerOptimizer,
    gradient: GradientMode,
    inner_steps: int,
    eval_inner_steps: int | None,
    *,
    may_be_learned: bool = False,
) -> None:
    """Checks as `metajax.inner.unroll.check_inner_loop`, also for a `LearnedOptimizer`.

    Raises:
      ValueError: as there, or if the optimizer is learned and may not be, or is not of
        two functions.
      TypeError: if it is no optimizer. Errors call it `inner_optimizer`.
    """
    if not isinstance(optimizer, LearnedOptimizer):
        others = ", or a LearnedOptimizer" if may_be_learned else ""
        check_optimizer(inner_optimizer=optimizer, others=others)
    else:
        if not may_be_learned:
            raise ValueError(
                "`inner_optimizer` must be one of Optax, such as optax.sgd(0.01), got "
                "a LearnedOptimizer: this learner does not learn its inner optimizer. "
                "`maml` and `optimizer_learner` do."
            )
        example = "those of `metajax.optimizers.learned`"
        check_functions(("key", "params"), example, init=optimizer.init)
        check_functions(("params",), example, build=optimizer.build)
        try:
            with jax.ensure_compile_time_eval():
                start = optimizer.init(jax.random.key(0), jnp.zeros(2))
                optimizer = optimizer.build(start)
        except Exception:  # It expects the parameters of a certain network.
            optimizer = optax.identity()
    check_inner_loop(optimizer, inner_steps, gradient)
    if eval_inner_steps is not None:
        check_integers(0, eval_inner_steps=eval_inner_steps)
        check_inner_loop(optimizer, eval_inner_steps, gradient)


def params_of(meta_params: PyTree) -> PyTree:
    """Gives the initialisation."""
    return meta_params.params if isinstance(meta_params, DescentParams) else meta_params


def optimizer_of(
    meta_params: PyTree, optimizer: InnerOptimizer
) -> optax.GradientTransformation:
    """Builds the Optax optimizer, as learned so far."""
    if isinstance(optimizer, LearnedOptimizer):
        return optimizer.build(meta_params.optimizer)
    return optimizer


def support_loss_fn(
    model: Model, objective: Objective
) -> Callable[[PyTree, Examples, Array | None], Array]:
    """Gives the mean loss of a model on examples, as `metajax.inner.unroll` takes."""

    def loss(params: PyTree, examples: Examples, key: Array | None) -> Array:
        outputs = model.apply(params, examples.x, mask=examples.mask, key=key)
        losses = example_losses(objective, outputs, examples.y)
        return masked_mean(losses, examples.mask)

    return loss


def support_curve(losses: Array) -> dict[str, Array]:
    """Makes metrics `support_loss_t` from the losses before each inner step.

    At most 11 of them, evenly spaced with the first and the last: each metric is an
    output of the compiled program, and a thousand take half a minute to compile.
    """
    last = len(losses) - 1
    shown = sorted({round(last * i / 10) for i in range(11)}) if last >= 0 else []
    return {f"support_loss_{t}": losses[t] for t in shown}


def descent(
    model: Model,
    inner_optimizer: InnerOptimizer,
    *,
    inner_steps: int,
    eval_inner_steps: int | None,
    objective: Objective,
    gradient: GradientMode,
    adapts: Filter = everything,
    check_mixed: bool = True,
    starts_at_random: bool = False,
    judges_path: bool = False,
) -> Learner:
    """Builds a learner that takes inner steps from an initialisation.

    Args:
      model: the network.
      inner_optimizer: what adapts it.
      inner_steps: inner steps in training.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      gradient: how the outer gradient passes the inner loop.
      adapts: which parameters adapt.
      check_mixed: see `metajax.inner.unroll.unroll`.
      starts_at_random: whether each task draws its phi_0 from `model.init`, so that
        the optimizer is all that is learned.
      judges_path: whether the outer loss is the mean support loss at phi_1 .. phi_T, as
        for optimizers that are to descend fast, and not the query loss at phi_T.

    Returns:
      A learner with `segments`.

    Raises:
      ValueError: as `check_descent`.
      TypeError: as `check_descent`.
    """
    check_parts(model=model, objective=objective, adapts=adapts)
    check_descent(
        inner_optimizer, gradient, inner_steps, eval_inner_steps, may_be_learned=True
    )
    support_loss = support_loss_fn(model, objective)

    def start(meta_params: PyTree, support: Examples, key: Array | None) -> PyTree:
        if not starts_at_random:
            return params_of(meta_params)
        return model.init(jax.random.key(0) if key is None else key, support.x)

    def go_on(
        meta_params: PyTree,
        params: PyTree,
        support: Examples,
        key: Array | None,
        inner_steps: int,
        *,
        opt_state: PyTree = None,
        keep_path: bool = False,
    ) -> Unrolled:
        return unroll(
            support_loss,
            optimizer_of(meta_params, inner_optimizer),
            params,
            support,
            inner_steps=inner_steps,
            gradient=gradient,
            adapts=adapts,
            key=key,
            opt_state=opt_state,
            keep_path=keep_path,
            check_mixed=check_mixed,
        )

    def run(
        meta_params: PyTree, support: Examples, key: Array | None, how: Run
    ) -> Unrolled:
        key_start, key = split_key(key, 2) if starts_at_random else (None, key)
        params = start(meta_params, support, key_start)
        return go_on(
            meta_params, params, support, key, how.inner_steps, keep_path=how.keep_path
        )

    def init(key: Array, task: Task) -> PyTree:
        if not isinstance(inner_optimizer, LearnedOptimizer):
            return model.init(key, task.support.x)
        key_model, key_optimizer = jax.random.split(key)
        params = model.init(key_model, task.support.x)
        adapting, _ = partition(params, adapts)
        learned = inner_optimizer.init(key_optimizer, adapting)
        return DescentParams(None if starts_at_random else params, learned)

    def path_loss(result: Unrolled, support: Examples, key: Array | None) -> Array:
        last = support_loss(result.params, support, key)
        return (jnp.sum(result.losses[1:]) + last) / len(result.losses)

    learner = learner_of_run(
        model,
        init,
        run,
        objective,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
    )

    def loss_of_path(
        meta_params: PyTree, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        key_adapt, key_predict = split_key(key, 2)
        result = run(meta_params, task.support, key_adapt, Run(inner_steps))
        value, metrics = score(model, objective, result.params, task, key_predict)
        metrics = metrics | {"query_loss": value}
        return path_loss(result, task.support, key_predict), metrics

    def start_segments(meta_params: PyTree, task: Task, key: Array | None) -> PyTree:
        params = start(meta_params, task.support, key)
        adapting, _ = partition(params, adapts)
        opt_state = optimizer_of(meta_params, inner_optimizer).init(adapting)
        return params, opt_state, jnp.int32(0)

    def advance(
        meta_params: PyTree, task: Task, state: PyTree, key: Array | None, count: int
    ) -> tuple[PyTree, Array]:
        params, opt_state, taken = state
        key_adapt, key_judge = split_key(key, 2)
        result = go_on(
            meta_params, params, task.support, key_adapt, count, opt_state=opt_state
        )
        taken = taken + count
        if judges_path:
            value = path_loss(result, task.support, key_judge)
        else:
            value, _ = score(model, objective, result.params, task, key_judge)
            value = jnp.where(taken == inner_steps, value * (inner_steps / count), 0)
        return (result.params, result.opt_state, taken), value

    segments = Segments(inner_steps, start_segments, advance, not starts_at_random)
    if judges_path:
        learner = learner._replace(loss=loss_of_path)
    return learner._replace(segments=segments)


def score(
    model: Model,
    objective: Objective,
    params: PyTree,
    task: Task,
    key: Array | None,
) -> tuple[Array, Metrics]:
    """Computes loss and metrics on the query set of parameters that descended."""
    adapted = freeze_support_statistics(model, params, task.support)
    return query_score(model.apply, adapted, task.query, objective, key)


def learner_of_start(
    model: Model,
    init: Callable[[Array, Task], PyTree],
    start: Callable[[PyTree, Examples], PyTree],
    inner_optimizer: InnerOptimizer,
    *,
    objective: Objective,
    inner_steps: int,
    eval_inner_steps: int | None,
    gradient: GradientMode,
    adapts: Filter = everything,
    check_mixed: bool = True,
) -> Learner:
    """Builds a learner that makes phi_0 of each task, and descends from there.

    Args:
      model: as for `learner_of_run`.
      init: as `Learner.init`.
      start: `(meta_params, support) -> phi_0`.
      inner_optimizer: what descends; the `meta_params` of a learned one have its
        parameters as `optimizer`.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      inner_steps: inner steps in training.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`.
      adapts: which leaves of phi_0 adapt.
      check_mixed: see `metajax.inner.unroll.unroll`.
    """
    support_loss = support_loss_fn(model, objective)

    def run(
        meta_params: PyTree, support: Examples, key: Array | None, how: Run
    ) -> Unrolled:
        return unroll(
            support_loss,
            optimizer_of(meta_params, inner_optimizer),
            start(meta_params, support),
            support,
            inner_steps=how.inner_steps,
            gradient=gradient,
            adapts=adapts,
            key=key,
            keep_path=how.keep_path,
            check_mixed=check_mixed,
        )

    return learner_of_run(
        model,
        init,
        run,
        objective,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
    )


def learner_of_run(
    model: Model,
    init: Callable[[Array, Task], PyTree],
    run: Callable[[PyTree, Examples, Array | None, Run], Unrolled],
    objective: Objective,
    *,
    inner_steps: int,
    eval_inner_steps: int | None,
    surrogate: Callable[[PyTree, Unrolled], Array] | None = None,
) -> Learner:
    """Builds a learner from its inner loop.

    Args:
      model: what `run` adapts: `apply` understands its `params`, and `statistics`, if
        there is any, freezes those of the support set into them.
      init: as `Learner.init`.
      run: `(meta_params, support, key, how) -> Unrolled`.
      objective: `(outputs, y) -> [n]`, the loss of every query example.
      inner_steps: inner steps in training.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      surrogate: `(meta_params, unrolled) -> scalar`, added to the loss.

    Returns:
      A learner whose loss reports `support_curve`.
    """
    final_steps = inner_steps if eval_inner_steps is None else eval_inner_steps

    def adapt(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> PyTree:
        result = run(meta_params, support, key, Run(final_steps, is_training=False))
        return freeze_support_statistics(model, result.params, support)

    def adapt_steps(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> PyTree:
        how = Run(final_steps, is_training=False, keep_path=True)
        path = run(meta_params, support, key, how).path
        return jax.vmap(lambda p: freeze_support_statistics(model, p, support))(path)

    def predict(
        adapted: PyTree,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        return model.apply(adapted, inputs, mask=mask, key=key)

    def loss(
        meta_params: PyTree, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        key_adapt, key_predict = split_key(key, 2)
        result = run(meta_params, task.support, key_adapt, Run(inner_steps))
        value, metrics = score(model, objective, result.params, task, key_predict)
        if surrogate is not None:
            value = value + surrogate(meta_params, result)
        return value, metrics | support_curve(result.losses)

    return Learner(init, adapt, predict, loss, adapt_steps)
