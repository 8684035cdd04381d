"""What an outer step costs, for every gradient mode, before it is run.

    make = lambda gradient: maml(model, optax.sgd(0.4), inner_steps=5,
    gradient=gradient) print(explain(make, tasks, tasks_per_step=32))

It traces and compiles the outer gradient, and says how many operations it takes, how
many for each byte it moves, and how much memory XLA plans for it.
"""

import statistics
import time as clock
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

from metajax.checks import (
    check_flags,
    check_functions,
    check_integers,
    check_keys,
    check_parts,
)
from metajax.compute import devices
from metajax.compute.program_costs import best_block, mebibytes, planned_memory, work
from metajax.inner.unroll import GRADIENT_MODES
from metajax.training.outer_loop import reverse_mode
from metajax.types import Learner, TaskDistribution

__all__ = ["Cost", "Explanation", "explain"]

_ROUNDS = 5


class Cost(NamedTuple):
    """What the outer gradient of one step costs in one way of computing it.

    Attributes:
      gradient: the gradient mode; `"as built"` if the learner came ready-made.
      flops: floating-point operations, see `metajax.compute.program_costs`.
      intensity: operations for each byte that matrix products and convolutions move.
      memory: bytes that XLA plans at most: arguments, results and temporary arrays.
      temporary: the last part of these.
      compile_seconds: how long tracing and compiling took.
      seconds: median of five runs; None if not timed.
      is_exact: whether it is the gradient of the outer loss.
    """

    gradient: str
    flops: float
    intensity: float
    memory: int
    temporary: int
    compile_seconds: float
    seconds: float | None
    is_exact: bool


class Explanation(NamedTuple):
    """What `explain` found; `print` shows it as a table.

    Attributes:
      costs: one for each gradient mode.
      tasks_per_step: tasks in the step.
      tasks_per_block: how many of them at once; None for all.
      memory_limit: bytes of the device, None if it does not tell.
    """

    costs: tuple[Cost, ...]
    tasks_per_step: int
    tasks_per_block: int | None
    memory_limit: int | None

    @property
    def choice(self) -> str | None:
        """The exact mode to take, or None if none fits the memory.

        The fastest, if they were timed. If not, then of those whose operations are at
        most half as many again as the fewest, the one with the least memory: writing
        and reading what a mode keeps costs more than that much recomputation.
        """
        exact = [cost for cost in self.costs if cost.is_exact and self._fits(cost)]
        if not exact:
            return None
        if all(cost.seconds is not None for cost in exact):
            return min(exact, key=lambda cost: cost.seconds or 0.0).gradient
        fewest = min(cost.flops for cost in exact)
        cheap = [cost for cost in exact if cost.flops <= 1.5 * fewest]
        return min(cheap, key=lambda cost: (cost.memory, cost.flops)).gradient

    def _fits(self, cost: Cost) -> bool:
        return self.memory_limit is None or cost.memory <= self.memory_limit

    def __str__(self) -> str:
        block = self.tasks_per_block or self.tasks_per_step
        lines = [
            f"{self.tasks_per_step} tasks a step, {block} at once",
            f"{'gradient':<12} {'GFLOP':>9} {'FLOP/byte':>9} {'memory':>10} "
            f"{'temporary':>10} {'compile':>8}" + f"{'time':>11}" * self._is_timed,
        ]
        for cost in self.costs:
            line = (
                f"{cost.gradient:<12} {cost.flops / 1e9:>9.4g} {cost.intensity:>9.3g} "
                f"{mebibytes(cost.memory):>10} {mebibytes(cost.temporary):>10} "
                f"{cost.compile_seconds:>6.1f} s"
            )
            if cost.seconds is not None:
                line += f"{1e3 * cost.seconds:>8.4g} ms"
            if not self._fits(cost):
                line += "  does not fit"
            lines.append(line)
        return "\n".join([*lines, *self._advice()])

    @property
    def _is_timed(self) -> bool:
        return any(cost.seconds is not None for cost in self.costs)

    def _advice(self) -> list[str]:
        if self.choice is not None:
            return [f"choose gradient={self.choice!r}"] * (len(self.costs) > 1)
        least = min(cost.memory for cost in self.costs if cost.is_exact)
        return [
            f"Nothing fits: {mebibytes(least)} are needed, and there are "
            f"{mebibytes(self.memory_limit or 0)}; take smaller `tasks_per_block`, "
            "fewer inner steps, or `first_order`."
        ]


def explain(
    learner: Learner | Callable[[str], Learner],
    tasks: TaskDistribution,
    *,
    tasks_per_step: int,
    tasks_per_block: int | Literal["auto"] | None = "auto",
    memory_limit: int | None = None,
    time: bool = False,
) -> Explanation:
    """Compiles the outer gradient in every gradient mode and says what it costs.

    Args:
      learner: `gradient -> Learner`, to compare the gradient modes of
        `metajax.inner.unroll`; or one learner, as it is.
      tasks: the task distribution of training.
      tasks_per_step: tasks B in a step, at least 1.
      tasks_per_block: as in `metajax.training.trainer.train`.
      memory_limit: bytes that may be used; by default those of the device, if it tells.
      time: whether to run it, too, six times in each mode in turn.

    Returns:
      An `Explanation`.

    Raises:
      ValueError: if `tasks_per_step` is not at least 1, or not a multiple of
        `tasks_per_block`.
      TypeError: if `learner` is neither.
    """
    check_parts(tasks=tasks)
    check_flags(time=time)
    check_integers(1, tasks_per_step=tasks_per_step)
    if tasks_per_block not in ("auto", None):
        check_integers(1, tasks_per_block=tasks_per_block)
    if isinstance(learner, Learner):
        learners = {"as built": learner}
    elif callable(learner):
        check_functions(("gradient",), "`lambda gradient: ...`", learner=learner)
        learners = {gradient: learner(gradient) for gradient in GRADIENT_MODES}
    else:
        raise TypeError(
            "`learner` must be a Learner, or a function from a gradient mode to one, "
            f"got {type(learner).__name__}."
        )
    key = jax.random.key(0)
    task = jax.eval_shape(tasks, key)
    if tasks_per_block == "auto":
        first = next(iter(learners.values()))
        params = jax.eval_shape(first.init, key, task)
        loss = jax.make_jaxpr(first.loss)(params, task, key=key)
        tasks_per_block = best_block(loss.jaxpr)
    outer_gradient = reverse_mode(tasks_per_block=tasks_per_block)
    check_keys(tasks_per_step=tasks_per_step)
    keys = jax.random.split(key, tasks_per_step)
    batch = jax.eval_shape(lambda keys: jax.vmap(tasks)(keys), keys)

    programs, costs = {}, []
    for name, each in learners.items():
        params = jax.eval_shape(each.init, key, task)
        began = clock.monotonic()
        traced = jax.jit(
            lambda params, tasks, keys, loss=each.loss: outer_gradient.gradient(
                loss, params, tasks, keys, ()
            )[:2]
        ).trace(params, batch, keys)
        programs[name] = traced.lower().compile()
        seconds = clock.monotonic() - began
        count = work(traced.jaxpr.jaxpr)
        costs.append(
            Cost(
                name,
                count.flops,
                count.intensity,
                *planned_memory(programs[name]),
                seconds,
                None,
                name != "first_order",
            )
        )
    if time:
        real = jax.jit(lambda keys: jax.vmap(tasks)(keys))(keys)
        arguments = {
            name: (jax.jit(each.init)(key, jax.tree.map(lambda x: x[0], real)), real)
            for name, each in learners.items()
        }
        measured = _time(programs, {n: (*a, keys) for n, a in arguments.items()})
        costs = [cost._replace(seconds=measured[cost.gradient]) for cost in costs]
    if memory_limit is None:
        memory_limit = devices.memory_limit()
    return Explanation(tuple(costs), tasks_per_step, tasks_per_block, memory_limit)


def _time(
    programs: dict[str, jax.stages.Compiled], arguments: dict[str, tuple[Any, ...]]
) -> dict[str, float]:
    """Median seconds of each program, all run in turn so that drift is shared."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(1 + _ROUNDS):
        for name, program in programs.items():
            began = clock.monotonic()
            jax.block_until_ready(program(*arguments[name]))
            seconds[name].append(clock.monotonic() - began)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}
