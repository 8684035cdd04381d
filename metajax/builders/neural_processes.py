"""Neural processes: a set of points in, a distribution over functions out.

    context = encode({(x_i, y_i)}),    z ~ q(z | {(x_i, y_i)}),
    p(y | x) = N(mean, scale^2),   mean, scale = decode(x, context, z)

One family of learners for regression: `adapt` encodes the support set once and changes
no parameter, so a task costs one forward pass. What they share is here: the decoder,
the latent, the two objectives, and the assembly of a network into a `Learner`. Each
target is answered by itself, given context and z, and order never matters.

Without a latent the objective is the negative log likelihood of the query targets. With
one it is the negative evidence bound of M. Garnelo et al., "Neural Processes", 2018,
https://arxiv.org/abs/1807.01622, its section 2, for support S and query T:

    log p(y_T | x_T, S) >= E over q(z | S u T) of sum over T of log p(y | x, z)
                           - KL(q(z | S u T) || q(z | S))

divided by the number of query points, so that both are in nats a point.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.checks import check_integers, is_number
from metajax.distributions import (
    Gaussian,
    Mixture,
    kl_divergence,
    log_likelihood,
    negative_log_likelihood,
)
from metajax.masks import hide_padding, masked_mean
from metajax.models.deep_sets import Layers, set_mean
from metajax.objectives import query_loss
from metajax.types import Array, Examples, Learner, Metrics, PyTree, Task

__all__ = [
    "AdaptedProcess",
    "Decoder",
    "Latent",
    "check_network",
    "neural_process",
    "pair_layers",
]


class AdaptedProcess(NamedTuple):
    """What one task teaches.

    Attributes:
      params: of the network, which the task does not change.
      context: the encoded support set, a pytree.
      latents: samples of z `[S, size]`; None if the network has no latent.
    """

    params: PyTree
    context: PyTree
    latents: Array | None


class Decoder(nn.Module):
    """From an input and what is known of the task to a distribution of its target.

    Attributes:
      num_outputs: d, numbers of a target.
      size: units of hidden layers.
      layers: hidden layers.
      min_scale: below which no scale is: scale = m + (1 - m) softplus(.), by the
        official code with m = 0.1.
    """

    num_outputs: int
    size: int
    layers: int
    min_scale: float

    @nn.compact
    def __call__(self, x: Array, *known: Array) -> Gaussian:
        """Answers inputs `[n, D]`, each `known` being `[n, W]` or `[W]` for all."""
        rows = [jnp.broadcast_to(k, (len(x), k.shape[-1])) for k in known]
        sizes = (*(self.size,) * self.layers, 2 * self.num_outputs)
        out = Layers(sizes, ends_linear=True)(jnp.concatenate([x, *rows], axis=1))
        mean, raw = jnp.split(out, 2, axis=1)
        scale = self.min_scale + (1 - self.min_scale) * nn.softplus(raw)
        return Gaussian(mean, scale)


class Latent(nn.Module):
    """q(z | points): a Gaussian from the mean of what the points are encoded as.

    Its scale lies in (0.1, 1), as in the official code: no sample is ever certain, so
    the KL cannot run away.

    Attributes:
      size: of z, and units of the layer before it.
    """

    size: int

    @nn.compact
    def __call__(self, points: Array, is_real: Array) -> Gaussian:
        """From encoded points `[n, W]`, of which some are real, to z `[size]`."""
        hidden = Layers((self.size,))(set_mean(points, is_real))
        mean = nn.Dense(self.size, name="mean")(hidden)
        raw = nn.Dense(self.size, name="scale")(hidden)
        return Gaussian(mean, 0.1 + 0.9 * nn.sigmoid(raw))


def pair_layers(size: int, layers: int) -> Layers:
    """Builds the network that encodes each point [x_i, y_i] by itself."""
    return Layers((size,) * layers, ends_linear=True)


def check_network(*, min_scale: float, **counts: int) -> None:
    """Raises a ValueError unless the numbers of a network are in range.

    Args:
      min_scale: in (0, 1).
      **counts: sizes and numbers of layers, at least 1.
    """
    check_integers(1, **counts)
    if not is_number(min_scale) or not 0 < min_scale < 1:
        raise ValueError(
            f"`min_scale` must be above 0 and below 1, got {min_scale!r}; take less "
            "than the noise of the targets."
        )


def neural_process(
    network: nn.Module,
    *,
    num_outputs: int,
    has_latent: bool = False,
    num_samples: int = 1,
    train_samples: int = 1,
) -> Learner:
    """Makes a learner of a network.

    Args:
      network: a module with the methods `encode(x, y, is_real) -> context`,
        `decode(x, context, z) -> Gaussian`, and if it has a latent `latent(x, y,
        is_real) -> Gaussian [size]`, else z is None. Points are `x` `[n, D]`, `y`
        `[n, d]` and bool `is_real` `[n]`, with zeros where they are not.
      num_outputs: d, numbers of a target.
      has_latent: whether there is a latent.
      num_samples: S, samples of z that `adapt` draws, at least 1.
      train_samples: samples of z for the evidence bound, at least 1.

    Returns:
      A learner whose `meta_params` are those of the network and whose `adapted` is
      `AdaptedProcess`. `predict` gives a `Gaussian`, mean and scale `[n, d]`; with a
      latent, a `Mixture` of S, or of the one at the mean of q(z | support) where
      `adapt` had no key. So all that is random is in `adapt`, and answers to several
      queries belong to the same samples. Its loss without a key is at the mean of q as
      well, and then no bound; it reports `kl`, nats of the task, and `reconstruction`,
      nats a point.

    Raises:
      ValueError: if a number is out of range; in all four functions, if targets are no
        real numbers `[n, d]`, or inputs are not as wide as in `init`.
    """
    check_integers(1, num_samples=num_samples, train_samples=train_samples)

    def call(
        method: str | Callable[..., Any], params: PyTree, x: Array, *others: Any
    ) -> Any:
        try:
            return network.apply(params, x, *others, method=method)
        except flax.errors.ScopeParamShapeError as error:
            raise ValueError(
                f"Inputs have {x.shape[1]} columns, and these parameters are for "
                "another number of them: support and query of all tasks must have as "
                "many as the task that `init` saw."
            ) from error

    def everything(
        module: Any, x: Array, y: Array, is_real: Array, inputs: Array
    ) -> Gaussian:
        z = module.latent(x, y, is_real).mean if has_latent else None
        return module.decode(inputs, module.encode(x, y, is_real), z)

    def init(key: Array, task: Task) -> PyTree:
        support, query = (_points(part, num_outputs) for part in task)
        if support[0].shape[1] != query[0].shape[1]:
            raise ValueError(
                f"Support inputs have {support[0].shape[1]} columns and query inputs "
                f"{query[0].shape[1]}; both must be inputs of the same function."
            )
        return network.init(key, *support, query[0], method=everything)

    def sample(latent: Gaussian, num: int, key: Array | None) -> Array:
        mean, scale = latent
        if key is None:
            return mean[None]
        noise = jax.random.normal(key, (num, *mean.shape), mean.dtype)
        return mean[None] + scale[None] * noise

    def adapt(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> AdaptedProcess:
        points = _points(support, num_outputs)
        context = call("encode", meta_params, *points)
        latents = None
        if has_latent:
            latents = sample(call("latent", meta_params, *points), num_samples, key)
        return AdaptedProcess(meta_params, context, latents)

    def predict(
        adapted: AdaptedProcess,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Gaussian | Mixture:
        del key
        params, context, latents = adapted
        x = hide_padding(_columns(inputs), mask)
        if latents is None:
            return call("decode", params, x, context, None)
        decode = jax.vmap(lambda z: call("decode", params, x, context, z), out_axes=1)
        return Mixture(decode(latents))

    def bound(
        meta_params: PyTree, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        support, query = (_points(part, num_outputs) for part in task)
        both = [jnp.concatenate(parts) for parts in zip(support, query, strict=True)]
        prior = call("latent", meta_params, *support)
        posterior = call("latent", meta_params, *both)
        context = call("encode", meta_params, *support)
        x, y, is_real = query

        def log_likelihoods(z: Array) -> Array:
            outputs = call("decode", meta_params, x, context, z)
            return log_likelihood(outputs, y)

        each = jax.vmap(log_likelihoods)(sample(posterior, train_samples, key))
        reconstruction = masked_mean(jnp.mean(each, axis=0), is_real)
        kl = kl_divergence(posterior, prior)
        metrics = {"kl": kl, "reconstruction": reconstruction}
        return kl / jnp.sum(is_real) - reconstruction, metrics

    loss = bound
    if not has_latent:
        loss = query_loss(adapt, predict, negative_log_likelihood)
    return Learner(init, adapt, predict, loss)


def _columns(x: PyTree) -> Array:
    """Inputs as `[n, D]`."""
    if getattr(x, "ndim", 0) == 0:
        raise ValueError(
            "Inputs must be one array `[n, ...]`, got a pytree of structure "
            f"{jax.tree.structure(x)}; join them along the last axis."
        )
    return jnp.asarray(x).reshape(len(x), math.prod(x.shape[1:]))


def _points(examples: Examples, num_outputs: int) -> tuple[Array, Array, Array]:
    """Inputs `[n, D]`, targets `[n, d]` and which are real `[n]`, padding as 0.

    A set without any row becomes one row of padding, which every network takes.
    """
    x, y, mask = examples
    x, shape = _columns(x), jnp.shape(y)
    if not jnp.issubdtype(y.dtype, jnp.floating) or shape != (len(x), num_outputs):
        raise ValueError(
            f"Targets must be real numbers [{len(x)}, {num_outputs}], as `num_outputs` "
            f"is {num_outputs}, got {y.dtype} {list(shape)}; for class labels take "
            "another learner, such as `prototypical`."
        )
    is_real = jnp.ones(len(x), bool) if mask is None else mask
    x, y = hide_padding((x, jnp.asarray(y)), is_real)
    if len(x) > 0:
        return x, y, is_real
    blank = jnp.zeros((1, x.shape[1]), x.dtype), jnp.zeros((1, num_outputs), y.dtype)
    return *blank, jnp.zeros(1, bool)
