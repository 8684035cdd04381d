"""Numbers that users pass: what is accepted, and what the error says."""

import math

import numpy as np
import pytest

from metajax.arguments import (
    check_integers,
    check_not_negative,
    check_positive,
    check_ranges,
)


def test_what_is_allowed_passes():
    """Bounds belong to it, and integers may be NumPy's."""
    check_integers(2, way=2, shot=np.int64(3))
    check_positive(rate=1e-30)
    check_not_negative(noise=0)
    check_ranges(amplitude=(0, 0.0), phase=(-1, 2))


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
