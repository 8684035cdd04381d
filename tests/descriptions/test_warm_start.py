"""Warm start: orders against plain loops, regret curves by hand, and errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.descriptions.warm_start import (
    RANKINGS,
    fit_warm_start,
    random_regret_curve,
    recommend,
    regret_curve,
)

TASKS, FEATURES, CONFIGURATIONS = 9, 4, 6


def known(seed=0, missing=0.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(TASKS, FEATURES)) * [1, 100, 0.01, 0] + 5
    scores = rng.normal(size=(TASKS, CONFIGURATIONS)).round(1)
    scores[rng.random(scores.shape) < missing] = np.nan
    scores[:, 0] = rng.normal(size=TASKS)
    return features, scores


def reference(features, scores, new, k, ranking, exclude=()):
    """One task and one configuration at a time."""
    regrets = []
    for row in scores:
        best, worst = np.nanmax(row), np.nanmin(row)
        regrets.append([(best - s) / (best - worst or 1) for s in row])
    speaking = [t for t in range(len(scores)) if t not in exclude]
    varying = [f for f in range(features.shape[1]) if np.ptp(features[:, f])]

    def distance(t):
        return sum(abs(features[t, f] - new[f]) / features[:, f].std() for f in varying)

    near = sorted(speaking, key=distance)[:k]

    def mean(tasks, c, value):
        values = [value(t) for t in tasks if not np.isnan(regrets[t][c])]
        return np.mean(values) if values else np.inf

    def alone(c):
        keys = (mean(tasks, c, lambda t: regrets[t][c]) for tasks in (near, speaking))
        return tuple(np.round(key, 5) for key in keys)

    order = sorted(range(scores.shape[1]), key=alone)
    if ranking == "mean":
        return order
    so_far, taken = dict.fromkeys(near, 1.0), []
    while order:
        losses = {
            c: mean(near, c, lambda t, c=c: min(0.0, regrets[t][c] - so_far[t]))
            for c in order
        }
        taken.append(min(order, key=lambda c: np.round(losses[c], 5)))
        order.remove(taken[-1])
        for t in near:
            so_far[t] = np.nanmin([so_far[t], regrets[t][taken[-1]]])
    return taken


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("missing", [0.0, 0.6])
def test_orders_are_what_loops_give(ranking, missing):
    for seed, k in itertools.product(range(4), (1, 3, TASKS)):
        features, scores = known(seed, missing)
        new = features[0] + np.random.default_rng(seed + 100).normal(size=FEATURES)
        warm_start = fit_warm_start(features, scores)
        got = recommend(warm_start, new, num_neighbors=k, ranking=ranking)
        assert got.dtype == jnp.int32
        expected = reference(features, scores, new, k, ranking)
        np.testing.assert_array_equal(got, expected, err_msg=f"seed {seed}, k {k}")


@pytest.mark.parametrize("ranking", RANKINGS)
def test_excluded_tasks_do_not_speak(ranking):
    features, scores = known(missing=0.3)
    warm_start = fit_warm_start(features, scores)
    exclude = np.isin(np.arange(TASKS), [0, 4, 5])
    for k in (2, 6, TASKS):
        got = recommend(
            warm_start, features[0], num_neighbors=k, ranking=ranking, exclude=exclude
        )
        expected = reference(features, scores, features[0], k, ranking, (0, 4, 5))
        np.testing.assert_array_equal(got, expected)


def test_all_neighbors_are_the_default_order():
    features, scores = known()
    warm_start = fit_warm_start(features, scores)
    orders = [recommend(warm_start, row, num_neighbors=TASKS) for row in features]
    for order in orders[1:]:
        np.testing.assert_array_equal(order, orders[0])


def test_a_known_task_is_its_own_neighbor():
    """Its configurations come from best to worst, whatever units its scores have."""
    features, scores = known()
    warm_start = fit_warm_start(features, scores * 10.0 ** np.arange(TASKS)[:, None])
    for row, values in zip(features, scores, strict=True):
        order = recommend(warm_start, row, num_neighbors=1, ranking="mean")
        assert np.all(np.diff(values[order]) <= 0)


def test_the_portfolio_serves_every_kind_of_task():
    """Two kinds: the second trial helps the smaller one, where the mean forgets it."""
    scores = [[1.0, 0.9, 0.8, 0.0]] * 3 + [[0.0, 0.1, 0.2, 1.0]] * 2
    warm_start = fit_warm_start(np.zeros((5, 1)), scores)
    orders = {
        ranking: recommend(warm_start, [0.0], num_neighbors=5, ranking=ranking).tolist()
        for ranking in RANKINGS
    }
    assert orders == {"portfolio": [0, 3, 1, 2], "mean": [0, 1, 2, 3]}


def test_configurations_that_nobody_ran_come_last():
    scores = [[np.nan, 0.0, 1.0, np.nan], [np.nan, 1.0, 0.0, 0.5]]
    warm_start = fit_warm_start([[0.0], [1.0]], scores)
    for ranking in RANKINGS:
        order = recommend(warm_start, [0.0], num_neighbors=1, ranking=ranking)
        # 3 was run by the task that is no neighbour, 0 by none.
        np.testing.assert_array_equal(order, [2, 1, 3, 0])


def test_jit_and_vmap_equal_a_loop():
    features, scores = known(missing=0.3)
    warm_start = fit_warm_start(features, scores)

    def order(row):
        return recommend(warm_start, row, num_neighbors=3)

    batch = jax.jit(jax.vmap(order))(jnp.asarray(features))
    np.testing.assert_array_equal(batch, [order(row) for row in features])


CURVES = {
    "plain": ([2, 0, 1], [0.5, 1.0, 0.0], [1.0, 0.5, 0.0]),
    "no way back": ([1, 2, 0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]),
    "other units": ([2, 0, 1], [-50.0, 0.0, -100.0], [1.0, 0.5, 0.0]),
    "all the same": ([0, 1, 2], [0.3, 0.3, 0.3], [0.0, 0.0, 0.0]),
    "failed": ([0, 2, 1], [np.nan, 1.0, 0.0], [1.0, 1.0, 0.0]),
}


@pytest.mark.parametrize("name", CURVES)
def test_regret_curves(name):
    order, scores, expected = CURVES[name]
    np.testing.assert_allclose(regret_curve(order, scores), expected)


@pytest.mark.parametrize("scores", [[0.1, 0.5, 0.2, 0.5, 0.9], [0.3, np.nan, 0.1, 0.2]])
def test_random_curve_is_the_mean_over_all_orders(scores):
    orders = np.asarray(list(itertools.permutations(range(len(scores)))))
    curves = jax.vmap(regret_curve, (0, None))(orders, jnp.asarray(scores))
    np.testing.assert_allclose(
        random_regret_curve(scores), curves.mean(axis=0), rtol=1e-5, atol=1e-6
    )


def test_random_curve_of_many_configurations_ends_at_zero():
    """Binomials of 300 overflow 32 bits, their ratios do not."""
    curve = random_regret_curve(np.linspace(0, 1, 300))
    assert curve[0] == pytest.approx(0.5)
    assert np.all(np.diff(curve) <= 0)
    assert curve[-1] == 0


GOOD = known()
FITS = {
    "rows": (GOOD[0][1:], GOOD[1], r"got \[8, 4\] and \[9, 6\]"),
    "rank": (GOOD[0], GOOD[1][0], r"`scores` \[T, C\] .* and \[6\]"),
    "nothing": (np.zeros((0, 4)), np.zeros((0, 6)), "At least one known task"),
    "no configuration": (GOOD[0], np.zeros((TASKS, 0)), r"`scores` \[9, 0\]"),
    "feature": (
        np.where(np.arange(FEATURES) == 2, np.nan, GOOD[0]),
        GOOD[1],
        "got nan for meta-feature 2 of task 0",
    ),
    "infinite": (
        GOOD[0],
        np.where(np.arange(CONFIGURATIONS) == 1, -np.inf, GOOD[1]),
        "got -inf for configuration 1 on task 0; write NaN",
    ),
    "no score": (
        GOOD[0],
        np.where(np.arange(TASKS)[:, None] == 3, np.nan, GOOD[1]),
        "all scores of task 3 are NaN",
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_bad_tables_are_explained(name):
    features, scores, message = FITS[name]
    with pytest.raises(ValueError, match=message):
        fit_warm_start(features, scores)


ERRORS = {
    "too many": ({"num_neighbors": 10}, ValueError, "known tasks, 9, got 10; lower it"),
    "none": ({"num_neighbors": 0}, ValueError, "`num_neighbors` must be .* got 0"),
    "ranking": ({"ranking": "best"}, ValueError, "one of portfolio, mean, got 'best'"),
    "features": ({"features": np.zeros(3)}, AssertionError, "shape"),
    "exclude": ({"exclude": np.zeros(3, bool)}, AssertionError, "shape"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_requests_are_explained(name):
    changes, error, message = ERRORS[name]
    arguments = {"features": GOOD[0][0], "num_neighbors": 2} | changes
    with pytest.raises(error, match=message):
        recommend(fit_warm_start(*GOOD), **arguments)


def test_an_order_of_other_length_is_refused():
    with pytest.raises(AssertionError, match="shape"):
        regret_curve([0, 1], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("exclude", [[0, 0, 1], [False, False, True]])
def test_numbers_may_say_who_is_excluded(exclude):
    scores = [[0.9, 0.6, 0.5], [0.8, 0.7, 0.2], [0.1, 0.2, 0.7]]
    warm_start = fit_warm_start([[0.0], [0.1], [5.0]], scores)
    for given in (exclude, jnp.array(exclude)):
        order = recommend(warm_start, [5.0], num_neighbors=1, exclude=given)
        assert order.tolist() == [0, 1, 2]
