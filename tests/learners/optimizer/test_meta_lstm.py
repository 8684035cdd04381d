"""Meta-LSTM: gates set by hand, what they read, its gradient, and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.constant import QUERY, SUPPORT, constant_model, constant_task
from learners.entry import WAY, Entry, small_mlp

import metajax
from metajax.builders.descent import DescentParams
from metajax.learners.optimizer.meta_lstm import lstm_gates
from metajax.objectives import squared_error

ENTRIES = {
    "meta_lstm": Entry(
        lambda: metajax.learners.meta_lstm(
            small_mlp(WAY), inner_steps=3, forget=0.99, hidden_sizes=(4,)
        )
    ),
}

THETA, RATE, FORGET = jnp.array([1.0, -2.0]), 0.2, 0.9


def meta_lstm(**settings):
    defaults = {"inner_steps": 3, "rate": RATE, "forget": FORGET, "hidden_sizes": (2,)}
    settings = defaults | settings
    return metajax.learners.meta_lstm(
        constant_model(), objective=squared_error, **settings
    )


def logit(p):
    return np.log(p / (1 - p))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("forget", [FORGET, 1.0])
def test_constant_gates_are_a_rate_and_a_weight_decay(forget):
    """phi' = f phi - i (phi - s), of which f = 1 is gradient descent.

    As the gates read nothing and gradients are constants, d phi_T / d theta = f^T.
    """
    learner, task = meta_lstm(), constant_task()
    meta_params = jax.jit(learner.init)(jax.random.key(0), task)
    if forget == 1:  # which no gate starts from
        gate = meta_params.optimizer["params"]["forget_gate"]
        gate["bias"] = jnp.full(1, 30.0)
    meta_params = DescentParams(THETA, meta_params.optimizer)
    phi = np.asarray(THETA)
    for _ in range(3):
        phi = forget * phi - RATE * (phi - SUPPORT)
    if forget == 1:
        sgd = SUPPORT + (1 - RATE) ** 3 * (THETA - SUPPORT)
        np.testing.assert_allclose(phi, sgd, rtol=1e-5)

    @jax.jit
    def run(meta_params):
        gradient = jax.grad(lambda p: learner.loss(p, task)[0])(meta_params)
        return learner.adapt(meta_params, task.support), gradient

    adapted, gradient = run(meta_params)
    np.testing.assert_allclose(adapted, phi, rtol=1e-5)
    np.testing.assert_allclose(gradient.params, forget**3 * (phi - QUERY), rtol=1e-4)


def gate_updates(changes, grads, thetas, losses):
    """Updates of one coordinate, with kernels of zeros but for `changes`.

    Of the inputs of a gate, the first two are the LSTM's, then come the parameter and
    the gate's own last value.
    """
    optimizer = lstm_gates(rate=RATE, forget=FORGET, hidden_sizes=(2,))
    weights = jax.jit(optimizer.init)(jax.random.key(0), jnp.zeros(1))
    for (gate, row), value in changes.items():
        kernel = weights["params"][gate]["kernel"]
        assert kernel.shape == (4, 1)
        weights["params"][gate]["kernel"] = kernel.at[row, 0].set(value)
    build = optimizer.build(weights)
    state, updates = build.init(jnp.zeros(1)), []
    for grad, theta, loss in zip(grads, thetas, losses, strict=True):
        update, state = build.update(
            jnp.full(1, grad), state, jnp.full(1, theta), value=jnp.float32(loss)
        )
        updates.append(float(update[0]))
    return updates


def test_gates_read_the_parameter():
    thetas = [1.5, -0.5]
    changes = {("input_gate", 2): 0.7, ("forget_gate", 2): -0.3}
    expected = [
        (sigmoid(logit(FORGET) - 0.3 * theta) - 1) * theta
        - sigmoid(logit(RATE) + 0.7 * theta) * 2.0
        for theta in thetas
    ]
    got = gate_updates(changes, [2.0, 2.0], thetas, [1.0, 1.0])
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gates_read_their_own_last_values():
    changes = {("input_gate", 3): 0.7, ("forget_gate", 3): -0.3}
    rate, keep, expected = RATE, FORGET, []
    for _ in range(3):
        rate = sigmoid(logit(RATE) + 0.7 * rate)
        keep = sigmoid(logit(FORGET) - 0.3 * keep)
        expected.append((keep - 1) * 1.5 - rate * 2.0)
    got = gate_updates(changes, [2.0] * 3, [1.5] * 3, [1.0] * 3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gates_read_gradients_and_losses_through_the_lstm():
    changes = {("forget_gate", 0): 2.0}
    base = gate_updates(changes, [0.0, 0.0], [1.5, 1.5], [1.0, 1.0])
    # The parameter decays by the forget gate alone where the gradient is 0.
    other_loss = gate_updates(changes, [0.0, 0.0], [1.5, 1.5], [9.0, 1.0])
    assert abs(other_loss[0] - base[0]) > 1e-4
    assert abs(other_loss[1] - base[1]) > 1e-5  # through the LSTM's state
    first, second = (
        gate_updates(changes, [g, 0.0], [1.5, 1.5], [1.0, 1.0])[1] for g in (1.0, -1.0)
    )
    assert abs(first - second) > 1e-5


def test_every_weight_learns():
    learner, task = meta_lstm(), constant_task()
    meta_params = jax.jit(learner.init)(jax.random.key(0), task)
    optimizer = jax.tree.map(lambda leaf: leaf + 0.1, meta_params.optimizer)
    run = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))
    gradient = run(DescentParams(THETA, optimizer))
    chex.assert_tree_all_finite(gradient)
    for leaf in jax.tree.leaves(gradient):
        assert np.abs(leaf).max() > 0


ERRORS = {
    "rate": ({"rate": 1.0}, "`rate` must be between 0 and 1, got 1.0"),
    "forget": ({"forget": 0.0}, "`forget` must be between 0 and 1, got 0.0"),
    "forget of NaN": ({"forget": float("nan")}, "`forget` must be .*got nan"),
    "hidden": ({"hidden_sizes": (0,)}, r"`hidden_sizes\[0\]` must be .* got 0"),
    "threshold": ({"threshold": 0}, "`threshold` must be above 0.*got 0"),
    "inner_steps": (
        {"inner_steps": 0},
        "`inner_steps` must be an integer of at least 1, got 0",
    ),
    "fractional steps": (
        {"inner_steps": 1.5},
        "`inner_steps` must be an integer.*got 1.5",
    ),
    "eval_inner_steps": (
        {"eval_inner_steps": -1},
        "`eval_inner_steps` must be .*got -1",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        meta_lstm(**changes)
