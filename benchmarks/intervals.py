"""Means with their intervals, and sign tests, as results hold them."""

import math

import numpy as np

from metajax.evaluation import reports

__all__ = ["interval", "signs"]


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean of values `[n]`, and the half-width of its 95 % interval."""
    mean, half_width = reports.interval(values)
    return {"mean": float(mean), "half_width": float(half_width)}


def signs(differences: np.ndarray) -> dict[str, float]:
    """How many of `[n]` are above and below 0, and the two-sided sign test's p."""
    above, below = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    total, fewer = above + below, min(above, below)
    tail = sum(math.comb(total, count) for count in range(fewer + 1)) / 2**total
    return {"better": above, "worse": below, "sign_test_p": min(1.0, 2 * tail)}
