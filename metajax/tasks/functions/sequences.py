"""Sequence prediction: sinusoids whose hidden parameters a task's sequences share.

A family of our own, after the sinusoids of C. Finn, P. Abbeel, S. Levine, "Model-
Agnostic Meta-Learning", ICML 2017, https://arxiv.org/abs/1703.03400, for models that
read sequences. It has no published numbers.

    s_t = offset + A sin(omega t + phi) + noise * e_t,   e_t ~ N(0, 1),   t = 0 .. T
    x = s_0 .. s_{T-1},   y = s_1 .. s_T

A, omega and the offset belong to the task, the phase phi ~ U(0, 2 pi) to each sequence.
A model that knows its task predicts from two values what one that does not must work
out from more of the sequence. Judge by the mean squared error (`squared_error`), of
which `noise ** 2` cannot be predicted and at the first steps, where the phase is still
open, more. Predicting the offset leaves A^2 / 2 + noise^2, and repeating the last value
A^2 (1 - cos(omega)) + 2 noise^2.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from metajax.checks import check_integers, check_not_negative, check_ranges
from metajax.types import Array, Examples, Task

__all__ = ["SequenceSinusoid", "sequence_sinusoid"]


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class SequenceSinusoid:
    """The distribution that `sequence_sinusoid` builds; its fields are the arguments.

    It holds no arrays: as a pytree it has no leaves and is static under `jit`.
    """

    shot: int
    num_queries: int
    length: int
    amplitude: tuple[float, float]
    frequency: tuple[float, float]
    offset: tuple[float, float]
    noise: float

    def __call__(self, key: Array, /) -> Task:
        """Draws one sinusoid and sequences of it; the key is consumed.

        Args:
          key: a typed random key.

        Returns:
          A task whose `support` has `x` and `y` float32 `[K, T, 1]` and whose `query`
          has them `[Q, T, 1]`, without masks.
        """
        *keys, key_support, key_query = jax.random.split(key, 5)
        amplitude, frequency, offset = (
            jax.random.uniform(key, (), jnp.float32, *bounds)
            for key, bounds in zip(
                keys, (self.amplitude, self.frequency, self.offset), strict=True
            )
        )
        angles = frequency * jnp.arange(self.length + 1, dtype=jnp.float32)

        def sequences(key: Array, num: int) -> Examples:
            key_phase, key_noise = jax.random.split(key)
            phases = jax.random.uniform(
                key_phase, (num, 1), jnp.float32, 0.0, 2 * math.pi
            )
            values = offset + amplitude * jnp.sin(angles[None, :] + phases)
            noise = jax.random.normal(key_noise, values.shape, jnp.float32)
            values = (values + self.noise * noise)[..., None]
            return Examples(values[:, :-1], values[:, 1:])

        return Task(
            sequences(key_support, self.shot), sequences(key_query, self.num_queries)
        )


def sequence_sinusoid(
    *,
    shot: int = 5,
    num_queries: int = 5,
    length: int = 12,
    amplitude: tuple[float, float] = (0.5, 2.0),
    frequency: tuple[float, float] = (0.3, 1.5),
    offset: tuple[float, float] = (-1.0, 1.0),
    noise: float = 0.0,
) -> SequenceSinusoid:
    """Builds next-value prediction on sinusoids.

    Args:
      shot: support sequences of a task, K, at least 1.
      num_queries: query sequences of a task, Q, at least 1.
      length: values in each sequence of inputs, T, at least 1; targets are the same
        sequence one step later.
      amplitude: `(low, high)` of A.
      frequency: `(low, high)` of omega, in radians a step; from pi on, another
        frequency gives the same values.
      offset: `(low, high)` of the mean.
      noise: standard deviation of what is added to every value, at least 0.

    Returns:
      A task distribution: `(key) -> Task`.

    Raises:
      ValueError: if a count is not an integer of at least 1, a range is not two finite
        numbers with low <= high, or the noise is below 0 or not finite.

    Example:
      >>> task = sequence_sinusoid(shot=3, length=8)(jax.random.key(0))
      >>> task.support.x.shape, task.query.y.shape
      ((3, 8, 1), (5, 8, 1))
    """
    counts = {"shot": shot, "num_queries": num_queries, "length": length}
    check_integers(1, **counts)
    check_ranges(amplitude=amplitude, frequency=frequency, offset=offset)
    check_not_negative(noise=noise)
    return SequenceSinusoid(
        **counts,
        amplitude=(float(amplitude[0]), float(amplitude[1])),
        frequency=(float(frequency[0]), float(frequency[1])),
        offset=(float(offset[0]), float(offset[1])),
        noise=float(noise),
    )
