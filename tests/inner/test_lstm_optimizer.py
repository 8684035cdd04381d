"""The LSTM optimizer: its features, one coordinate at a time, any network, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.constant import constant_model, constant_task

import metajax
from metajax.inner.lstm_cells import log_and_sign
from metajax.objectives import squared_error

OPTIMIZER = metajax.optimizers.lstm_optimizer(hidden_sizes=(4, 3), output_scale=0.1)
WEIGHTS = jax.jit(OPTIMIZER.init)(jax.random.key(0), jnp.zeros(1))


@jax.jit
def updates(grads):
    """The updates of a row `[steps, ...]` of gradients, one after the other."""
    optimizer = OPTIMIZER.build(WEIGHTS)
    first = jax.tree.map(lambda leaf: leaf[0], grads)
    return jax.lax.scan(
        lambda state, grad: optimizer.update(grad, state)[::-1],
        optimizer.init(first),
        grads,
    )[1]


def test_logarithm_and_sign():
    """The paper's two cases, which meet at e^-p."""
    p = 2.0
    least = np.exp(-p)
    values = jnp.array([0.0, least / 2, -least / 2, least, -least, 1.0, -np.exp(6.0)])
    expected = [
        [-1, 0],
        [-1, 0.5],
        [-1, -0.5],
        [-1, 1],
        [-1, -1],
        [0, 1],
        [3, -1],
    ]
    np.testing.assert_allclose(log_and_sign(values, p), expected, atol=1e-6)
    assert log_and_sign(jnp.zeros((2, 3)), p).shape == (2, 3, 2)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.05, 1.0, 1e30])
def test_derivatives_of_the_features_are_finite(value):
    """Of both orders, also at 0, where the logarithm has none."""

    def features(value):
        return log_and_sign(value, 2.0)

    first, second = jax.jit(
        lambda v: (
            jax.jacobian(features)(v),
            jax.jacobian(jax.grad(lambda v: features(v).sum()))(v),
        )
    )(jnp.float32(value))
    assert np.isfinite(first).all()
    assert np.isfinite(second)
    if value < np.exp(-2):
        np.testing.assert_allclose(first, [0, np.exp(2)], rtol=1e-5)
    else:
        np.testing.assert_allclose(first, [1 / (2 * value), 0], rtol=1e-5)


def test_coordinates_are_alike_and_apart(key):
    """Permuted gradients give permuted updates; each depends on its own alone."""
    grads = jax.random.normal(key, (3, 5))
    order = np.array([3, 0, 4, 1, 2])
    plain, permuted = updates(grads), updates(grads[:, order])
    np.testing.assert_allclose(permuted, plain[:, order], rtol=1e-5, atol=1e-7)
    changed = updates(grads.at[0, 2].set(7.0))
    same = np.array([0, 1, 3, 4])
    np.testing.assert_allclose(changed[:, same], plain[:, same], rtol=1e-5, atol=1e-7)
    # And on its own past: states go on from step to step.
    assert np.all(np.abs(changed[:, 2] - plain[:, 2]) > 1e-6)


def test_the_same_weights_serve_other_networks(key):
    grads = jax.random.normal(key, (2, 6))
    tree = {"w": grads[:, :4].reshape(2, 2, 2), "b": grads[:, 4], "c": grads[:, 5:]}
    got = updates(tree)
    chex.assert_trees_all_equal_shapes(got, tree)
    flat = np.concatenate([got["w"].reshape(2, 4), got["b"][:, None], got["c"]], axis=1)
    np.testing.assert_allclose(flat, updates(grads), rtol=1e-5, atol=1e-7)


def test_output_scale_is_a_factor(key):
    gradient = jax.random.normal(key, (4,))

    def update(scale):
        build = metajax.optimizers.lstm_optimizer(
            hidden_sizes=(4, 3), output_scale=scale
        ).build(WEIGHTS)
        return build.update(gradient, build.init(gradient))[0]

    np.testing.assert_allclose(update(0.3), 3 * update(0.1), rtol=1e-5)


def test_every_weight_learns():
    """With second derivatives, and where one gradient is 0."""
    learner = metajax.learners.optimizer_learner(
        constant_model((0.5, -2.0)),  # the first coordinate starts where it should be
        metajax.optimizers.lstm_optimizer(hidden_sizes=(3,)),
        inner_steps=2,
        objective=squared_error,
    )
    task = constant_task()
    meta_params = learner.init(jax.random.key(0), task)
    slopes = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(meta_params)
    for leaf in jax.tree.leaves(slopes):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


ERRORS = {
    "hidden": (
        {"hidden_sizes": ()},
        r"`hidden_sizes` must hold at least 1 size, got \(\)",
    ),
    "size": ({"hidden_sizes": (4, 0)}, r"`hidden_sizes\[1\]` must be .* got 0"),
    "output_scale": ({"output_scale": 0.0}, "`output_scale` must be above 0.*got 0.0"),
    "threshold": ({"threshold": -1.0}, "`threshold` must be above 0.*got -1.0"),
    "threshold of NaN": ({"threshold": float("nan")}, "`threshold` must .*got nan"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        metajax.optimizers.lstm_optimizer(**changes)
