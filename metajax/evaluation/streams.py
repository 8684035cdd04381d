"""Learners as streams: each example first tests, and then teaches.

A. P. Dawid, "Statistical Theory: The Prequential Approach", Journal of the Royal
Statistical Society A, 1984. `prequential` reads one sequence so and gives back all
answers; `instance_accuracy` counts them by how many examples of the class came before,
the protocol of A. Santoro et al., "Meta-Learning with Memory-Augmented Neural
Networks", ICML 2016, section 4.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.builders.streams import shuffled
from metajax.checks import (
    check_integers,
    check_keys,
    check_parts,
    check_seed,
    named_if_other,
)
from metajax.evaluation.contract import check_learner
from metajax.evaluation.reports import interval
from metajax.tasks.buckets import as_pytree, draw_task
from metajax.types import (
    NO_STREAM,
    Array,
    Examples,
    Learner,
    PyTree,
    Stream,
    Task,
    TaskDistribution,
)

__all__ = ["InstanceAccuracy", "instance_accuracy", "prequential"]


def prequential(
    learner: Learner, meta_params: PyTree, examples: Examples
) -> tuple[PyTree, PyTree]:
    """Reads a sequence as a stream: each example first tests, and then teaches.

    Args:
      learner: one with a `stream`.
      meta_params: as `learner.init` gives them.
      examples: `[n, ...]`, in the order in which they are read, without padding.

    Returns:
      What is known in the end, as `Learner.adapt` returns it, and the answers `[n, C]`,
      of which that in row t depends on examples before t and on input t alone.

    Raises:
      ValueError: if the learner has no stream, or there is a mask.
    """
    check_learner(learner, ())
    check_parts(examples=examples)
    stream = _stream_of(learner)
    if examples.mask is not None:
        raise ValueError(
            "A sequence that is read as a stream has no padding; leave out its mask "
            "and the examples that it hides."
        )

    def observe(adapted: PyTree, example: tuple[PyTree, PyTree]) -> tuple:
        return stream.observe(adapted, *example)

    task = Task(examples, examples)
    with named_if_other(learner.init, task, meta_params=meta_params):
        start = stream.start(meta_params)
        return jax.lax.scan(observe, start, (examples.x, examples.y))


class InstanceAccuracy(NamedTuple):
    """Accuracy by how often the class was seen.

    Attributes:
      mean: fractions `[K]` over tasks and classes, of the 1st to the K-th example of a
        class: the first is a guess.
      half_width: of the 95 % interval `[K]` of each, over tasks.
      num_tasks: how many there were.
    """

    mean: np.ndarray
    half_width: np.ndarray
    num_tasks: int


def instance_accuracy(
    learner: Learner,
    meta_params: PyTree,
    tasks: TaskDistribution,
    *,
    num_tasks: int = 1000,
    tasks_per_block: int = 50,
    seed: int = 0,
) -> InstanceAccuracy:
    """Measures accuracy at the 1st, .. K-th instance of a class in a random sequence.

    Args:
      learner: one with a `stream` that classifies.
      meta_params: as `learner.init` gives them.
      tasks: few-shot tasks with K support examples of each class, without masks; their
        support set, in random order, is the sequence.
      num_tasks: how many tasks, rounded up to whole blocks.
      tasks_per_block: how many are read side by side.
      seed: of the tasks and of the order in them.

    Raises:
      ValueError: if a number is below 1, the learner has no stream, tasks have masks,
        or their classes have different numbers of examples.
    """
    check_learner(learner, ())
    check_parts(tasks=tasks)
    check_seed(seed)
    check_integers(1, num_tasks=num_tasks, tasks_per_block=tasks_per_block)
    check_keys(num_tasks=num_tasks, tasks_per_block=tasks_per_block)
    _stream_of(learner)
    support = draw_task(tasks, jax.random.key(seed)).support
    counts = np.bincount(np.asarray(support.y))
    if support.mask is not None or len(set(counts.tolist())) != 1:
        raise ValueError(
            "Each class of a task must have the same number of support examples, and "
            f"there must be no mask, got {counts.tolist()}; give `way` and `shot` as "
            "numbers."
        )
    shot = int(counts[0])

    def of_task(tasks: TaskDistribution, meta_params: PyTree, key: Array) -> Array:
        key_task, key_order = jax.random.split(key)
        support = shuffled(tasks(key_task).support, key_order)
        _, outputs = prequential(learner, meta_params, support)
        is_right = jnp.argmax(outputs, axis=1) == support.y
        same = support.y[:, None] == support.y[None, :]
        instance = jnp.sum(jnp.tril(same, -1), axis=1)
        at = jax.nn.one_hot(instance, shot)
        return jnp.mean(is_right[:, None] * at, axis=0) * shot

    block = jax.jit(jax.vmap(of_task, (None, None, 0)))
    num_blocks = -(-num_tasks // tasks_per_block)
    keys = jax.random.split(jax.random.key(seed), (num_blocks, tasks_per_block))
    tasks = as_pytree(tasks)
    values = np.concatenate([np.asarray(block(tasks, meta_params, k)) for k in keys])
    return InstanceAccuracy(*interval(values), len(values))


def _stream_of(learner: Learner) -> Stream:
    if learner.stream in (None, NO_STREAM):
        raise ValueError(
            "This learner cannot be read as a stream: it has none. Use one "
            "that reads examples in turn, such as `mann`, or `Learner.adapt`."
        )
    return learner.stream
