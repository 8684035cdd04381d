import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.functions.sinusoid import sinusoid


def tasks(distribution, key, num):
    return jax.jit(jax.vmap(distribution))(jax.random.split(key, num))


def test_shapes_and_dtypes(key):
    task = sinusoid(shot=3, num_queries=7)(key)
    chex.assert_shape((task.support.x, task.support.y), (3, 1))
    chex.assert_shape((task.query.x, task.query.y), (7, 1))
    chex.assert_type(jax.tree.leaves(task), jnp.float32)
    assert task.support.mask is None
    assert task.query.mask is None


def test_points_lie_on_one_curve_inside_the_ranges(key):
    """With a = A cos(phi), b = -A sin(phi), y = a sin(x) + b cos(x) for all points."""
    batch = tasks(sinusoid(shot=20, num_queries=30), key, 50)
    for support, query in zip(
        np.stack([batch.support.x, batch.support.y], axis=1),
        np.stack([batch.query.x, batch.query.y], axis=1),
        strict=True,
    ):
        x, y = np.concatenate([support, query], axis=1)[..., 0].astype(np.float64)
        design = np.stack([np.sin(x), np.cos(x)], axis=1)
        (a, b), *_ = np.linalg.lstsq(design, y, rcond=None)
        np.testing.assert_allclose(design @ [a, b], y, atol=1e-4)
        assert 0.1 <= math.hypot(a, b) <= 5.0 + 1e-3
        assert -1e-3 <= math.atan2(-b, a) <= math.pi + 1e-3
        assert np.abs(x).max() <= 5


def test_sanity_floors(key):
    """Monte Carlo errors of the two floors agree with the documented exact values."""
    low, high = 0.1, 5.0
    mean = (low + high) / 2
    mean_square = (high**3 - low**3) / (3 * (high - low))
    cosine_square = 1 / 2 + math.sin(10) / 20
    zero = mean_square / 2
    best_single = zero - (2 * mean / math.pi) ** 2 * cosine_square
    assert zero == pytest.approx(4.2517, abs=5e-5)
    assert best_single == pytest.approx(3.0057, abs=5e-5)

    num = 20_000
    query = tasks(sinusoid(), key, num).query
    x, y = np.asarray(query.x, np.float64), np.asarray(query.y, np.float64)
    for prediction, error in (
        (np.zeros_like(x), zero),
        (-2 * mean / math.pi * np.cos(x), best_single),
    ):
        errors = ((y - prediction) ** 2).mean(axis=(1, 2))  # one per task
        standard_error = errors.std() / math.sqrt(num)  # about 0.03 and 0.02
        assert standard_error < 0.04
        assert abs(errors.mean() - error) < 4 * standard_error


def test_same_key_same_task_and_jit_changes_nothing(key):
    distribution = sinusoid()
    chex.assert_trees_all_equal(distribution(key), distribution(key))
    chex.assert_trees_all_close(
        distribution(key), jax.jit(distribution)(key), rtol=1e-4, atol=1e-5
    )


def test_is_static_under_jit(key):
    distribution = sinusoid(shot=2)
    assert jax.tree.leaves(distribution) == []
    traces = []

    @jax.jit
    def draw(distribution, key):
        traces.append(None)
        return distribution(key)

    draw(distribution, key)
    draw(sinusoid(shot=2), key)
    assert len(traces) == 1
    chex.assert_shape(draw(sinusoid(shot=4), key).support.x, (4, 1))


def test_support_and_query_points_are_fresh(key):
    task = sinusoid(shot=10, num_queries=10)(key)
    assert not np.intersect1d(task.support.x, task.query.x).size


ERRORS = {
    "no support": ({"shot": 0}, r"`shot` must be an integer of at least 1, got 0"),
    "no queries": ({"num_queries": -1}, r"`num_queries` must be an integer .* got -1"),
    "reversed": (
        {"amplitude": (5, 0.1)},
        r"`amplitude` must be .*low <= high, got \(5",
    ),
    "three numbers": ({"phase": (0, 1, 2)}, r"`phase` must be two finite numbers"),
    "infinite": ({"x_range": (0, math.inf)}, r"`x_range` must be two finite numbers"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sinusoid(**arguments)
