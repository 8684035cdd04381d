"""A recurrent controller and an external memory that reads labels one example late.

    h_t = LSTM(U f(x_t) + V y_{t-1} + W r_{t-1})
    M_t, r_t = update(M_{t-1}, W_i h_t)
    outputs_t = W_o [h_t, r_t]

y_{t-1} stands beside x_t so that the answer to x_t is due before its label is seen, and
so that an input and its label must be bound in memory (A. Santoro et al., "Meta-
Learning with Memory-Augmented Neural Networks", ICML 2016, section 2). All states start
from 0. How the memory M is read and written is the `ExternalMemory`; the controller is
an LSTM.

Differs from the paper: U, V and W stand before the LSTM, each initialised by the number
of its own columns. In one kernel for all, a label of 5 numbers is drowned at first by
an image of 400.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from metajax.builders.streams import Reader
from metajax.checks import check_integers
from metajax.filters import float_type
from metajax.types import Array, PyTree

__all__ = ["ControllerState", "ExternalMemory", "with_controller"]


class ExternalMemory(NamedTuple):
    """An external memory.

    Attributes:
      num_commands: numbers that the controller gives it in every step.
      num_reads: numbers that it gives back.
      init: `(key) -> params`.
      start: `(params) -> state`, of floating-point arrays.
      update: `(params, state, commands [num_commands]) -> (state, reads [num_reads])`.
    """

    num_commands: int
    num_reads: int
    init: Callable[[Array], PyTree]
    start: Callable[[PyTree], PyTree]
    update: Callable[[PyTree, PyTree, Array], tuple[PyTree, Array]]


class ControllerState(NamedTuple):
    """What is known after some examples.

    Attributes:
      cell: of the LSTM, two of `[hidden_size]`.
      label: of the last example `[C]`.
      reads: of the last step `[num_reads]`.
      memory: the external one.
    """

    cell: tuple[Array, Array]
    label: Array
    reads: Array
    memory: PyTree


class _Controller(nn.Module):
    hidden_size: int
    num_commands: int
    num_outputs: int

    def setup(self) -> None:
        self.from_features = nn.Dense(self.hidden_size, use_bias=False)
        self.from_label = nn.Dense(self.hidden_size, use_bias=False)
        self.from_reads = nn.Dense(self.hidden_size, use_bias=False)
        self.lstm = nn.OptimizedLSTMCell(self.hidden_size)
        self.commands = nn.Dense(self.num_commands)
        self.outputs = nn.Dense(self.num_outputs)

    def advance(
        self, cell: tuple[Array, Array], features: Array, label: Array, reads: Array
    ) -> tuple[tuple[Array, Array], Array]:
        seen = self.from_features(features) + self.from_label(label)
        if reads.size > 0:
            seen += self.from_reads(reads)
        cell, hidden_size = self.lstm(cell, seen)
        return cell, self.commands(hidden_size) if self.num_commands else hidden_size[
            :0
        ]

    def answer(self, cell: tuple[Array, Array], reads: Array) -> Array:
        return self.outputs(jnp.concatenate([cell[1], reads]))

    def __call__(
        self, cell: tuple[Array, Array], features: Array, label: Array, reads: Array
    ) -> tuple[tuple[Array, Array], Array, Array]:
        cell, commands = self.advance(cell, features, label, reads)
        return cell, commands, self.answer(cell, reads)


def with_controller(memory: ExternalMemory, *, hidden_size: int) -> Reader:
    """Builds a reader from a memory.

    Args:
      memory: how to read and write.
      hidden_size: units of the LSTM, at least 1.

    Returns:
      A `Reader` with a `step`, whose parameters are a dict of `controller` and
      `memory` and whose states are `ControllerState`.

    Raises:
      ValueError: if `hidden_size` is out of range.
    """
    check_integers(1, hidden_size=hidden_size)

    def controller(num_outputs: int) -> _Controller:
        return _Controller(hidden_size, memory.num_commands, num_outputs)

    def init(key: Array, features: Array, label: Array) -> dict[str, PyTree]:
        key_controller, key_memory = jax.random.split(key)
        cell = _zeros(hidden_size, features.dtype)
        reads = jnp.zeros(memory.num_reads, features.dtype)
        params = controller(label.size).init(
            key_controller, cell, features, label, reads
        )
        return {"controller": params, "memory": memory.init(key_memory)}

    def start(params: PyTree) -> ControllerState:
        dtype = float_type(params)
        return ControllerState(
            _zeros(hidden_size, dtype),
            jnp.zeros(_num_outputs(params), dtype),
            jnp.zeros(memory.num_reads, dtype),
            jax.tree.map(
                lambda leaf: leaf.astype(dtype), memory.start(params["memory"])
            ),
        )

    def step(
        params: PyTree, state: ControllerState, features: Array, label: Array
    ) -> tuple[ControllerState, Array]:
        module = controller(_num_outputs(params))
        seen = state.cell, features, state.label, state.reads
        advanced: Any = module.apply(params["controller"], *seen, method="advance")
        cell, commands = advanced
        memories, reads = memory.update(params["memory"], state.memory, commands)
        outputs: Any = module.apply(params["controller"], cell, reads, method="answer")
        return ControllerState(cell, label, reads, memories), outputs

    def answer(params: PyTree, state: ControllerState, features: Array) -> Array:
        return step(params, state, features, jnp.zeros_like(state.label))[1]

    return Reader(init, start, answer, step)


def _num_outputs(params: PyTree) -> int:
    return params["controller"]["params"]["outputs"]["bias"].size


def _zeros(hidden_size: int, dtype: DTypeLike) -> tuple[Array, Array]:
    return jnp.zeros(hidden_size, dtype), jnp.zeros(hidden_size, dtype)
