"""In-context learning: a transformer that reads labelled examples and answers queries.

S. Garg, D. Tsipras, P. Liang, G. Valiant, "What Can Transformers Learn In-Context?",
NeurIPS 2022, https://arxiv.org/abs/2208.01066; L. Kirsch, J. Harrison,
J. Sohl-Dickstein, L. Metz, "General-Purpose In-Context Learning by Meta-Learning
Transformers", 2022, https://arxiv.org/abs/2212.04458; S. Müller, N. Hollmann,
S. Pineda Arango, J. Grabocka, F. Hutter, "Transformers Can Do Bayesian Inference", ICLR
2022, https://arxiv.org/abs/2112.10510, for the reading of whole sets.

    pairs     p_i = W_x f(x_i) + W_y y_i,     queries   q = W_x f(x) + w
    layers    u <- u + attention(norm u),     u <- u + MLP(norm u)
    outputs   W norm q

There are no positions: a pair is one token, so that a causal mask says all there is to
say of order. Two readings of the support set:

* causal, with a `context`: a pair sees itself and the `context` - 1 pairs before it, a
  query the last `context` pairs. Keys and values of these pairs are what `adapt` keeps,
  so that to adapt once and to answer many times is cheap, and a further example costs
  one token. Of older examples remains what the pairs that saw them made of them.
* whole, with `context=None`: pairs see one another, whichever comes first. Their order
  does not matter; a further example means to read all of them again.

A learned start token, which all tokens see, stands for an empty support set. Queries
never see one another. Dropout and the like have no place here: tasks do not repeat.

Differs from the papers: the layers normalise before and not after; x and y are one
token, where Garg et al. have two.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.streams import Reader, TrainsOn, stream_learner
from metajax.checks import check_integers, check_parts
from metajax.filters import float_type
from metajax.models.attention import check_heads
from metajax.types import Array, Embedding, Learner, Objective, PyTree

__all__ = ["Cache", "in_context"]


class Cache(NamedTuple):
    """What is kept of the pairs: the start token's is at 0, then there are slots.

    Attributes:
      keys: of each layer, `[layers, 1 + slots, heads, size / heads]`.
      values: the same.
      is_filled: bool `[1 + slots]`.
      num_read: int32 scalar, how many examples were read.
    """

    keys: Array
    values: Array
    is_filled: Array
    num_read: Array


def in_context(
    model: Embedding,
    *,
    way: int | None = None,
    num_outputs: int | None = None,
    context: int | None = 256,
    token_size: int = 64,
    layers: int = 4,
    heads: int = 4,
    trains_on: TrainsOn | None = None,
    objective: Objective | None = None,
) -> Learner:
    """Builds the in-context transformer.

    Choose it where there are very many tasks to learn from: it assumes least of all
    learners on how labels follow from a support set, and so needs most.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, ...]`; `identity()` for tables.
      way: classes of a task, N; give it or `num_outputs`.
      num_outputs: d, where targets are real numbers `[n, d]`.
      context: how many examples are kept, and how far each sees back; of a larger
        support set the oldest make room. None reads the whole set at once.
      token_size: of the tokens, a multiple of `heads`.
      layers: of the transformer, at least 1.
      heads: of its attention.
      trains_on: `"sequence"`, the loss of every example before its label is seen, and
        of the queries; `"query"`, of these alone. By default the first if it is causal.
      objective: `(outputs, y) -> [n]`, the loss of every example; by default
        cross-entropy of classes, or the squared error of numbers.

    Returns:
      A learner whose `adapted` holds a `Cache`; with a `context` it has a `stream`. See
      `metajax.builders.streams.stream_learner`.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import in_context
      >>> from metajax.models import identity
      >>> learner = in_context(identity(), way=5, context=25)
    """
    check_parts(model=model)
    check_integers(1, token_size=token_size, layers=layers)
    check_heads(heads, token_size=token_size)
    if context is not None:
        check_integers(1, context=context)
    if trains_on is None:
        trains_on = "query" if context is None else "sequence"
    reader = _reader(context, token_size, layers, heads)
    return stream_learner(
        model,
        reader,
        way=way,
        num_outputs=num_outputs,
        objective=objective,
        trains_on=trains_on,
    )


class _Layer(nn.Module):
    size: int
    heads: int

    def setup(self) -> None:
        self.norm = nn.LayerNorm()
        self.project = nn.DenseGeneral((3, self.heads, self.size // self.heads))
        self.join = nn.DenseGeneral(self.size, axis=(-2, -1))
        self.mlp = nn.Sequential(
            [nn.LayerNorm(), nn.Dense(4 * self.size), nn.gelu, nn.Dense(self.size)]
        )

    def __call__(
        self, tokens: Array, see: Callable[[Array, Array], tuple[Array, Array, Array]]
    ) -> tuple[Array, Array, Array]:
        """Tokens `[m, size]` after the layer, and the keys and values that they saw.

        `see` makes keys, values `[c, heads, size / heads]` and a mask bool `[m, c]` of
        the keys and values `[m, heads, size / heads]` of the tokens themselves.
        """
        queries, keys, values = jnp.unstack(self.project(self.norm(tokens)), axis=1)
        keys, values, mask = see(keys, values)
        seen = jax.nn.dot_product_attention(queries, keys, values, mask=mask[None])
        tokens = tokens + self.join(seen)
        return tokens + self.mlp(tokens), keys, values


class _Transformer(nn.Module):
    size: int
    layers: int
    heads: int
    num_outputs: int

    def setup(self) -> None:
        self.of_input = nn.Dense(self.size)
        self.of_label = nn.Dense(self.size, use_bias=False)
        initial = nn.initializers.normal(0.02)
        self.first = self.param("first", initial, (1, self.size))
        self.asked = self.param("asked", initial, (1, self.size))
        self.stack = [_Layer(self.size, self.heads) for _ in range(self.layers)]
        self.outputs = nn.Sequential([nn.LayerNorm(), nn.Dense(self.num_outputs)])

    def read(self, features: Array, labels: Array, mask: Array) -> tuple[Array, Array]:
        """Gives keys and values of start token and pairs, as `mask` lets them see."""
        pairs = self.of_input(features) + self.of_label(labels)
        tokens = jnp.concatenate([self.first, pairs])
        kept = []
        for layer in self.stack:
            tokens, *seen = layer(tokens, lambda keys, values: (keys, values, mask))
            kept.append(seen)
        keys, values = zip(*kept, strict=True)
        return jnp.stack(keys), jnp.stack(values)

    def write(
        self, features: Array, label: Array, cache: Cache, slot: Array, mask: Array
    ) -> tuple[Array, Array]:
        """Writes the keys and values of one more pair into a slot."""
        tokens = self.of_input(features[None]) + self.of_label(label[None])
        kept = []
        for layer, *old in zip(self.stack, cache.keys, cache.values, strict=True):

            def put(*new: Array, old: list[Array] = old) -> tuple[Any, ...]:
                both = zip(old, new, strict=True)
                return *(o.at[slot].set(n[0]) for o, n in both), mask[None]

            tokens, *seen = layer(tokens, put)
            kept.append(seen)
        keys, values = zip(*kept, strict=True)
        return jnp.stack(keys), jnp.stack(values)

    def ask(self, features: Array, keys: Array, values: Array, mask: Array) -> Array:
        """Outputs of queries, which see keys and values as `mask` `[m, c]` says."""
        tokens = self.of_input(features) + self.asked
        for number, layer in enumerate(self.stack):
            seen = keys[number], values[number], mask
            tokens, *_ = layer(tokens, lambda *own, seen=seen: seen)
        return self.outputs(tokens)

    def __call__(self, features: Array, labels: Array, mask: Array) -> Array:
        return self.ask(features, *self.read(features, labels, mask), mask[1:])


def _reader(context: int | None, size: int, layers: int, heads: int) -> Reader:
    def network(num_outputs: int) -> _Transformer:
        return _Transformer(size, layers, heads, num_outputs)

    def apply(params: PyTree, method: str, *inputs: Any) -> Any:
        bias = params["params"]["outputs"]["layers_1"]["bias"]
        return network(bias.size).apply(params, *inputs, method=method)

    def init(key: Array, features: Array, label: Array) -> PyTree:
        mask = jnp.ones((2, 2), bool)
        return network(label.size).init(key, features[None], label[None], mask)

    def read(
        params: PyTree, features: Array, labels: Array, mask: Array | None
    ) -> tuple[Cache, Array | None]:
        if mask is None:
            mask = jnp.ones(labels.shape[0], bool)
        is_real = jnp.concatenate([jnp.ones(1, bool), mask])
        if context is None:
            see = jnp.broadcast_to(is_real[None], (is_real.size,) * 2)
            keys, values = apply(params, "read", features, labels, see)
            return Cache(keys, values, is_real, jnp.sum(is_real) - 1), None
        # The start token is number 0, the first example 1, and so on.
        number = jnp.cumsum(is_real) - 1
        back = number[:, None] - number[None, :]
        is_first = (jnp.arange(is_real.size) == 0)[None, :]
        is_seen = (back >= 0) & (back < context) | is_first
        keys, values = apply(params, "read", features, labels, is_seen & is_real[None])
        was_seen = (back > 0) & (back <= context) | is_first
        outputs = apply(
            params, "ask", features, keys, values, (was_seen & is_real[None])[1:]
        )
        count = number[-1]
        slots = 1 + (number - 1) % context
        is_kept = is_real & (number > count - context)
        # Out of range, and so dropped, is where the others go.
        slots = jnp.where(is_first[0], 0, jnp.where(is_kept, slots, 1 + context))

        def put(leaf: Array) -> Array:
            empty = jnp.zeros((leaf.shape[0], 1 + context, *leaf.shape[2:]), leaf.dtype)
            return empty.at[:, slots].set(leaf, mode="drop")

        return Cache(put(keys), put(values), filled(count), count), outputs

    def filled(count: Array) -> Array:
        assert context is not None
        return jnp.arange(1 + context) <= count

    def start(params: PyTree) -> Cache:
        features = params["params"]["of_input"]["kernel"].shape[0]
        labels = params["params"]["of_label"]["kernel"].shape[0]
        dtype = float_type(params)
        empty = jnp.zeros((0, features), dtype), jnp.zeros((0, labels), dtype)
        return read(params, *empty, None)[0]

    def answer(params: PyTree, cache: Cache, features: Array) -> Array:
        mask = cache.is_filled[None]
        return apply(params, "ask", features[None], cache.keys, cache.values, mask)[0]

    def step(
        params: PyTree, cache: Cache, features: Array, label: Array
    ) -> tuple[Cache, Array]:
        assert context is not None
        count = cache.num_read + 1
        slot = 1 + cache.num_read % context
        keys, values = apply(
            params, "write", features, label, cache, slot, filled(count)
        )
        new = Cache(keys, values, filled(count), count)
        return new, answer(params, cache, features)

    return Reader(init, start, answer, step if context is not None else None, read)
