"""LoRA: the merged weights, what adapts, statistics, and its errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import sample

import metajax
from metajax.models.lora import merge_lora, with_lora
from metajax.models.normalization import freeze_support_statistics
from metajax.types import Examples


def moved(params, key):
    """Parameters away from where they start."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten(
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    )


def test_starts_as_the_base_model(key):
    base, x = metajax.models.mlp(3, hidden_sizes=(8,)), jax.random.normal(key, (5, 4))
    model = with_lora(base, rank=2)
    params = model.init(key, x)
    assert set(params["lora"]) == {"params/Dense_0/kernel", "params/head/kernel"}
    chex.assert_shape(params["lora"]["params/Dense_0/kernel"]["down"], (4, 2))
    chex.assert_shape(params["lora"]["params/Dense_0/kernel"]["up"], (2, 8))
    chex.assert_trees_all_equal(model.apply(params, x), base.apply(params["base"], x))
    # A trained network takes the place of the one that `init` draws.
    trained = params | {"base": base.init(jax.random.key(1), x)}
    expected = base.apply(trained["base"], x)
    chex.assert_trees_all_equal(model.apply(trained, x), expected)


def test_merged_weights_are_the_formula(key):
    base, x = metajax.models.mlp(3, hidden_sizes=(8,)), jax.random.normal(key, (5, 4))
    model = with_lora(base, rank=2, scale=0.5)
    params = moved(model.init(key, x), key)
    merged = merge_lora(params, 0.5)
    for layer in ("Dense_0", "head"):
        factors = params["lora"][f"params/{layer}/kernel"]
        old, new = params["base"]["params"][layer], merged["params"][layer]
        change = np.asarray(factors["down"]) @ np.asarray(factors["up"])
        expected = old["kernel"] + 0.5 * change
        np.testing.assert_allclose(new["kernel"], expected, rtol=1e-5)
        assert np.linalg.matrix_rank(change) <= 2
        np.testing.assert_array_equal(new["bias"], old["bias"])
    chex.assert_trees_all_close(model.apply(params, x), base.apply(merged, x))


def test_gradients_reach_base_and_factors(key):
    model = with_lora(metajax.models.mlp(3, hidden_sizes=(8,)), rank=2)
    x = jax.random.normal(key, (5, 4))
    params = model.init(key, x)

    def slopes(params):
        return jax.grad(lambda p: jnp.sum(jnp.square(model.apply(p, x))))(params)

    first = slopes(params)["lora"]["params/head/kernel"]
    assert not np.any(first["down"])  # as `up` is 0
    assert np.any(first["up"])
    for leaf in jax.tree.leaves(slopes(moved(params, key))):
        assert np.any(leaf)


def test_only_the_factors_adapt(key):
    model = with_lora(metajax.models.mlp(3, hidden_sizes=(8,)), rank=2)
    learner = metajax.learners.maml(
        model, optax.sgd(0.1), inner_steps=3, adapts=metajax.filters.only("lora")
    )
    task = sample(key)
    params = learner.init(key, task)
    adapted = learner.adapt(params, task.support)
    chex.assert_trees_all_equal(adapted["base"], params["base"])
    for old, new in zip(
        jax.tree.leaves(params["lora"]), jax.tree.leaves(adapted["lora"]), strict=True
    ):
        assert not np.allclose(old, new)
    loss, metrics = learner.loss(params, task)
    assert loss < metrics["support_loss_0"]


def test_a_filter_says_which_weights_have_factors(key):
    x = jnp.zeros((2, 28, 28, 1))
    net = metajax.models.conv4(5, features=8, pooling="stride")
    dense = with_lora(net, rank=2, where=metajax.filters.only("head"))
    dense = jax.eval_shape(dense.init, key, x)
    assert set(dense["lora"]) == {"params/head/kernel"}
    all_of_them = jax.eval_shape(with_lora(net, rank=3).init, key, x)["lora"]
    assert len(all_of_them) == 5
    chex.assert_shape(all_of_them["params/Conv_1/kernel"]["down"], (3 * 3 * 8, 3))
    chex.assert_shape(all_of_them["params/Conv_1/kernel"]["up"], (3, 8))


def test_thin_matrices_have_factors_of_their_own_rank(key):
    lora = with_lora(metajax.models.mlp(1), rank=2).init(key, jnp.zeros((2, 1)))["lora"]
    chex.assert_shape(lora["params/head/kernel"]["down"], (40, 1))
    chex.assert_shape(lora["params/Dense_1/kernel"]["down"], (40, 2))


def test_convolutions_change_as_matrices(key):
    kernel, down, up = (jnp.arange(48.0), jnp.arange(24.0), jnp.arange(8.0))
    kernel, down, up = (
        a.reshape(s) for a, s in ((kernel, (3, 2, 2, 4)), (down, (12, 2)), (up, (2, 4)))
    )
    params = {"base": {"conv": kernel}, "lora": {"conv": {"down": down, "up": up}}}
    expected = np.asarray(kernel)
    for i, j, c in np.ndindex(3, 2, 2):
        expected = expected.copy()
        expected[i, j, c] += np.asarray(down)[4 * i + 2 * j + c] @ np.asarray(up)
    np.testing.assert_allclose(merge_lora(params)["conv"], expected)


def test_support_statistics_are_those_of_the_merged_weights(key):
    base = metajax.models.mlp(3, hidden_sizes=(8,), normalization="support")
    model = with_lora(base, rank=2, scale=2.0)
    assert model.normalization == "support"
    x = jax.random.normal(key, (6, 4))
    params = moved(model.init(key, x), key)
    frozen = freeze_support_statistics(model, params, Examples(x, None))
    chex.assert_trees_all_equal(frozen["base"], params["base"])
    merged = merge_lora(params, 2.0)
    expected = base.apply(base.statistics(merged, x), x[:2])
    chex.assert_trees_all_close(model.apply(frozen, x[:2]), expected, rtol=1e-5)
    assert not np.allclose(model.apply(params, x[:2]), expected)


def test_can_be_calibrated(key):
    base = metajax.models.mlp(3, hidden_sizes=(8,), normalization="calibrated")
    model = with_lora(base, rank=2)
    params = model.init(key, sample(key).support.x)
    frozen = metajax.models.calibrate(model, params, sample, key, num_tasks=2)
    expected = metajax.models.calibrate(base, params["base"], sample, key, num_tasks=2)
    x = sample(key).query.x
    chex.assert_trees_all_close(model.apply(frozen, x), base.apply(expected, x))


ERRORS = {
    "rank": ({"rank": 0}, "`rank` must be an integer of at least 1, got 0"),
    "type": ({"rank": 2.0}, "`rank` must be an integer of at least 1, got 2.0"),
    "scale": ({"scale": 0.0}, "`scale` must be finite and not 0, got 0.0"),
    "too much": ({"rank": 9}, "`rank` is 9, but the largest .* is 4: .*Lower `rank`"),
    "no match": (
        {"where": metajax.filters.only("classifier")},
        "none.*params/head/kernel",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name, key):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        with_lora(
            metajax.models.mlp(3, hidden_sizes=(8,)), **{"rank": 1} | changes
        ).init(key, jnp.zeros((2, 4)))
