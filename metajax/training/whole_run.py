"""Whole runs as one pure function: for many seeds and hyper-parameters at once.

`metajax.training.trainer.train` is for one long run with files and a display. Here a
run is a function of a key and hyper-parameters that `jit` compiles from the first task
to the last validation, and `vmap` runs many times side by side, which pays where one
run of a small network leaves the device idle.

    def make(hyper):
        inner = optax.sgd(hyper["inner_rate"])
        return maml(model, inner, inner_steps=1), optax.adam(hyper["outer_rate"])

    run = whole_run(make, tasks, steps=5000, tasks_per_step=25)
    keys = jax.vmap(jax.random.key)(jnp.arange(32))
    results = jax.jit(jax.vmap(run, (0, None)))(keys, hyper)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.checks import (
    check_batch,
    check_fits,
    check_functions,
    check_integers,
    check_keys,
    check_parts,
)
from metajax.compute import devices
from metajax.evaluation.bank import VALIDATION_SEED, bank_means
from metajax.evaluation.metrics import Judge
from metajax.training.outer_loop import (
    TrainState,
    init_state,
    outer_step,
    reverse_mode,
    task_keys,
    tasks_at,
)
from metajax.training.stops import check_outer_gradient, check_types
from metajax.types import Array, Learner, OuterGradient, PyTree, TaskDistribution

__all__ = ["WholeRun", "whole_run"]


class WholeRun(NamedTuple):
    """What a whole run gives.

    Attributes:
      meta_params: after the last step.
      training: metrics `[steps]` of every step, as
        `metajax.training.outer_loop.outer_step` gives them. Where `is_finite` is False
        the step was not taken, and the steps after it start from the last good state.
      validation: means over the validation tasks `[rounds]`, after every
        `validate_every` steps; empty without validation.
    """

    meta_params: PyTree
    training: dict[str, Array]
    validation: dict[str, Array]


def whole_run(
    make: Callable[[PyTree], tuple[Learner, optax.GradientTransformation]],
    tasks: TaskDistribution,
    *,
    steps: int,
    tasks_per_step: int,
    updates_per_step: int = 1,
    validation: TaskDistribution | None = None,
    validate_every: int | None = None,
    num_validation_tasks: int = 200,
    judge: Judge | None = None,
    outer_gradient: OuterGradient | None = None,
) -> Callable[[Array, PyTree], WholeRun]:
    """Makes a run a pure function.

    Args:
      make: `hyper -> (learner, optimizer)`. `hyper` may be traced: numbers that both
        pass on, such as learning rates, and nothing that decides on shapes.
      tasks: the task distribution of training.
      steps: outer steps, at least 1.
      tasks_per_step: tasks B in each of them, at least 1.
      updates_per_step: updates on these tasks, see `metajax.train`.
      validation: the distribution of validation tasks.
      validate_every: steps between validations; it must divide `steps`, and is `steps`
        by default.
      num_validation_tasks: the same tasks every time, those of `train`.
      judge: what is measured of them, see `metajax.evaluate`.
      outer_gradient: where the outer gradient comes from; reverse mode by default.

    Returns:
      `run(key, hyper=None) -> WholeRun`. With `jax.random.key(seed)` it takes the steps
      of `train(..., seed=seed)`. Compile it by `jax.jit`.

    Raises:
      ValueError: if a number is out of range, or `make`, `tasks` or `validation` is no
        function; from `run`, if `make` gives no pair, or functions of the learner do
        not take what they are called with.
      TypeError: from `run`, if `make` gives no learner or no optimizer.
    """
    check_functions(("hyper",), "`lambda hyper: (learner, optimizer)`", make=make)
    check_parts(tasks=tasks)
    if validation is not None:
        check_parts(validation=validation)
    if outer_gradient is not None:
        check_outer_gradient(outer_gradient)
    rounds_of = steps if validate_every is None else validate_every
    numbers = {
        "steps": steps,
        "tasks_per_step": tasks_per_step,
        "updates_per_step": updates_per_step,
        "validate_every": rounds_of,
        "num_validation_tasks": num_validation_tasks,
    }
    check_integers(1, **numbers)
    check_keys(num_validation_tasks=num_validation_tasks)
    metrics = jax.ShapeDtypeStruct((steps, 4), "float32")
    check_fits(f"The metrics of `steps` = {steps}", metrics, "lower `steps`")
    if judge is not None and validation is None:
        raise ValueError("`judge` needs `validation`, a task distribution; got None.")
    if steps % rounds_of:
        raise ValueError(
            f"`validate_every` must divide `steps` = {steps}, got {validate_every}."
        )
    gradient_of = outer_gradient or reverse_mode()

    def run(key: Array, hyper: PyTree = None) -> WholeRun:
        made = make(hyper)
        if type(made) not in (tuple, list) or len(made) != 2:
            raise ValueError(
                f"`make` must return `(learner, optimizer)`, got {type(made).__name__}."
            )
        learner, optimizer = made
        check_types(learner, tasks, optimizer, validation)
        key_init, key_steps = jax.random.split(key)
        shapes = jax.eval_shape(tasks_at(tasks, 0), key)
        check_keys(tasks_per_step=tasks_per_step)
        limit = devices.memory_limit()
        check_batch(shapes, limit=limit, tasks_per_step=tasks_per_step)
        example = tasks_at(tasks, 0)(task_keys(key_steps, 0, tasks_per_step)[0, 0])
        state = init_state(key_init, learner, example, optimizer, gradient_of)

        def step(state: TrainState, index: Array) -> tuple[TrainState, dict]:
            sample_keys, loss_keys = task_keys(key_steps, index, tasks_per_step)
            batch = jax.vmap(tasks_at(tasks, index))(sample_keys)
            return outer_step(
                learner,
                optimizer,
                gradient_of,
                state,
                batch,
                loss_keys,
                updates_per_step=updates_per_step,
            )

        def round_of_steps(
            state: TrainState, indices: Array
        ) -> tuple[TrainState, tuple[dict, dict]]:
            state, training = jax.lax.scan(step, state, indices)
            if validation is None:
                return state, (training, {})
            scores = bank_means(
                learner,
                state.meta_params,
                validation,
                num_tasks=num_validation_tasks,
                seed=VALIDATION_SEED,
                judge=judge,
            )
            return state, (training, scores)

        indices = jnp.arange(steps).reshape(-1, rounds_of)
        state, (training, scores) = jax.lax.scan(round_of_steps, state, indices)
        training = jax.tree.map(lambda x: x.reshape(steps), training)
        return WholeRun(state.meta_params, training, scores)

    return run
