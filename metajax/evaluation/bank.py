"""The referee: a fixed bank of test tasks, and how a learner does on it.

A bank is a task distribution and a seed. Task `i` is drawn with a key folded from
`key(seed)` and `i` alone, so it is the same task for every learner, however many tasks
are asked for and in whatever blocks they run. That is what lets
`metajax.evaluation.reports` compare two learners task by task.

Only `adapt` (and a `judge`) is given a key, another one for each task. `predict` gets
None, which means deterministic: dropout is off when a learner is judged, and what must
be random is drawn in `adapt`.

Whether a learner is inductive (the answer to one query depends on no other query) or
transductive is measured, on the first task of the bank, and not taken on trust. Query
labels cannot leak: neither `adapt` nor `predict` is given them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import PyTreeDef

from metajax.checks import (
    as_array,
    check_batch,
    check_flags,
    check_functions,
    check_integers,
    check_keys,
    check_lists,
    check_parts,
    check_seed,
    named_if_other,
)
from metajax.compute.bound_programs import bound_jit
from metajax.compute.devices import (
    COPIED,
    TASK_AXIS,
    memory_limit,
    on_each_device,
    spread,
    task_mesh,
)
from metajax.compute.program_costs import best_block
from metajax.evaluation.contract import check_classes, check_learner
from metajax.evaluation.metrics import (
    Judge,
    MetricsFn,
    bin_sums,
    check_metrics,
    task_metrics,
)
from metajax.evaluation.reports import Report, reliability
from metajax.evaluation.transduction import leakage
from metajax.tasks.buckets import (
    Bucket,
    as_buckets,
    as_pytree,
    buckets_of_keys,
    cut,
    draw_task,
)
from metajax.tasks.task_checks import check_task
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
    "VALIDATION_SEED",
    "bank_means",
    "bank_task",
    "evaluate",
]

# The bank that chooses the best step; others, such as a test bank from the same task
# distribution under the default seed of `evaluate`, must not hold the same tasks.
VALIDATION_SEED = 1_000_003


def evaluate(
    learner: Learner,
    meta_params: PyTree,
    tasks: TaskDistribution,
    *,
    num_tasks: int = 600,
    seed: int = 0,
    tasks_per_block: int | Literal["auto"] = "auto",
    metrics_fn: MetricsFn | None = None,
    judge: Judge | None = None,
    steps_curve: bool = False,
    check_leakage: bool = True,
    buckets: Sequence[Bucket] = (),
    mesh: Mesh | Literal["auto"] | None = "auto",
) -> Report:
    """Adapts to every task of a fixed bank and judges the predictions on its queries.

    One program is compiled for a learner, task distribution, metrics and shapes, and
    serves all calls with other meta-parameters or another seed. They must pass the same
    `learner`, `metrics_fn` and `judge`, so make these once and not inside the loop.

    Args:
      learner: what to judge.
      meta_params: as `learner.init` gives them.
      tasks: a task distribution whose tasks have `Examples` as their query, unless a
        `judge` takes it.
      num_tasks: tasks in the bank, at least 1.
      seed: of the bank.
      tasks_per_block: tasks that are adapted to at once, at least 1; the others wait,
        to save memory. It changes no task, and results by rounding only. `"auto"` takes
        one on each device if that is the fastest, else 20.
      metrics_fn: `(outputs, query) -> {name: scalar}` for one task. By default integer
        labels are judged by `accuracy`, a fraction, and `nll`, nats, from logits
        `[n, C]`, with calibration; floats by `mse`, and where predictions are of
        `metajax.distributions` by `nll`, nats, and the `mse` of their means.
      judge: `(adapted, query, *, key) -> {name: scalar}` for one task, in place of
        `predict` and `metrics_fn` where the query is no `Examples`: the return of a
        policy in an environment, say. The key is its own in every task.
      steps_curve: whether to judge every state of `learner.adapt_steps` as well.
      check_leakage: whether to measure if the learner is inductive; see `leakage`. With
        a `judge` there is nothing to measure.
      buckets: smaller shapes, `(support rows, query rows)`, for tasks of variable size;
        see `metajax.tasks.buckets`. They change no task and results by rounding only.
      mesh: the devices to share the tasks of a block, see `metajax.compute.devices`.

    Returns:
      A `Report`; `print` shows it in a few lines.

    Raises:
      ValueError: if a number or bucket is out of range, meta-parameters hold NaN, the
        first task of the bank is malformed, the metrics do not fit the task, or a curve
        is asked of a learner without `adapt_steps`.
    """
    check_flags(steps_curve=steps_curve, check_leakage=check_leakage)
    check_lists(buckets=buckets)
    buckets = tuple(buckets)
    if judge is not None:
        arguments, example = ("adapted", "query"), "a function that returns scalars"
        check_functions(arguments, example, keywords=("key",), judge=judge)
    check_integers(1, num_tasks=num_tasks)
    check_keys(num_tasks=num_tasks)
    if tasks_per_block != "auto":
        check_integers(1, tasks_per_block=tasks_per_block)
    check_seed(seed)
    if steps_curve and learner.adapt_steps is None:
        raise ValueError(
            "`steps_curve=True` needs a learner with `adapt_steps`, and this one has "
            "None; leave `steps_curve` False or choose a learner that adapts in steps."
        )
    if metrics_fn is not None:
        check_parts(metrics_fn=metrics_fn)
    asked = ("adapt", "predict") if judge is None else ("adapt",)
    check_learner(learner, asked)
    _check_no_nan(meta_params)
    tasks = as_pytree(tasks)

    mesh = task_mesh(mesh)
    share = 1 if mesh is None else mesh.shape[TASK_AXIS]
    meta_params, tasks = spread((meta_params, tasks), mesh)
    keys_task, keys_adapt = _bank_keys(seed, np.arange(1))
    shapes = jax.eval_shape(functools.partial(draw_task, tasks), keys_task[0])
    at_once = 1 if tasks_per_block == "auto" else min(tasks_per_block, num_tasks)
    check_batch(shapes, limit=memory_limit(), tasks_per_block=at_once)
    first_task = draw_task(tasks, keys_task[0])
    check_task(first_task, "tasks")
    if judge is not None and metrics_fn is not None:
        raise ValueError("Give either `metrics_fn` or `judge`, not both.")
    if judge is None and not isinstance(first_task.query, Examples):
        raise ValueError(
            "`evaluate` judges tasks whose query is `Examples`, got "
            f"{type(first_task.query).__name__}; let the task distribution return "
            "`Task(support, Examples(x, y))`, or give `judge`."
        )
    if buckets and not all(isinstance(part, Examples) for part in first_task):
        kinds = [type(part).__name__ for part in first_task]
        raise ValueError(
            f"`buckets` cut `Examples`, and the tasks are of {' and '.join(kinds)}; "
            "leave them out."
        )
    all_keys = _bank_keys(seed, np.arange(num_tasks))
    smaller = as_buckets(buckets)
    shapes = (*smaller, None)
    bucket = np.zeros(num_tasks, int)
    if smaller:
        bucket = buckets_of_keys(tasks, all_keys[0], smaller)
    first_task = cut(first_task, shapes[bucket[0]])
    with named_if_other(learner.init, first_task, meta_params=meta_params):
        protocol = "unchecked"
        if check_leakage and judge is None:
            protocol = leakage(learner, meta_params, first_task, keys_adapt[0]).protocol
        if tasks_per_block == "auto":
            judged = bound_jit(_judged, learner, judge)
            traced = judged.trace(meta_params, first_task, keys_adapt[0])
            tasks_per_block = best_block(traced.jaxpr.jaxpr) or 20

        leaves, structure = jax.tree.flatten(tasks)
        parts, members = [], []
        for number in np.unique(bucket):
            members.append(np.flatnonzero(bucket == number))
            count = len(members[-1])
            # Blocks are filled up with the last task.
            places = np.minimum(_blocks(count, tasks_per_block, share), count - 1)
            program = bound_jit(
                _score_bank,
                learner,
                metrics_fn,
                judge,
                structure,
                steps_curve,
                mesh,
                shapes[number],
            )
            scores = program(
                meta_params, leaves, *(keys[members[-1][places]] for keys in all_keys)
            )
            parts.append(
                jax.tree.map(
                    lambda x, n=count: np.asarray(x).reshape(-1, *x.shape[2:])[:n],
                    scores,
                )
            )
    order = np.argsort(np.concatenate(members))
    scores = jax.tree.map(lambda *x: np.concatenate(x)[order], *parts)
    # Only then, as it traces the learner once more.
    if metrics_fn is None and np.isnan(scores.metrics.get("accuracy", 0)).any():
        check_classes(learner, meta_params, first_task)
    calibration = None
    if scores.bins is not None:
        calibration = reliability(*scores.bins.astype(float).sum(axis=0))
    return Report(
        values=scores.metrics,
        protocol=protocol,
        seed=seed,
        fingerprint=scores.fingerprint,
        calibration=calibration,
        step_values=scores.step_metrics,
    )


def bank_means(
    learner: Learner,
    meta_params: PyTree,
    tasks: TaskDistribution,
    *,
    num_tasks: int,
    seed: int,
    judge: Judge | None = None,
) -> Metrics:
    """Averages the metrics of `evaluate` over a bank, to be part of other programs."""
    keys = _bank_keys(seed, _blocks(num_tasks, 20))
    scores = _score_blocks(learner, None, judge, meta_params, tasks, keys)
    return jax.tree.map(
        lambda leaf: jnp.mean(leaf.reshape(-1)[:num_tasks]), scores.metrics
    )


def bank_task(tasks: TaskDistribution, index: int, *, seed: int = 0) -> Task:
    """Draws one task of a bank again, to look at it.

    Args:
      tasks: a task distribution.
      index: position in the bank, from 0.
      seed: of the bank.

    Returns:
      The task that entry `index` of `Report.values` speaks of.
    """
    check_parts(tasks=tasks)
    check_integers(0, index=index)
    check_seed(seed)
    keys_task, _ = _bank_keys(seed, np.array([index]))
    return draw_task(tasks, keys_task[0])


# The bank.


def _blocks(num_tasks: int, tasks_per_block: int, share: int = 1) -> np.ndarray:
    """Indices `[blocks, tasks]` with a number of tasks that `share` divides.

    The last block is filled up with indices beyond them. Sharing the tasks evenly among
    the blocks keeps these few, and one block shape means one compilation.
    """
    num_blocks = math.ceil(num_tasks / _round_up(tasks_per_block, share))
    size = _round_up(math.ceil(num_tasks / num_blocks), share)
    return np.arange(num_blocks * size).reshape(num_blocks, size)


def _bank_keys(seed: int, indices: np.ndarray) -> tuple[Array, Array]:
    """Keys to draw the tasks `indices` with and to adapt to them with, same shape."""
    # A named generator, so that the configured default does not change the bank.
    key = jax.random.key(seed, impl="threefry2x32")
    keys = _split_keys(key, indices.ravel())
    return keys[:, 0].reshape(indices.shape), keys[:, 1].reshape(indices.shape)


@jax.jit
def _split_keys(key: Array, indices: Array) -> Array:
    """`[n, 2]` keys. Apart from `_score_bank`, where it would be compiled each time."""
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(indices)


def _fingerprint(task: Task) -> Array:
    """`[2]` signed and absolute sums over all numbers of a task.

    Sums rather than a hash of bits, so that rounding can be forgiven.
    """
    signed, absolute = jnp.zeros(()), jnp.zeros(())
    for index, leaf in enumerate(jax.tree.leaves(task)):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        flat = jnp.ravel(leaf).astype(jnp.float32)
        flat = jnp.where(jnp.isfinite(flat), flat, 0)
        position = jnp.arange(flat.size, dtype=jnp.uint32) + jnp.uint32(index)
        # The top bit of a multiplicative hash: as many plus as minus signs.
        is_plus = (position * jnp.uint32(2654435761)) >> 31 == 1
        weight = (index + 1) / max(flat.size, 1)
        signed += weight * jnp.sum(jnp.where(is_plus, flat, -flat))
        absolute += weight * jnp.sum(jnp.abs(flat))
    return jnp.stack([signed, absolute])


# The compiled loop.


class _Scores(NamedTuple):
    metrics: dict[str, Any]
    step_metrics: dict[str, Any] | None
    bins: Any
    fingerprint: Any


def _score_bank(
    learner: Learner,
    metrics_fn: MetricsFn | None,
    judge: Judge | None,
    structure: PyTreeDef,
    steps_curve: bool,  # noqa: FBT001 - `bound_jit` binds by place
    mesh: Mesh | None,
    bucket: Bucket | None,
    meta_params: PyTree,
    leaves: list[Array],
    keys_task: Array,
    keys_adapt: Array,
) -> _Scores:
    """Scores for keys `[blocks, tasks]`, every leaf with these leading axes.

    The task distribution comes as its structure and its leaves.
    """
    tasks = jax.tree.unflatten(structure, leaves)
    score_blocks: Callable[..., _Scores] = functools.partial(
        _score_blocks,
        learner,
        metrics_fn,
        judge,
        steps_curve=steps_curve,
        bucket=bucket,
    )
    if mesh is not None:
        cut = PartitionSpec(None, TASK_AXIS)
        specs = (COPIED, COPIED, cut)
        score_blocks = on_each_device(score_blocks, mesh, specs, cut)
    scores = score_blocks(meta_params, tasks, (keys_task, keys_adapt))
    if mesh is None:
        return scores
    copied = NamedSharding(mesh, COPIED)  # for every process to read
    return jax.lax.with_sharding_constraint(
        scores, jax.tree.map(lambda _: copied, scores)
    )


def _judged(
    learner: Learner,
    judge: Judge | None,
    meta_params: PyTree,
    task: Task,
    key: Array,
) -> PyTree:
    """What the learner answers, or else what the judge says of it."""
    if judge is None:
        adapted = learner.adapt(meta_params, task.support, key=key)
        return learner.predict(adapted, task.query.x, mask=task.query.mask, key=None)
    key, key_judge = jax.random.split(key)
    adapted = learner.adapt(meta_params, task.support, key=key)
    metrics = judge(adapted, task.query, key=key_judge)
    check_metrics(metrics, "judge")
    return metrics


def _score_blocks(
    learner: Learner,
    metrics_fn: MetricsFn | None,
    judge: Judge | None,
    meta_params: PyTree,
    tasks: TaskDistribution,
    keys: tuple[Array, Array],
    *,
    steps_curve: bool = False,
    bucket: Bucket | None = None,
) -> _Scores:
    def score(keys: tuple[Array, Array]) -> _Scores:
        key_task, key_adapt = keys
        # Constants in a task may still be NumPy arrays or Python numbers here.
        whole = jax.tree.map(jnp.asarray, tasks(key_task))
        task = cut(whole, bucket)
        query = task.query
        answer = bound_jit(_judged, learner, judge)(meta_params, task, key_adapt)
        metrics, bins = answer, None
        if judge is None:
            metrics = task_metrics(metrics_fn, answer, query)
            if metrics_fn is None and "accuracy" in metrics:
                bins = bin_sums(answer, query)
        step_metrics = None
        if steps_curve:
            assert learner.adapt_steps is not None  # `evaluate` has made sure
            key_judge = key_adapt
            if judge is not None:
                key_adapt, key_judge = jax.random.split(key_adapt)
            states = learner.adapt_steps(meta_params, task.support, key=key_adapt)

            def measure(state: PyTree) -> Metrics:
                if judge is not None:
                    return judge(state, query, key=key_judge)
                outputs = learner.predict(state, query.x, mask=query.mask, key=None)
                return task_metrics(metrics_fn, outputs, query)

            step_metrics = jax.vmap(measure)(states)
        return _Scores(metrics, step_metrics, bins, _fingerprint(whole))

    return jax.lax.map(jax.vmap(score), keys)


def _round_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor


def _check_no_nan(meta_params: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(meta_params):
        leaf = as_array(meta_params=leaf)
        is_inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        if is_inexact and bool(jnp.any(jnp.isnan(leaf))):
            raise ValueError(
                f"`meta_params{jax.tree_util.keystr(path)}` holds NaN: training has "
                "diverged. Evaluate the last good checkpoint, and train with a lower "
                "outer or inner learning rate."
            )
