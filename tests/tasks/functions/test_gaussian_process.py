"""Gaussian processes: moments of draws, and the posterior against two oracles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.functions.gaussian_process import (
    HyperParameters,
    covariance,
    exact_posterior,
    gaussian_process,
)
from metajax.tasks.task_checks import check_task
from metajax.types import Examples

# Of every kernel, and what scikit-learn calls it.
CASES = {
    "rbf": {"length_scale": 0.6},
    "matern52": {"length_scale": 0.8},
    "periodic": {"length_scale": 0.7, "period": 1.3},
}
SCALE, NOISE = 1.5, 0.2


def make(kernel, **changes):
    return gaussian_process(
        kernel=kernel, scale=SCALE, noise=NOISE, **CASES[kernel] | changes
    )


def plain_kernel(kernel, a, b, length_scale, scale, period=1.0):
    """The table of the module, one pair of points at a time."""
    k = np.zeros((len(a), len(b)))
    for i, p in enumerate(np.asarray(a, float)):
        for j, q in enumerate(np.asarray(b, float)):
            r = np.sqrt(np.sum((p - q) ** 2)) / length_scale
            if kernel == "rbf":
                value = np.exp(-(r**2) / 2)
            elif kernel == "matern52":
                value = (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r)
            else:
                waves = np.sin(np.pi * (p - q) / period) ** 2
                value = np.prod(np.exp(-2 * waves / length_scale**2))
            k[i, j] = scale**2 * value
    return k


@pytest.mark.parametrize("kernel", CASES)
@pytest.mark.parametrize("num_inputs", [1, 3])
def test_kernels_are_the_table(kernel, num_inputs):
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-2, 2, (n, num_inputs)).astype(np.float32) for n in (4, 5))
    case = {"period": 1.0} | CASES[kernel]
    hyper = HyperParameters(case["length_scale"], SCALE, case["period"])
    found = covariance(kernel, hyper, a, b)
    expected = plain_kernel(kernel, a, b, scale=SCALE, **case)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def sklearn_posterior(kernel, support, query):
    gp = pytest.importorskip("sklearn.gaussian_process")
    kinds = gp.kernels
    case = CASES[kernel]
    k = {
        "rbf": lambda: kinds.RBF(case["length_scale"]),
        "matern52": lambda: kinds.Matern(case["length_scale"], nu=2.5),
        "periodic": lambda: kinds.ExpSineSquared(case["length_scale"], case["period"]),
    }[kernel]()
    regressor = gp.GaussianProcessRegressor(
        SCALE**2 * k, alpha=NOISE**2, optimizer=None
    )
    regressor.fit(*(np.asarray(a, float) for a in support[:2]))
    mean, of_query = regressor.predict(np.asarray(query.x, float), return_cov=True)
    return mean.ravel(), of_query + NOISE**2 * np.eye(len(mean))


def log_density(y, mean, k):
    difference = np.asarray(y, float).ravel() - mean
    quadratic = difference @ np.linalg.solve(k, difference)
    return -(quadratic + np.linalg.slogdet(k)[1] + len(mean) * np.log(2 * np.pi)) / 2


@pytest.mark.parametrize("kernel", CASES)
def test_posterior_is_that_of_scikit_learn(kernel, key):
    tasks = make(kernel, shot=6, num_queries=8)
    support, query = tasks(key)
    mean, k = sklearn_posterior(kernel, support, query)
    found = jax.jit(exact_posterior, static_argnums=0)(tasks, support, query)
    np.testing.assert_allclose(found.marginals.mean[:, 0], mean, atol=2e-4)
    variances = np.diag(k)
    np.testing.assert_allclose(
        found.marginals.scale[:, 0], np.sqrt(variances), atol=2e-4
    )
    y = np.asarray(query.y, float).ravel()
    each = -((y - mean) ** 2) / (2 * variances) - np.log(2 * np.pi * variances) / 2
    np.testing.assert_allclose(found.log_likelihood, each, atol=3e-3)
    np.testing.assert_allclose(found.joint, log_density(y, mean, k), atol=1e-2)
    assert abs(found.joint - each.sum()) > 0.5  # which the two kinds tell apart


def test_masked_points_are_as_if_absent(key):
    tasks = make("rbf", shot=4, num_queries=5)
    support, query = tasks(key)
    expected = exact_posterior(tasks, support, query)

    def pad(examples):
        x, y = (jnp.pad(a, ((0, 3), (0, 0)), constant_values=7.0) for a in examples[:2])
        return Examples(x, y, jnp.arange(len(x)) < len(examples.x))

    found = exact_posterior(tasks, pad(support), pad(query))
    np.testing.assert_allclose(found.joint, expected.joint, rtol=1e-4)
    np.testing.assert_allclose(
        found.log_likelihood[:5], expected.log_likelihood, rtol=1e-4, atol=1e-5
    )


def test_without_support_the_posterior_is_the_prior(key):
    tasks = make("matern52", shot=4, num_queries=5)
    support, query = tasks(key)
    hidden = support._replace(mask=jnp.zeros(4, bool))
    found = exact_posterior(tasks, hidden, query)
    np.testing.assert_array_equal(found.marginals.mean, np.zeros((5, 1)))
    np.testing.assert_allclose(
        found.marginals.scale, np.full((5, 1), np.hypot(SCALE, NOISE)), rtol=1e-5
    )
    k = plain_kernel("matern52", query.x, query.x, 0.8, SCALE) + NOISE**2 * np.eye(5)
    np.testing.assert_allclose(
        found.joint, log_density(query.y, np.zeros(5), k), rtol=1e-4
    )


def test_posterior_chains_into_the_evidence(key):
    """log p(y_S, y_T) = log p(y_S) + log p(y_T | S), all by `joint`."""
    tasks = make("periodic", shot=5, num_queries=6)
    support, query = tasks(key)
    nothing = support._replace(mask=jnp.zeros(5, bool))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support, query)
    whole = exact_posterior(tasks, nothing, both).joint
    parts = exact_posterior(tasks, nothing, support).joint
    parts += exact_posterior(tasks, support, query).joint
    np.testing.assert_allclose(parts, whole, rtol=1e-4)


@functools.lru_cache
def bank(tasks, num=4000):
    keys = jax.random.split(jax.random.key(1), num)
    return keys, jax.jit(jax.vmap(tasks))(keys)


def test_draws_have_the_moments_of_the_process():
    """Standardised by the factor of their covariance, targets are white noise."""
    tasks = make("rbf", shot=3, num_queries=4, num_inputs=2)
    _, drawn = bank(tasks)

    @jax.vmap
    def standard(support, query):
        x, y = (jnp.concatenate(p) for p in zip(support[:2], query[:2], strict=True))
        k = covariance("rbf", HyperParameters(0.6, SCALE, 1.0), x, x)
        factor = jnp.linalg.cholesky(k + NOISE**2 * jnp.eye(len(x)))
        return jax.scipy.linalg.solve_triangular(factor, y, lower=True)[:, 0]

    white = np.asarray(standard(drawn.support, drawn.query))
    # Five standard errors of means, and of products of two independent normals.
    error = 5 / np.sqrt(len(white))
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=error)
    np.testing.assert_allclose(
        white.T @ white / len(white), np.eye(7), atol=error * np.sqrt(2)
    )
    x = np.asarray(drawn.query.x)
    assert x.shape == (4000, 4, 2)
    assert -2 <= x.min() < -1.99
    assert 1.99 < x.max() <= 2


def test_draws_take_no_library_routine(key):
    """With LAPACK's Cholesky, programs over several CPU devices may stop for ever."""
    assert "cholesky" not in str(jax.make_jaxpr(make("rbf"))(key))


def test_the_posterior_is_calibrated():
    """Standard scores of targets under their marginals have variance 1."""
    tasks = make("matern52", shot=(1, 6), num_queries=2)
    _, drawn = bank(tasks)
    found = jax.jit(jax.vmap(functools.partial(exact_posterior, tasks)))(*drawn)
    scores = (drawn.query.y - found.marginals.mean) / found.marginals.scale
    squares = np.square(np.asarray(scores)[:, 0, 0])
    assert abs(squares.mean() - 1) < 5 * np.sqrt(2 / len(squares))


def test_sizes_and_hyperparameters_are_uniform_over_their_ranges():
    tasks = gaussian_process(shot=(2, 5), length_scale=(0.3, 0.9), scale=(0.5, 1.5))
    keys, drawn = bank(tasks)
    mask = np.asarray(drawn.support.mask)
    assert mask.shape == (4000, 5)
    assert np.all(np.diff(mask.astype(int), axis=1) <= 0)  # real ones come first
    counts = np.bincount(mask.sum(axis=1))[2:]
    np.testing.assert_allclose(counts, 1000, atol=5 * np.sqrt(1000 * 0.75))
    hyper = jax.vmap(tasks.hyperparameters)(keys)
    for values, low, high in ((hyper.length_scale, 0.3, 0.9), (hyper.scale, 0.5, 1.5)):
        assert low <= values.min()
        assert values.max() <= high
        spread = (high - low) / np.sqrt(12 * len(values))
        assert abs(np.mean(values) - (low + high) / 2) < 5 * spread
    assert np.unique(hyper.period) == [1.0]


def test_the_hyperparameters_of_a_key_are_those_of_its_task():
    """Under these, targets have the mean log likelihood that they should."""
    tasks = gaussian_process(length_scale=(0.2, 2.0), scale=(0.2, 2.0), shot=3)
    keys, drawn = bank(tasks)
    hyper = jax.vmap(tasks.hyperparameters)(keys)
    posterior = jax.jit(jax.vmap(functools.partial(exact_posterior, tasks)))
    found = posterior(*drawn, hyper)
    scores = (drawn.query.y - found.marginals.mean) / found.marginals.scale
    squares = np.square(np.asarray(scores)[:, 0, 0])
    assert abs(squares.mean() - 1) < 5 * np.sqrt(2 / len(squares))
    others = posterior(*drawn, jax.tree.map(lambda x: jnp.roll(x, 1), hyper))
    assert others.log_likelihood.mean() < found.log_likelihood.mean() - 0.1


def test_tasks_are_well_formed_and_a_fixed_size_has_no_mask(key):
    task = gaussian_process(shot=4, num_queries=3, num_inputs=2)(key)
    check_task(task, "tasks")
    assert task.support.mask is None
    assert task.support.x.shape == (4, 2)
    assert task.query.y.shape == (3, 1)


@pytest.mark.parametrize("kernel", CASES)
def test_the_least_noise_is_enough_for_a_hundred_points(kernel):
    tasks = gaussian_process(kernel=kernel, length_scale=2.0, noise=0.01, shot=50)
    _, drawn = bank(tasks, 100)
    found = jax.jit(jax.vmap(functools.partial(exact_posterior, tasks)))(*drawn)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((drawn, found)))


ERRORS = {
    "kernel": ({"kernel": "linear"}, "`kernel` must be one of rbf.*got 'linear'"),
    "length": ({"length_scale": 0}, "`length_scale` must be a number above 0.*got 0"),
    "range": ({"scale": (2.0, 1.0)}, r"`scale` must be .*low <= high, got \(2.0, 1.0"),
    "period": ({"period": -1.0}, "`period` must be a number above 0.*got -1.0"),
    "noise": ({"noise": 0.0}, "`noise` must be at least 0.01, a hundredth.*got 0.0"),
    "scaled": ({"noise": 0.04, "scale": 5.0}, "at least 0.05.*got 0.04"),
    "shot": ({"shot": (0, 3)}, r"`shot` must be an integer of at least 1.*\(0, 3\)"),
    "queries": ({"num_queries": 0}, "`num_queries` must be an integer of at least 1"),
    "inputs": ({"num_inputs": 0}, "`num_inputs` must be an integer of at least 1"),
    "x_range": ({"x_range": (2, -2)}, "`x_range` must be two finite numbers"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_process(**arguments)


@pytest.mark.parametrize("name", ["length_scale", "scale", "period"])
def test_no_one_posterior_where_tasks_differ(name, key):
    tasks = gaussian_process(kernel="periodic", **{name: (0.5, 1.0)})
    task = tasks(key)
    with pytest.raises(ValueError, match=f"Tasks differ in `{name}`, from 0.5 to 1, "):
        exact_posterior(tasks, *task)
    exact_posterior(tasks, *task, tasks.hyperparameters(key))
