"""Where tasks come from: drawn on the device, or read in batches from the host."""

from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from metajax.checks import check_batch, check_keys
from metajax.compute import devices
from metajax.compute.devices import COPIED, TASK_AXIS, spread
from metajax.training.outer_loop import (
    Draw,
    sample_tasks,
    select_tasks,
    task_keys,
    tasks_at,
)
from metajax.types import Array, PyTree, Task, TaskDistribution

__all__ = ["HostTasks", "OnDevice", "OnHost", "TaskSource", "is_host", "task_source"]


class HostTasks(Protocol):
    """A source of tasks on the host, for data that do not fit the device."""

    def batches(
        self, step_keys: Callable[[int], Array], start: int, stop: int
    ) -> Iterator[Task]:
        """Yields the tasks of steps `start` to `stop`, one batch for each.

        Args:
          step_keys: step number -> keys `[B]`, those that a distribution on the device
            would get. Batches must be a function of them alone, so that a run that
            resumes sees the same.
          start: first step.
          stop: one past the last step.

        Yields:
          Tasks with a leading axis `[B]` on every leaf, of the same shapes every time.
        """


def is_host(tasks: object) -> bool:
    """Says whether `tasks` is a `HostTasks`."""
    return hasattr(tasks, "batches")


class OnDevice:
    """Feeds `metajax.training.outer_loop.run_steps_fn` from a task distribution.

    Attributes:
      draw: how the program gets tasks out of what `take` returns.
      spec: how the leaves of that lie on the mesh.
      key: of the steps, where the program wants it.
    """

    draw: Draw = staticmethod(sample_tasks)
    spec = COPIED

    def __init__(
        self,
        tasks: TaskDistribution,
        key: Array,
        *,
        tasks_per_step: int,
        steps_per_dispatch: int,
        mesh: Mesh | None,
    ) -> None:
        self.key = spread(key, mesh)
        self.steps_per_dispatch = steps_per_dispatch
        if jax.tree_util.all_leaves([tasks]):
            tasks = jax.tree_util.Partial(tasks)  # a plain function is no pytree
        self._tasks: PyTree = spread(tasks, mesh)
        self._draw_first = jax.jit(lambda tasks, key: tasks_at(tasks, 0)(key))
        # A device makes its own share.
        share = tasks_per_step // (1 if mesh is None else mesh.shape[TASK_AXIS])
        check_keys(tasks_per_step=tasks_per_step)
        check_batch(
            jax.eval_shape(self._draw_first, self._tasks, key),
            limit=devices.memory_limit(),
            tasks_per_step=share,
        )
        self._first_key = task_keys(key, 0, tasks_per_step)[0, 0]

    def example(self) -> Task:
        """Draws one task of step 0, with real values."""
        return self._draw_first(self._tasks, self._first_key)

    def start(self, step: int, steps: int) -> None:
        """Sets the source to `step`, of `steps` in all."""

    def take(self, count: int) -> PyTree:
        """Gives what the program takes as its `source` for the next `count` steps."""
        del count
        return self._tasks


class OnHost:
    """Feeds `run_steps_fn` from batches on the host; the same methods as `OnDevice`."""

    draw: Draw = staticmethod(select_tasks)
    spec = PartitionSpec(None, TASK_AXIS)

    def __init__(
        self,
        tasks: HostTasks,
        key: Array,
        *,
        tasks_per_step: int,
        steps_per_dispatch: int,
        mesh: Mesh | None,
    ) -> None:
        self.key = spread(key, mesh)
        self.steps_per_dispatch = steps_per_dispatch
        check_keys(tasks_per_step=tasks_per_step)
        self._step_keys = lambda step: task_keys(key, step, tasks_per_step)[0]
        self._mesh = mesh
        self._tasks = tasks
        self._batches: Iterator[Task] = iter(())

    def example(self) -> Task:
        """Reads one task of step 0, with real values."""
        batch = next(self._tasks.batches(self._step_keys, 0, 1))
        return jax.tree.map(lambda x: jnp.asarray(x[0]), batch)

    def start(self, step: int, steps: int) -> None:
        """Sets the source to `step`, of `steps` in all."""
        self._batches = self._tasks.batches(self._step_keys, step, steps)

    def take(self, count: int) -> PyTree:
        """Gives what the program takes as its `source` for the next `count` steps."""
        batches = [next(self._batches) for _ in range(count)]
        batches += batches[-1:] * (self.steps_per_dispatch - count)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
        return spread(stacked, self._mesh, self.spec)


TaskSource = OnDevice | OnHost


def task_source(
    tasks: TaskDistribution | HostTasks,
    key: Array,
    *,
    tasks_per_step: int,
    steps_per_dispatch: int,
    mesh: Mesh | None = None,
) -> TaskSource:
    """Chooses the source for either kind of tasks.

    Args:
      tasks: task distribution or host tasks.
      key: of the steps.
      tasks_per_step: B.
      steps_per_dispatch: as in `run_steps_fn`.
      mesh: where the tasks are wanted.
    """
    kind: type = OnHost if is_host(tasks) else OnDevice
    return kind(
        tasks,
        key,
        tasks_per_step=tasks_per_step,
        steps_per_dispatch=steps_per_dispatch,
        mesh=mesh,
    )
