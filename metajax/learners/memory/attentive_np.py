"""Attentive neural processes: each target reads the context points that are like it.

H. Kim, A. Mnih, J. Schwarz, M. Garnelo, A. Eslami, D. Rosenbaum, O. Vinyals, Y. W. Teh,
"Attentive Neural Processes", ICLR 2019, https://arxiv.org/abs/1901.05761, section 3.

    r_i = phi([x_i, y_i])
    r_* = multi-head attention of the query k(x_*) over keys k(x_i), values r_i
    mean, raw = decode([x_*, r_*, z]),   scale = m + (1 - m) softplus(raw)

k is a network with `key_layers`, m is `min_scale`. By default there is no z, which is
the conditional variant (CANP in later papers), trained by the likelihood. The paper's
ANP is `latent=True`: z ~ q(z | s), s = mean over i of phi'([x_i, y_i]), phi' another
network, trained by the evidence bound of `metajax.builders.neural_processes`. With
`self_attention` layers the r_i read one another first, in both paths, as the paper's do
in its experiments with images.

Differs from the paper: what its targets hold of the context is no part of the loss here
(see `conditional_np`); layers of self-attention are pre-norm blocks with a network; and
of an empty context r_* is 0.
"""

import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.neural_processes import (
    Decoder,
    Latent,
    check_network,
    neural_process,
    pair_layers,
)
from metajax.checks import check_flags, check_integers
from metajax.distributions import Gaussian
from metajax.models.attention import (
    AttentionBlock,
    MultiHeadAttention,
    check_heads,
)
from metajax.models.deep_sets import Layers
from metajax.types import Array, Learner

__all__ = ["attentive_np"]

Context = tuple[Array, Array, Array]


class _Encoder(nn.Module):
    """Encodes points `[n, size]`, which may read one another."""

    size: int
    layers: int
    self_attention: int
    heads: int

    @nn.compact
    def __call__(self, x: Array, y: Array, is_real: Array) -> Array:
        r = pair_layers(self.size, self.layers)(jnp.concatenate([x, y], axis=1))
        for _ in range(self.self_attention):
            r = AttentionBlock(self.heads, self.size)(r, r, is_real)
        return r


class _Network(nn.Module):
    num_outputs: int
    size: int
    heads: int
    encoder_layers: int
    key_layers: int
    decoder_layers: int
    self_attention: int
    has_latent: bool
    min_scale: float

    def setup(self) -> None:
        encoder = (self.size, self.encoder_layers, self.self_attention, self.heads)
        self.phi = _Encoder(*encoder)
        self.key = Layers((self.size,) * self.key_layers, ends_linear=True)
        self.attention = MultiHeadAttention(self.heads)
        self.decoder = Decoder(
            self.num_outputs, self.size, self.decoder_layers, self.min_scale
        )
        if self.has_latent:
            self.latent_phi = _Encoder(*encoder)
            self.posterior = Latent(self.size)

    def encode(self, x: Array, y: Array, is_real: Array) -> Context:
        """Computes keys `[n, size]`, values `[n, size]`, and which are real."""
        return self.key(x), self.phi(x, y, is_real), is_real

    def latent(self, x: Array, y: Array, is_real: Array) -> Gaussian:
        return self.posterior(self.latent_phi(x, y, is_real), is_real)

    def decode(self, x: Array, context: Context, z: Array | None) -> Gaussian:
        r = self.attention(self.key(x), *context)
        return self.decoder(x, r) if z is None else self.decoder(x, r, z)


def attentive_np(
    *,
    num_outputs: int = 1,
    code_size: int = 128,
    heads: int = 8,
    encoder_layers: int = 4,
    key_layers: int = 2,
    decoder_layers: int = 2,
    self_attention: int = 0,
    latent: bool = False,
    min_scale: float = 0.1,
    num_samples: int = 32,
    train_samples: int = 1,
) -> Learner:
    """Builds attentive neural processes.

    Choose it over `conditional_np` where predictions have to pass through the support
    points: attention finds those that are near. Time grows with the product of support
    and query.

    Args:
      num_outputs: d, numbers of a target.
      code_size: of r and z, and units of hidden layers; 128 in the paper. A multiple of
        `heads`.
      heads: of attention, at least 1; 8 in the paper.
      encoder_layers: of phi, at least 1, the last one linear.
      key_layers: of k, at least 1, the last one linear; 2 in the official code.
      decoder_layers: hidden layers of the decoder, at least 1.
      self_attention: layers in which support points read one another, at least 0.
      latent: whether there is a latent path, as in the paper, beside the attention.
      min_scale: below which no predicted standard deviation is, in (0, 1); 0.1 is that
        of the official code, too much where the noise is less.
      num_samples: S, samples of z that `adapt` draws, at least 1; of no effect without
        a latent.
      train_samples: samples of z for the bound, at least 1; likewise.

    Returns:
      A learner for tasks with real targets `[n, d]`. `predict` gives a `Gaussian`, mean
      and scale `[n, d]`, or with a latent what `latent_np` gives; see
      `metajax.builders.neural_processes`. A support set may be empty.

    Raises:
      ValueError: if an argument is out of range; in all four functions, if targets or
        inputs have other shapes than `num_outputs` and `init` say.

    Example:
      >>> from metajax.learners import attentive_np
      >>> learner = attentive_np(latent=True)
    """
    check_flags(latent=latent)
    check_network(
        min_scale=min_scale,
        num_outputs=num_outputs,
        code_size=code_size,
        encoder_layers=encoder_layers,
        key_layers=key_layers,
        decoder_layers=decoder_layers,
    )
    check_heads(heads, code_size=code_size)
    check_integers(0, self_attention=self_attention)
    network = _Network(
        num_outputs,
        code_size,
        heads,
        encoder_layers,
        key_layers,
        decoder_layers,
        self_attention,
        latent,
        min_scale,
    )
    return neural_process(
        network,
        num_outputs=num_outputs,
        has_latent=latent,
        num_samples=num_samples,
        train_samples=train_samples,
    )
