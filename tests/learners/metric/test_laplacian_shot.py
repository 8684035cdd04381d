"""LaplacianShot: assignments against NumPy, its stop, neighbours, gradients, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import Entry, sample, small_mlp
from learners.metric.oracles import distances, in_double, numbers, rectified, softmax

import metajax
from metajax.learners import laplacian_shot
from metajax.learners.metric.laplacian_shot import nearest_neighbors

ENTRIES = {
    "laplacian_shot": Entry(
        lambda: laplacian_shot(small_mlp(5), way=4, iterations=3), is_inductive=False
    ),
}

IDENTITY = metajax.models.identity()


def algorithm_1(task, neighbors, strength, iterations):
    """The paper's, with lists of neighbours; gives assignments and updates taken."""
    support, labels, queries = numbers(task)
    costs = distances(queries, rectified(support, labels, queries)) ** 2
    between = distances(queries, queries)
    np.fill_diagonal(between, np.inf)
    near = [np.argsort(row)[:neighbors] for row in between]
    assigned, last = softmax(-costs), None
    for step in range(iterations):
        pulls = np.array([assigned[others].sum(0) for others in near])
        assigned = softmax(-costs + strength * pulls)
        pulls = np.array([assigned[others].sum(0) for others in near])
        terms = np.log(assigned + 1e-12) + costs - strength * pulls
        bound = np.sum(assigned * terms)
        if step > 1 and abs(bound - last) <= 1e-6 * abs(last):
            return assigned, step + 1
        last = bound
    return assigned, iterations


def crowded(key):
    """Classes that overlap, and queries that are more."""
    task = sample(key)
    more = jnp.concatenate([task.query.x, task.query.x[::-1] * 0.7 + 0.1])
    labels = jnp.concatenate([task.query.y, task.query.y[::-1]])
    task = task._replace(query=task.query._replace(x=more, y=labels))
    return jax.tree.map(lambda a: 0.4 * a if a.dtype.kind == "f" else a, task)


@pytest.mark.parametrize(
    ("neighbors", "strength", "iterations"),
    [(2, 0.7, 20), (3, 0.7, 1), (40, 0.2, 4), (1, 2.0, 20), (2, 1.0, 0)],
)
def test_against_numpy(neighbors, strength, iterations, key):
    task = crowded(key)
    learner = laplacian_shot(
        IDENTITY,
        way=3,
        neighbors=neighbors,
        strength=strength,
        iterations=iterations,
    )
    adapted = learner.adapt({}, task.support)
    logs = jax.jit(learner.predict)(adapted, task.query.x)
    wanted, _ = algorithm_1(task, min(neighbors, 17), strength, iterations)
    np.testing.assert_allclose(jnp.exp(logs), wanted, rtol=1e-3, atol=1e-5)


def test_updates_end_when_the_bound_has_settled(key):
    """A bound that has settled is left, long before the last digit has."""
    task = crowded(key)
    with jax.enable_x64(True):
        task = in_double(task)
        model = metajax.models.from_functions(lambda key, x: {}, lambda params, x: x)
        learner = laplacian_shot(model, way=3, iterations=500, strength=1.0)
        adapted = learner.adapt({}, task.support)
        found = np.exp(jax.jit(learner.predict)(adapted, task.query.x))
    wanted, taken = algorithm_1(task, 2, 1.0, 500)
    assert 3 <= taken < 400
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    longer, _ = algorithm_1(task, 2, 1.0, taken - 1)
    assert np.abs(longer - wanted).max() > 1e-7


def as_sets(found):
    """The neighbours of each row."""
    places, is_near = map(np.asarray, found)
    return [set(row[kept].tolist()) for row, kept in zip(places, is_near, strict=True)]


def test_neighbours_are_other_real_rows():
    rows = jnp.array([[0.0], [1.0], [3.0], [100.0], [3.5]])
    is_real = jnp.array([True, True, True, True, False])
    found = as_sets(nearest_neighbors(rows, is_real, 1))
    assert found == [{1}, {0}, {1}, {2}, set()]
    every = as_sets(nearest_neighbors(rows, is_real, 9))
    assert every == [{0, 1, 2, 3} - {i} for i in range(4)] + [set()]
    assert as_sets(nearest_neighbors(rows[:1], is_real[:1], 3)) == [set()]


def test_neighbours_far_from_0_are_found(key):
    """Where squares of lengths are much larger than distances."""
    rows = jax.random.normal(key, (12, 3))
    is_real = jnp.ones(12, bool)
    near, far = (nearest_neighbors(x, is_real, 3) for x in (rows, rows + 1000))
    assert as_sets(near) == as_sets(far)


def test_gradient_is_that_of_finite_differences(key):
    with jax.enable_x64(True):
        task = in_double(crowded(key))
        model = metajax.models.from_functions(
            lambda key, x: jnp.eye(4), lambda matrix, x: x @ matrix
        )
        learner = laplacian_shot(model, way=4, iterations=2)
        loss = jax.jit(lambda matrix: learner.loss(matrix, task)[0])
        start = jnp.eye(4)
        direction = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
        step = 1e-6 * direction
        slope = (loss(start + step) - loss(start - step)) / 2e-6
        found = jnp.vdot(jax.jit(jax.grad(loss))(start), direction)
        np.testing.assert_allclose(found, slope, rtol=1e-6)
        assert abs(slope) > 1e-3


ERRORS = {
    "neighbors": ({"neighbors": 0}, "`neighbors` must be an integer of at least 1"),
    "iterations": ({"iterations": -1}, "`iterations` must be .* at least 0, got -1"),
    "strength": ({"strength": -0.1}, "`strength` must be at least 0 .* got -0.1"),
    "sharpness": ({"sharpness": float("nan")}, "`sharpness` must be .* got nan"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        laplacian_shot(IDENTITY, **changes)
