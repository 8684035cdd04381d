"""Shape buckets: small tasks of a variable distribution do not pay for the largest.

Tasks of one distribution have one shape, with padding at the end of their sets. A
bucket `(support rows, query rows)` is a smaller shape. A task that fits is cut to it
before a learner sees it, which changes nothing but the time: padding counts in no loss,
statistic or metric.

* `evaluate(..., buckets=...)` sorts the tasks of its bank by the smallest bucket that
  holds them, and runs one program for each bucket.
* `bucketed(learner, buckets)` is the same learner for training: its `loss` branches to
  the smallest bucket for each task, so tasks stay independent draws of their
  distribution, whatever their sizes are.

Every bucket costs a compilation: two to four are a good number. `fit_buckets` chooses.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef

from metajax.checks import (
    check_fits,
    check_instances,
    check_integers,
    check_lists,
    check_parts,
    is_integer,
)
from metajax.compute.bound_programs import bound_jit
from metajax.types import (
    Array,
    Examples,
    Learner,
    Metrics,
    PyTree,
    Task,
    TaskDistribution,
)

__all__ = [
    "Bucket",
    "as_buckets",
    "as_pytree",
    "bucket_of",
    "buckets_of_keys",
    "bucketed",
    "cut",
    "draw_task",
    "fit_buckets",
    "needed_rows",
]

Bucket = tuple[int, int]
"""Rows of support and query set."""


def bucketed(learner: Learner, buckets: Sequence[Bucket]) -> Learner:
    """Gives the same learner, whose loss works on no more rows than it must.

    The gradient of a task is that of the learner itself. Tasks must be taken one after
    the other for it to save time: give `train` `tasks_per_block=1`, its default on CPU
    for networks with convolutions. Under a `vmap` every task would run through all
    buckets.

    Args:
      learner: any learner that honours masks.
      buckets: shapes in any order; tasks that fit none keep their own.

    Returns:
      A learner with the same `init`, `adapt`, `adapt_steps` and `predict`. It has no
      `segments`.

    Raises:
      ValueError: if a bucket is not two integers of at least 1.

    Example:
      >>> from metajax.learners import prototypical
      >>> from metajax.models import conv4
      >>> learner = bucketed(prototypical(conv4()), [(100, 100), (250, 250)])
    """
    check_instances(Learner, "constructors are in `metajax.learners`", learner=learner)
    check_lists(buckets=buckets)
    sizes = as_buckets(buckets)

    def of_smallest(loss: Any) -> Any:
        def cut_loss(
            *arguments: Any, key: Array | None = None
        ) -> tuple[Array, Metrics]:
            *before, task = arguments
            branches = [
                functools.partial(
                    lambda size: loss(*before, cut(task, size), key=key), s
                )
                for s in (*sizes, None)
            ]
            return jax.lax.switch(bucket_of(task, sizes), branches)

        return cut_loss

    scheduled = learner.scheduled_loss
    return learner._replace(
        loss=of_smallest(learner.loss),
        scheduled_loss=None if scheduled is None else of_smallest(scheduled),
        segments=None,
    )


def fit_buckets(
    tasks: TaskDistribution, num_shapes: int, key: Array, *, num_tasks: int = 500
) -> tuple[Bucket, ...]:
    """Chooses buckets that keep the mean number of rows of a task small.

    Sizes of some tasks are drawn, without their images, and the shapes are the best for
    these, if tasks are sorted by their number of rows.

    Args:
      tasks: a task distribution.
      num_shapes: how many shapes there are to be, that of the distribution included; at
        least 1.
      key: random key, consumed.
      num_tasks: how many tasks to look at, at least 1.

    Returns:
      At most `num_shapes - 1` buckets, the smallest first.

    Raises:
      ValueError: if a number is out of range.
    """
    check_parts(tasks=tasks)
    check_integers(1, num_shapes=num_shapes, num_tasks=num_tasks)
    pairs = jax.ShapeDtypeStruct((num_tasks, num_tasks, 2), "int32")
    check_fits(f"Pairs of `num_tasks` = {num_tasks}", pairs, "lower `num_tasks`")
    needs = np.asarray(_needs_of_keys(tasks, jax.random.split(key, num_tasks)))
    full = jax.eval_shape(lambda: tasks(key))
    needs = needs[np.argsort(needs.sum(axis=1), kind="stable")]
    # Costs [first, last] of one bucket that holds the tasks from first to last.
    largest = np.stack(
        [
            np.maximum.accumulate(np.where(np.arange(num_tasks)[:, None] < i, 0, needs))
            for i in range(num_tasks)
        ]
    )
    count = 1 + np.arange(num_tasks)[None, :] - np.arange(num_tasks)[:, None]
    costs = np.where(count > 0, largest.sum(axis=2) * count, np.inf)
    # The least cost of the tasks before an end, and where its last bucket begins.
    best = np.concatenate([[0.0], np.full(num_tasks, np.inf)])
    begins = []
    for _ in range(num_shapes - 1):
        totals = best[:-1, None] + costs
        begins.append(np.argmin(totals, axis=0))
        best = np.concatenate([[0.0], np.min(totals, axis=0)])
    rows = sum(_rows(examples) for examples in full)
    end = int(np.argmin(best + rows * (num_tasks - np.arange(num_tasks + 1))))
    chosen: set[Bucket] = set()
    for begin in reversed(begins):
        if end == 0:
            break
        start = int(begin[end - 1])
        chosen.add((int(largest[start, end - 1, 0]), int(largest[start, end - 1, 1])))
        end = start
    return as_buckets(sorted(chosen))


def as_buckets(buckets: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """Puts buckets in the order in which they are tried, the fewest rows first.

    Raises:
      ValueError: if one is not two integers of at least 1.
    """
    for bucket in buckets:
        is_pair = isinstance(bucket, Sequence) and len(bucket) == 2
        if not is_pair or not all(is_integer(n) and n >= 1 for n in bucket):
            raise ValueError(
                "`buckets` must be pairs of integers of at least 1, the rows of the "
                f"support and the query set, got {bucket!r}."
            )
    pairs = {(int(support), int(query)) for support, query in buckets}
    return tuple(sorted(pairs, key=lambda pair: (sum(pair), pair)))


def needed_rows(task: Task) -> Array:
    """Counts rows of support and query set up to the last real one, int32 `[2]`."""
    return jnp.stack([_last_real(examples) for examples in task])


def bucket_of(task: Task, buckets: tuple[Bucket, ...]) -> Array:
    """Gives the number of the first bucket that holds a task, else `len(buckets)`."""
    return _first_that_holds(needed_rows(task), buckets)


def cut(task: Task, bucket: Bucket | None) -> Task:
    """Cuts a task to its first rows; None keeps all of them."""
    if bucket is None:
        return task
    return Task(
        *(
            jax.tree.map(lambda leaf, size=size: leaf[:size], examples)
            for examples, size in zip(task, bucket, strict=True)
        )
    )


def buckets_of_keys(
    tasks: TaskDistribution, keys: Array, buckets: tuple[Bucket, ...]
) -> np.ndarray:
    """Finds `bucket_of` the task of each key `[n]`; images are not touched for it."""
    needs = _needs_of_keys(tasks, keys)
    return np.asarray(jax.vmap(lambda need: _first_that_holds(need, buckets))(needs))


def _needs_of_keys(tasks: TaskDistribution, keys: Array) -> Array:
    """int32 `[n, 2]`. Only masks are used, so XLA drops the work on images."""
    leaves, structure = jax.tree.flatten(as_pytree(tasks))
    return bound_jit(_needs, structure)(leaves, keys)


def _needs(structure: PyTreeDef, leaves: list[Array], keys: Array) -> Array:
    tasks = jax.tree.unflatten(structure, leaves)
    return jax.vmap(lambda key: needed_rows(tasks(key)))(keys)


def _first_that_holds(need: Array, buckets: tuple[Bucket, ...]) -> Array:
    shapes = jnp.asarray(buckets, jnp.int32).reshape(-1, 2)
    return jnp.sum(jnp.cumsum(jnp.all(need[None, :] <= shapes, axis=1)) == 0)


def _last_real(examples: Examples) -> Array:
    num = _rows(examples)
    if examples.mask is None:
        return jnp.int32(num)
    places = jnp.arange(1, num + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(examples.mask, places, 1))


def _rows(examples: PyTree) -> int:
    return jax.tree.leaves(examples.x)[0].shape[0]


def as_pytree(tasks: TaskDistribution) -> TaskDistribution:
    """Makes a plain function a pytree without leaves, so that `jit` can take it."""
    if not callable(tasks):
        raise ValueError(
            "`tasks` must be a function from a random key to a `Task`, got "
            f"{type(tasks).__name__}."
        )
    is_leaf = jax.tree_util.all_leaves([tasks])
    return jax.tree_util.Partial(tasks) if is_leaf else tasks


def draw_task(tasks: TaskDistribution, key: Array) -> Task:
    """Draws one task by one program: hundreds of operations compile one by one."""
    leaves, structure = jax.tree.flatten(as_pytree(tasks))
    return bound_jit(_draw, structure)(leaves, key)


def _draw(structure: PyTreeDef, leaves: list[Array], key: Array) -> Task:
    return jax.tree.unflatten(structure, leaves)(key)
