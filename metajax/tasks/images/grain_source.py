"""Tasks from tables too large for the device: images stay on the host.

Which images make up a task is computed from its key as for a table on the device, so
both give the same tasks, bit for bit, for the same keys. Images are then read from a
numpy array or a memory map, in threads and ahead of use, by Grain
(https://github.com/google/grain). There is no loader state to save: a run that resumes
at some step asks for the batches from that step on.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.tree_util import PyTreeDef

from metajax.checks import check_integers
from metajax.compute.bound_programs import bound_jit
from metajax.tasks.images.few_shot import ClassTableTasks
from metajax.tasks.images.variable_tasks import MetaDatasetTasks
from metajax.tasks.summaries import summary
from metajax.types import Array, Task

__all__ = ["HostClassTableTasks", "on_host"]

TableTasks = ClassTableTasks | MetaDatasetTasks


@dataclasses.dataclass(frozen=True, eq=False)
class HostClassTableTasks:
    """A source of task batches for the trainer; build it with `on_host`.

    Attributes:
      images: uint8 `[rows, max_per_class, H, W, C]`, a numpy array or memory map.
      tasks: what to draw, without its images.
      num_threads: how many batches are put together at the same time.
      num_prefetch: how many batches are made ahead of use.
    """

    images: np.ndarray
    tasks: TableTasks
    num_threads: int
    num_prefetch: int

    __repr__ = summary

    def batches(
        self,
        step_keys: Callable[[int], Array],
        start: int,
        stop: int | None = None,
    ) -> Iterator[Task]:
        """Yields a batch of tasks for each step.

        Args:
          step_keys: `(step) -> keys [B]`, the typed keys of the tasks of a step; called
            from several threads, so it must be a pure function.
          start: the first step, at least 0.
          stop: one past the last step; None goes on without end.

        Returns:
          An iterator whose item for `step` equals
          `jax.vmap(tasks)(step_keys(step))`, where `tasks` holds the images too.

        Raises:
          ValueError: if not 0 <= start <= stop.
          ImportError: without the `data` extra.
        """
        stop = sys.maxsize if stop is None else stop
        if not 0 <= start <= stop:
            raise ValueError(
                f"`start` and `stop` must satisfy 0 <= start <= stop, got {start} and "
                f"{stop}."
            )
        grain = _import_grain()
        options = grain.ReadOptions(
            num_threads=self.num_threads, prefetch_buffer_size=self.num_prefetch
        )
        steps = grain.MapDataset.range(start, stop)
        batches = steps.map(lambda step: self._batch(step_keys(int(step))))
        return iter(batches.to_iter_dataset(options))

    def _batch(self, keys: Array) -> Task:
        leaves, structure = jax.tree.flatten(self.tasks)
        draw, assemble = bound_jit(_draw, structure), bound_jit(_assemble, structure)
        indices, (rows, columns) = draw(leaves, keys)
        images = self.images[np.asarray(rows), np.asarray(columns)]
        return assemble(leaves, keys, indices, jax.numpy.asarray(images))


def on_host(
    tasks: TableTasks, *, num_threads: int = 2, num_prefetch: int = 4
) -> HostClassTableTasks:
    """Draws the tasks of `tasks` with the images left on the host.

    Args:
      tasks: from `few_shot` or `meta_dataset_tasks`, over a `ClassTable` whose `images`
        are a numpy array or a `numpy.memmap`: build that as `ClassTable(images, counts,
        ...)`, since `class_table` moves images to the device. (`take` and
        `split_classes` of such a table copy the rows they choose into memory.)
      num_threads: at least 1.
      num_prefetch: at least 1; each costs the memory of one batch.

    Returns:
      A source with a method `batches(step_keys, start, stop)`.

    Raises:
      ValueError: if the images are not a numpy array or a number is out of range.

    Example:
      >>> from metajax.tasks import few_shot
      >>> from metajax.tasks.images.class_table import ClassTable
      >>> images = np.zeros((8, 20, 28, 28, 1), np.uint8)
      >>> table = ClassTable(images, np.full(8, 20))
      >>> source = on_host(few_shot(table, way=5, shot=1, num_queries=3))
      >>> def step_keys(step):
      ...     return jax.random.split(jax.random.fold_in(jax.random.key(0), step), 4)
      >>> next(source.batches(step_keys, 0, 1)).query.x.shape
      (4, 15, 28, 28, 1)
    """
    if not isinstance(tasks, (ClassTableTasks, MetaDatasetTasks)):
        raise ValueError(
            "`tasks` must be drawn from a class table, as by `few_shot` or "
            f"`meta_dataset_tasks`, got {type(tasks).__name__}."
        )
    images = tasks.table.images
    if not isinstance(images, np.ndarray):
        raise ValueError(
            "`tasks` must hold its images as a numpy array or memory map, got "
            f"{type(images).__name__}; build the table as `ClassTable(images, counts)`."
        )
    check_integers(1, num_threads=num_threads, num_prefetch=num_prefetch)
    table = dataclasses.replace(
        tasks.table, images=None, counts=np.asarray(tasks.table.counts, np.int32)
    )
    return HostClassTableTasks(
        images, dataclasses.replace(tasks, table=table), num_threads, num_prefetch
    )


def _draw(
    structure: PyTreeDef, leaves: list[Array], keys: Array
) -> tuple[Any, tuple[Array, Array]]:
    tasks = jax.tree.unflatten(structure, leaves)
    indices = jax.vmap(tasks.indices)(keys)
    return indices, jax.vmap(tasks.places)(indices)


def _assemble(
    structure: PyTreeDef, leaves: list[Array], keys: Array, indices: Any, images: Array
) -> Task:
    tasks = jax.tree.unflatten(structure, leaves)
    return jax.vmap(tasks.assemble)(keys, indices, images)


def _import_grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            "Reading tables on the host needs Grain; install it by `pip install "
            "'metajax[data]'`."
        ) from error
    return grain
