"""A hypernetwork: a set encoder reads a task and generates a network for it.

D. Ha, A. Dai, Q. Le, "HyperNetworks", ICLR 2017, https://arxiv.org/abs/1609.09106, for
weights that a network generates; there they depend on a layer or a time step, here on a
support set, which Deep Sets encode (`metajax.models.deep_sets`).

    c = encoder({(x_i, y_i)}),   phi = theta + V^T c
    (`metajax.builders.weight_generators`) outputs = model(phi, x)

What is generated is all of a small network, or a part of a larger one: `generates=
only("scale", "bias")` of a network with normalisation is feature-wise modulation. No
gradient is taken when a task is learned. With `metajax.learners.optimizer.
lstm_generator` an LSTM reads the task, and inner steps may follow; for few-shot
classification, where classes have no names, see `metajax.learners.memory.cnaps`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from metajax.builders.targets import check_targets, choose_objective
from metajax.builders.weight_generators import check_generator, generate, init_generator
from metajax.checks import check_parts
from metajax.filters import everything
from metajax.models.deep_sets import task_encoder
from metajax.models.normalization import freeze_support_statistics
from metajax.objectives import query_loss
from metajax.types import (
    Array,
    Examples,
    Filter,
    Learner,
    Model,
    Objective,
    PyTree,
    Task,
)

__all__ = ["HypernetworkParams", "hypernetwork"]


class HypernetworkParams(NamedTuple):
    """What is learned.

    Attributes:
      base: theta, parameters of the model.
      encoder: those of the set encoder.
      generator: V and U; see `metajax.builders.weight_generators`.
    """

    base: PyTree
    encoder: PyTree
    generator: dict[str, Array]


def hypernetwork(
    model: Model,
    *,
    way: int | None = None,
    num_outputs: int | None = None,
    code_size: int = 64,
    hidden_sizes: Sequence[int] = (64, 64),
    rank: int | None = None,
    offset_scale: float = 0.1,
    generates: Filter = everything,
    objective: Objective | None = None,
) -> Learner:
    """Builds the hypernetwork.

    Choose it where a task has few hidden parameters and an answer must be cheap: to
    adapt is one pass of an encoder and one product, and to predict is one pass of a
    small network.

    Args:
      model: the network, such as `mlp(1)`.
      way: classes of a task, N, whose labels mean the same in every task; give it or
        `num_outputs`.
      num_outputs: how many real numbers a target `[n, ...]` has.
      code_size: of the code.
      hidden_sizes: sizes of the encoder's layers.
      rank: None for a full matrix from code to parameters, or the rank of one of low
        rank, from 1 to `code_size`.
      offset_scale: size of an offset V^T c at first, for codes of unit size; above 0.
      generates: which parameters have an offset; see `metajax.filters`.
      objective: `(outputs, y) -> [n]`, the loss of every example; by default
        cross-entropy of classes, or the squared error of numbers.

    Returns:
      A learner whose `meta_params` are `HypernetworkParams` and whose `adapted` are
      parameters of `model`. The order of the support set does not matter.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import hypernetwork
      >>> from metajax.models import mlp
      >>> learner = hypernetwork(mlp(1), num_outputs=1)
    """
    check_parts(model=model, generates=generates)
    objective = choose_objective(way, num_outputs, objective)
    encoder = task_encoder(code_size, num_classes=way, hidden_sizes=hidden_sizes)
    check_generator(code_size, rank, offset_scale)

    def init(key: Array, task: Task) -> HypernetworkParams:
        key_base, key_encoder, key_generator = jax.random.split(key, 3)
        base = model.init(key_base, task.support.x)
        generator = init_generator(
            key_generator,
            base,
            size=code_size,
            rank=rank,
            offset_scale=offset_scale,
            generates=generates,
        )
        support = task.support
        size_of = math.prod(support.y.shape[1:])
        check_targets(support.y, way, num_outputs, size=size_of)
        return HypernetworkParams(
            base, encoder.init(key_encoder, task.support), generator
        )

    def adapt(
        meta_params: HypernetworkParams, support: Examples, *, key: Array | None = None
    ) -> PyTree:
        del key
        base, params, generator = meta_params
        code = encoder.apply(params, support)
        phi = generate(generator, base, code, generates)
        return freeze_support_statistics(model, phi, support)

    def predict(
        adapted: PyTree,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        return model.apply(adapted, inputs, mask=mask, key=key)

    return Learner(init, adapt, predict, query_loss(adapt, predict, objective))
