"""Six families of functions: their formulas, ranges, noise, and one program for all."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.functions.regression_families import (
    FAMILIES,
    regression_families,
)

# Columns that a task's values are a combination of, and the ranges of the factors.
LINEAR = {
    "line": (lambda x, y: [x, 1 + 0 * x], [3, 3]),
    "quadratic": (lambda x, y: [x**2, x, 1 + 0 * x], [0.2, 2, 3]),
    "cubic": (lambda x, y: [x**3, x**2, x, 1 + 0 * x], [0.1, 0.2, 2, 3]),
    "surface": (lambda x, y: [x**2, y**2], [1, 1]),
}


@jax.jit
def draw(tasks, keys):
    return jax.vmap(tasks)(keys)


def many(key, **settings):
    """Points and values `[400, 20]` of tasks, those of both sets together."""
    batch = draw(regression_families(**settings), jax.random.split(key, 400))
    both = [
        np.concatenate(leaves, axis=1).astype(float)
        for leaves in zip(batch.support[:2], batch.query[:2], strict=True)
    ]
    return both[0][..., 0], both[0][..., 1], both[1][..., 0]


@pytest.mark.parametrize("family", LINEAR)
def test_a_task_is_one_combination(key, family):
    columns, ranges = LINEAR[family]
    sizes = []
    for x, y, z in zip(*many(key, family=family, noise=0.0), strict=True):
        design = np.stack(columns(x, y), axis=1)
        factors, *_ = np.linalg.lstsq(design, z, rcond=None)
        np.testing.assert_allclose(design @ factors, z, atol=2e-4)
        sizes.append(np.abs(factors) / ranges)
    assert np.max(sizes) <= 1.01
    assert np.min(np.max(sizes, axis=0)) > 0.8  # of the whole range


def test_a_task_is_one_sinusoid(key):
    frequencies = np.linspace(0.8, 1.2, 1001)
    found = []
    points = many(key, family="sinusoid", noise=0.0)
    for x, _, z in zip(*(leaf[:40] for leaf in points), strict=True):
        waves = frequencies[:, None] * x
        design = np.stack([np.sin(waves), np.cos(waves)], axis=-1)
        factors = np.linalg.pinv(design) @ z[:, None]
        misfits = np.max(np.abs(design @ factors - z[:, None]), axis=(1, 2))
        best = np.argmin(misfits)
        assert misfits[best] < 0.01
        amplitude = math.hypot(*factors[best, :, 0])
        phase = math.atan2(factors[best, 1, 0], factors[best, 0, 0]) % (2 * math.pi)
        found.append([amplitude, frequencies[best], phase])
    low, high = np.min(found, axis=0), np.max(found, axis=0)
    assert np.all(low <= [0.7, 0.85, 0.7])
    assert np.all(high >= [4.4, 1.15, 5.5])
    assert low[0] >= 0.09
    assert high[0] <= 5.01


def test_a_task_is_one_ripple(key):
    rates = np.linspace(-0.2, 0.2, 8001)
    found = []
    points = many(key, family="ripple", noise=0.0)
    for x, y, z in zip(*(leaf[:40] for leaf in points), strict=True):
        rest = z[None] - np.sin(-rates[:, None] * (x**2 + y**2))
        best = np.argmin(np.ptp(rest, axis=1))
        assert np.ptp(rest[best]) < 0.01
        found.append([rates[best], rest[best].mean()])
    assert np.all(np.max(np.abs(found), axis=0) <= [0.2, 3.01])
    assert np.all(np.max(found, axis=0) > [0.15, 2.4])
    assert np.all(np.min(found, axis=0) < [-0.15, -2.4])


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs(key, family):
    for bounds in ((0.0, 5.0), (-5.0, -1.0)):
        x, y, _ = many(key, family=family, noise=0.0, x_range=bounds)
        is_curve = family not in ("surface", "ripple")
        for values in (x,) if is_curve else (x, y):
            assert bounds[0] <= values.min() < bounds[0] + 0.1
            assert bounds[1] - 0.1 < values.max() <= bounds[1]
        assert np.all(y == 1) == is_curve


def test_shapes(key):
    task = jax.eval_shape(regression_families(shot=3, num_queries=4), key)
    chex.assert_shape((task.support.x, task.query.x), [(3, 2), (4, 2)])
    chex.assert_shape((task.support.y, task.query.y), [(3, 1), (4, 1)])
    chex.assert_type(jax.tree.leaves(task), jnp.float32)
    assert task.support.mask is None


def test_noise_is_on_support_and_query(key):
    *_, noisy = many(key, family="surface", noise=0.3)
    *_, clean = many(key, family="surface", noise=0.0)
    noise = noisy - clean
    # Four standard errors of 400 tasks.
    np.testing.assert_allclose(np.std(noise, axis=0), 0.3, rtol=4 / 800**0.5)
    assert np.abs(np.corrcoef(noise.T) - np.eye(20)).max() < 4 / 20


def test_all_families_are_drawn_alike(key):
    """Told apart by what they are at no noise: four are curves, and so on."""
    parts = [many(key, noise=0.0) for key in jax.random.split(key, 6)]
    x, y, z = (np.concatenate(leaves) for leaves in zip(*parts, strict=True))
    is_curve = np.all(y == 1, axis=1)
    near = dict.fromkeys(FAMILIES, 0)
    for family, (columns, _) in LINEAR.items():
        design = np.stack(columns(x, y), axis=-1)
        factors = np.linalg.pinv(design) @ z[..., None]
        misfit = np.max(np.abs(design @ factors - z[..., None]), axis=(1, 2))
        near[family] = misfit < 1e-3
    lines, quadratics, cubics = (near[f] for f in ("line", "quadratic", "cubic"))
    counts = [
        np.sum(is_curve & lines),
        np.sum(is_curve & quadratics & ~lines),
        np.sum(is_curve & cubics & ~quadratics),
        np.sum(is_curve & ~cubics),
        np.sum(~is_curve & near["surface"]),
        np.sum(~is_curve & ~near["surface"]),
    ]
    np.testing.assert_allclose(counts, 400, atol=4 * 18)


def test_one_program_for_every_choice():
    """All are one pytree, whose only leaf are the probabilities."""
    every = regression_families()
    np.testing.assert_allclose(every.probabilities, 1 / 6, rtol=1e-6)
    for number, family in enumerate(FAMILIES):
        one = regression_families(family=family)
        np.testing.assert_array_equal(one.probabilities, np.eye(6)[number])
        assert jax.tree.structure(one) == jax.tree.structure(every)
        assert len(jax.tree.leaves(one)) == 1


ERRORS = {
    "shot": ({"shot": 0}, "`shot` must be an integer of at least 1, got 0"),
    "queries": ({"num_queries": 1.5}, "`num_queries` must be an integer .* got 1.5"),
    "family": ({"family": "sine"}, "`family` must be one of sinusoid, line.*'sine'"),
    "noise": ({"noise": -0.1}, "`noise` must be at least 0 and finite, got -0.1"),
    "x_range": ({"x_range": (5, 0)}, r"`x_range` must be .*low <= high, got \(5, 0"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        regression_families(**arguments)
