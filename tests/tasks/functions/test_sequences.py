"""Sequence prediction: what a task shares, its floors, and its errors."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.functions.sequences import sequence_sinusoid


def tasks(distribution, key, num):
    return jax.jit(jax.vmap(distribution))(jax.random.split(key, num))


def test_shapes_and_dtypes(key):
    task = sequence_sinusoid(shot=3, num_queries=7, length=4, noise=0.1)(key)
    chex.assert_shape((task.support.x, task.support.y), (3, 4, 1))
    chex.assert_shape((task.query.x, task.query.y), (7, 4, 1))
    chex.assert_type(jax.tree.leaves(task), jnp.float32)
    assert task.support.mask is None
    assert task.query.mask is None


def test_targets_are_the_next_values(key):
    for examples in sequence_sinusoid(noise=0.3)(key):
        np.testing.assert_array_equal(examples.x[:, 1:], examples.y[:, :-1])


def test_sequences_of_a_task_share_a_recurrence_and_differ_in_phase(key):
    """s_{t+1} - offset = 2 cos(omega) (s_t - offset) - (s_{t-1} - offset), for all."""
    batch = tasks(sequence_sinusoid(amplitude=(0.5, 2.0)), key, 30)
    parts = [np.concatenate([e.x, e.y[:, :, -1:]], axis=2)[..., 0] for e in batch]
    for s in np.concatenate(parts, axis=1).astype(np.float64):
        now, around = s[:, 1:-1], s[:, 2:] + s[:, :-2]
        design = np.stack([now.ravel(), np.ones(now.size)], axis=1)
        (two_cos, rest), *_ = np.linalg.lstsq(design, around.ravel(), rcond=None)
        np.testing.assert_allclose(design @ [two_cos, rest], around.ravel(), atol=1e-4)
        omega, offset = math.acos(two_cos / 2), rest / (2 - two_cos)
        assert 0.3 - 1e-3 <= omega <= 1.5 + 1e-3
        assert abs(offset) <= 1 + 1e-2
        # A sin(angle) and A cos(angle) of the second value of each sequence.
        sine = s[:, 1] - offset
        cosine = (s[:, 2] - s[:, 0]) / (2 * math.sin(omega))
        amplitudes = np.hypot(sine, cosine)
        np.testing.assert_allclose(amplitudes, amplitudes[0], rtol=1e-3)
        assert 0.5 - 1e-2 <= amplitudes[0] <= 2 + 1e-2
        assert np.ptp(np.arctan2(sine, cosine)) > 0.1


def test_documented_floors(key):
    """Of the mean and of the last value, for one task with all else fixed."""
    fixed = {"amplitude": (2.0, 2.0), "frequency": (0.7, 0.7), "offset": (0.5, 0.5)}
    distribution = sequence_sinusoid(num_queries=4000, noise=0.3, **fixed)
    query = distribution(key).query
    x, y = np.asarray(query.x, np.float64), np.asarray(query.y, np.float64)
    last = 4 * (1 - math.cos(0.7)) + 2 * 0.09
    for prediction, expected in ((0.5, 2 + 0.09), (x, last)):
        errors = np.mean((y - prediction) ** 2, axis=(1, 2))
        standard_error = errors.std() / math.sqrt(len(errors))
        assert standard_error < 0.01
        assert abs(errors.mean() - expected) < 4 * standard_error


def test_is_static_under_jit_and_a_pure_function_of_the_key(key):
    distribution = sequence_sinusoid(noise=0.1)
    assert jax.tree.leaves(distribution) == []
    chex.assert_trees_all_equal(distribution(key), sequence_sinusoid(noise=0.1)(key))
    other = distribution(jax.random.key(1))
    assert not np.allclose(other.query.x, distribution(key).query.x)


ERRORS = {
    "no support": ({"shot": 0}, "`shot` must be an integer of at least 1, got 0"),
    "half a query": ({"num_queries": 0.5}, "`num_queries` must be .*got 0.5"),
    "no steps": ({"length": 0}, "`length` must be an integer of at least 1, got 0"),
    "reversed": ({"frequency": (2, 1)}, r"`frequency` must be .*low <= high, got \(2"),
    "infinite": ({"offset": (0, math.inf)}, "`offset` must be two finite numbers"),
    "noise": ({"noise": -0.1}, "`noise` must be at least 0 and finite, got -0.1"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sequence_sinusoid(**arguments)
