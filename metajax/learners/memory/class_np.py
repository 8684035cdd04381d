"""Conditional neural processes that classify: one mean of codes for each class.

M. Garnelo, D. Rosenbaum, C. J. Maddison, T. Ramalho, D. Saxton, M. Shanahan, Y. W. Teh,
D. J. Rezende, S. M. A. Eslami, "Conditional Neural Processes", ICML 2018,
https://arxiv.org/abs/1807.01613, the experiment on one-shot classification.

    r_k = mean over support examples i of class k of phi(f(x_i))
    logits(x) = g([f(x), r_1, .., r_N])

g sees all classes at once and learns how to compare; it is no function of one class at
a time, so that there is one number of ways.

Differs from the paper: f is any model, the same for support and query, and sizes are
our own.
"""

from typing import cast

import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.heads import Embedded, Head, head_learner
from metajax.builders.neural_processes import pair_layers
from metajax.checks import check_integers, check_parts
from metajax.models.deep_sets import Layers
from metajax.types import Array, Embedding, Learner, Metrics, PyTree

__all__ = ["class_np"]


class _Network(nn.Module):
    way: int
    size: int
    encoder_layers: int
    decoder_layers: int

    def setup(self) -> None:
        self.phi = pair_layers(self.size, self.encoder_layers)
        sizes = (*(self.size,) * self.decoder_layers, self.way)
        self.decoder = Layers(sizes, ends_linear=True)

    def encode(self, support: Embedded) -> Array:
        """Puts the means of classes one after another, `[N * size]`."""
        codes = self.phi(support.features)
        return support._replace(features=codes).means.reshape(-1)

    def decode(self, features: Array, classes: Array) -> Array:
        rows = jnp.broadcast_to(classes, (len(features), len(classes)))
        return self.decoder(jnp.concatenate([features, rows], axis=1))

    def __call__(self, support: Embedded) -> Array:
        return self.decode(support.features, self.encode(support))


def class_np(
    model: Embedding,
    *,
    way: int,
    code_size: int = 128,
    encoder_layers: int = 1,
    decoder_layers: int = 3,
) -> Learner:
    """Builds conditional neural processes that classify.

    Choose it where an answer must cost the same however large the support set is, and
    no fixed distance between embeddings fits. It has to learn to compare, which
    `prototypical` knows from the start.

    Args:
      model: an embedding, inputs `[n, ...]` to vectors `[n, D]`.
      way: classes of a task, N; labels are below it.
      code_size: of a code, and units of hidden layers.
      encoder_layers: of phi, at least 1, the last one linear.
      decoder_layers: hidden layers of g, at least 1.

    Returns:
      A learner whose `meta_params` are `metajax.builders.heads.HeadLearnerParams`;
      `predict` gives logits `[n, N]`, minus infinity for classes without a support
      example. The order of the support set does not matter; the numbers of classes do.

    Raises:
      ValueError: if an argument is out of range; in all four functions, if embeddings
        are no vectors.

    Example:
      >>> from metajax.learners import class_np
      >>> from metajax.models import conv4
      >>> learner = class_np(conv4(normalization="calibrated"), way=5)
    """
    check_parts(model=model)
    check_integers(
        1,
        way=way,
        code_size=code_size,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
    )
    network = _Network(way, code_size, encoder_layers, decoder_layers)

    def fit(
        head_params: PyTree, support: Embedded, key: Array | None
    ) -> tuple[Array, Metrics]:
        del key
        classes = network.apply(head_params, support, method="encode")
        return cast(Array, classes), {}

    def classify(
        head_params: PyTree,
        classes: Array,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del mask, key
        logits = network.apply(head_params, features, classes, method="decode")
        return cast(Array, logits)

    return head_learner(model, Head(fit, classify, network.init), way=way)
