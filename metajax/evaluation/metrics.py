"""What is measured in one task: default metrics, calibration bins, the rule for NaN.

A metric is a scalar of one task.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from metajax.distributions import Gaussian, Mixture, log_likelihood, moments
from metajax.masks import expand, masked_mean
from metajax.objectives import accuracy, cross_entropy, squared_error
from metajax.types import Array, Examples, Metrics, PyTree

__all__ = [
    "NUM_BINS",
    "Judge",
    "MetricsFn",
    "at_least_float32",
    "bin_sums",
    "check_metrics",
    "check_outputs",
    "task_metrics",
]

NUM_BINS = 15  # of equal width, for calibration, as in Guo et al. (see `reports`)

MetricsFn = Callable[[PyTree, Examples], Metrics]
"""`(outputs, query) -> {name: scalar}`, of one task."""


class Judge(Protocol):
    """What is measured in a task whose query holds no examples to answer."""

    def __call__(self, adapted: PyTree, query: PyTree, /, *, key: Array) -> Metrics:
        """Gives scalars by name, such as the return of a policy in an environment."""


def task_metrics(
    metrics_fn: MetricsFn | None, outputs: PyTree, query: Examples
) -> Metrics:
    """Scalars of one task, all NaN if the answer to any real query holds NaN.

    The argmax of NaN would otherwise count as an answer, and be right once in N times.
    """
    check_outputs(outputs, query)
    metrics = (metrics_fn or _default_metrics)(outputs, query)
    check_metrics(metrics, "metrics_fn")
    has_nan = jnp.zeros((), bool)
    for leaf in jax.tree.leaves(outputs):
        is_nan = jnp.isnan(leaf)
        if query.mask is not None and leaf.shape[:1] == query.mask.shape:
            is_nan &= expand(query.mask, leaf)
        has_nan |= jnp.any(is_nan)
    return {
        name: jnp.where(has_nan, jnp.nan, jnp.asarray(value, float))
        for name, value in metrics.items()
    }


def check_outputs(outputs: PyTree, query: Examples) -> None:
    """Raises a ValueError unless `Learner.predict` gave as many answers as queries."""
    num = len(jax.tree.leaves(query.y)[0])
    shapes = [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(outputs)]
    if not shapes or any(shape[:1] != [num] for shape in shapes):
        raise ValueError(
            "`Learner.predict(adapted, inputs, *, mask=None, key=None)` must answer "
            f"all {num} queries at once, in arrays `[{num}, ...]`, got arrays of shape "
            f"{shapes}."
        )


def check_metrics(metrics: Any, name: str) -> None:
    """Raises a ValueError unless what the function `name` gave is a dict of scalars."""
    if not isinstance(metrics, dict) or not metrics:
        raise ValueError(
            f"`{name}` must return a dict of at least one scalar, got "
            f"{type(metrics).__name__} {metrics}."
        )
    for key, value in metrics.items():
        if jnp.shape(value) != ():
            raise ValueError(
                f"`{name}` must return scalars, but {key!r} has shape "
                f"{jnp.shape(value)}; take a mean, of queries by `masked_mean`."
            )


def _default_metrics(outputs: PyTree, query: Examples) -> Metrics:
    if isinstance(outputs, Gaussian | Mixture):
        outputs = jax.tree.map(at_least_float32, outputs)
        error = squared_error(moments(outputs).mean, query.y)
        return {
            "nll": masked_mean(-log_likelihood(outputs, query.y), query.mask),
            "mse": masked_mean(error, query.mask),
        }
    if not isinstance(query.y, jax.Array) or not isinstance(outputs, jax.Array):
        raise ValueError(
            "The default metrics need targets and outputs that are one array each, got "
            f"{jax.tree.structure(query.y)} and {jax.tree.structure(outputs)}; give "
            "`metrics_fn`."
        )
    outputs = at_least_float32(outputs)
    if jnp.issubdtype(query.y.dtype, jnp.integer):
        if (outputs.ndim, query.y.ndim) != (2, 1):
            raise ValueError(
                "Integer targets `[n]` are class labels, for which `Learner.predict` "
                f"must give logits `[n, C]`, got outputs of shape {list(outputs.shape)}"
                f" for targets of shape {list(query.y.shape)}; return logits, or give "
                "`metrics_fn`."
            )
        return {
            "accuracy": masked_mean(accuracy(outputs, query.y), query.mask),
            "nll": masked_mean(cross_entropy(outputs, query.y), query.mask),
        }
    return {"mse": masked_mean(squared_error(outputs, query.y), query.mask)}


def bin_sums(logits: Array, query: Examples) -> Array:
    """Sums queries, confidence and right answers of one task by bin, `[3, bins]`."""
    logits = at_least_float32(logits)
    confidence = jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)
    bin_index = jnp.clip(jnp.ceil(confidence * NUM_BINS) - 1, 0, NUM_BINS - 1)
    # NaN would be in no bin; in the first one it makes the error NaN, to be seen.
    bin_index = jnp.where(jnp.isnan(confidence), 0, bin_index)
    is_in_bin = bin_index[:, None] == jnp.arange(NUM_BINS)[None, :]
    if query.mask is not None:
        is_in_bin &= query.mask[:, None]
    rows = (jnp.ones_like(confidence), confidence, accuracy(logits, query.y))
    return jnp.stack(
        [jnp.sum(jnp.where(is_in_bin, row[:, None], 0), axis=0) for row in rows]
    )


def at_least_float32(outputs: Array) -> Array:
    """Converts half precision, too coarse for means over many queries, to float32."""
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
