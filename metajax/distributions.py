"""What a regression learner predicts if it says how sure it is: normal distributions.

An answer is `Gaussian`, each number normal and independent of the others, or `Mixture`,
equally likely Gaussians that all queries share, as they come of samples of one latent.
`negative_log_likelihood` is an objective for both, and `metajax.evaluate` judges both.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.checks import check_instances, check_same_shapes, check_shapes
from metajax.types import Array

__all__ = [
    "Gaussian",
    "Mixture",
    "joint_log_likelihood",
    "kl_divergence",
    "log_likelihood",
    "moments",
    "negative_log_likelihood",
]


class Gaussian(NamedTuple):
    """Independent normal distributions.

    Attributes:
      mean: `[n, d]` for n queries with targets of d numbers; or any other shape.
      scale: standard deviations in the same shape, above 0.
    """

    mean: Array
    scale: Array


class Mixture(NamedTuple):
    """Equally likely Gaussians: component s is one for all queries together.

    Attributes:
      components: mean and scale `[n, S, d]`.
    """

    components: Gaussian


def log_likelihood(outputs: Gaussian | Mixture, y: Array) -> Array:
    """Computes the log density of each target by itself, in nats.

        log N(y_i; mean_i, scale_i^2),  or of a mixture  log mean over s of N_s

    Args:
      outputs: answers to n queries.
      y: targets `[n, d]`; the density is that of all d numbers together.

    Returns:
      `[n]`.

    Raises:
      AssertionError: at trace time, if shapes disagree.
    """
    _check_outputs(outputs)
    if isinstance(outputs, Mixture):
        return _log_mean_exp(_of_components(outputs, y), axis=1)
    check_same_shapes(mean=outputs.mean, scale=outputs.scale, y=y)
    return _log_density(outputs, y)


def negative_log_likelihood(outputs: Gaussian | Mixture, y: Array) -> Array:
    """Minus `log_likelihood`: a loss `[n]` for every query."""
    return -log_likelihood(outputs, y)


def joint_log_likelihood(
    outputs: Gaussian | Mixture, y: Array, mask: Array | None = None
) -> Array:
    """Computes the log density of all real targets together, in nats.

    Of a Gaussian that is the sum over queries. Components of a mixture are shared by
    all queries, so that of a mixture it is the log of the mean over s of the product
    over queries: what a latent knows of how targets go together.

    Args:
      outputs: answers to n queries.
      y: targets `[n, d]`.
      mask: bool `[n]`, which are real; None if all are.

    Returns:
      A scalar.
    """
    if mask is not None:
        check_shapes(y=(y, "n ..."), mask=(mask, "n"))
    _check_outputs(outputs)
    check_shapes(y=(y, "n ..."))
    is_real = jnp.ones(len(y), bool) if mask is None else mask
    if isinstance(outputs, Mixture):
        of_components = jnp.where(is_real[:, None], _of_components(outputs, y), 0)
        return _log_mean_exp(jnp.sum(of_components, axis=0), axis=0)
    return jnp.sum(log_likelihood(outputs, y), where=is_real)


def moments(outputs: Gaussian | Mixture) -> Gaussian:
    """Computes the mean and standard deviation `[n, d]` of every target."""
    _check_outputs(outputs)
    if isinstance(outputs, Gaussian):
        return outputs
    mean, scale = outputs.components
    center = jnp.mean(mean, axis=1)
    variance = jnp.mean(jnp.square(scale) + jnp.square(mean - center[:, None]), axis=1)
    return Gaussian(center, jnp.sqrt(variance))


def kl_divergence(p: Gaussian, q: Gaussian) -> Array:
    """Computes KL(p || q) in nats, a scalar: the sum over all numbers."""
    check_instances(Gaussian, "give two distributions", p=p, q=q)
    check_same_shapes(p=p.mean, q=q.mean)
    check_same_shapes(p=p.scale, q=q.scale)
    ratio = p.scale / q.scale
    shift = (p.mean - q.mean) / q.scale
    return jnp.sum((jnp.square(ratio) + jnp.square(shift) - 1) / 2 - jnp.log(ratio))


def _check_outputs(outputs: Any) -> None:
    instead = "give what a neural process predicts"
    check_instances((Gaussian, Mixture), instead, outputs=outputs)
    if isinstance(outputs, Mixture):
        check_instances(Gaussian, instead, components=outputs.components)


def _log_density(outputs: Gaussian, y: Array) -> Array:
    """Log density `[...]` of targets `[..., d]`."""
    mean, scale = outputs
    standard = (y - mean) / scale
    constant = math.log(2 * math.pi) / 2
    return -jnp.sum(jnp.square(standard) / 2 + jnp.log(scale) + constant, axis=-1)


def _of_components(outputs: Mixture, y: Array) -> Array:
    """Log densities `[n, S]` of targets `[n, d]`."""
    mean, scale = outputs.components
    check_shapes(mean=(mean, "n S d"), scale=(scale, "n S d"), y=(y, "n d"))
    return _log_density(outputs.components, y[:, None])


def _log_mean_exp(values: Array, axis: int) -> Array:
    return jax.nn.logsumexp(values, axis=axis) - math.log(values.shape[axis])
