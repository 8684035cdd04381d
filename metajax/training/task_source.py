"""Where tasks come from: drawn on the device, or read in batches from the host."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from metajax.compute.devices import COPIED, TASK_AXIS, spread
from metajax.training.outer_loop import Draw, sample_tasks, select_tasks, task_keys
from metajax.types import Array, PyTree, Task, TaskDistribution

__all__ = ["HostTasks", "TaskSource", "is_host"]


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
    """Whether `tasks` is a `HostTasks`."""
    return hasattr(tasks, "batches")


class TaskSource:
    """Feeds `metajax.training.outer_loop.run_steps_fn` from either kind of tasks.

    Args:
      tasks: task distribution or host tasks.
      key: of the steps.
      tasks_per_step: B.
      steps_per_dispatch: as in `run_steps_fn`.
      mesh: where the tasks are wanted.

    Attributes:
      draw: how the program gets tasks out of what `take` returns.
      spec: how the leaves of that lie on the mesh.
    """

    draw: Draw
    spec: PartitionSpec
    key: Array
    steps_per_dispatch: int

    def __init__(
        self,
        tasks: TaskDistribution | HostTasks,
        key: Array,
        *,
        tasks_per_step: int,
        steps_per_dispatch: int,
        mesh: Mesh | None = None,
    ) -> None:
        self._is_host = is_host(tasks)
        self._mesh = mesh
        self._key = key
        self._tasks_per_step = tasks_per_step
        self.key = spread(key, mesh)
        self.steps_per_dispatch = steps_per_dispatch
        self._tasks: Any = tasks
        if self._is_host:
            self.draw = select_tasks
            self.spec = PartitionSpec(None, TASK_AXIS)
            return
        if jax.tree_util.all_leaves([tasks]):
            tasks = jax.tree_util.Partial(tasks)  # a plain function is no pytree
        self._tasks = spread(tasks, mesh)
        self.draw = sample_tasks
        self.spec = COPIED

    def example(self) -> Task:
        """One task of step 0, with real values."""
        if self._is_host:
            batch = next(self._tasks.batches(self._step_keys, 0, 1))
            return jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
        return jax.jit(lambda tasks, key: tasks(key))(
            self._tasks, self._step_keys(0)[0]
        )

    def start(self, step: int, steps: int) -> None:
        """Sets the source to `step`, of `steps` in all."""
        if self._is_host:
            self._batches = self._tasks.batches(self._step_keys, step, steps)

    def take(self, count: int) -> PyTree:
        """What the program takes as its `source` for the next `count` steps."""
        if not self._is_host:
            return self._tasks
        batches = [next(self._batches) for _ in range(count)]
        batches += batches[-1:] * (self.steps_per_dispatch - count)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
        return spread(stacked, self._mesh, self.spec)

    def _step_keys(self, step: int) -> Array:
        return task_keys(self._key, step, self._tasks_per_step)[0]
