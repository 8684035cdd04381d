"""MAML++: each of its parts against MAML or a plain loop, its schedules, its errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.constant import QUERY, SUPPORT, constant_model, constant_task
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.learners.gradient.maml_plus_plus import (
    MAMLPlusPlusParams,
    is_normalization,
    maml_plus_plus,
    step_weights,
)
from metajax.objectives import squared_error

ENTRIES = {
    "maml_plus_plus": Entry(
        lambda: metajax.learners.maml_plus_plus(
            small_mlp(WAY, "layer"),
            inner_steps=2,
            multi_step_until=2,
            first_order_until=1,
        )
    ),
    "maml_plus_plus, all off": Entry(
        lambda: metajax.learners.maml_plus_plus(
            small_mlp(WAY),
            inner_steps=2,
            per_step_rates=False,
            per_step_normalization=False,
        )
    ),
}

OFF = {"per_step_rates": False, "per_step_normalization": False}


def loss_and_gradient(loss, meta_params):
    return jax.value_and_grad(lambda p: loss(p)[0])(meta_params)


def test_with_everything_off_is_maml(key):
    """To the bit."""
    model, task = metajax.models.mlp(3, hidden_sizes=(4,)), sample(key)
    learner = maml_plus_plus(model, rate=0.2, inner_steps=2, **OFF)
    maml = metajax.learners.maml(model, optax.sgd(0.2), inner_steps=2)
    params = jax.jit(model.init)(key, task.support.x)
    meta_params = jax.jit(learner.init)(key, task)
    chex.assert_trees_all_equal(meta_params, MAMLPlusPlusParams(params, None, None))
    assert learner.scheduled_loss is None

    def run(learner, params):
        of_params = jax.value_and_grad(lambda p: learner.loss(p, task), has_aux=True)
        return jax.jit(of_params)(params)

    value, gradient = run(learner, meta_params)
    chex.assert_trees_all_equal((value, gradient.params), run(maml, params))


def test_rates_per_step_in_closed_form():
    learner = maml_plus_plus(
        constant_model(),
        inner_steps=3,
        per_step_normalization=False,
        objective=squared_error,
    )
    task, theta = constant_task(), jnp.array([1.0, -2.0])
    rates = jnp.array([0.5, 0.1, -0.2])
    meta_params = MAMLPlusPlusParams(theta, None, {"learning_rate": rates})
    run = jax.jit(lambda p: loss_and_gradient(lambda p: learner.loss(p, task), p))
    loss, gradient = run(meta_params)
    decay = jnp.prod(1 - rates)
    phi = SUPPORT + decay * (theta - SUPPORT)
    np.testing.assert_allclose(loss, 0.5 * np.sum(np.square(phi - QUERY)), rtol=1e-5)
    chex.assert_trees_all_close(gradient.params, decay * (phi - QUERY), rtol=1e-4)
    slope = np.sum((theta - SUPPORT) * (phi - QUERY))
    expected = -decay / (1 - rates) * slope
    np.testing.assert_allclose(gradient.optimizer["learning_rate"], expected, rtol=1e-4)


def normalized(key, **settings):
    """A network with everything per step, moved off its start."""
    model, task = (
        metajax.models.mlp(3, hidden_sizes=(4,), normalization="layer"),
        sample(key),
    )
    learner = maml_plus_plus(model, inner_steps=2, **settings)

    @jax.jit
    def init(key):
        def move(leaf):
            return leaf + 0.05 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)

        return jax.tree.map(move, learner.init(key, task))

    return model, learner, task, init(key)


def by_hand(model, meta_params, task):
    """Query losses after each step, and the parameters after the last, in a loop."""

    def merge(params, step):
        def choose(path, shared, row):
            return shared if row is None else row[step]

        return jax.tree.map_with_path(
            choose, params, meta_params.per_step, is_leaf=lambda leaf: leaf is None
        )

    def loss(params, step, examples):
        logits = model.apply(merge(params, step), examples.x)
        losses = optax.losses.softmax_cross_entropy_with_integer_labels
        return jnp.mean(losses(logits, examples.y))

    params, query_losses = meta_params.params, []
    for step in range(2):
        slopes = jax.grad(loss)(params, step, task.support)
        rates = meta_params.optimizer["learning_rate"]
        params = jax.tree.map(
            lambda p, g, r, t=step: p - r[t] * g, params, slopes, rates
        )
        query_losses.append(loss(params, step, task.query))
    return jnp.stack(query_losses), merge(params, 1)


def test_per_step_parts_against_a_plain_loop(key):
    """Normalisation weights and rates of step t count at step t, in every loss."""
    model, learner, task, meta_params = normalized(key, multi_step_until=4)

    @jax.jit
    def scheduled(meta_params, step):
        def loss(meta_params):
            return learner.scheduled_loss(step, meta_params, task)

        return loss_and_gradient(loss, meta_params)

    @jax.jit
    def expected(meta_params, weights):
        def weighted(meta_params):
            losses, adapted = by_hand(model, meta_params, task)
            return jnp.sum(losses * weights), adapted

        return jax.value_and_grad(weighted, has_aux=True)(meta_params)

    # A quarter of the way from equal weights to the last alone; and at the end.
    for step, weights in ((1, [0.375, 0.625]), (4, [0.0, 1.0])):
        loss, gradient = scheduled(meta_params, jnp.int32(step))
        (value, adapted), wanted = expected(meta_params, jnp.array(weights))
        chex.assert_trees_all_close(
            (loss, gradient), (value, wanted), rtol=1e-4, atol=1e-6
        )
    path = jax.jit(learner.adapt_steps)(meta_params, task.support)
    at_end = jax.tree.map(lambda leaf: leaf[-1], path)
    chex.assert_trees_all_close(at_end, adapted, rtol=1e-4, atol=1e-6)
    # Each step has a part in the last loss through all of its own.
    per_step = jax.tree.leaves((gradient.per_step, gradient.optimizer))
    assert len(per_step) == 2 + 4  # scale and shift; two layers with kernel and bias
    for leaf in per_step:
        assert leaf.shape[0] == 2
        assert np.all(np.abs(leaf).reshape(2, -1).max(axis=1) > 1e-6)
    # Normalisation weights are not among what adapts.
    assert jax.tree.leaves(meta_params.params["params"]["Normalize_0"]) == []


@pytest.mark.parametrize(("multi", "first"), [(4, 2), (2, 4), (3, 3), (0, 2), (2, 0)])
def test_schedules_switch_where_they_should(multi, first):
    """Losses and orders, each at its own step, in the closed forms of MAML."""
    rate, theta, task = 0.2, jnp.array([1.0, -2.0]), constant_task()
    learner = maml_plus_plus(
        constant_model(),
        rate=rate,
        inner_steps=2,
        multi_step_until=multi,
        first_order_until=first,
        objective=squared_error,
        **OFF,
    )
    scheduled = jax.jit(
        lambda step: loss_and_gradient(
            lambda p: learner.scheduled_loss(step, p, task),
            MAMLPlusPlusParams(theta, None, None),
        )
    )
    decays = [1 - rate, (1 - rate) ** 2]
    gaps = [SUPPORT + decay * (theta - SUPPORT) - QUERY for decay in decays]
    for step in range(6):
        share = (1 - step / multi) / 2 if step < multi else 0.0
        weights = [share, 1 - share]
        factors = [1, 1] if step < first else decays
        loss, gradient = scheduled(jnp.int32(step))
        expected = sum(
            w * 0.5 * np.sum(g**2) for w, g in zip(weights, gaps, strict=True)
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        expected = sum(
            w * f * g for w, f, g in zip(weights, factors, gaps, strict=True)
        )
        np.testing.assert_allclose(gradient.params, expected, rtol=1e-4)
    final, _ = learner.loss(MAMLPlusPlusParams(theta, None, None), task)
    np.testing.assert_allclose(final, loss, rtol=1e-6)


def test_step_weights():
    weights = np.stack([step_weights(jnp.int32(s), 5, 100) for s in range(100)])
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights[0], 0.2, rtol=1e-6)
    np.testing.assert_allclose(weights[50], [0.1, 0.1, 0.1, 0.1, 0.6], rtol=1e-5)
    # The official code keeps 3 % of an equal share for the others.
    np.testing.assert_allclose(weights[99], [0.006] * 4 + [0.976], rtol=1e-5)
    assert np.all(np.diff(weights[:, -1]) >= 0)
    np.testing.assert_allclose(step_weights(jnp.int32(3), 1, 10), [1.0])


def test_what_a_normalization_weight_is():
    assert is_normalization("params/Normalize_1/LayerNorm_0/scale")
    assert not is_normalization("params/Dense_0/kernel")


def test_normalization_without_weights_is_explained(key):
    learner = maml_plus_plus(metajax.models.mlp(3, hidden_sizes=(4,)))
    with pytest.raises(ValueError, match="Dense_0.*per_step_normalization=False"):
        learner.init(key, sample(key))


ERRORS = {
    "inner_steps": (
        {"inner_steps": 0},
        "`inner_steps` must be an integer of at least 1, got 0",
    ),
    "fractional steps": (
        {"inner_steps": 1.5},
        "`inner_steps` must be an integer.*got 1.5",
    ),
    "rate": ({"rate": -0.1}, "`rate` must be above 0 and finite, got -0.1"),
    "multi_step_until": (
        {"multi_step_until": -1},
        "`multi_step_until` must be an integer of at least 0, got -1",
    ),
    "first_order_until": (
        {"first_order_until": 1.5},
        "`first_order_until` must be an integer of at least 0, got 1.5",
    ),
    "gradient": ({"gradient": "second"}, "reverse, remat, mixed"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        maml_plus_plus(constant_model(), **changes)
