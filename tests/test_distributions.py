"""Predictive distributions against SciPy-free formulas, moments and the evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.distributions import (
    Gaussian,
    Mixture,
    joint_log_likelihood,
    kl_divergence,
    log_likelihood,
    moments,
    negative_log_likelihood,
)
from metajax.evaluation.bank import bank_task, evaluate
from metajax.training.history import monitored
from metajax.types import Examples, Learner, Task

N, S, D = 5, 3, 2


def drawn(*shape, seed=0):
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.2, 2, shape)
    return Gaussian(*map(jnp.float32, (rng.normal(size=shape), scale)))


def targets(seed=7):
    return jnp.float32(np.random.default_rng(seed).normal(size=(N, D)))


def density(mean, scale, y):
    mean, scale, y = (np.asarray(a, float) for a in (mean, scale, y))
    return np.exp(-(((y - mean) / scale) ** 2) / 2) / (scale * np.sqrt(2 * np.pi))


def test_gaussian_is_a_product_over_the_numbers_of_a_target():
    outputs, y = drawn(N, D), targets()
    expected = np.log(density(*outputs, y).prod(axis=1))
    np.testing.assert_allclose(log_likelihood(outputs, y), expected, rtol=1e-5)
    np.testing.assert_allclose(
        negative_log_likelihood(outputs, y), -expected, rtol=1e-5
    )


def test_mixture_is_a_mean_of_densities():
    outputs, y = Mixture(drawn(N, S, D)), targets()
    each = density(*outputs.components, y[:, None]).prod(axis=2)
    expected = np.log(each.mean(axis=1))
    np.testing.assert_allclose(log_likelihood(outputs, y), expected, rtol=1e-5)


def test_components_of_a_mixture_are_shared_by_all_targets():
    outputs, y = Mixture(drawn(N, S, D)), targets()
    mask = np.asarray([True, True, False, True, False])
    each = density(*outputs.components, y[:, None]).prod(axis=2)
    expected = np.log(each[mask].prod(axis=0).mean())
    found = joint_log_likelihood(outputs, y.at[2].set(1e6), jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    one = drawn(N, D)
    np.testing.assert_allclose(
        joint_log_likelihood(one, y), log_likelihood(one, y).sum(), rtol=1e-5
    )


def test_a_mixture_of_one_is_a_gaussian():
    one, y = drawn(N, D), targets()
    mixture = Mixture(jax.tree.map(lambda leaf: leaf[:, None], one))
    for function in (log_likelihood, joint_log_likelihood):
        np.testing.assert_allclose(function(mixture, y), function(one, y), rtol=1e-5)
    np.testing.assert_allclose(moments(mixture), moments(one), rtol=1e-5)


def test_moments_are_those_of_samples():
    mixture = Mixture(drawn(N, S, D))
    rng = np.random.default_rng(1)
    component = rng.integers(0, S, 200_000)
    mean, scale = (np.asarray(leaf)[:, component] for leaf in mixture.components)
    samples = mean + scale * rng.normal(size=mean.shape)
    found = moments(mixture)
    # Five standard errors: a standard deviation is below 3 here.
    tolerance = 5 * 3 / np.sqrt(samples.shape[1])
    np.testing.assert_allclose(found.mean, samples.mean(axis=1), atol=tolerance)
    np.testing.assert_allclose(found.scale, samples.std(axis=1), atol=tolerance)


def test_kl_divergence_is_its_integral():
    p, q = drawn(1, seed=1), drawn(1, seed=2)
    y = np.linspace(-30, 30, 200_001)
    of_p, of_q = density(*p, y), density(*q, y)
    log_ratio = np.log(np.maximum(of_p, 1e-300)) - np.log(np.maximum(of_q, 1e-300))
    expected = np.sum(of_p * log_ratio) * (y[1] - y[0])
    assert expected > 0.1
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-4)
    many = drawn(3, seed=1), drawn(3, seed=2)
    ones = [[Gaussian(*(x[i] for x in g)) for g in many] for i in range(3)]
    np.testing.assert_allclose(
        kl_divergence(*many), sum(kl_divergence(*one) for one in ones), rtol=1e-5
    )
    np.testing.assert_allclose(kl_divergence(p, p), 0, atol=1e-6)


@pytest.mark.parametrize("outputs", [drawn(N, 1), Mixture(drawn(N, S, 1))])
def test_other_shapes_of_targets_are_refused(outputs):
    with pytest.raises(AssertionError, match="shape"):
        log_likelihood(outputs, targets())


@functools.lru_cache
def constant_learner(has_components):
    """Its answer to x is the Gaussian N(x, 1), or half of it and half of N(-x, 1)."""

    def predict(adapted, inputs, *, mask=None, key=None):
        del adapted, mask, key
        if not has_components:
            return Gaussian(inputs, jnp.ones_like(inputs))
        mean = jnp.stack([inputs, -inputs], axis=1)
        return Mixture(Gaussian(mean, jnp.ones_like(mean)))

    def nothing(*_, key=None):
        return ()

    return Learner(lambda key, task: (), nothing, predict, nothing)


@pytest.mark.parametrize("has_components", [False, True])
def test_evaluation_judges_them(has_components):
    def tasks(key):
        x, y = jax.random.normal(key, (2, N, 1))
        y = y.at[0].set(1e3)
        return Task(Examples(x, y), Examples(x, y, jnp.arange(N) > 0))

    learner = constant_learner(has_components)
    report = evaluate(learner, (), tasks, num_tasks=3)
    assert report.protocol == "inductive"
    assert report.calibration is None
    assert monitored(report, None) == "nll"
    for place in range(3):
        x, y, _ = bank_task(tasks, place).query
        p = density(x, 1.0, y)
        mean = x
        if has_components:
            p, mean = (p + density(-x, 1.0, y)) / 2, 0 * x
        nll = -np.log(p[1:]).mean()
        np.testing.assert_allclose(report.values["nll"][place], nll, rtol=1e-5)
        mse = np.square(y - mean)[1:].mean()
        np.testing.assert_allclose(report.values["mse"][place], mse, rtol=1e-5)
