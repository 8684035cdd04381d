"""Meta-training: any learner, any task distribution, any Optax optimizer.

`train` is what stands around `metajax.training.outer_loop`: it compiles, validates on a
fixed bank of tasks, keeps the best meta-parameters, writes the run folder, resumes, and
stops at the first number that is not finite. Its result is a function of its arguments
alone, bit for bit on one machine, however often the run was killed and resumed on the
way. A run that was extended (`steps` has grown) has been validated at its former end,
too.
"""

import functools
import os
import time
from collections import deque
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from metajax.checks import (
    check_flags,
    check_integers,
    check_keys,
    check_paths,
    check_seed,
)
from metajax.compute.devices import TASK_AXIS, place, task_mesh
from metajax.compute.program_costs import best_block
from metajax.evaluation.bank import VALIDATION_SEED, bank_task, evaluate
from metajax.evaluation.contract import check_classes, checked_loss
from metajax.evaluation.metrics import Judge
from metajax.tasks.task_checks import check_task
from metajax.training.history import Best, Journal
from metajax.training.outer_loop import (
    TrainState,
    init_state,
    reverse_mode,
    run_steps_fn,
)
from metajax.training.progress import Progress
from metajax.training.run_folder import Record, RunFolder, run_settings
from metajax.training.stops import (
    check_block,
    check_memory,
    check_outer_gradient,
    check_types,
    non_finite_error,
    warn_of_slow_convolutions,
)
from metajax.training.task_source import HostTasks, TaskSource, task_source
from metajax.types import Array, Learner, OuterGradient, PyTree, Task, TaskDistribution

__all__ = ["TrainResult", "train"]


class TrainResult(NamedTuple):
    """What a run gives.

    Attributes:
      meta_params: after the last step.
      best_params: those of the best validation; the last ones if there was none.
      best_step: the steps these took.
      history: records as `metajax.training.run_folder.read_metrics` describes them.
      state: after the last step, all of it.
    """

    meta_params: PyTree
    best_params: PyTree
    best_step: int
    history: list[Record]
    state: TrainState


def train(
    learner: Learner,
    tasks: TaskDistribution | HostTasks,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    tasks_per_step: int,
    updates_per_step: int = 1,
    seed: int = 0,
    steps_per_dispatch: int = 1,
    tasks_per_block: int | Literal["auto"] | None = "auto",
    mesh: Mesh | Literal["auto"] | None = "auto",
    outer_gradient: OuterGradient | None = None,
    validation: TaskDistribution | None = None,
    judge: Judge | None = None,
    validate_every: int = 500,
    num_validation_tasks: int = 200,
    monitor: str | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    config: dict[str, Any] | None = None,
    log_every: int = 50,
    checkpoint_every: int = 500,
    progress: bool = True,
) -> TrainResult:
    """Meta-trains a learner.

    With a `run_dir`, call it again with the same arguments after a kill, a crash or a
    full disk, and it goes on from the latest checkpoint to the same bits. A finished
    run returns at once, or goes on if `steps` has grown.

    Args:
      learner: what to train. To start from other parameters than `learner.init` draws,
        pass `learner._replace(init=lambda key, task: meta_params)`.
      tasks: a pure function of a key, or a source on the host.
      optimizer: of the outer loop. It sees the mean gradient over tasks.
      steps: outer steps in total, at least 1.
      tasks_per_step: tasks B in each of them, at least 1.
      updates_per_step: updates of the meta-parameters on the tasks of a step, one after
        the other, at least 1. More than one pays where `learner.collect` makes tasks
        costly, as in reinforcement learning.
      seed: of everything random, from 0 to 2^32 - 1.
      steps_per_dispatch: steps taken by one call of the compiled program. It saves
        overhead where a step takes less than about a millisecond. It puts the step into
        a loop, in which XLA's CPU backend runs plain convolutions tens of times slower.
      tasks_per_block: tasks that are adapted to at once on a device, see
        `metajax.training.outer_loop.reverse_mode`; `"auto"` takes one after the other
        on CPU if the learner convolves, and else all at once.
      mesh: the devices, see `metajax.compute.devices`. `"auto"` takes as many as divide
        the tasks evenly; None takes one.
      outer_gradient: where the outer gradient comes from; reverse mode by default.
      validation: the distribution of validation tasks; none are held by default.
      judge: what is measured of them, see `metajax.evaluate`.
      validate_every: steps between validations; one more comes before the first step,
        and one after the last.
      num_validation_tasks: the same tasks every time, whatever `seed`.
      monitor: the metric that decides which meta-parameters are best. The larger the
        better if its name contains "accuracy" or "return", else the smaller. By default
        `accuracy` where it is measured, else `nll`, else the first of the metrics.
      run_dir: folder for configuration, metrics, checkpoints and learning curve, see
        `metajax.training.run_folder`. None writes nothing.
      config: JSON values that describe learner, tasks and optimizer, written into the
        folder. A run with another description is not continued. Undescribed changes
        are noticed too (they change the compiled program or the first task), but the
        message cannot name them.
      log_every: steps that are averaged to one record of the history.
      checkpoint_every: steps between checkpoints; one more comes after the last step.
      progress: a bar, or lines where the output is no terminal, or neither.

    Returns:
      The meta-parameters, last and best, and the history.

    Raises:
      ValueError: an argument is out of its range, the first task is malformed,
        `monitor` is not measured, or `run_dir` holds a run with other settings or more
        steps.
      TypeError: `learner`, `tasks` or `optimizer` is something else.
      NonFiniteError: training diverged. The last good state is saved first.
      MemoryError: a step needs more memory than the device has.
      metajax.training.checkpoints.CheckpointError: no checkpoint of the run can be
        read.
      BlockingIOError: another process trains in `run_dir`.
    """
    check_flags(progress=progress)
    if run_dir is not None:
        check_paths(run_dir=run_dir)
    if outer_gradient is not None:
        check_outer_gradient(outer_gradient)
    counts = {
        "steps": steps,
        "tasks_per_step": tasks_per_step,
        "updates_per_step": updates_per_step,
        "steps_per_dispatch": steps_per_dispatch,
        "validate_every": validate_every,
        "num_validation_tasks": num_validation_tasks,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
    }
    check_types(learner, tasks, optimizer, validation)
    check_integers(1, **counts)
    check_seed(seed)
    if validation is not None:  # and not only when it is due
        check_keys(num_validation_tasks=num_validation_tasks)
    if monitor is not None and validation is None:
        raise ValueError(
            f"`monitor` needs `validation`, a task distribution; got {monitor!r} and "
            f"None."
        )
    if judge is not None and validation is None:
        raise ValueError("`judge` needs `validation`, a task distribution; got None.")
    mesh = task_mesh(mesh, tasks_per_step)
    tasks_on_device = tasks_per_step // (1 if mesh is None else mesh.shape[TASK_AXIS])
    if outer_gradient is not None and tasks_per_block not in ("auto", None):
        raise ValueError(
            "`tasks_per_block` belongs to the default gradient; give either it or "
            "`outer_gradient`."
        )
    check_block(tasks_per_block, tasks_on_device)

    # Preparing: the first task, the state before the first step, the program of a step.
    run, state = _prepare(
        learner,
        tasks,
        optimizer,
        outer_gradient,
        seed=seed,
        tasks_per_step=tasks_per_step,
        updates_per_step=updates_per_step,
        steps_per_dispatch=steps_per_dispatch,
        tasks_per_block=tasks_per_block,
        mesh=mesh,
    )
    warn_of_slow_convolutions(run.traced)
    lowered = run.traced.lower()

    # The journal: what was found so far, here and in the folder of the run.
    folder, validate = None, None
    if validation is not None:
        validate = functools.partial(
            evaluate,
            learner,
            tasks=validation,
            num_tasks=num_validation_tasks,
            seed=VALIDATION_SEED,
            check_leakage=False,
            judge=judge,
            mesh=mesh,
        )
    if run_dir is not None:
        arguments = counts | {
            "seed": seed,
            "tasks_per_block": tasks_per_block,
            "validate_every": None if validation is None else validate_every,
            "monitor": monitor,
        }
        folder = _open_folder(
            run_dir,
            arguments,
            config,
            learner,
            run,
            state,
            lowered,
            validation,
            judge,
            mesh,
        )
    journal = Journal(folder, validate, monitor)
    step, state = journal.resume(state)

    # The loop: steps up to the next log, validation or checkpoint, and what is due.
    stops = (log_every, validate_every, checkpoint_every)
    with Progress(step, steps, enabled=progress) as show:
        if step:
            show.say(f"going on from step {step} of the run in {run_dir}")
        try:
            if not journal.history:
                journal.validate(state, step, show)
            if step < steps:
                with show.pause("compiling"):
                    program = lowered.compile()
                check_memory(program, run.tasks_per_block, tasks_on_device)
                run.source.start(step, steps)
            while step < steps:
                began = time.monotonic()
                stop = min(steps, *(step - step % every + every for every in stops))
                state, metrics, taken = _take_steps(
                    program, run.source, state, step, stop, show
                )
                step += taken
                if taken:
                    seconds = time.monotonic() - began
                    journal.log_steps(metrics, taken, step, seconds)
                    show.update(step, metrics["loss"][taken - 1])
                if step < stop:
                    saved = journal.save(state, step)
                    # The most frequent reason, and the loss says nothing of it.
                    check_classes(learner, state.meta_params, run.example)
                    raise non_finite_error(step, metrics, taken, saved)
                if _is_due(step, steps, validate_every):
                    journal.validate(state, step, show)
                if _is_due(step, steps, checkpoint_every):
                    journal.save(state, step)
        finally:
            journal.close()
        best = journal.best
        if best.value is None:
            best = Best(state.meta_params, step, None)
            show.say(f"finished after {step} steps")
        else:
            show.say(
                f"finished after {step} steps; the best validation, {best.value:.4g}, "
                f"was after {best.step}"
            )
    history = journal.history
    return TrainResult(state.meta_params, best.params, best.step, history, state)


class _Prepared(NamedTuple):
    """What a run needs before its first step, beside its state.

    Attributes:
      source: where the tasks come from.
      example: the first task.
      traced: the program of `steps_per_dispatch` steps.
      tasks_per_block: what `"auto"` came to.
    """

    source: TaskSource
    example: Task
    traced: jax.stages.Traced
    tasks_per_block: int | str | None


def _prepare(
    learner: Learner,
    tasks: TaskDistribution | HostTasks,
    optimizer: optax.GradientTransformation,
    outer_gradient: OuterGradient | None,
    *,
    seed: int,
    tasks_per_step: int,
    updates_per_step: int,
    steps_per_dispatch: int,
    tasks_per_block: int | str | None,
    mesh: Mesh | None,
) -> tuple[_Prepared, TrainState]:
    """Draws and checks the first task, makes the first state, traces a step."""
    key_init, key = jax.random.split(jax.random.key(seed))
    source = task_source(
        tasks,
        key,
        tasks_per_step=tasks_per_step,
        steps_per_dispatch=steps_per_dispatch,
        mesh=mesh,
    )
    example = source.example()
    check_task(example, "tasks")
    if outer_gradient is None:
        if tasks_per_block == "auto":
            params = jax.eval_shape(learner.init, key_init, example)
            seen = example
            if learner.collect is not None:
                seen = jax.eval_shape(learner.collect, params, example, key=key)
            loss = jax.make_jaxpr(checked_loss(learner.loss))(params, seen, key=key)
            tasks_per_block = best_block(loss.jaxpr)
        assert not isinstance(tasks_per_block, str)
        outer_gradient = reverse_mode(tasks_per_block=tasks_per_block)
    state = place(
        init_state(key_init, learner, example, optimizer, outer_gradient), mesh
    )
    source.start(0, 1)
    run_steps = run_steps_fn(
        learner,
        optimizer,
        outer_gradient,
        source.draw,
        tasks_per_step=tasks_per_step,
        updates_per_step=updates_per_step,
        steps_per_dispatch=steps_per_dispatch,
        mesh=mesh,
        source_spec=source.spec,
    )
    traced = run_steps.trace(
        state, source.take(1), source.key, np.int32(0), np.int32(0)
    )
    return _Prepared(source, example, traced, tasks_per_block), state


def _open_folder(
    run_dir: str | os.PathLike[str],
    arguments: dict[str, Any],
    config: dict[str, Any] | None,
    learner: Learner,
    run: _Prepared,
    state: TrainState,
    lowered: jax.stages.Lowered,
    validation: TaskDistribution | None,
    judge: Judge | None,
    mesh: Mesh | None,
) -> RunFolder:
    """Opens the folder of a run, which knows the run by its settings and programs."""
    programs, examples = [lowered], [run.example]
    if validation is not None:
        examples.append(bank_task(validation, 0, seed=VALIDATION_SEED))
        check_task(examples[-1], "validation")
        programs.append(
            _lowered_answer(learner, judge, state.meta_params, examples[-1])
        )
    num_devices = 1 if mesh is None else mesh.shape[TASK_AXIS]
    settings = run_settings(arguments, config, state, programs, examples, num_devices)
    return RunFolder(run_dir, settings)


def _lowered_answer(
    learner: Learner, judge: Judge | None, meta_params: PyTree, task: Task
) -> jax.stages.Lowered:
    """What a validation computes, as a program."""

    def answer(meta_params: PyTree, task: Task, key: Array) -> PyTree:
        adapted = learner.adapt(meta_params, task.support, key=key)
        query = task.query
        if judge is not None:
            return judge(adapted, query, key=key)
        return learner.predict(adapted, query.x, mask=query.mask)

    return jax.jit(answer).lower(meta_params, task, jax.random.key(0))


def _take_steps(
    program: jax.stages.Compiled,
    source: TaskSource,
    state: TrainState,
    start: int,
    stop: int,
    show: Progress,
) -> tuple[TrainState, dict[str, np.ndarray], int]:
    """Takes steps `start` to `stop`, or fewer if one of them is not finite.

    Returns:
      The last good state, metrics `[stop - start]` (or those up to the step that is not
      finite), and the number of steps taken.
    """
    rows: list[dict[str, np.ndarray]] = []
    in_flight: deque[tuple[int, dict[str, Array]]] = deque()

    def read() -> None:
        count, metrics = in_flight.popleft()
        rows.append({k: v[:count] for k, v in jax.device_get(metrics).items()})

    for begin in range(start, stop, source.steps_per_dispatch):
        count = min(source.steps_per_dispatch, stop - begin)
        state, metrics = program(
            state, source.take(count), source.key, np.int32(begin), np.int32(count)
        )
        in_flight.append((count, metrics))
        # Metrics are read while the device is at work on the steps after them.
        if len(in_flight) == 2:
            read()
            show.update(begin, rows[-1]["loss"][-1])
            if not np.all(rows[-1]["is_finite"]):
                break
    while in_flight:
        read()
    history = {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}
    is_finite = history.pop("is_finite")
    taken = stop - start if np.all(is_finite) else int(np.argmin(is_finite))
    return state, history, taken


def _is_due(step: int, steps: int, every: int) -> bool:
    return step % every == 0 or step == steps
