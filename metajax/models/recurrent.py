"""A recurrent network: one layer or several of LSTM, read out at every time step.

S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 1997, with
the forget gate of F. Gers, J. Schmidhuber, F. Cummins, "Learning to Forget", 2000; the
cell is Flax's.

    c_t = f_t * c_{t-1} + i_t * g_t,   h_t = o_t * tanh(c_t),   y_t = W h_t + b

The states start from 0 and W, b are the layer `head`. For a network that learns from
sequences what the next value is, see `metajax.tasks.functions.sequences`; for the LSTM
that optimises another network, `metajax.learners.optimizer.meta_lstm`.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from metajax.checks import check_integers, check_sizes
from metajax.filters import float_type
from metajax.models.adapters import from_linen
from metajax.types import Array, Model

__all__ = ["RecurrentLSTM", "lstm", "start_of_lstm"]


class RecurrentLSTM(nn.Module):
    """Layers of LSTM along time, and a linear `head` on the last, if there is any."""

    hidden_sizes: Sequence[int]
    num_outputs: int | None = None

    @nn.compact
    def __call__(self, inputs: Array | tuple[Array, Array]) -> Array:
        """Maps `[n, T, F]` to `[n, T, num_outputs]`, or to states `[n, T, hidden]`."""
        x, context = _split_context(inputs)
        if x.ndim != 3:
            raise ValueError(
                "Sequences must be a batch, `[n, T, F]`, got shape "
                f"{list(x.shape)}; give one sequence as sequence[None]."
            )
        if context is not None:
            shape = (*x.shape[:2], context.shape[-1])
            x = jnp.concatenate([x, jnp.broadcast_to(context[:, None], shape)], axis=-1)
        # Flax would start from single precision, which doubles then do not fit.
        x = x.astype(float_type((x, self.variables), x.dtype))
        for size in self.hidden_sizes:
            start = start_of_lstm(len(x), size, x.dtype)
            states: Any = nn.RNN(nn.LSTMCell(size))(x, initial_carry=start)
            x = states
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)


def start_of_lstm(num_rows: int, size: int, dtype: DTypeLike) -> tuple[Array, Array]:
    """Makes states of zeros `[num_rows, size]`, in single precision at least."""
    zeros = jnp.zeros((num_rows, size), jnp.promote_types(dtype, jnp.float32))
    return zeros, zeros


def lstm(num_outputs: int, *, hidden_sizes: Sequence[int] = (32,)) -> Model:
    """Builds an LSTM that answers at every time step.

    Args:
      num_outputs: size of the output.
      hidden_sizes: sizes of the layers, at least one.

    Returns:
      A model from `[n, T, F]` to `[n, T, num_outputs]`; the answer at a step depends on
      the inputs up to that step. Its last layer is `params/head`. It also takes pairs
      of inputs and a context `[n, c]`, which it appends to the input of every step.

    Raises:
      ValueError: if a size is not an integer of at least 1, or there is no layer.
      ValueError: when it is used, if inputs have no three axes.
    """
    check_integers(1, num_outputs=num_outputs)
    check_sizes(fewest=1, hidden_sizes=hidden_sizes)
    return from_linen(RecurrentLSTM(tuple(hidden_sizes), num_outputs))


def _split_context(x: Array | tuple[Array, Array]) -> tuple[Array, Array | None]:
    return x if isinstance(x, tuple) else (x, None)
