"""PT-MAP: plans and prototypes against NumPy, extreme costs, masks, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import Entry, sample, small_mlp
from learners.metric.oracles import distances, in_double, numbers

import metajax
from metajax.learners import pt_map
from metajax.learners.metric.pt_map import transport_plan

ENTRIES = {
    "pt_map": Entry(
        lambda: pt_map(small_mlp(5), way=4, sharpness=3.0, iterations=2),
        is_inductive=False,
    ),
}

IDENTITY = metajax.models.identity()


def sinkhorn(scores, share, tolerance=1e-6):
    """Rows and columns in turn, until no row's sum changes any more."""
    plan, sums = np.exp(scores), np.inf
    for _ in range(20_000):
        plan = plan / plan.sum(1, keepdims=True)
        plan = share * plan / plan.sum(0, keepdims=True)
        if np.abs(plan.sum(1) - sums).max() < tolerance:
            return plan
        sums = plan.sum(1)
    raise AssertionError("it does not end")


def algorithm_1(task, *, power, normalize, sharpness, rate, iterations):
    support, labels, queries = numbers(task)

    def transform(rows):
        rows = (np.maximum(rows, 0) + 1e-6) ** power
        return rows / np.linalg.norm(rows, axis=1)[:, None] if normalize else rows

    support, queries = transform(support), transform(queries)
    centers = np.stack([support[labels == k].mean(0) for k in range(3)])
    share = len(queries) / 3

    def plan():
        return sinkhorn(-sharpness * distances(queries, centers) ** 2, share)

    for _ in range(iterations):
        masses = plan()
        for k in range(3):
            weights = np.concatenate([labels == k, masses[:, k]])
            mean = weights @ np.concatenate([support, queries]) / weights.sum()
            centers[k] += rate * (mean - centers[k])
    return plan()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("iterations", [0, 3])
def test_against_numpy(iterations, normalize, key):
    settings = {
        "power": 0.7,
        "normalize": normalize,
        "sharpness": 2.0,
        "rate": 0.4,
        "iterations": iterations,
    }
    task = sample(key)
    with jax.enable_x64(True):
        doubled = in_double(task)
        model = metajax.models.from_functions(lambda key, x: {}, lambda params, x: x)
        learner = pt_map(model, way=3, **settings)
        adapted = learner.adapt({}, doubled.support)
        plan = np.exp(jax.jit(learner.predict)(adapted, doubled.query.x))
    np.testing.assert_allclose(plan, algorithm_1(task, **settings), atol=1e-8)


def plan_of(scores, is_real=None, is_present=None, iterations=1000):
    scores = jnp.asarray(scores, jnp.float32)
    real = jnp.ones(len(scores), bool) if is_real is None else jnp.array(is_real)
    some = jnp.ones(scores.shape[1], bool)
    some = some if is_present is None else jnp.array(is_present)
    made = jax.jit(lambda *a: transport_plan(*a, iterations=iterations))
    return np.exp(made(scores, real, some))


def test_plans_have_the_marginals_where_exponentials_vanish():
    """Five queries of six next to one class; the costs of others are in hundreds."""
    generator = np.random.default_rng(0)
    scores = -generator.uniform(200, 900, size=(6, 3))
    scores[:5, 0] = -1
    plan = plan_of(scores, iterations=50_000)
    np.testing.assert_allclose(plan.sum(0), 2, rtol=1e-4)
    np.testing.assert_allclose(plan.sum(1), 1, atol=1.1e-3)


def test_what_is_masked_takes_part_in_no_plan():
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(8, 4))
    wide = np.insert(np.insert(scores, 2, 1e3, axis=0), 1, -1e3, axis=1)
    real, some = np.arange(9) != 2, np.arange(5) != 1
    plan = plan_of(wide, real, some)
    # Nor does it keep the iterations from ending where they do without it.
    np.testing.assert_allclose(plan[real][:, some], plan_of(scores), rtol=1e-6)
    np.testing.assert_allclose(plan_of(scores), sinkhorn(scores, 2, 1e-12), atol=1e-3)
    np.testing.assert_array_equal(plan[2], 0)
    np.testing.assert_array_equal(plan[:, 1], 0)


def test_queries_that_classes_do_not_divide_have_equal_shares():
    plan = plan_of(np.random.default_rng(2).normal(size=(7, 3)))
    np.testing.assert_allclose(plan.sum(0), 7 / 3, rtol=1e-5)


def test_iterations_are_limited():
    scores = [[0.0, 3.0], [1.0, 3.0], [0.5, 4.0]]
    once, often = (plan_of(scores, iterations=count) for count in (1, 1000))
    rows = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(once, 1.5 * rows / rows.sum(0), rtol=1e-5)
    assert np.abs(once - often).max() > 0.01


def test_gradient_with_scalings_that_are_constants(key):
    """Of the scores, what remains is that of the plan's logarithms: the identity."""
    scores = jax.random.normal(key, (6, 3))
    real, some = jnp.ones(6, bool), jnp.ones(3, bool)
    weights = jax.random.normal(jax.random.fold_in(key, 1), (6, 3))
    slope = jax.grad(
        lambda s: jnp.sum(weights * transport_plan(s, real, some, iterations=50))
    )(scores)
    np.testing.assert_allclose(slope, weights, rtol=1e-6)
    task = sample(key)
    learner = pt_map(small_mlp(5), way=5)
    params = learner.init(key, task)
    gradient = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(params)
    sizes = [np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)]
    assert np.isfinite(sizes).all()
    assert max(sizes) > 1e-4


ERRORS = {
    "power": ({"power": 0}, "`power` must be above 0 and finite, got 0"),
    "sharpness": ({"sharpness": -1}, "`sharpness` must be above 0 .* got -1"),
    "rate": ({"rate": 0}, "`rate` must be above 0 and finite, got 0"),
    "rate above 1": ({"rate": 1.5}, "`rate` must be above 0 and at most 1, got 1.5"),
    "iterations": ({"iterations": -1}, "`iterations` must be .* got -1"),
    "sinkhorn": (
        {"sinkhorn_iterations": 0},
        "`sinkhorn_iterations` must be .* at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        pt_map(IDENTITY, **changes)
