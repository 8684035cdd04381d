from dataclasses import dataclass
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.adapters import from_functions
from metajax.models.networks import mlp
from metajax.models.normalization import (
    NORMALIZATIONS,
    STATISTICS,
    Normalize,
    calibrate,
    check_normalization,
    freeze_support_statistics,
)
from metajax.tasks.functions.sinusoid import sinusoid
from metajax.types import Examples, Task

BATCH_KINDS = ("batch", "support", "calibrated")
EPSILON = 1e-5
GROUPS = 2


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def oracle(kind, x, scale, bias):
    """Each kind in float64 NumPy, without masks."""
    x = np.asarray(x, np.float64)
    axes = tuple(range(1, x.ndim))
    if kind == "none":
        return x
    if kind == "group":
        grouped = x.reshape(*x.shape[:-1], GROUPS, -1)
        axes = (*range(1, x.ndim - 1), x.ndim)
        normalised = _standardise(grouped, axes).reshape(x.shape)
    elif kind == "layer":
        normalised = _standardise(x, axes)
    else:
        normalised = _standardise(x, tuple(range(x.ndim - 1)))
    return normalised * scale + bias


def _standardise(x, axes):
    variance = x.var(axes, keepdims=True)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(variance + EPSILON)


def layer_and_params(kind, channels=4):
    """A layer, and parameters for it that are not those it starts from."""
    layer = Normalize(kind, num_groups=GROUPS)
    params = layer.init(jax.random.key(0), jnp.zeros((2, channels)))
    leaves, structure = jax.tree.flatten(params)
    values = [normal(*leaf.shape, seed=i + 1) for i, leaf in enumerate(leaves)]
    return layer, jax.tree.unflatten(structure, values)


def scale_and_bias(params):
    leaves = {path[-1].key: leaf for path, leaf in jax.tree.leaves_with_path(params)}
    return leaves.get("scale", 1), leaves.get("bias", 0)


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 5, 4)], ids=str)
@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_every_kind_matches_numpy(kind, shape):
    layer, params = layer_and_params(kind)
    x = 3 * normal(*shape) + 2
    got = jax.jit(layer.apply)(params, x)
    expected = oracle(kind, x, *scale_and_bias(params))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_starts_as_plain_standardisation(key, kind):
    params = Normalize(kind, num_groups=GROUPS).init(key, jnp.ones((2, 3, 4)))
    chex.assert_shape(jax.tree.leaves(params), (4,))
    scale, bias = scale_and_bias(params)
    np.testing.assert_array_equal(scale, 1)
    np.testing.assert_array_equal(bias, 0)
    assert set(params) <= {"params"}


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_masked_rows_are_as_if_absent(kind):
    """For outputs, and for gradients of parameters and inputs."""
    layer, params = layer_and_params(kind)
    real, weights = normal(4, 3, 4), normal(4, 3, 4, seed=9)
    garbage = np.array([1e30, np.inf, np.nan], np.float32)[:, None, None]
    padded = np.insert(real, [0, 2, 4], garbage, axis=0)
    is_real = np.array([False, True, True, False, True, True, False])

    @jax.jit
    def run(params, x, mask):
        def value(params, x):
            outputs = layer.apply(params, x, mask)
            rows = outputs if mask is None else outputs[is_real]
            return jnp.sum(jnp.sin(rows) * weights), rows

        gradients, rows = jax.grad(value, (0, 1), has_aux=True)(params, x)
        return rows, *gradients

    rows, of_params, of_x = run(params, padded, is_real)
    expected = run(params, real, None)
    chex.assert_trees_all_close(
        (rows, of_params, of_x[is_real]), expected, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(of_x[~is_real], 0)


def test_a_mask_that_hides_all_gives_nan():
    """Not 0, which would look like a normalised batch."""
    layer, params = layer_and_params("batch")
    outputs = layer.apply(params, normal(3, 4), jnp.zeros(3, bool))
    assert jnp.all(jnp.isnan(outputs))


@pytest.mark.parametrize("kind", ["layer", "group", *BATCH_KINDS])
def test_a_large_mean_costs_no_digits(kind):
    """As the difference of moments would: 1e3 squared leaves one digit for 1."""
    layer, params = layer_and_params(kind)
    x = normal(64, 4) + np.float32(1e3)
    expected = oracle(kind, x, *scale_and_bias(params))
    np.testing.assert_allclose(layer.apply(params, x), expected, atol=0.02)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["layer", "group", *BATCH_KINDS])
def test_half_precision(kind, dtype):
    """Outputs have the type of the inputs; squares of 400 do not overflow float16."""
    layer, params = layer_and_params(kind)
    x = 400 * normal(16, 4)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    outputs, frozen = layer.apply(half, jnp.asarray(x, dtype), mutable=[STATISTICS])
    assert outputs.dtype == dtype
    chex.assert_type(jax.tree.leaves(frozen), jnp.float32)
    expected = oracle(kind, x, *scale_and_bias(params))
    np.testing.assert_allclose(outputs.astype(np.float32), expected, atol=0.05)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_which_kinds_let_rows_see_one_another(kind):
    layer, params = layer_and_params(kind)
    x = normal(4, 4)
    changed = np.concatenate([x[:1], normal(3, 4, seed=1)])
    alone = np.array_equal(layer.apply(params, x)[0], layer.apply(params, changed)[0])
    assert alone == (kind not in BATCH_KINDS)
    _, frozen = layer.apply(params, normal(6, 4, seed=2), mutable=[STATISTICS])
    outputs = [layer.apply(params | frozen, rows)[0] for rows in (x, changed)]
    assert np.array_equal(*outputs) == (kind != "batch")
    assert bool(frozen) == (kind in ("support", "calibrated"))


def test_unknown_kind():
    message = "must be one of none, layer, group, batch, support, calibrated, got 'bn'"
    with pytest.raises(ValueError, match=message):
        check_normalization("bn")
    with pytest.raises(ValueError, match=message):
        Normalize("bn").init(jax.random.key(0), jnp.ones((2, 4)))


# Statistics that are frozen into the parameters.


def model_and_params(kind, hidden=(4,)):
    model = mlp(2, hidden_sizes=hidden, normalization=kind)
    return model, model.init(jax.random.key(1), jnp.ones((2, 3)))


@pytest.mark.parametrize("kind", ["support", "calibrated"])
def test_frozen_statistics_take_the_place_of_the_batchs_own(kind):
    """Against the network written out in NumPy."""
    model, params = model_and_params(kind)
    support, query = normal(6, 3), normal(5, 3, seed=1)
    frozen = model.statistics(params, support)
    dense, head = (
        np.asarray(params["params"][name]["kernel"]) for name in ("Dense_0", "head")
    )

    def network(x, statistics_of):
        hidden, reference = x @ dense, statistics_of @ dense
        hidden = (hidden - reference.mean(0)) / np.sqrt(reference.var(0) + EPSILON)
        return np.maximum(hidden, 0) @ head

    for x, params_of, statistics_of in (
        (query, params, query),
        (query, frozen, support),
        (support, frozen, support),
    ):
        got = jax.jit(model.apply)(params_of, x)
        np.testing.assert_allclose(got, network(x, statistics_of), atol=1e-4)


def test_freezing_again_replaces_the_statistics_of_every_layer():
    model, params = model_and_params("support", hidden=(4, 4))
    once = model.statistics(params, normal(6, 3))
    assert set(once) == {"params", STATISTICS}
    assert len(jax.tree.leaves(once[STATISTICS])) == 4
    fresh = model.statistics(params, normal(6, 3, seed=1))
    again = model.statistics(once, normal(6, 3, seed=1))
    chex.assert_trees_all_close(again, fresh)
    assert not np.allclose(
        *(t[STATISTICS]["Normalize_1"]["mean"] for t in (once, again))
    )


def test_frozen_statistics_honour_the_mask():
    model, params = model_and_params("support")
    x = normal(6, 3)
    padded = np.concatenate([x, np.full((2, 3), np.nan, np.float32)])
    masked = model.statistics(params, padded, mask=jnp.arange(8) < 6)
    chex.assert_trees_all_close(masked, model.statistics(params, x), rtol=1e-5)


def test_gradients_pass_support_statistics_but_not_calibrated_ones():
    def gradients(kind):
        model, params = model_and_params(kind)
        frozen = model.statistics(params, normal(6, 3))

        def value(support):
            statistics = model.statistics(params, support)
            return jnp.sum(jnp.square(model.apply(statistics, normal(5, 3, seed=1))))

        def value_of_frozen(params):
            return jnp.sum(jnp.square(model.apply(params, normal(5, 3, seed=1))))

        return jax.grad(value)(normal(6, 3)), jax.grad(value_of_frozen)(frozen)

    of_support, of_frozen = gradients("support")
    assert jnp.all(jnp.any(of_support != 0, axis=1))
    assert jnp.any(of_frozen[STATISTICS]["Normalize_0"]["mean"] != 0)
    of_support, of_frozen = gradients("calibrated")
    np.testing.assert_array_equal(of_support, 0)
    for leaf in jax.tree.leaves(of_frozen[STATISTICS]):
        np.testing.assert_array_equal(leaf, 0)
    assert jnp.any(of_frozen["params"]["Dense_0"]["kernel"] != 0)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_adapt_ends_by_freezing_only_with_support(kind):
    model = mlp(2, hidden_sizes=(8,), normalization=kind)
    params = model.init(jax.random.key(1), jnp.ones((2, 3)))
    padded = np.concatenate([normal(6, 3), np.full((2, 3), 5, np.float32)])
    support = Examples(padded, np.zeros(8, np.int32), jnp.arange(8) < 6)
    result = freeze_support_statistics(model, params, support)
    if kind != "support":
        assert result is params
    else:
        expected = model.statistics(params, padded[:6])
        chex.assert_trees_all_close(result, expected, rtol=1e-5)


def random_task(key):
    """Support and query of different sizes, the support padded."""
    key_support, key_query = jax.random.split(key)
    x = jax.random.normal(key_support, (5, 3)) + 1
    support = Examples(x, jnp.zeros(5), jnp.arange(5) < 4)
    query = jax.random.normal(key_query, (7, 3))
    return Task(support, Examples(query, jnp.zeros(7)))


def test_calibrate_averages_over_tasks(key):
    model, params = model_and_params("calibrated", hidden=(4, 4))
    calibrated = calibrate(model, params, random_task, key, num_tasks=3)
    sets = [examples for k in jax.random.split(key, 3) for examples in random_task(k)]
    expected = [
        model.statistics(params, examples.x, mask=examples.mask)[STATISTICS]
        for examples in sets
    ]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 6, *expected)
    chex.assert_trees_all_close(calibrated, params | {STATISTICS: mean}, rtol=1e-4)
    # Calibrating once more starts from the parameters, not from the old averages.
    again = calibrate(model, calibrated, random_task, key, num_tasks=3)
    chex.assert_trees_all_close(again, calibrated, rtol=1e-5)


@jax.tree_util.register_dataclass
@dataclass
class TableTask:
    """A distribution that is a pytree, whose array belongs among the arguments."""

    table: jax.Array

    def __call__(self, key, /):
        assert isinstance(self.table, jax.core.Tracer)
        rows = jax.random.choice(key, self.table, (4,))
        return Task(Examples(rows, jnp.zeros(4)), Examples(-rows, jnp.zeros(4)))


@pytest.mark.parametrize(
    "tasks", [sinusoid(shot=5, num_queries=5), TableTask(normal(20, 1))]
)
def test_calibrate_takes_distributions_that_are_pytrees(key, tasks):
    model = mlp(1, hidden_sizes=(4,), normalization="calibrated")
    params = model.init(key, jnp.ones((2, 1)))
    calibrated = calibrate(model, params, tasks, key, num_tasks=2)
    apply = partial(model.apply, calibrated)
    x = normal(4, 1)
    np.testing.assert_allclose(apply(x)[:1], apply(x[:1]), rtol=1e-5)


def test_batch_ignores_calibrated_statistics():
    """The parameters are those of `batch`; what they mean there does not change."""
    calibrated, params = model_and_params("calibrated")
    frozen = calibrated.statistics(params, normal(6, 3))
    batch, _ = model_and_params("batch")
    x = normal(5, 3, seed=1)
    np.testing.assert_array_equal(batch.apply(frozen, x), batch.apply(params, x))


@pytest.mark.parametrize("kind", ["none", "batch", "support"])
def test_calibrate_refuses_other_kinds(key, kind):
    model, params = model_and_params(kind)
    with pytest.raises(ValueError, match=f"'calibrated' can be .*, got .*'{kind}'"):
        calibrate(model, params, random_task, key)


def test_calibrate_refuses_other_models_and_no_tasks(key):
    plain = from_functions(lambda key, x: {}, lambda params, x: x)
    with pytest.raises(ValueError, match="Only a model with .*'calibrated'"):
        calibrate(plain, {}, random_task, key)
    model, params = model_and_params("calibrated")
    with pytest.raises(ValueError, match="`num_tasks` must be an integer of"):
        calibrate(model, params, random_task, key, num_tasks=0)
