"""A memory that is a small network: to write is to train it, to read is to ask it.

A. Nichol, "sgdstore", 2017, https://github.com/unixpickle/sgdstore; T. Munkhdalai,
A. Sordoni, T. Wang, A. Trischler, "Metalearned Neural Memory", NeurIPS 2019,
https://arxiv.org/abs/1907.09720, is the same idea at greater length.

The controller (`metajax.builders.controllers`) gives keys k with targets v, a rate eta
and queries q in every step:

    write   phi_t = phi_{t-1} - eta_t grad of mean over i |g(phi, k_i) - v_i|^2 / 2
    read    r_t = g(phi_t, q_1), g(phi_t, q_2), ..

g(k) = W_2 tanh(W_1 k + b) / sqrt(units), and phi_0 = (W_1, b, W_2) is learned. The
outer gradient passes the writes, so that keys, targets, rates and phi_0 are learned by
what is read later: it holds second derivatives of g.

Keys, targets and queries go through tanh and the rate through a sigmoid: W_2 alone
could not overshoot at a rate of 1, as its hidden units have a length of at most 1.
Differs from sgdstore, where keys and queries are unbounded and the rate an exponential,
and whose controller is two plain recurrent layers.
"""

import math

import jax
import jax.numpy as jnp

from metajax.builders.controllers import ExternalMemory, with_controller
from metajax.builders.streams import TrainsOn, stream_learner
from metajax.checks import check_integers, check_parts, check_positive
from metajax.types import Array, Embedding, Learner, Objective, PyTree

__all__ = ["network_memory", "sgdstore"]


def sgdstore(
    model: Embedding,
    *,
    way: int | None = None,
    num_outputs: int | None = None,
    hidden_size: int = 200,
    width: int = 32,
    units: int = 256,
    writes: int = 16,
    reads: int = 2,
    max_rate: float = 1.0,
    trains_on: TrainsOn = "sequence",
    objective: Objective | None = None,
) -> Learner:
    """Builds the learner whose memory is trained by what it writes.

    Choose it as `mann`; its memory has no slots that could run out, and what is written
    generalises to keys like those that were written.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, ...]`.
      way: classes of a task, N; give it or `num_outputs`.
      num_outputs: d, where targets are real numbers `[n, d]`.
      hidden_size: units of the controller.
      width: numbers in a key, and in a target.
      units: hidden ones of the memory. These and the next two are sgdstore's.
      writes: keys with targets in a step.
      reads: queries in a step.
      max_rate: the largest rate of a write, above 0.
      trains_on: `"sequence"`, the loss of every example before its label is seen, and
        of the queries; or `"query"`, of these alone.
      objective: `(outputs, y) -> [n]`, the loss of every example; by default
        cross-entropy of classes, or the squared error of numbers.

    Returns:
      A learner with a `stream`; see `metajax.builders.streams.stream_learner`. The
      order of the support set matters.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import sgdstore
      >>> from metajax.models import identity
      >>> learner = sgdstore(identity(), way=5)
    """
    check_parts(model=model)
    memory = network_memory(
        width=width, units=units, writes=writes, reads=reads, max_rate=max_rate
    )
    reader = with_controller(memory, hidden_size=hidden_size)
    return stream_learner(
        model,
        reader,
        way=way,
        num_outputs=num_outputs,
        objective=objective,
        trains_on=trains_on,
    )


def network_memory(
    *, width: int, units: int, writes: int, reads: int, max_rate: float
) -> ExternalMemory:
    """Builds a network written to by gradient steps; arguments are `sgdstore`'s."""
    check_integers(1, width=width, units=units, writes=writes, reads=reads)
    check_positive(max_rate=max_rate)
    num = writes * width

    def init(key: Array) -> dict[str, Array]:
        key_in, key_out = jax.random.split(key)
        return {
            "in": jax.nn.initializers.lecun_normal()(key_in, (width, units)),
            "bias": jnp.zeros(units),
            "out": jax.random.normal(key_out, (units, width)),
        }

    def update(params: PyTree, state: PyTree, commands: Array) -> tuple[PyTree, Array]:
        del params
        keys, targets, queries = (
            part.reshape(-1, width)
            for part in jnp.split(jnp.tanh(commands[:-1]), [num, 2 * num])
        )
        rate = max_rate * jax.nn.sigmoid(commands[-1])

        def error(state: PyTree) -> Array:
            return jnp.sum(jnp.square(_ask(state, keys) - targets)) / (2 * writes)

        gradient = jax.grad(error)(state)
        state = jax.tree.map(lambda phi, g: phi - rate * g, state, gradient)
        return state, _ask(state, queries).reshape(-1)

    return ExternalMemory(
        num_commands=2 * num + reads * width + 1,
        num_reads=reads * width,
        init=init,
        start=lambda params: params,
        update=update,
    )


def _ask(state: PyTree, keys: Array) -> Array:
    """Answers `[m, width]` to keys `[m, width]`."""
    hidden_size = jnp.tanh(keys @ state["in"] + state["bias"][None, :])
    return hidden_size @ state["out"] / math.sqrt(hidden_size.shape[1])
