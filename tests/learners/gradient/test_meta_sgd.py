"""Meta-SGD: closed forms on a quadratic, MAML at the start, and its errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.constant import QUERY, SUPPORT, constant_model, constant_task
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.builders.descent import DescentParams
from metajax.objectives import squared_error

ENTRIES = {
    "meta_sgd": Entry(lambda: metajax.learners.meta_sgd(small_mlp(WAY), inner_steps=2)),
}

# A negative rate moves away from the support set, and is allowed.
THETA, RATES = jnp.array([1.0, -2.0]), jnp.array([0.4, -0.1])
META_PARAMS = DescentParams(THETA, {"learning_rate": RATES})


def quadratic(**settings):
    return metajax.learners.meta_sgd(
        constant_model(), objective=squared_error, **settings
    )


def gradient(learner, task):
    return jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))


@pytest.mark.parametrize("steps", [1, 3])
def test_matches_closed_form(steps):
    learner, task = quadratic(inner_steps=steps), constant_task()
    decay = (1 - RATES) ** steps
    phi = SUPPORT + decay * (THETA - SUPPORT)
    adapted = learner.adapt(META_PARAMS, task.support)
    chex.assert_trees_all_close(adapted, phi, rtol=1e-5)
    got = gradient(learner, task)(META_PARAMS)
    chex.assert_trees_all_close(got.params, decay * (phi - QUERY), rtol=1e-5)
    by_rate = -steps * (1 - RATES) ** (steps - 1) * (THETA - SUPPORT) * (phi - QUERY)
    chex.assert_trees_all_close(got.optimizer["learning_rate"], by_rate, rtol=1e-5)


def test_first_order_still_learns_the_rates():
    """phi_T = theta - alpha * sum of gradients, and these are constants."""
    learner, task = quadratic(inner_steps=3, gradient="first_order"), constant_task()
    phi = learner.adapt(META_PARAMS, task.support)
    got = gradient(learner, task)(META_PARAMS)
    chex.assert_trees_all_close(got.params, phi - QUERY, rtol=1e-5)
    sums = sum((1 - RATES) ** t for t in range(3)) * (THETA - SUPPORT)
    expected = -sums * (phi - QUERY)
    chex.assert_trees_all_close(got.optimizer["learning_rate"], expected, rtol=1e-5)


def test_starts_as_maml(key):
    model, task = metajax.models.mlp(3, hidden_sizes=(8,)), sample(key)
    learner = metajax.learners.meta_sgd(model, rate=0.2, eval_inner_steps=2)
    maml = metajax.learners.maml(
        model, optax.sgd(0.2), inner_steps=1, eval_inner_steps=2
    )
    meta_params = jax.jit(learner.init)(key, task)
    params = meta_params.params
    chex.assert_trees_all_equal_shapes(meta_params.optimizer["learning_rate"], params)

    def run(learner, params):
        gradient = jax.grad(lambda p: learner.loss(p, task)[0])(params)
        return gradient, learner.adapt(params, task.support)

    (got, adapted), (gradient, expected) = jax.jit(
        lambda: (run(learner, meta_params), run(maml, params))
    )()
    chex.assert_trees_all_close(got.params, gradient, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(adapted, expected, rtol=1e-5)
    # No rate is without a gradient, but those of units that are off.
    assert np.mean(jax.flatten_util.ravel_pytree(got.optimizer)[0] != 0) > 0.5


def test_filter_leaves_rates_for_what_adapts_only(key):
    model, task = metajax.models.mlp(3, hidden_sizes=(8,)), sample(key)
    learner = metajax.learners.meta_sgd(model, adapts=metajax.filters.only("head"))
    meta_params = jax.jit(learner.init)(key, task)
    rates = meta_params.optimizer["learning_rate"]["params"]
    assert jax.tree.leaves(rates["Dense_0"]) == []
    chex.assert_trees_all_equal_shapes(
        rates["head"], meta_params.params["params"]["head"]
    )


ERRORS = {
    "rate": ({"rate": 0.0}, "`value` of 'learning_rate' must be above 0 .*got 0.0"),
    "rate, by its name": ({"rate": "0.1"}, "`rate` is out of range: .*got '0.1'"),
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
        "`eval_inner_steps` must be an integer.*got -1",
    ),
    "gradient": ({"gradient": "second"}, "reverse, remat, mixed"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        quadratic(**changes)
