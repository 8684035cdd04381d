"""Heterogeneous regression: curves and surfaces of six families over two inputs.

H. Yao et al., "Automated Relational Meta-learning", ICLR 2020,
https://arxiv.org/abs/2001.00745, section 5.2.

A task is one function z(x, y) of a family that the learner is not told:

    family      z(x, y)                          ranges of the coefficients
    sinusoid    a sin(w x + b)                   a (0.1, 5), w (0.8, 1.2), b (0, 2 pi)
    line        a x + b                          a (-3, 3), b (-3, 3)
    quadratic   a x^2 + b x + c                  a (-0.2, 0.2), b (-2, 2), c (-3, 3)
    cubic       a x^3 + b x^2 + c x + d          a (-0.1, 0.1), b (-0.2, 0.2),
                                                 c (-2, 2), d (-3, 3)
    surface     a x^2 + b y^2                    a (-1, 1), b (-1, 1)
    ripple      sin(-a (x^2 + y^2)) + b          a (-0.2, 0.2), b (-3, 3)

All are uniform. The first four are curves: their second input is 1 at every point. The
inputs are uniform in `x_range`, and normal noise of standard deviation 0.3 lies on the
targets of support and query alike, so that no learner has an expected error below 0.09.

The paper's inputs are in (0, 5); its code draws them from (-5, 5), for which give
`x_range=(-5, 5)`. There a sinusoid needs both of its sides to be seen.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import (
    check_choice,
    check_integers,
    check_not_negative,
    check_ranges,
)
from metajax.tasks.summaries import summary
from metajax.types import Array, Examples, Task

__all__ = ["FAMILIES", "RegressionFamilies", "regression_families"]

Family = Literal["sinusoid", "line", "quadratic", "cubic", "surface", "ripple"]
FAMILIES: tuple[Family, ...] = get_args(Family)

_RANGES = {
    "sinusoid": ((0.1, 5.0), (0.8, 1.2), (0.0, 2 * math.pi)),
    "line": ((-3.0, 3.0), (-3.0, 3.0)),
    "quadratic": ((-0.2, 0.2), (-2.0, 2.0), (-3.0, 3.0)),
    "cubic": ((-0.1, 0.1), (-0.2, 0.2), (-2.0, 2.0), (-3.0, 3.0)),
    "surface": ((-1.0, 1.0), (-1.0, 1.0)),
    "ripple": ((-0.2, 0.2), (-3.0, 3.0)),
}
_NUM_COEFFICIENTS = 4
_NUM_CURVES = 4  # the families that come first and have one input


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, eq=False)
class RegressionFamilies:
    """The distribution that `regression_families` builds.

    Its only leaf is the probabilities, so that one compiled program serves all choices
    of a family.

    Attributes:
      probabilities: float32 `[6]`, how often each of `FAMILIES` is drawn.
    """

    probabilities: Array
    shot: int = field(metadata={"static": True})
    num_queries: int = field(metadata={"static": True})
    noise: float = field(metadata={"static": True})
    x_range: tuple[float, float] = field(metadata={"static": True})

    __repr__ = summary

    def __call__(self, key: Array, /) -> Task:
        """Draws one function and its points; the key is consumed.

        Args:
          key: a typed random key.

        Returns:
          A task whose `support` has `x` float32 `[K, 2]` and `y` `[K, 1]`, and whose
          `query` has them `[Q, 2]` and `[Q, 1]`, without masks.
        """
        key_family, key_task, key_support, key_query = jax.random.split(key, 4)
        family = jax.random.categorical(key_family, jnp.log(self.probabilities))
        low, high = jnp.asarray(_BOUNDS)[:, family]
        coefficients = low + (high - low) * jax.random.uniform(key_task, low.shape)

        def points(key: Array, num: int) -> Examples:
            key_x, key_noise = jax.random.split(key)
            low, high = self.x_range
            x = jax.random.uniform(key_x, (num, 2), minval=low, maxval=high)
            is_second = jnp.arange(2)[None, :] == 1
            x = jnp.where(is_second & (family < _NUM_CURVES), 1.0, x)
            z = _values(coefficients, x)[family]
            z = z + self.noise * jax.random.normal(key_noise, z.shape)
            return Examples(x, z[:, None])

        return Task(points(key_support, self.shot), points(key_query, self.num_queries))


def regression_families(
    *,
    shot: int = 10,
    num_queries: int = 10,
    family: Family | None = None,
    noise: float = 0.3,
    x_range: tuple[float, float] = (0.0, 5.0),
) -> RegressionFamilies:
    """Builds regression tasks of six families of functions.

    Choose it to see what a learner does when tasks are unlike each other, so that one
    initialisation cannot be near to all of them.

    Args:
      shot: support points of a task, K, at least 1.
      num_queries: query points of a task, Q, at least 1.
      family: None to draw from all six alike, or the one of `FAMILIES` that all tasks
        are of, to judge a learner on each by itself.
      noise: standard deviation of the noise on all targets, at least 0.
      x_range: `(low, high)` of both inputs.

    Returns:
      A task distribution: `(key) -> Task`.

    Raises:
      ValueError: if a number is out of range, `family` is unknown, or `x_range` is not
        two finite numbers with low <= high.

    Example:
      >>> task = regression_families(family="ripple")(jax.random.key(0))
      >>> task.support.x.shape, task.query.y.shape
      ((10, 2), (10, 1))
    """
    check_integers(1, shot=shot, num_queries=num_queries)
    if family is not None:
        check_choice(FAMILIES, family=family)
    check_not_negative(noise=noise)
    check_ranges(x_range=x_range)
    chosen = [family in (None, name) for name in FAMILIES]
    return RegressionFamilies(
        probabilities=jnp.asarray(chosen, jnp.float32) / sum(chosen),
        shot=shot,
        num_queries=num_queries,
        noise=float(noise),
        x_range=(float(x_range[0]), float(x_range[1])),
    )


def _values(coefficients: Array, points: Array) -> Array:
    """What each family makes of coefficients `[4]` at points `[n, 2]`: `[6, n]`."""
    a, b, c, d = coefficients
    x, y = points.T
    return jnp.stack(
        [
            a * jnp.sin(b * x + c),
            a * x + b,
            a * x**2 + b * x + c,
            a * x**3 + b * x**2 + c * x + d,
            a * x**2 + b * y**2,
            jnp.sin(-a * (x**2 + y**2)) + b,
        ]
    )


def _bounds() -> np.ndarray:
    """Lower and upper ends `[2, 6, 4]`; 0 for coefficients that a family has not."""
    bounds = np.zeros((2, len(FAMILIES), _NUM_COEFFICIENTS), np.float32)
    for row, name in enumerate(FAMILIES):
        bounds[:, row, : len(_RANGES[name])] = np.transpose(_RANGES[name])
    return bounds


_BOUNDS = _bounds()
