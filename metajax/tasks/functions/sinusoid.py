"""Sinusoid regression: the few-shot regression family that introduced MAML.

C. Finn, P. Abbeel, S. Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of
Deep Networks", ICML 2017, https://arxiv.org/abs/1703.03400, section 5.1.

A task is a curve y = A sin(x - phi) with A ~ U(0.1, 5) and phi ~ U(0, pi); support and
query inputs are drawn afresh, x ~ U(-5, 5).

Two exact floors tell a learner from a guess. They are mean squared errors:

    predictor               error                                        value
    zero                    E[A^2] / 2                                   4.2517
    best single function    E[A^2] / 2 - (2 E[A] / pi)^2 E[cos(x)^2]     3.0057

The best single function is the mean over tasks, -(2 E[A] / pi) cos(x); it is what a
good initialisation predicts before its first step. Here E[A] = 2.55, E[A^2] = 8.5033
and E[cos(x)^2] = 1/2 + sin(10)/20 = 0.4728; E[sin(x - phi)^2] is 1/2 for every x, as
the phase covers half a period.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from metajax.checks import check_integers, check_ranges
from metajax.types import Array, Examples, Task

__all__ = ["Sinusoid", "sinusoid"]


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class Sinusoid:
    """The distribution that `sinusoid` builds; its fields are `sinusoid`'s arguments.

    It holds no arrays: as a pytree it has no leaves and is static under `jit`.
    """

    shot: int
    num_queries: int
    amplitude: tuple[float, float]
    phase: tuple[float, float]
    x_range: tuple[float, float]

    def __call__(self, key: Array, /) -> Task:
        """Draws one curve and its points; the key is consumed.

        Args:
          key: a typed random key.

        Returns:
          A task whose `support` has `x` and `y` float32 `[K, 1]` and whose `query` has
          them `[Q, 1]`, without masks.
        """
        key_amplitude, key_phase, key_support, key_query = jax.random.split(key, 4)
        amplitude = _uniform(key_amplitude, self.amplitude)
        phase = _uniform(key_phase, self.phase)

        def points(key: Array, num: int) -> Examples:
            x = _uniform(key, self.x_range, (num, 1))
            return Examples(x, amplitude * jnp.sin(x - phase))

        return Task(points(key_support, self.shot), points(key_query, self.num_queries))


def sinusoid(
    *,
    shot: int = 10,
    num_queries: int = 10,
    amplitude: tuple[float, float] = (0.1, 5.0),
    phase: tuple[float, float] = (0.0, math.pi),
    x_range: tuple[float, float] = (-5.0, 5.0),
) -> Sinusoid:
    """Builds the sinusoid regression tasks of the MAML paper.

    Args:
      shot: support points of a task, K, at least 1.
      num_queries: query points of a task, Q, at least 1. For a whole task and not per
        class: there are no classes.
      amplitude: `(low, high)` of A.
      phase: `(low, high)` of phi, in radians.
      x_range: `(low, high)` of the inputs.

    Returns:
      A task distribution: `(key) -> Task`.

    Raises:
      ValueError: if a count is below 1 or a range is not two finite numbers with
        low <= high.

    Example:
      >>> task = sinusoid(shot=5)(jax.random.key(0))
      >>> task.support.x.shape, task.query.y.shape
      ((5, 1), (10, 1))
    """
    check_integers(1, shot=shot, num_queries=num_queries)
    check_ranges(amplitude=amplitude, phase=phase, x_range=x_range)
    return Sinusoid(
        shot=shot,
        num_queries=num_queries,
        amplitude=(float(amplitude[0]), float(amplitude[1])),
        phase=(float(phase[0]), float(phase[1])),
        x_range=(float(x_range[0]), float(x_range[1])),
    )


def _uniform(
    key: Array, bounds: tuple[float, float], shape: tuple[int, ...] = ()
) -> Array:
    return jax.random.uniform(
        key, shape, jnp.float32, minval=bounds[0], maxval=bounds[1]
    )
