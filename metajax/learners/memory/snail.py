"""Simple Neural Attentive Meta-Learner (SNAIL): temporal convolution and attention.

N. Mishra, M. Rohaninejad, X. Chen, P. Abbeel, "A Simple Neural Attentive Meta-Learner",
ICLR 2018, https://arxiv.org/abs/1707.03141, section 3.

A token is [f(x_i), y_i], or [f(x), 0] for a query, which stands after the support set.
Each layer appends its output to what it was given, u_t at place t:

    attention   softmax over s <= t of q(u_t) k(u_s) / sqrt(size of k), times v(u_s)
    dense       tanh(A_1 u_t + A_2 u_{t-d}) sigmoid(B_1 u_t + B_2 u_{t-d})

and the network is attention, convolution, attention, convolution, attention and a
linear layer, where a convolution is a stack of dense blocks with dilations d of 1, 2,
4, .. that together see `context` places. What a further example needs of those before
it is kept: keys and values, and the inputs of the dense blocks. Of more than `context`
examples the oldest make room; of them remains what later ones made of them.

Differs from the paper: dilations start from 1 and not from 2, so that a token sees the
one before it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.streams import Reader, TrainsOn, stream_learner
from metajax.checks import check_integers, check_parts, check_sizes
from metajax.filters import float_type
from metajax.types import Array, Embedding, Learner, Objective, PyTree

__all__ = ["History", "snail"]


class History(NamedTuple):
    """What is kept of the examples; that number i is in row i modulo `context`.

    Attributes:
      rows: for each layer what later tokens need of a token, `[context, ...]`.
      num_read: int32 scalar, how many examples were read.
    """

    rows: PyTree
    num_read: Array


def snail(
    model: Embedding,
    *,
    way: int | None = None,
    num_outputs: int | None = None,
    context: int = 32,
    filters: int = 128,
    keys: Sequence[int] = (64, 256, 512),
    values: Sequence[int] = (32, 128, 256),
    trains_on: TrainsOn = "query",
    objective: Objective | None = None,
) -> Learner:
    """Builds SNAIL.

    Choose it for streams whose order means something: its convolutions know how long
    ago an example was. Where order means nothing, `in_context` is simpler.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, ...]`; with it in training, as in
        the paper, or `identity()`.
      way: classes of a task, N; give it or `num_outputs`.
      num_outputs: d, where targets are real numbers `[n, d]`.
      context: how many examples are remembered, at least 2; N times K for few-shot
        tasks.
      filters: that each dense block appends.
      keys: sizes of the keys of each attention; there is a convolution between two.
      values: of their values.
      trains_on: `"query"`, the loss of the queries, as in the paper; `"sequence"`, of
        every example before its label is seen as well.
      objective: `(outputs, y) -> [n]`, the loss of every example; by default
        cross-entropy of classes, or the squared error of numbers.

    Returns:
      A learner with a `stream`; see `metajax.builders.streams.stream_learner`. The
      order of the support set matters.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import snail
      >>> from metajax.models import conv4
      >>> learner = snail(conv4(normalization="calibrated"), way=5, context=5)
    """
    check_parts(model=model)
    check_integers(2, context=context)
    check_integers(1, filters=filters)
    check_sizes(keys=keys, values=values)
    keys, values = tuple(keys), tuple(values)
    if not keys or len(keys) != len(values):
        raise ValueError(
            "`keys` and `values` must have a size for each attention, and as many as "
            f"each other, got {keys} and {values}."
        )

    def network(num_outputs: int) -> _Snail:
        return _Snail(context, filters, keys, values, num_outputs)

    def apply(params: PyTree, *inputs: Any) -> tuple[Array, PyTree]:
        bias = params["params"]["outputs"]["bias"]
        result: Any = network(bias.size).apply(params, *inputs)
        return result

    def init(key: Array, features: Array, label: Array) -> PyTree:
        token = jnp.concatenate([features, label])
        return network(label.size).init(key, token, None)

    def start(params: PyTree) -> History:
        first: Any = params["params"]["attention_0"]["query"]["kernel"]
        token = jnp.zeros(first.shape[0], float_type(params))
        _, row = jax.eval_shape(lambda: apply(params, token, None))
        rows = jax.tree.map(lambda r: jnp.zeros((context, *r.shape), r.dtype), row)
        return History(rows, jnp.int32(0))

    def answer(params: PyTree, history: History, features: Array) -> Array:
        size = params["params"]["outputs"]["bias"].size
        token = jnp.concatenate([features, jnp.zeros(size, features.dtype)])
        return apply(params, token, history)[0]

    def step(
        params: PyTree, history: History, features: Array, label: Array
    ) -> tuple[History, Array]:
        _, row = apply(params, jnp.concatenate([features, label]), history)
        place = history.num_read % context
        rows = jax.tree.map(lambda old, r: old.at[place].set(r), history.rows, row)
        new = History(rows, history.num_read + 1)
        return new, answer(params, history, features)

    reader = Reader(init, start, answer, step)
    return stream_learner(
        model,
        reader,
        way=way,
        num_outputs=num_outputs,
        objective=objective,
        trains_on=trains_on,
    )


class _Attention(nn.Module):
    key_size: int
    value_size: int

    def setup(self) -> None:
        self.query, self.key = nn.Dense(self.key_size), nn.Dense(self.key_size)
        self.value = nn.Dense(self.value_size)

    def __call__(
        self, token: Array, rows: PyTree, is_filled: Array
    ) -> tuple[Array, PyTree]:
        own = self.key(token), self.value(token)
        keys, values = (part[None] for part in own)
        if rows is not None:
            keys, values = (
                jnp.concatenate([row, part])
                for row, part in zip(rows, (keys, values), strict=True)
            )
        # One head: `[tokens, heads, size]`. Keys and values may differ in size, which
        # `jax.nn.dot_product_attention` does not allow.
        scores = keys @ self.query(token) / math.sqrt(self.key_size)
        weights = jax.nn.softmax(scores, where=is_filled)
        return jnp.concatenate([token, weights @ values]), own


class _Dense(nn.Module):
    filters: int

    @nn.compact
    def __call__(self, token: Array, earlier: Array) -> Array:
        both = nn.Dense(2 * self.filters)(jnp.concatenate([token, earlier]))
        values, gates = jnp.split(both, 2)
        return jnp.concatenate([token, jnp.tanh(values) * nn.sigmoid(gates)])


class _Snail(nn.Module):
    context: int
    filters: int
    keys: Sequence[int]
    values: Sequence[int]
    num_outputs: int

    @nn.compact
    def __call__(
        self, token: Array, history: History | None
    ) -> tuple[Array, dict[str, PyTree]]:
        """Outputs `[C]` at a token `[D + C]`, and what later tokens need of it."""
        count = jnp.int32(0) if history is None else history.num_read
        num = 0 if history is None else self.context
        # Rows of the history, and the token itself.
        is_filled = jnp.append(jnp.arange(num) < count, True)
        dilations = [2**i for i in range((self.context - 1).bit_length())]
        row: dict[str, PyTree] = {}

        def of(name: str) -> PyTree:
            return None if history is None else history.rows[name]

        for i, sizes in enumerate(zip(self.keys, self.values, strict=True)):
            if i:
                for dilation in dilations:
                    name = f"dense_{i - 1}_{dilation}"
                    row[name] = token
                    earlier = jnp.zeros_like(token)
                    if history is not None:
                        there = of(name)[(count - dilation) % self.context]
                        earlier = jnp.where(count >= dilation, there, 0)
                    token = _Dense(self.filters, name=name)(token, earlier)
            name = f"attention_{i}"
            attention = _Attention(*sizes, name=name)
            token, row[name] = attention(token, of(name), is_filled)
        return nn.Dense(self.num_outputs, name="outputs")(token), row
