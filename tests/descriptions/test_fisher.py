"""Task2Vec: closed forms, a dense oracle, the head's minimum, distances, and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import metajax
from metajax.descriptions.fisher import (
    asymmetric_distance,
    fisher_diagonal,
    symmetric_distance,
    task2vec,
)
from metajax.models.adapters import from_functions
from metajax.types import Examples

ROWS, COLUMNS, WAY, STRENGTH = 12, 4, 3, 0.05
PROBE = metajax.models.mlp(5, hidden_sizes=(6,))


def examples(seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(ROWS, dtype=np.int32) % WAY
    x = rng.normal(size=(ROWS, COLUMNS)) + y[:, None]
    return Examples(x.astype(np.float32), y)


@functools.lru_cache
def params_of_probe():
    return PROBE.init(jax.random.key(0), examples().x)


@functools.partial(jax.jit, static_argnames=("model", "way", "num_samples"))
def embed(model, params, given, way=WAY, **options):
    return task2vec(model, params, given, way=way, strength=STRENGTH, **options)


def head(features, y):
    """Weights and bias of the same minimum by scikit-learn, in 64 bits."""
    ones = np.ones((len(features), 1))
    inputs = np.concatenate([np.asarray(features, float), ones], axis=1)
    machine = LogisticRegression(
        C=1 / (STRENGTH * len(y)), fit_intercept=False, tol=1e-10, max_iter=10_000
    )
    return inputs, machine.fit(inputs, y).coef_.T


def probabilities(inputs, weights):
    logits = inputs @ weights
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_fisher_of_a_logistic_regression():
    """p (1 - p) x_d^2, for the weights and the bias."""
    x = examples().x
    rng = np.random.default_rng(1)
    theta = {"w": rng.normal(size=COLUMNS).astype(np.float32), "b": np.float32(0.3)}

    def log_probabilities(theta, x):
        logit = x @ theta["w"] + theta["b"]
        return jax.nn.log_softmax(jnp.stack([jnp.zeros_like(logit), logit], axis=1))

    p = 1 / (1 + np.exp(-(x @ theta["w"] + theta["b"])))
    fisher = fisher_diagonal(log_probabilities, theta, examples())
    each = (p * (1 - p))[:, None] * x**2
    np.testing.assert_allclose(fisher["w"], each.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(fisher["b"], np.mean(p * (1 - p)), rtol=1e-4)


def test_linear_probe_in_closed_form():
    """F of theta_dk is the mean of x_d^2 Var of w_kc over c, at the head's minimum."""
    probe = from_functions(lambda key, x: None, lambda params, x: x @ params["theta"])
    rng = np.random.default_rng(2)
    theta = rng.normal(size=(COLUMNS, 2)).astype(np.float32)
    x, y, _ = examples()
    found = embed(probe, {"theta": theta}, examples())
    inputs, weights = head(x @ theta, y)
    p = probabilities(inputs, weights)
    means = p @ weights[:2].T
    variances = p @ np.square(weights[:2]).T - np.square(means)
    each = np.square(x)[:, :, None] * variances[:, None, :]
    expected = each.mean(axis=0).mean(axis=0)
    np.testing.assert_allclose(found.fisher, expected, rtol=1e-3)
    assert found.residual < 1e-5


def dense(params, given):
    """By a gradient of each log-probability of each example, and no trick."""
    features = PROBE.apply(params, given.x)
    inputs, weights = head(features, given.y)
    p = probabilities(inputs, weights)
    weights = jnp.asarray(weights, jnp.float32)

    def log_p(params, x):
        outputs = PROBE.apply(params, x[None])
        return jax.nn.log_softmax(outputs @ weights[:-1] + weights[-1][None])[0]

    jacobians = [jax.jacobian(log_p)(params, x) for x in given.x]
    units = []
    for leaves in zip(*map(jax.tree.leaves, jacobians), strict=True):
        if leaves[0].ndim < 3:
            continue
        squares = np.mean(
            [np.tensordot(p[i], np.square(leaf), 1) for i, leaf in enumerate(leaves)],
            axis=0,
        )
        units.append(squares.mean(axis=0))
    return np.concatenate(units)


def test_network_against_a_dense_oracle():
    params = params_of_probe()
    found = embed(PROBE, params, examples())
    assert found.fisher.shape == (6 + 5,)
    np.testing.assert_allclose(
        found.fisher, dense(params, examples()), rtol=2e-3, atol=1e-7
    )


def test_what_changes_nothing():
    params, given = params_of_probe(), examples()
    expected = embed(PROBE, params, given).fisher
    close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-7)
    order = np.random.default_rng(3).permutation(ROWS)
    names = np.asarray([2, 0, 1], np.int32)
    close(
        embed(PROBE, params, Examples(given.x[order], names[given.y[order]])).fisher,
        expected,
    )
    # Hidden rows of a further class, and a class that the task has not.
    padded = Examples(
        np.concatenate([given.x, np.full((2, COLUMNS), np.nan, np.float32)]),
        np.concatenate([given.y, np.full(2, 3, np.int32)]),
        np.arange(ROWS + 2) < ROWS,
    )
    close(embed(PROBE, params, padded, way=4).fisher, expected)


def test_monte_carlo_approaches_the_expectation():
    params = params_of_probe()
    exact = np.asarray(embed(PROBE, params, examples()).fisher)
    drawn = embed(
        PROBE, params, examples(), num_samples=4000, key=jax.random.key(0)
    ).fisher
    # 48,000 draws in all; squared gradients spread about as much as their mean.
    np.testing.assert_allclose(drawn, exact, rtol=0.05)
    assert not np.allclose(drawn, exact, rtol=1e-5)


def test_statistics_are_used_and_not_described():
    probe = metajax.models.mlp(5, hidden_sizes=(6,), normalization="calibrated")
    params = probe.init(jax.random.key(0), examples().x)
    with pytest.raises(
        ValueError, match="no statistics yet; call `metajax.models.calibrate`"
    ):
        task2vec(probe, params, examples(), way=WAY)
    frozen = probe.statistics(params, examples().x)
    found = embed(probe, frozen, examples())
    assert found.fisher.shape == (11,)
    assert np.all(np.isfinite(found.fisher))


def plain_distance(a, b):
    first, second = a / (a + b), b / (a + b)
    return 1 - first @ second / np.linalg.norm(first) / np.linalg.norm(second)


def test_distances():
    rng = np.random.default_rng(4)
    a, b = rng.exponential(size=(2, 9)).astype(np.float32)
    np.testing.assert_allclose(
        symmetric_distance(a, b), plain_distance(a, b), rtol=1e-4
    )
    assert symmetric_distance(a, b) == symmetric_distance(b, a)
    np.testing.assert_allclose(symmetric_distance(a, a), 0, atol=1e-6)
    # Units of 0 in both are alike, and do not make it NaN.
    zero = np.zeros(1, np.float32)
    wide = [np.concatenate([v, zero]) for v in (a, b)]
    assert 0 < symmetric_distance(*wide) < symmetric_distance(a, b)
    expected = plain_distance(a + 0.1, b + 0.1) - 0.15 * plain_distance(
        a + 0.1, np.full_like(a, 0.1)
    )
    np.testing.assert_allclose(
        asymmetric_distance(a, b, prior=0.1), expected, rtol=1e-4
    )
    matrix = symmetric_distance(np.stack([a, b])[:, None], np.stack([a, b])[None])
    assert matrix.shape == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"way": 0}, "`way` must be an integer of at least 1"),
        ({"strength": 0.0}, "`strength` must be above 0"),
        ({"iterations": 0}, "`iterations` must be an integer of at least 1"),
        ({"num_samples": 0}, "`num_samples` must be an integer of at least 1"),
        ({"num_samples": 3}, "give both, or neither .* num_samples=3 and no key"),
        ({"key": jax.random.key(0)}, "got num_samples=None and key"),
        (
            {"model": metajax.models.mlp(5, normalization="batch")},
            "'batch' an embedding dep",
        ),
        (
            {"model": metajax.models.identity(), "params": {}},
            "no array of two axes or more",
        ),
    ],
)
def test_bad_input(changes, message):
    arguments = {
        "model": PROBE,
        "params": params_of_probe(),
        "examples": examples(),
        "way": WAY,
    } | changes
    with pytest.raises(ValueError, match=message):
        task2vec(**arguments)


def test_maps_and_bad_numbers_are_refused():
    maps = from_functions(lambda key, x: None, lambda params, x: x[:, :, None])
    with pytest.raises(
        ValueError, match=r"vectors \[n, D\], and this one gives \[12, 4"
    ):
        task2vec(maps, {"w": np.ones((1, 1))}, examples(), way=WAY)
    one = jnp.ones(3)
    with pytest.raises(ValueError, match="`prior` must be at least 0"):
        symmetric_distance(one, one, prior=-1.0)
    with pytest.raises(ValueError, match="`prior` must be above 0"):
        asymmetric_distance(one, one, prior=0.0)
    with pytest.raises(ValueError, match="`alpha` must be at least 0"):
        asymmetric_distance(one, one, prior=1.0, alpha=-1.0)


def test_what_is_no_model_is_named():
    examples = Examples(jnp.zeros((2, 3)), jnp.arange(2))
    with pytest.raises(ValueError, match="`model` must be a `metajax.Model`, got 3"):
        task2vec(3, {}, examples, way=2)
