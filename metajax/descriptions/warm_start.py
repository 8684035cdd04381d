"""Warm start: configurations that did well on tasks like this one come first.

The classical meta-learning of hyper-parameters, as in M. Feurer et al., "Efficient and
Robust Automated Machine Learning", NeurIPS 2015 (auto-sklearn), and in section 3.3 of
J. Vanschoren, "Meta-Learning: A Survey", 2018, https://arxiv.org/abs/1810.03548. For
every known task there are meta-features and the scores of some configurations. A new
task is compared with them by the Manhattan (L1) distance of its meta-features, each
divided by its standard deviation over known tasks, and the k nearest say what to try:

    r_tc  = (best_t - score_tc) / (best_t - worst_t)       regret of c on task t, [0, 1]
    mean:       c by increasing mean of r_tc over the k nearest tasks t
    portfolio:  next comes the c with the least mean of min(r_tc, regret so far on t)

The portfolio is the greedy one of M. Feurer et al., "Auto-Sklearn 2.0", JMLR 23(261),
2022, https://arxiv.org/abs/2007.04074, there built once for all tasks. Both have the
same first trial. The mean then goes on with what is much like it, and fails where it
failed; the portfolio asks what would help the neighbours that are not served yet.

Differs from auto-sklearn, which takes the best configuration of each neighbour: here
all scores of all neighbours speak. Regrets are averaged, not ranks, because regret is
what a wrong choice loses: on a task where most configurations tie, ranks would spread
them over the whole scale all the same.

These are plain functions and no `Learner`: what a task teaches is an order of
configurations. It answers no query inputs, and no gradient passes through it. Whoever
trains the first configuration of that order has the predictor.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import (
    as_array,
    as_numbers,
    check_instances,
    check_integers,
    check_shapes,
)
from metajax.types import Array

__all__ = [
    "WarmStart",
    "fit_warm_start",
    "random_regret_curve",
    "recommend",
    "regret_curve",
]


Ranking = Literal["portfolio", "mean"]
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)


class WarmStart(NamedTuple):
    """What is known of `T` tasks with `F` meta-features and `C` configurations.

    Attributes:
      center: `[F]`, means of the meta-features over known tasks.
      scale: `[F]`, 1 by their standard deviations, 0 where all tasks have one value:
        such a meta-feature tells no tasks apart.
      features: `[T, F]`, meta-features less `center`, times `scale`.
      regrets: `[T, C]`, in [0, 1] from best to worst, NaN where not run.
    """

    center: Array
    scale: Array
    features: Array
    regrets: Array


def fit_warm_start(features: Any, scores: Any) -> WarmStart:
    """Stores what is known. Runs outside `jit`, as it looks at values.

    Args:
      features: meta-features `[T, F]` of known tasks, finite, for instance of
        `metajax.descriptions.meta_features`.
      scores: `[T, C]`, of each configuration on each task, higher is better; NaN where
        it was not run. Units may differ between tasks.

    Raises:
      ValueError: if shapes disagree or are empty, a meta-feature is not finite, a score
        is infinite, or a task has no score.

    Example:
      >>> from metajax.descriptions import fit_warm_start, recommend
      >>> features = [[0.0], [0.1], [5.0]]
      >>> scores = [[0.9, 0.6, 0.5], [0.8, 0.7, 0.2], [0.1, 0.2, 0.7]]
      >>> known = fit_warm_start(features, scores)
      >>> recommend(known, [4.0], num_neighbors=1).tolist()
      [2, 1, 0]
    """
    features, scores = as_numbers(features=features), as_numbers(scores=scores)
    if features.ndim != 2 or scores.ndim != 2 or len(features) != len(scores):
        raise ValueError(
            "`features` must be [T, F] and `scores` [T, C] with one row for each known "
            f"task, got {list(features.shape)} and {list(scores.shape)}."
        )
    if not features.size or not scores.size:
        raise ValueError(
            "At least one known task, one meta-feature and one configuration are "
            f"needed, got `features` {list(features.shape)} and `scores` "
            f"{list(scores.shape)}."
        )
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0]
        raise ValueError(
            f"`features` must be finite, got {features[row, column]} for meta-feature "
            f"{column} of task {row}; leave the task or the meta-feature out."
        )
    if np.isinf(scores).any():
        row, column = np.argwhere(np.isinf(scores))[0]
        raise ValueError(
            f"`scores` must be finite or NaN, got {scores[row, column]} for "
            f"configuration {column} on task {row}; write NaN for one that failed."
        )
    is_run = ~np.isnan(scores)
    if not is_run.any(axis=1).all():
        raise ValueError(
            "Every known task needs a score, but all scores of task "
            f"{int(np.argmin(is_run.any(axis=1)))} are NaN; leave the task out."
        )
    best = np.nanmax(scores, axis=1, keepdims=True)
    extent = best - np.nanmin(scores, axis=1, keepdims=True)
    regrets = (best - scores) / np.where(extent > 0, extent, 1)
    center, deviation = features.mean(axis=0), features.std(axis=0)
    is_constant = np.ptp(features, axis=0) == 0
    scale = np.where(is_constant, 0, 1 / np.where(is_constant, 1, deviation))
    return WarmStart(
        center=jnp.asarray(center),
        scale=jnp.asarray(scale),
        features=jnp.asarray((features - center) * scale),
        regrets=jnp.asarray(regrets),
    )


def recommend(
    warm_start: WarmStart,
    features: Any,
    *,
    num_neighbors: int,
    ranking: Ranking = "portfolio",
    exclude: Array | None = None,
) -> Array:
    """Ranks configurations for a new task, for `jit` and `vmap`.

    What the neighbours cannot tell apart comes in the order of means over all known
    tasks. A configuration that no neighbour has run comes after all that some has. With
    as many neighbours as tasks, the answer is the same for every new task: the default,
    and the baseline to beat.

    Args:
      warm_start: from `fit_warm_start`.
      features: meta-features `[F]` of the new task, finite.
      num_neighbors: k, 1 to T. Tasks drawn from one table are near to one another; k
        above their number makes other tables speak too.
      ranking: `"portfolio"`, or `"mean"` if configurations are to be judged each alone
        rather than tried in turn.
      exclude: None, or bool `[T]`, True for known tasks that must not speak. To choose
        k, ask for each known task while all tasks of its table are excluded. If fewer
        than k remain, all of them speak. They still take part in the scaling.

    Returns:
      Numbers of configurations, int32 `[C]`, the most promising first.

    Raises:
      ValueError: if `num_neighbors` or `ranking` is out of range.
      AssertionError: at trace time, if shapes disagree.
    """
    check_instances(WarmStart, "`fit_warm_start` gives one", warm_start=warm_start)
    num_tasks, size = warm_start.features.shape
    check_integers(1, num_neighbors=num_neighbors)
    if num_neighbors > num_tasks:
        raise ValueError(
            f"`num_neighbors` must be at most the number of known tasks, {num_tasks}, "
            f"got {num_neighbors}; lower it, or make more tasks known."
        )
    if ranking not in RANKINGS:
        raise ValueError(
            f"`ranking` must be one of {', '.join(RANKINGS)}, got {ranking!r}."
        )
    features = as_array(features=features)
    check_shapes(warm_start=(warm_start.features, "T F"), features=(features, "F"))
    speaks = jnp.ones(num_tasks, bool)
    if exclude is not None:
        exclude = as_array(exclude=exclude)
        check_shapes(warm_start=(warm_start.features, "T F"), exclude=(exclude, "T"))
        speaks = ~exclude.astype(bool)
    scaled = (features - warm_start.center) * warm_start.scale
    distances = jnp.sum(jnp.abs(warm_start.features - scaled[None, :]), axis=1)
    _, nearest = jax.lax.top_k(jnp.where(speaks, -distances, -jnp.inf), num_neighbors)

    def heard(tasks: Any) -> Array:
        return jnp.where(speaks[tasks, None], warm_start.regrets[tasks], jnp.nan)

    regrets = heard(nearest)
    # The last key counts first.
    order = jnp.lexsort((_means(heard(slice(None))), _means(regrets)))
    if ranking == "portfolio":
        order = order[_portfolio(regrets[:, order])]
    return order.astype(jnp.int32)


def regret_curve(order: Any, scores: Any) -> Array:
    """Computes the normalised regret after 1, 2, ..., C trials in an order.

    Args:
      order: of all configurations, `[C]`.
      scores: `[C]`, of each configuration on the task, higher is better. NaN (not run,
        failed) counts as the worst.

    Returns:
      `[C]`, (best - best so far) / (best - worst): 0 once the best was tried, and 0
      throughout if all scores are the same.

    Raises:
      AssertionError: at trace time, if shapes disagree.

    Example:
      >>> from metajax.descriptions.warm_start import regret_curve
      >>> regret_curve([1, 0, 2], [0.5, 0.0, 1.0]).tolist()
      [1.0, 0.5, 0.0]
    """
    regrets = _regrets(scores)
    order = as_array(order=order)
    check_shapes(scores=(regrets, "C"), order=(order, "C"))
    return jax.lax.cummin(regrets[order])


def random_regret_curve(scores: Any) -> Array:
    """Computes the expected `regret_curve` over all orders, exactly.

    Of t configurations drawn from C without return, the j-th best (from 0) is the best
    with probability C(C - 1 - j, t - 1) / C(C, t).

    Args:
      scores: `[C]`, as in `regret_curve`.

    Returns:
      `[C]`.
    """
    regrets = jnp.sort(_regrets(scores))
    size = len(regrets)
    chances = [
        [math.comb(size - 1 - j, t - 1) / math.comb(size, t) for j in range(size)]
        for t in range(1, size + 1)
    ]
    return jnp.asarray(chances, regrets.dtype) @ regrets


def _means(values: Array, *, missing: float = jnp.inf) -> Array:
    """Means `[C]` over the rows of `[k, C]` that are not NaN, `missing` if all are."""
    is_run = ~jnp.isnan(values)
    sums = jnp.sum(jnp.where(is_run, values, 0), axis=0)
    counts = jnp.sum(is_run, axis=0)
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), missing)


def _portfolio(regrets: Array) -> Array:
    """Greedy order `[C]` for regrets `[k, C]`; the first of equals is taken."""

    def take(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        so_far, is_taken = state
        # Gains rather than what is left, as tasks that did not run it have no part.
        gains = _means(jnp.maximum(so_far[:, None] - regrets, 0), missing=0)
        best = jnp.argmax(jnp.where(is_taken, -1, gains))
        # `fmin` passes over NaN.
        so_far = jnp.fmin(so_far, regrets[:, best])
        return (so_far, is_taken.at[best].set(True)), best  # noqa: FBT003

    num_tasks, size = regrets.shape
    start = jnp.ones(num_tasks, regrets.dtype), jnp.zeros(size, bool)
    return jax.lax.scan(take, start, length=size)[1]


def _regrets(scores: Any) -> Array:
    """Normalised regrets `[C]` of single configurations."""
    scores = as_array(scores=scores)
    check_shapes(scores=(scores, "C"))
    is_run = ~jnp.isnan(scores)
    best = jnp.max(jnp.where(is_run, scores, -jnp.inf))
    worst = jnp.min(jnp.where(is_run, scores, jnp.inf))
    extent = jnp.where(best > worst, best - worst, 1)
    lost = jnp.where(best > worst, (best - scores) / extent, 0)
    return jnp.where(is_run, lost, 1)
