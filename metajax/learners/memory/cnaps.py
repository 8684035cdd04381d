"""Conditional neural adaptive processes (CNAPs): a task sets scales, shifts and a head.

J. Requeima, J. Gordon, J. Bronskill, S. Nowozin, R. Turner, "Fast and Flexible
Multi-Task Classification Using Conditional Neural Adaptive Processes", NeurIPS 2019,
https://arxiv.org/abs/1906.07697, without the auto-regressive part.

    z_i = f(theta, x_i),  c = encoder({(z_i, y_i)})       classes in any order
    phi = theta + V^T c,  of the scales and shifts of f   FiLM layers, section 2.2
    w_k = psi_w(m_k),  b_k = psi_b(m_k),  m_k = mean of f(phi, x_i) over class k
    logits_k = w_k f(phi, x) + b_k                        section 2.1

One model serves tasks of any way and shot, and adapts without a gradient.

Differs from the paper: theta is learned with the rest, and not from a classifier of all
classes before; scales and shifts are those of f's own normalisations, and their offsets
one linear map of the code; the code is made of f's embeddings, and not by a second
network of images; w_k is m_k plus what psi makes of it, so that learning starts from
class means.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.heads import Embedded, check_vectors, embedded
from metajax.builders.weight_generators import check_generator, generate, init_generator
from metajax.checks import check_parts, check_way
from metajax.filters import only
from metajax.masks import hide_padding
from metajax.models.deep_sets import Layers, TaskEncoder, task_encoder
from metajax.models.normalization import freeze_support_statistics
from metajax.objectives import cross_entropy, query_loss, split_key
from metajax.types import (
    Array,
    CommandLine,
    Embedding,
    Examples,
    Filter,
    Learner,
    PyTree,
    Task,
    Way,
)

__all__ = ["SCALES_AND_SHIFTS", "AdaptedCNAPs", "CNAPsParams", "cnaps"]

SCALES_AND_SHIFTS = only("scale", "bias")


class CNAPsParams(NamedTuple):
    """What is learned.

    Attributes:
      embedding: theta, parameters of the model.
      encoder: those of the set encoder.
      generator: V and U; see `metajax.builders.weight_generators`.
      head: those of psi.
    """

    embedding: PyTree
    encoder: PyTree
    generator: dict[str, Array]
    head: PyTree


class AdaptedCNAPs(NamedTuple):
    """What one task teaches.

    Attributes:
      embedding: phi.
      weights: w, `[N, D]`.
      bias: b, `[N]`, minus infinity for classes without a support example.
    """

    embedding: PyTree
    weights: Array
    bias: Array


class _Head(nn.Module):
    hidden_sizes: Sequence[int]

    @nn.compact
    def __call__(self, means: Array) -> tuple[Array, Array]:
        sizes = (*self.hidden_sizes, means.shape[-1])
        weights = Layers(sizes, ends_linear=True, name="weights")(means)
        bias = Layers((*self.hidden_sizes, 1), ends_linear=True, name="bias")(means)
        return means + weights, bias[:, 0]


def cnaps(
    model: Embedding,
    *,
    way: Way = "support",
    code_size: int = 64,
    hidden_sizes: Sequence[int] = (64,),
    rank: int | None = None,
    offset_scale: float = 0.1,
    generates: Annotated[Filter, CommandLine("only:scale,bias")] = SCALES_AND_SHIFTS,
) -> Learner:
    """Builds CNAPs.

    Choose it for tasks from several domains, where one embedding does not serve all of
    them and inner steps are too slow.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`, with scales and shifts, such
        as `conv4(normalization="layer")`.
      way: the most classes a task may have, N; labels are below it. "support" takes
        the number of support examples, which always suffices.
      code_size: of the code.
      hidden_sizes: sizes of the layers of the encoder and of psi.
      rank: None for a full matrix from code to offsets, or the rank of one of low rank.
      offset_scale: size of an offset at first, for codes of unit size; above 0.
      generates: which parameters of the model have an offset; see `metajax.filters`.

    Returns:
      A learner whose `meta_params` are `CNAPsParams` and whose `adapted` are
      `AdaptedCNAPs`; `predict` gives logits `[n, N]`, minus infinity for classes
      without a support example. Neither the order of the support set nor the numbers of
      classes matter.

    Raises:
      ValueError: if an argument is out of range; when it is used, if `generates`
        accepts no parameter.

    Example:
      >>> from metajax.learners import cnaps
      >>> from metajax.models import conv4
      >>> learner = cnaps(conv4(normalization="layer"))
    """
    check_parts(model=model, generates=generates)
    check_way(way)
    task_encoder(code_size, hidden_sizes=hidden_sizes)  # checks its arguments
    check_generator(code_size, rank, offset_scale)
    hidden_sizes = tuple(hidden_sizes)
    head = _Head(hidden_sizes)

    def embed(params: PyTree, support: Examples, key: Array | None) -> Embedded:
        features = model.apply(params, support.x, mask=support.mask, key=key)
        check_vectors(features)
        return embedded(features, support, len(support.y) if way == "support" else way)

    def encoder_of(support: Examples) -> TaskEncoder:
        # It has no parameters of a class, and so serves any number of them.
        num = len(support.y) if way == "support" else way
        return task_encoder(
            code_size, num_classes=num, classes="unnamed", hidden_sizes=hidden_sizes
        )

    def read(seen: Embedded, support: Examples) -> Examples:
        return Examples(seen.features, support.y, support.mask)

    def init(key: Array, task: Task) -> CNAPsParams:
        keys = jax.random.split(key, 4)
        support = task.support
        base = model.init(keys[0], support.x)
        seen = embed(base, support, None)
        generator = init_generator(
            keys[2],
            base,
            size=code_size,
            rank=rank,
            offset_scale=offset_scale,
            generates=generates,
        )
        return CNAPsParams(
            base,
            encoder_of(support).init(keys[1], read(seen, support)),
            generator,
            head.init(keys[3], seen.means),
        )

    def adapt(
        meta_params: CNAPsParams, support: Examples, *, key: Array | None = None
    ) -> AdaptedCNAPs:
        base, params, generator, of_head = meta_params
        key_base, key_phi = split_key(key, 2)
        seen = embed(base, support, key_base)
        code = encoder_of(support).apply(params, read(seen, support))
        phi = generate(generator, base, code, generates)
        phi = freeze_support_statistics(model, phi, support)
        seen = embed(phi, support, key_phi)
        made: Any = head.apply(of_head, seen.means)
        weights, bias = made
        return AdaptedCNAPs(phi, weights, jnp.where(seen.is_present, bias, -jnp.inf))

    def predict(
        adapted: AdaptedCNAPs,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        features = model.apply(adapted.embedding, inputs, mask=mask, key=key)
        features = hide_padding(features, mask)
        return features @ adapted.weights.T + adapted.bias[None, :]

    return Learner(init, adapt, predict, query_loss(adapt, predict, cross_entropy))
