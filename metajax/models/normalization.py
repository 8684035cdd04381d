"""Normalisation without hidden state: whose statistics are used is a named choice.

S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015, https://arxiv.org/abs/1502.03167;
J. Bronskill et al., "TaskNorm", ICML 2020, https://arxiv.org/abs/2003.03284, compares
the choices below for meta-learning.

* `"none"`: no normalisation.
* `"layer"`: of each example, over all its axes. Inductive.
* `"group"`: of each example, over space and one group of channels. Inductive.
* `"batch"`: of the batch at hand. The queries see one another, so predictions are
  transductive, as in MAML's official code.
* `"support"`: of the support set, for support and query alike. Inductive.
* `"calibrated"`: of the batch at hand in training; then averages over tasks, which one
  call of `calibrate` freezes into the parameters. Inductive from then on.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.checks import (
    check_choice,
    check_integers,
    check_keys,
    check_parts,
    named_if_other,
)
from metajax.masks import hide_padding
from metajax.types import Array, Examples, Model, PyTree

__all__ = [
    "NORMALIZATIONS",
    "PER_CHANNEL",
    "STATISTICS",
    "Normalize",
    "calibrate",
    "check_normalization",
    "freeze_support_statistics",
]

Normalization = Literal["none", "layer", "group", "batch", "support", "calibrated"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)

PER_CHANNEL = ("batch", "support", "calibrated")
"""Those that take the mean of each channel away, and any bias added before with it."""

STATISTICS = "statistics"
"""The Linen collection of frozen statistics; absent until something is frozen."""


def check_normalization(kind: str) -> None:
    """Raises a ValueError unless `kind` is one of `NORMALIZATIONS`."""
    check_choice(NORMALIZATIONS, normalization=kind)


class Normalize(nn.Module):
    """Normalises `[n, ..., C]` and then scales and shifts each channel.

    Attributes:
      kind: one of `NORMALIZATIONS`.
      num_groups: groups of channels, for `"group"`; must divide C.
      epsilon: added to the variance.
    """

    kind: str
    num_groups: int = 8
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Normalises `x` `[n, ..., C]`; rows where `mask` `[n]` is False never count.

        Raises:
          ValueError: if `kind` is unknown.
        """
        check_normalization(self.kind)
        if self.kind == "none":
            return x
        x = hide_padding(x, mask)
        # Two passes everywhere: the difference of moments loses digits when the mean is
        # large, and in half precision squares overflow, so statistics are float32.
        if self.kind == "layer":
            return nn.LayerNorm(
                epsilon=self.epsilon,
                reduction_axes=tuple(range(1, x.ndim)),
                feature_axes=-1,
                use_fast_variance=False,
            )(x)
        if self.kind == "group":
            return nn.GroupNorm(
                self.num_groups, epsilon=self.epsilon, use_fast_variance=False
            )(x)
        mean, variance = self._statistics(x, mask)
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), channels)
        bias = self.param("bias", nn.initializers.zeros_init(), channels)
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        shift = bias - mean * factor
        ones = (1,) * (x.ndim - 1)
        outputs = x * factor.reshape(ones + channels) + shift.reshape(ones + channels)
        return outputs.astype(jnp.result_type(x, scale, bias))

    def _statistics(self, x: Array, mask: Array | None) -> tuple[Array, Array]:
        """Mean and variance per channel `[C]`: frozen ones where there are any."""
        keeps = self.kind != "batch" and not self.is_initializing()
        freezes = keeps and self.is_mutable_collection(STATISTICS)
        if keeps and self.has_variable(STATISTICS, "mean") and not freezes:
            mean: Array = self.get_variable(STATISTICS, "mean")
            variance: Array = self.get_variable(STATISTICS, "variance")
            if self.kind == "calibrated":  # constants, not meta-parameters
                return jax.lax.stop_gradient((mean, variance))
            return mean, variance
        where = None if mask is None else mask.reshape((-1,) + (1,) * (x.ndim - 1))
        axes = tuple(range(x.ndim - 1))
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = jnp.mean(x, axes, where=where)
        centred = x - mean.reshape((1,) * (x.ndim - 1) + mean.shape)
        variance = jnp.mean(jnp.square(centred), axes, where=where)
        if freezes:
            self.put_variable(STATISTICS, "mean", mean)
            self.put_variable(STATISTICS, "variance", variance)
        return mean, variance


def freeze_support_statistics(
    model: Model, params: PyTree, support: Examples
) -> PyTree:
    """Ends a learner's `adapt`: with `"support"`, freezes the support set's statistics.

    Args:
      model: the model that `params` belong to.
      params: its adapted parameters.
      support: the support set; only `x` and `mask` are used.

    Returns:
      `params` with statistics, or unchanged for any other normalisation.
    """
    if model.normalization != "support" or model.statistics is None:
        return params
    return model.statistics(params, support.x, mask=support.mask)


def calibrate(
    model: Model,
    params: PyTree,
    tasks: Callable[[Array], PyTree],
    key: Array,
    *,
    num_tasks: int = 100,
) -> PyTree:
    """Freezes average normalisation statistics over tasks into the parameters.

    The averages are of the statistics of each support and query set, under `params` as
    they stand: for learners that change the parameters, those before adaptation.

    Args:
      model: a model with normalisation `"calibrated"`.
      params: its parameters.
      tasks: a task distribution; use the one of training.
      key: chooses the tasks; the key is consumed.
      num_tasks: how many tasks to average over, at least 1.

    Returns:
      `params` with statistics, for the same model: it is inductive from then on.

    Raises:
      ValueError: if the model's normalisation is not `"calibrated"`, or `num_tasks` is
        not at least 1.
    """
    check_parts(tasks=tasks)
    check_parts(model=model)
    if model.normalization != "calibrated" or model.statistics is None:
        raise ValueError(
            "Only a model with normalization='calibrated' can be calibrated, got "
            f"normalization={model.normalization!r}. Build and train the model with "
            "'calibrated' first: its parameters are those of 'batch'."
        )
    check_integers(1, num_tasks=num_tasks)
    check_keys(num_tasks=num_tasks)
    statistics = model.statistics

    @jax.jit
    def average(params: PyTree, tasks: Callable, keys: Array) -> PyTree:
        def add(total: PyTree, key: Array) -> tuple[PyTree, None]:
            task = tasks(key)
            for examples in task:
                frozen = statistics(params, examples.x, mask=examples.mask)[STATISTICS]
                total = jax.tree.map(jnp.add, total, frozen)
            return total, None

        shapes = jax.eval_shape(lambda: statistics(params, tasks(keys[0]).support.x))
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes[STATISTICS]
        )
        total, _ = jax.lax.scan(add, zeros, keys)
        return jax.tree.map(lambda leaf: leaf / (2 * len(keys)), total)

    if jax.tree_util.all_leaves([tasks]):
        tasks = jax.tree_util.Partial(tasks)  # a plain function is no pytree

    def init(key: Array, tasks: Callable) -> PyTree:
        return model.init(key, tasks(key).support.x)

    with named_if_other(init, tasks, params=params):
        return params | {
            STATISTICS: average(params, tasks, jax.random.split(key, num_tasks))
        }
