"""Memory Matching Networks (MM-Net): how to write and how to compare are both learned.

Q. Cai, Y. Pan, T. Yao, C. Yan, T. Mei, "Memory Matching Networks for One-Shot Image
Recognition", CVPR 2018, https://arxiv.org/abs/1804.08281.

The memory has slots, each with a key and a label. A write controller reads the support
set, one example z = f(x) with label y after another:

    i = of the slots with label y that whose key is nearest to V z, by the cosine
    g = sigma(W_g [k_i, V z]),   k_i <- g k_i + (1 - g) V z       if it is near enough
    k <- V z in a new slot                                        if none is

so that a class takes one slot or few, whatever the number of shots. A contextual
learner reads the slots, an LSTM each way, and predicts how this task embeds a query:

    c = mean over slots of the two LSTMs' outputs,   A = (P_1 c) (P_2 c)^T
    q = V z + A z,   p(y | x) = sum over slots i of label y of softmax_i(s cos(q, k_i))

With one slot for every example and A = 0 they are Matching Networks. When no slot is
empty, the one that was written longest ago makes room, and is forgotten.

Differs from the paper, whose equations were not at hand and whose summary these follow:
the controller is a gate, and the contextual learner predicts a layer on embeddings, of
low rank, where the paper's predicts convolutions of the query's network.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.heads import unit
from metajax.builders.streams import Reader, stream_learner
from metajax.checks import check_integers, check_parts, check_positive, is_number
from metajax.filters import float_type
from metajax.models.recurrent import start_of_lstm
from metajax.objectives import cross_entropy
from metajax.types import Array, Embedding, Learner, PyTree

__all__ = ["Slots", "mm_net"]

# Score of what is not there: finite, so that no gradient is NaN.
_NOTHING = -1e9


class Slots(NamedTuple):
    """The memory.

    Attributes:
      keys: `[slots, size]`.
      labels: one-hot `[slots, N]`, 0 where a slot is empty.
      written: int32 `[slots]`, which example was written there last, from 1; 0 for an
        empty slot.
      num_read: int32 scalar, how many examples were read.
    """

    keys: Array
    labels: Array
    written: Array
    num_read: Array


def mm_net(
    model: Embedding,
    *,
    way: int,
    slots: int = 32,
    key_size: int = 64,
    hidden_size: int = 32,
    rank: int = 8,
    near: float = -1.0,
    scale: float = 10.0,
) -> Learner:
    """Builds Memory Matching Networks.

    Choose it where shots differ and the memory must stay small: by default it keeps one
    key for each class, which is a weighted mean.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, ...]`.
      way: classes of a task, N; labels are below it.
      slots: of the memory, at least 1; at least N, or classes are forgotten, and the
        loss of their queries is infinite.
      key_size: of a key.
      hidden_size: units of each LSTM of the contextual learner.
      rank: of the layer that it predicts.
      near: the least cosine, from -1 to 1, at which an example is written to a slot of
        its class; -1 gives every class one slot, above 1 every example.
      scale: s at first, above 0; it is learned.

    Returns:
      A learner with a `stream`; see `metajax.builders.streams.stream_learner`.
      `predict` gives log probabilities `[n, N]`, minus infinity for classes without a
      slot. The order of the support set matters.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import mm_net
      >>> from metajax.models import conv4
      >>> learner = mm_net(conv4(normalization="calibrated"), way=5)
    """
    check_parts(model=model)
    check_integers(
        1, way=way, slots=slots, key_size=key_size, hidden_size=hidden_size, rank=rank
    )
    check_positive(scale=scale)
    if not is_number(near) or not math.isfinite(near):
        raise ValueError(f"`near` must be finite, got {near!r}.")
    network = _Network(key_size, hidden_size, rank, scale)

    def start(params: PyTree) -> Slots:
        dtype = float_type(params)
        keys = jnp.zeros((slots, key_size), dtype)
        labels = jnp.zeros((slots, way), dtype)
        return Slots(keys, labels, jnp.zeros(slots, jnp.int32), jnp.int32(0))

    def init(key: Array, features: Array, label: Array) -> PyTree:
        del label
        return network.init(key, start(None), features)

    def answer(params: PyTree, memory: Slots, features: Array) -> Array:
        outputs: Any = network.apply(params, memory, features, method="answer")
        return outputs

    def step(
        params: PyTree, memory: Slots, features: Array, label: Array
    ) -> tuple[Slots, Array]:
        new: Any = network.apply(params, features, method="key_of")
        cosines = unit(memory.keys) @ unit(new)
        is_own = memory.labels @ label > 0
        nearest = jnp.argmax(jnp.where(is_own, cosines, -2.0))
        joins = is_own[nearest] & (cosines[nearest] >= near)
        # Empty slots were written at 0, so longest ago.
        slot = jnp.where(joins, nearest, jnp.argmin(memory.written))
        mixed: Any = network.apply(params, memory.keys[slot], new, method="mix")
        count = memory.num_read + 1
        after = Slots(
            memory.keys.at[slot].set(jnp.where(joins, mixed, new)),
            memory.labels.at[slot].set(label),
            memory.written.at[slot].set(count),
            count,
        )
        return after, answer(params, memory, features)

    reader = Reader(init, start, answer, step)
    return stream_learner(
        model,
        reader,
        way=way,
        num_outputs=None,
        objective=cross_entropy,
        trains_on="query",
    )


class _Network(nn.Module):
    size: int
    hidden_size: int
    rank: int
    scale: float

    def setup(self) -> None:
        self.embed = nn.Dense(self.size, use_bias=False)
        self.gate = nn.Dense(self.size)
        self.context = nn.Bidirectional(
            nn.RNN(nn.LSTMCell(self.hidden_size)), nn.RNN(nn.LSTMCell(self.hidden_size))
        )
        self.left = nn.Dense(self.size * self.rank)
        # The layer is 0 at first.
        self.right = nn.Dense(
            self.size * self.rank, kernel_init=nn.initializers.zeros_init()
        )
        self.log_scale = self.param(
            "log_scale", nn.initializers.constant(jnp.log(self.scale)), ()
        )

    def key_of(self, features: Array) -> Array:
        return self.embed(features)

    def mix(self, old: Array, new: Array) -> Array:
        gate = nn.sigmoid(self.gate(jnp.concatenate([old, new])))
        return gate * old + (1 - gate) * new

    def answer(self, memory: Slots, features: Array) -> Array:
        is_used = memory.written > 0
        num = jnp.sum(is_used)
        slots = jnp.concatenate([memory.keys, memory.labels], axis=1)
        # Slots fill in order, so that those in use are the first.
        states = start_of_lstm(1, self.hidden_size, slots.dtype)
        read: Any = self.context(
            slots[None], seq_lengths=num[None], initial_carry=(states, states)
        )
        seen = jnp.where(is_used[:, None], read[0], 0)
        context = jnp.sum(seen, axis=0) / jnp.maximum(num, 1)
        key = self.embed(features)
        left, right = (
            part(context).reshape(self.size, self.rank)
            for part in (self.left, self.right)
        )
        key = key + left @ (right.T @ key)
        scores = jnp.exp(self.log_scale) * (unit(memory.keys) @ unit(key))
        scores = jax.nn.log_softmax(jnp.where(is_used, scores, _NOTHING))
        of_class = memory.labels.T > 0
        total = jax.nn.logsumexp(jnp.where(of_class, scores[None, :], _NOTHING), axis=1)
        return jnp.where(jnp.any(of_class, axis=1), total, -jnp.inf)

    def __call__(self, memory: Slots, features: Array) -> Array:
        key = self.key_of(features)
        self.mix(key, key)
        return self.answer(memory, features)
