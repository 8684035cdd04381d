"""Attention between two sets, of which the one that is read may be padded or empty.

A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
https://arxiv.org/abs/1706.03762, section 3.2.2:

    head_h = softmax(Q W_q,h (K W_k,h)' / sqrt(D / heads)) V W_v,h,   out = [heads] W_o

There is no notion of order. Who reads an empty set gets 0.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.checks import check_integers
from metajax.models.deep_sets import Layers
from metajax.types import Array

__all__ = ["AttentionBlock", "MultiHeadAttention", "check_heads"]


def check_heads(heads: int, **sizes: int) -> None:
    """Raises a ValueError unless vectors of these sizes can be shared among heads."""
    check_integers(1, heads=heads)
    for name, size in sizes.items():
        if size % heads:
            raise ValueError(
                f"`{name}` must be a multiple of `heads`, got {size} and {heads}; "
                "change one."
            )


class MultiHeadAttention(nn.Module):
    """Every query reads the whole set.

    Attributes:
      heads: their number, which must divide D.
    """

    heads: int

    @nn.compact
    def __call__(self, query: Array, key: Array, value: Array, is_real: Array) -> Array:
        """Reads values `[m, D]` where their keys `[m, D]` are like queries `[n, D]`.

        Args:
          query: `[n, D]`.
          key: `[m, D]`.
          value: `[m, D]`; finite, those that are not real too.
          is_real: bool `[m]`, which members of the set there are.

        Returns:
          `[n, D]`, 0 if nothing is real.
        """
        size = query.shape[-1]
        q, k, v = (
            nn.Dense(size, use_bias=False, name=name)(x).reshape(
                len(x), self.heads, size // self.heads
            )
            for name, x in (("query", query), ("key", key), ("value", value))
        )
        read = jax.nn.dot_product_attention(q, k, v, mask=is_real[None, None, :])
        out = nn.Dense(size, use_bias=False, name="out")(read.reshape(len(query), size))
        return jnp.where(jnp.any(is_real), out, 0)


class AttentionBlock(nn.Module):
    """Attention and a small network, each added to what it is given (pre-norm).

    Attributes:
      heads: of the attention.
      hidden_size: units of the network's hidden layer.
    """

    heads: int
    hidden_size: int

    @nn.compact
    def __call__(self, x: Array, context: Array, is_real: Array) -> Array:
        """Lets `x` `[n, D]` read `context` `[m, D]`, which may be `x` itself.

        Args:
          x: `[n, D]`.
          context: `[m, D]`.
          is_real: bool `[m]`.

        Returns:
          `[n, D]`.
        """
        norm = nn.LayerNorm(name="norm_attention")
        seen = norm(context)
        x = x + MultiHeadAttention(self.heads, name="attention")(
            norm(x), seen, seen, is_real
        )
        sizes = (self.hidden_size, x.shape[-1])
        network = Layers(sizes, ends_linear=True, name="network")
        return x + network(nn.LayerNorm(name="norm_network")(x))
