"""Meta-training: any learner, any task distribution, any Optax optimizer.

`train` is what stands around `metajax.training.outer_loop`: it compiles, validates on a fixed
bank of tasks, keeps the best meta-parameters, writes the run folder, resumes, and stops
at the first number that is not finite. Its result is a function of its arguments alone,
bit for bit on one machine, however often the run was killed and resumed on the way. A
run that was extended (`steps` has grown) has been validated at its former end, too.
"""

import math
import os
import pathlib
import time
import warnings
from collections import deque
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from metajax.checks import check_integers, check_seed
from metajax.compute import devices
from metajax.compute.devices import TASK_AXIS, place, task_mesh
from metajax.compute.program_costs import (
    best_block,
    mebibytes,
    planned_memory,
    slow_convolutions,
)
from metajax.evaluation.bank import VALIDATION_SEED, evaluate
from metajax.evaluation.reports import Report
from metajax.tasks.task_checks import check_task
from metajax.training.outer_loop import (
    TrainState,
    init_state,
    reverse_mode,
    run_steps_fn,
)
from metajax.training.progress import Progress
from metajax.training.run_folder import Record, RunFolder, run_settings
from metajax.training.task_source import HostTasks, TaskSource, is_host
from metajax.types import Array, Estimator, Learner, PyTree, Task, TaskDistribution

__all__ = ["NonFiniteError", "TrainResult", "train"]


class NonFiniteError(FloatingPointError):
    """Loss, gradient or updated meta-parameters held an infinity or NaN.

    Attributes:
      step: steps taken before it happened.
      checkpoint: where the state after these steps was saved; None without `run_dir`.
    """

    def __init__(
        self, message: str, *, step: int, checkpoint: pathlib.Path | None
    ) -> None:
        super().__init__(message)
        self.step = step
        self.checkpoint = checkpoint


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
    seed: int = 0,
    steps_per_dispatch: int = 1,
    tasks_per_block: int | Literal["auto"] | None = "auto",
    mesh: Mesh | Literal["auto"] | None = "auto",
    estimator: Estimator | None = None,
    validation: TaskDistribution | None = None,
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
      seed: of everything random, from 0 to 2^32 - 1.
      steps_per_dispatch: steps taken by one call of the compiled program. It saves
        overhead where a step takes less than about a millisecond. It puts the step into
        a loop, in which XLA's CPU backend runs plain convolutions tens of times slower.
      tasks_per_block: tasks that are adapted to at once on a device, see
        `metajax.training.outer_loop.reverse_mode`; `"auto"` takes one after the other on CPU if
        the learner convolves, and else all at once.
      mesh: the devices, see `metajax.compute.devices`. `"auto"` takes as many as divide the
        tasks evenly; None takes one.
      estimator: where the outer gradient comes from; reverse mode by default.
      validation: the distribution of validation tasks; none are held by default.
      validate_every: steps between validations; one more comes before the first step,
        and one after the last.
      num_validation_tasks: the same tasks every time, whatever `seed`.
      monitor: the metric that decides which meta-parameters are best. The larger the
        better if its name contains "accuracy", else the smaller. By default `accuracy`
        where it is measured, else `nll`, else the first of the metrics.
      run_dir: folder for configuration, metrics, checkpoints and learning curve, see
        `metajax.training.run_folder`. None writes nothing.
      config: JSON values that describe learner, tasks and optimizer, written into the
        folder. A run with another description is not continued. A change that is not
        described is noticed too, as it makes another program or another first task, but
        cannot be named.
      log_every: steps that are averaged to one record of the history.
      checkpoint_every: steps between checkpoints; one more comes after the last step.
      progress: whether to show a bar, or lines where the output is no terminal.

    Returns:
      The meta-parameters, last and best, and the history.

    Raises:
      ValueError: an argument is out of its range, the first task is malformed,
        `monitor` is not measured, or `run_dir` holds a run with other settings or more
        steps.
      TypeError: `learner`, `tasks` or `optimizer` is something else.
      NonFiniteError: training diverged. The last good state is saved first.
      MemoryError: a step needs more memory than the device has.
      metajax.training.checkpoints.CheckpointError: no checkpoint of the run can be read.
      BlockingIOError: another process trains in `run_dir`.
    """
    counts = {
        "steps": steps,
        "tasks_per_step": tasks_per_step,
        "steps_per_dispatch": steps_per_dispatch,
        "validate_every": validate_every,
        "num_validation_tasks": num_validation_tasks,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
    }
    _check_types(learner, tasks, optimizer, validation)
    check_integers(1, **counts)
    check_seed(seed)
    if monitor is not None and validation is None:
        raise ValueError(
            f"`monitor` needs `validation`, a task distribution; got {monitor!r} and "
            f"None."
        )
    mesh = task_mesh(mesh, tasks_per_step)
    num_devices = 1 if mesh is None else mesh.shape[TASK_AXIS]
    if estimator is not None and tasks_per_block not in ("auto", None):
        raise ValueError(
            "`tasks_per_block` belongs to the default estimator; give either it or "
            "`estimator`."
        )
    _check_block(tasks_per_block, tasks_per_step // num_devices)

    key_init, key = jax.random.split(jax.random.key(seed))
    source = TaskSource(
        tasks,
        key,
        tasks_per_step=tasks_per_step,
        steps_per_dispatch=steps_per_dispatch,
        mesh=mesh,
    )
    example = source.example()
    check_task(example, "tasks")
    block = tasks_per_block
    if estimator is None:
        if block == "auto":
            params = jax.eval_shape(learner.init, key_init, example)
            loss = jax.make_jaxpr(learner.loss)(params, example, key=key)
            block = best_block(loss.jaxpr)
        estimator = reverse_mode(tasks_per_block=block)
    state = place(init_state(key_init, learner, example, optimizer, estimator), mesh)

    source.start(0, 1)
    traced = run_steps_fn(
        learner,
        optimizer,
        estimator,
        source.draw,
        tasks_per_step=tasks_per_step,
        steps_per_dispatch=steps_per_dispatch,
        mesh=mesh,
        source_spec=source.spec,
    ).trace(state, source.take(1), source.key, np.int32(0), np.int32(0))
    _warn_of_slow_convolutions(traced)
    lowered = traced.lower()

    step, best = 0, _Best(None, 0, None)
    history: list[Record] = []
    folder = None
    if run_dir is not None:
        arguments = counts | {
            "seed": seed,
            "tasks_per_block": tasks_per_block,
            "validate_every": None if validation is None else validate_every,
            "monitor": monitor,
        }
        programs, examples = [lowered], [example]
        if validation is not None:
            examples.append(validation(jax.random.key(VALIDATION_SEED)))
            check_task(examples[-1], "validation")
            programs.append(_lowered_answer(learner, state.meta_params, examples[-1]))
        settings = run_settings(
            arguments, config, state, programs, examples, num_devices
        )
        folder = RunFolder(run_dir, settings)
        step, state, best, history = _resume(folder, state, best)

    def log(record: Record) -> None:
        history.append(record)
        if folder is not None:
            folder.log(record)

    def validated(best: _Best, validation: TaskDistribution) -> _Best:
        began = time.monotonic()
        with show.pause("validating"):
            report = evaluate(
                learner,
                state.meta_params,
                validation,
                num_tasks=num_validation_tasks,
                seed=VALIDATION_SEED,
                check_leakage=False,
                mesh=mesh,
            )
        log(_validation_record(report, step, time.monotonic() - began))
        name = _monitored(report, monitor)
        value = report.mean[name]
        show.validated(name, value, report.half_width[name])
        if not _is_better(name, value, best.value):
            return best
        return _Best(jax.tree.map(jnp.copy, state.meta_params), step, value)

    def save() -> pathlib.Path | None:
        if folder is None:
            return None
        folder.draw(history, monitor)
        record = {"best_step": best.step, "best_value": best.value}
        return folder.save(step, _trees(state, best), record)

    stops = (log_every, validate_every, checkpoint_every)
    with Progress(step, steps, enabled=progress) as show:
        if step:
            show.say(f"going on from step {step} of the run in {run_dir}")
        try:
            if validation is not None and not history:
                best = validated(best, validation)
            if step < steps:
                with show.pause("compiling"):
                    program = lowered.compile()
                _check_memory(program, block, tasks_per_step // num_devices)
                source.start(step, steps)
            while step < steps:
                began = time.monotonic()
                stop = min(steps, *(step - step % every + every for every in stops))
                state, metrics, taken = _take_steps(
                    program, source, state, step, stop, show
                )
                step += taken
                if taken:
                    seconds = time.monotonic() - began
                    log(_train_record(metrics, taken, step, seconds))
                    show.update(step, metrics["loss"][taken - 1])
                if step < stop:
                    raise _non_finite_error(step, metrics, taken, save())
                if validation is not None and _is_due(step, steps, validate_every):
                    best = validated(best, validation)
                if _is_due(step, steps, checkpoint_every):
                    save()
        finally:
            if folder is not None:
                folder.close(history, monitor)
        if best.value is None:
            best = _Best(state.meta_params, step, None)
            show.say(f"finished after {step} steps")
        else:
            show.say(
                f"finished after {step} steps; the best validation, {best.value:.4g}, "
                f"was after {best.step}"
            )
    return TrainResult(state.meta_params, best.params, best.step, history, state)


def _lowered_answer(
    learner: Learner, meta_params: PyTree, task: Task
) -> jax.stages.Lowered:
    """What a validation computes, as a program."""

    def answer(meta_params: PyTree, task: Task, key: Array) -> PyTree:
        adapted = learner.adapt(meta_params, task.support, key=key)
        query = task.query
        return learner.predict(adapted, query.x, mask=query.mask)

    return jax.jit(answer).lower(meta_params, task, jax.random.key(0))


class _Best(NamedTuple):
    """The best validation so far; `params` and `value` are None before it."""

    params: PyTree
    step: int
    value: float | None


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


def _train_record(
    metrics: dict[str, np.ndarray], taken: int, step: int, seconds: float
) -> Record:
    return {
        "kind": "train",
        "step": step,
        **{k: _or_none(np.mean(v[:taken], dtype=float)) for k, v in metrics.items()},
        "timing": {"seconds": seconds, "steps_per_second": taken / seconds},
    }


def _validation_record(report: Report, step: int, seconds: float) -> Record:
    return {
        "kind": "validation",
        "step": step,
        **{name: _or_none(value) for name, value in report.mean.items()},
        "half_width": {k: _or_none(v) for k, v in report.half_width.items()},
        "timing": {"seconds": seconds},
    }


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN


def _monitored(report: Report, monitor: str | None) -> str:
    names = list(report.mean)
    if monitor is None:
        return next((n for n in ("accuracy", "nll") if n in names), names[0])
    if monitor not in names:
        raise ValueError(
            f"`monitor` must be a metric of the validation, {names}, got {monitor!r}."
        )
    return monitor


def _is_better(name: str, value: float, best: float | None) -> bool:
    if best is None:
        return math.isfinite(value)
    return value > best if "accuracy" in name else value < best


def _is_due(step: int, steps: int, every: int) -> bool:
    return step % every == 0 or step == steps


def _non_finite_error(
    step: int,
    metrics: dict[str, np.ndarray],
    index: int,
    checkpoint: pathlib.Path | None,
) -> NonFiniteError:
    loss, norm = metrics["loss"][index], metrics["gradient_norm"][index]
    if not math.isfinite(loss):
        what = f"loss is {loss}"
        hint = "Lower the inner or the outer learning rate, and look for NaN in tasks."
    elif not math.isfinite(norm):
        what = f"loss is finite, but the norm of the gradient is {norm}"
        hint = (
            "To be differentiated, an inner Adam needs `eps_root` > 0 (1e-8, say), and "
            "roots and norms of zero an epsilon; or lower the inner learning rate."
        )
        if "implicit_residual" in metrics:
            residual = metrics["implicit_residual"][index]
            what += f" (`implicit_residual` is {residual:.3g} in the mean over tasks)"
            hint = (
                "A linear solve did not reach `max_residual`: raise `strength`, "
                "`damping` or `cg_steps`, take more inner steps, or leave such tasks "
                "out by `skips_failed`."
            )
    else:
        what = "loss and gradient are finite, but the updated meta-parameters are not"
        hint = "Lower the outer learning rate, or clip the gradient."
    where = "not saved, as there is no `run_dir`"
    if checkpoint is not None:
        where = f"saved in {checkpoint}"
    return NonFiniteError(
        f"Training stopped in outer step {step + 1}: {what}. The last good state, "
        f"after {step} steps, was {where}. {hint}",
        step=step,
        checkpoint=checkpoint,
    )


def _trees(state: TrainState, best: _Best) -> dict[str, PyTree]:
    """What a checkpoint holds; meta-parameters can be read without the rest."""
    return {
        "meta_params": state.meta_params,
        "rest": state._replace(meta_params=()),
        "best_params": state.meta_params if best.value is None else best.params,
    }


def _resume(
    folder: RunFolder, state: TrainState, best: _Best
) -> tuple[int, TrainState, _Best, list[Record]]:
    """The latest checkpoint, or what came in if there is none."""
    resumed, history = folder.resume(_trees(state, best))
    if resumed is None:
        return 0, state, best, history
    step, trees, record = resumed
    state = trees["rest"]._replace(meta_params=trees["meta_params"])
    best = _Best(trees["best_params"], record["best_step"], record["best_value"])
    return step, state, best, history


def _check_types(
    learner: object, tasks: object, optimizer: object, validation: object
) -> None:
    if not isinstance(learner, Learner):
        raise TypeError(
            f"`learner` must be a `metajax.Learner`, got {type(learner).__name__}; "
            f"constructors such as `metajax.maml` make one."
        )
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"`optimizer` must be an Optax optimizer such as `optax.adam(1e-3)`, got "
            f"{type(optimizer).__name__}."
        )
    if not callable(tasks) and not is_host(tasks):
        raise TypeError(
            f"`tasks` must be a function from a key to a `Task`, or have `batches` as "
            f"`HostTasks` describes, got {type(tasks).__name__}."
        )
    if validation is not None and not callable(validation):
        raise TypeError(
            f"`validation` must be a function from a key to a `Task`, got "
            f"{type(validation).__name__}."
        )


def _warn_of_slow_convolutions(traced: jax.stages.Traced) -> None:
    count = slow_convolutions(traced.jaxpr.jaxpr, jax.default_backend())
    if count:
        warnings.warn(
            f"{count} convolutions of this program will be slow: XLA's own, in groups "
            "because each task has its own kernel, or in a loop on CPU. Let the model "
            "use metajax.models.convolution.Conv, which has the parameters and outputs "
            "of flax.linen.Conv, or `convolve` from there.",
            stacklevel=3,
        )


def _check_memory(
    program: jax.stages.Compiled, tasks_per_block: int | str | None, num_tasks: int
) -> None:
    limit = devices.memory_limit()
    planned, temporary = planned_memory(program)
    if limit is None or planned <= limit:
        return
    block = tasks_per_block if isinstance(tasks_per_block, int) else num_tasks
    fitting = [
        size
        for size in range(1, block)
        if num_tasks % size == 0
        and planned - temporary + temporary * size / block <= limit
    ]
    remedy = "Not even one task at a time would fit; try"
    if fitting:
        remedy = f"`tasks_per_block={fitting[-1]}` should fit, or try"
    raise MemoryError(
        f"A step needs {mebibytes(planned)}, and the device has {mebibytes(limit)}. "
        f"{remedy} gradient='remat', fewer inner steps or a smaller model; "
        "`metajax.explain` compares them."
    )


def _check_block(tasks_per_block: int | str | None, num_tasks: int) -> None:
    if tasks_per_block in ("auto", None):
        return
    divisors = [d for d in range(1, num_tasks + 1) if num_tasks % d == 0]
    if tasks_per_block not in divisors:
        raise ValueError(
            f"`tasks_per_block` must divide the {num_tasks} tasks of a step on each "
            f"device, got {tasks_per_block!r}; it can be 'auto', None (all at once) or "
            f"one of {divisors}."
        )
