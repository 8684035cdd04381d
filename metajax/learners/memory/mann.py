"""Memory-Augmented Neural Network (MANN): bind inputs and labels in slots of a memory.

A. Santoro, S. Bartunov, M. Botvinick, D. Wierstra, T. Lillicrap, "Meta-Learning with
Memory-Augmented Neural Networks", ICML 2016,
https://proceedings.mlr.press/v48/santoro16.html.

The controller (`metajax.builders.controllers`) gives each of its heads a key k_t, what
to write a_t, a gate alpha_t and a strength beta_t in every step. In order:

    w^w_t = sigma(alpha_t) w^r_{t-1} + (1 - sigma(alpha_t)) w^lu_{t-1}          Eq. (7)
    M_t(i) = M_{t-1}(i) + w^w_t(i) a_t, least used slots set to 0 before        Eq. (8)
    w^r_t(i) = softmax over i of beta_t cos(k_t, M_t(i)), M_t(i) not 0     Eq. (2), (3)
    r_t = sum over i of w^r_t(i) M_t(i)                                         Eq. (4)
    w^u_t = gamma w^u_{t-1} + w^r_t + w^w_t, summed over heads                  Eq. (5)
    w^lu_t = one slot of least usage for each head                              Eq. (6)

So a memory goes to the slot that was read last, or to the one least used: least
recently used access. Nothing is ever full; when there are more examples than slots, the
least used are forgotten.

Differs from the paper: the key itself is written there, so that what was just written
is always what is nearest to the key; a_t is that of a published reproduction
(https://github.com/tristandeleu/ntm-one-shot). Of the slots of least usage, the n-th
head writes to the n-th alone, where there all heads write to all of them. beta_t, as of
the Neural Turing Machine, is learned, from 8 on, where it is 1 there (`strength=1.0`):
cosines lie in [-1, 1], and their softmax over 128 slots is nearly flat. Slots that hold
nothing are not read, as they would thin out the rest, and gates start near the slot of
least usage (alpha_t is what the controller gives, less 3).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.builders.controllers import ExternalMemory, with_controller
from metajax.builders.heads import unit
from metajax.builders.streams import TrainsOn, stream_learner
from metajax.checks import check_integers, check_parts, check_positive, is_number
from metajax.types import Array, Embedding, Learner, Objective, PyTree

__all__ = ["Slots", "mann", "slot_memory"]

# Added to squared lengths: slots are 0 at first, where a cosine has no gradient.
_EPSILON = 1e-4
# Where gates and strengths start, so that a memory is kept apart, and read sharply.
_GATE, _STRENGTH = -3.0, 8.0
# Score of an empty slot: finite, so that no gradient is NaN.
_NOTHING = -1e9


class Slots(NamedTuple):
    """The memory.

    Attributes:
      contents: M, `[slots, width]`.
      usage: w^u, `[slots]`.
      reads: w^r of each head, `[heads, slots]`.
    """

    contents: Array
    usage: Array
    reads: Array


def mann(
    model: Embedding,
    *,
    way: int | None = None,
    num_outputs: int | None = None,
    hidden_size: int = 200,
    slots: int = 128,
    width: int = 40,
    heads: int = 4,
    decay: float = 0.95,
    strength: float | None = None,
    trains_on: TrainsOn = "sequence",
    objective: Objective | None = None,
) -> Learner:
    """Builds the memory-augmented network.

    Choose it for streams: a step costs the same however many examples came before. On
    few-shot tasks metric learners are more accurate at less training.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, ...]`; the paper's is `identity()`,
        pixels as they are.
      way: classes of a task, N; give it or `num_outputs`.
      num_outputs: d, where targets are real numbers `[n, d]`.
      hidden_size: units of the controller.
      slots: of the memory, at least `heads`.
      width: numbers in a slot.
      heads: that read and write.
      decay: gamma of the usage, in (0, 1).
      strength: beta, above 0, or None to learn it, from about 8 on.
      trains_on: `"sequence"`, the paper's loss of every example before its label is
        seen, and of the queries; or `"query"`, of these alone.
      objective: `(outputs, y) -> [n]`, the loss of every example; by default
        cross-entropy of classes, or the squared error of numbers.

    Returns:
      A learner with a `stream`; see `metajax.builders.streams.stream_learner`. The
      order of the support set matters.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import mann
      >>> from metajax.models import identity
      >>> learner = mann(identity(), way=5)
    """
    check_parts(model=model)
    memory = slot_memory(
        slots=slots, width=width, heads=heads, decay=decay, strength=strength
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


def slot_memory(
    *, slots: int, width: int, heads: int, decay: float, strength: float | None
) -> ExternalMemory:
    """Builds slots with least recently used access; arguments are those of `mann`."""
    check_integers(1, slots=slots, width=width, heads=heads)
    if slots < heads:
        raise ValueError(
            f"`slots` must be at least `heads`, {heads}, as each head writes to a slot "
            f"of its own, got {slots}."
        )
    if not is_number(decay) or not 0 < decay < 1:
        raise ValueError(f"`decay` must lie in (0, 1), got {decay!r}.")
    if strength is not None:
        check_positive(strength=strength)

    def start(params: PyTree) -> Slots:
        del params
        reads = jnp.zeros((heads, slots))
        return Slots(jnp.zeros((slots, width)), jnp.zeros(slots), reads)

    def update(params: PyTree, state: Slots, commands: Array) -> tuple[Slots, Array]:
        del params
        keys, added, gates, betas = jnp.split(
            commands.reshape(heads, 2 * width + 2),
            [width, 2 * width, 2 * width + 1],
            axis=1,
        )
        keys, added = jnp.tanh(keys), jnp.tanh(added)
        gates = jax.nn.sigmoid(gates + _GATE)
        betas = 1 + jax.nn.softplus(betas + _STRENGTH - 1)
        if strength is not None:
            betas = jnp.full_like(betas, strength)
        _, places = jax.lax.top_k(-state.usage, heads)
        least = jax.nn.one_hot(places, slots, dtype=commands.dtype)  # Eq. (6)
        writes = gates * state.reads + (1 - gates) * least  # Eq. (7)
        kept = 1 - jnp.sum(least, axis=0)
        contents = kept[:, None] * state.contents + writes.T @ added  # Eq. (8)
        scores = betas * (unit(keys, _EPSILON) @ unit(contents, _EPSILON).T)  # Eq. (2)
        is_empty = jnp.all(contents == 0, axis=1)
        scores = jnp.where(is_empty[None, :], _NOTHING, scores)
        reads = jax.nn.softmax(scores, axis=1)  # Eq. (3)
        usage = decay * state.usage + jnp.sum(reads + writes, axis=0)  # Eq. (5)
        return Slots(contents, usage, reads), (reads @ contents).reshape(-1)  # Eq. (4)

    return ExternalMemory(
        num_commands=heads * (2 * width + 2),
        num_reads=heads * width,
        init=lambda key: {},
        start=start,
        update=update,
    )
