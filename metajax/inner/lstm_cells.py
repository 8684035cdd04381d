"""What the learned optimizers that hold an LSTM share."""

import math

import jax.numpy as jnp
from flax import linen as nn

from metajax.checks import check_positive, check_sizes
from metajax.types import Array, PyTree

__all__ = ["LSTM", "check_lstm", "log_and_sign"]


class LSTM(nn.Module):
    """Layers of LSTM cells on rows `[P, F]`, with one state for each row."""

    hidden_sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, states: PyTree, x: Array) -> tuple[PyTree, Array]:
        """Returns the new states and `[P, hidden[-1]]`."""
        new_states = []
        for size, state in zip(self.hidden_sizes, states, strict=True):
            state, x = nn.LSTMCell(size)(state, x)
            new_states.append(state)
        return tuple(new_states), x

    def start(self, num_rows: int) -> PyTree:
        """States of zeros."""
        return tuple(
            (jnp.zeros((num_rows, size)), jnp.zeros((num_rows, size)))
            for size in self.hidden_sizes
        )


def check_lstm(hidden_sizes: tuple[int, ...], threshold: float) -> None:
    """Raises a ValueError unless there are sizes and the threshold is above 0."""
    check_sizes(fewest=1, hidden_sizes=hidden_sizes)
    check_positive(threshold=threshold)


def log_and_sign(values: Array, threshold: float) -> Array:
    """Turns numbers `[...]` of any order of magnitude into two features, `[..., 2]`.

    (log|v| / p, sgn v) if |v| >= e^-p, else (-1, e^p v), with p the threshold:
    M. Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
    NeurIPS 2016, https://arxiv.org/abs/1606.04474, appendix A.
    """
    size = jnp.abs(values)
    least = math.exp(-threshold)
    is_large = size >= least
    # The inner `where` keeps the derivative of the logarithm finite at 0.
    log = jnp.log(jnp.where(is_large, size, 1)) / threshold
    first = jnp.where(is_large, log, -1)
    second = jnp.where(is_large, jnp.sign(values), values / least)
    return jnp.stack([first, second], axis=-1)
