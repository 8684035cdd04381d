"""Numbers that users pass: what is accepted, and what the error says."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.checks import (
    check_integers,
    check_not_negative,
    check_optimizer,
    check_positive,
    check_ranges,
    check_seed,
    check_sizes,
)


def test_what_is_allowed_passes():
    """Bounds belong to it, and integers may be NumPy's."""
    check_integers(2, way=2, shot=np.int64(3))
    check_positive(rate=1e-30)
    check_not_negative(noise=0)
    check_ranges(amplitude=(0, 0.0), phase=(-1, 2))
    check_sizes(hidden=(), size=[28, np.int64(28)])
    check_seed(2**32 - 1)


@pytest.mark.parametrize("value", [1, True, 2.0, "2", None])
def test_integers(value):
    """Too small, or no integer."""
    with pytest.raises(ValueError, match="`way` must be an integer of at least 2, got"):
        check_integers(2, shot=5, way=value)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_positive(value):
    """0, below, and what is not finite."""
    with pytest.raises(ValueError, match="`rate` must be above 0 and finite, got"):
        check_positive(rate=value)


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_not_negative(value):
    """Below 0, and what is not finite."""
    with pytest.raises(ValueError, match="`noise` must be at least 0 and finite, got"):
        check_not_negative(noise=value)


@pytest.mark.parametrize("value", [(1, 0), (0, math.inf), (0,), (math.nan, 1)])
def test_ranges(value):
    """In the wrong order, not finite, or no pair."""
    with pytest.raises(ValueError, match="`phase` must be two finite numbers"):
        check_ranges(phase=value)


@pytest.mark.parametrize("value", ["0.1", True, None, np.array([0.1, 0.2])])
def test_no_numbers(value):
    """Text, a bool, nothing, several."""
    for check in (check_positive, check_not_negative):
        with pytest.raises(ValueError, match="`rate` must be .* finite, got"):
            check(rate=value)


def test_scalars_of_jax_are_numbers():
    """As they come out of a computation."""
    check_positive(rate=jnp.float32(0.1))
    check_not_negative(noise=np.float64(0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (40, r"`hidden` must be a sequence of sizes, such as \(64, 64\), got 40"),
        ("40", "`hidden` must be a sequence of sizes"),
        ((), r"`hidden` must hold at least 1 size, got \(\)"),
        ((8, 0), r"`hidden\[1\]` must be an integer of at least 1, got 0"),
        ((True,), r"`hidden\[0\]` must be an integer of at least 1, got True"),
    ],
)
def test_sizes(value, message):
    """No sequence, an empty one, or with something else in it."""
    with pytest.raises(ValueError, match=message):
        check_sizes(fewest=1, hidden=value)


@pytest.mark.parametrize("value", [-1, 2**32, 1.0, "0", True])
def test_seed(value):
    """Out of range, or no integer."""
    with pytest.raises(ValueError, match="`seed` must be an integer from 0 to"):
        check_seed(value)


def test_optimizers():
    check_optimizer(inner_optimizer=optax.sgd(0.1), optimizer=optax.adam(0.1))
    for wrong, said in ((0.1, "got 0.1."), (optax.sgd, "got <function sgd.*; call it")):
        with pytest.raises(TypeError, match=f"`optimizer` must be an optax.*{said}"):
            check_optimizer(optimizer=wrong)
