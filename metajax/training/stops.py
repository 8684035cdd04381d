"""Why a run ends early, or should not begin: errors, warnings, and what helps."""

import math
import pathlib
import warnings

import jax
import numpy as np
import optax

from metajax.checks import is_integer
from metajax.compute import devices
from metajax.compute.program_costs import mebibytes, planned_memory, slow_convolutions
from metajax.evaluation.contract import check_learner
from metajax.training.task_source import is_host
from metajax.types import Learner, OuterGradient

__all__ = [
    "NonFiniteError",
    "check_block",
    "check_memory",
    "check_outer_gradient",
    "check_types",
    "non_finite_error",
    "warn_of_slow_convolutions",
]


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


def non_finite_error(
    step: int,
    metrics: dict[str, np.ndarray],
    index: int,
    checkpoint: pathlib.Path | None,
) -> NonFiniteError:
    """Says what was not finite first, and what helps.

    Args:
      step: steps taken before it.
      metrics: arrays by name, with a value for each step since the last record.
      index: of the step that failed, in these.
      checkpoint: where the last good state was saved, or None.
    """
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


def check_types(
    learner: Learner, tasks: object, optimizer: object, validation: object
) -> None:
    """Raises an error if an argument of `train` is something else; see the callees."""
    check_learner(learner)
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


def check_outer_gradient(outer_gradient: object) -> None:
    """Raises a TypeError unless it says where the outer gradient comes from."""
    if not isinstance(outer_gradient, OuterGradient):
        raise TypeError(
            "`outer_gradient` must be a `metajax.types.OuterGradient`, got "
            f"{type(outer_gradient).__name__}; `metajax.outer_gradients` has some."
        )


def check_block(tasks_per_block: int | str | None, num_tasks: int) -> None:
    """Raises a ValueError unless blocks divide the tasks of a device."""
    is_auto = isinstance(tasks_per_block, str) and tasks_per_block == "auto"
    if tasks_per_block is None or is_auto:
        return
    divisors = [d for d in range(1, num_tasks + 1) if num_tasks % d == 0]
    if not is_integer(tasks_per_block) or tasks_per_block not in divisors:
        raise ValueError(
            f"`tasks_per_block` must divide the {num_tasks} tasks of a step on each "
            f"device, got {tasks_per_block!r}; it can be 'auto', None (all at once) or "
            f"one of {divisors}."
        )


def check_memory(
    program: jax.stages.Compiled, tasks_per_block: int | str | None, num_tasks: int
) -> None:
    """Raises a MemoryError, with a block that fits, if a step takes too much."""
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


def warn_of_slow_convolutions(traced: jax.stages.Traced) -> None:
    """Warns of convolutions that XLA runs tens of times slower than it could."""
    count = slow_convolutions(traced.jaxpr.jaxpr, jax.default_backend())
    if count:
        warnings.warn(
            f"{count} convolutions of this program will be slow: XLA's own, in groups "
            "because each task has its own kernel, or in a loop on CPU. Give Flax's "
            "layers, nnx.Conv or linen.Conv, the argument conv_general_dilated="
            "metajax.models.conv_general_dilated; or use metajax.models.Conv in Linen, "
            "and metajax.models.convolution.convolve elsewhere.",
            stacklevel=3,
        )
