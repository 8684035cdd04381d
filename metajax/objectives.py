"""Per-example losses, and the default objective of the outer loop.

Every mean is `metajax.masks.masked_mean`, so padding never counts.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from metajax.masks import hide_padding, masked_mean
from metajax.types import Array, Examples, Metrics, Objective, PyTree, Task

__all__ = [
    "accuracy",
    "class_vectors",
    "cross_entropy",
    "query_loss",
    "query_score",
    "split_key",
    "squared_error",
]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Computes the negative log likelihood of each example, in nats.

    Args:
      logits: `[n, C]`; minus infinity marks a class that is not part of the task.
      labels: integer `[n]` in [0, C).

    Returns:
      `[n]`, at least 0; NaN for a label that is no class.

    Raises:
      AssertionError: at trace time, if labels are not integers or shapes disagree.
    """
    chex.assert_rank([logits, labels], [2, 1])
    chex.assert_type(labels, int)
    chex.assert_equal_shape_prefix([logits, labels], 1)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.where(labels >= 0, losses, jnp.nan)  # NumPy's -1 is the last class


def class_vectors(
    labels: Array, num_classes: int, dtype: DTypeLike = jnp.float32
) -> Array:
    """Makes labels `[n]` one-hot vectors `[n, N]`; NaN for a label that is no class.

    Such a label is a mistake, in the data or in the number of classes, which a vector
    of zeros would hide.

    Raises:
      ValueError: at trace time, if labels are not integers.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"Class labels must be integers from 0 to {num_classes - 1}, got an array "
            f"of type {labels.dtype}; convert them, or use a learner for regression."
        )
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=dtype)
    is_class = (labels >= 0) & (labels < num_classes)
    return jnp.where(is_class[:, None], one_hot, jnp.nan)


def squared_error(outputs: Array, targets: Array) -> Array:
    """Averages the squared error of each example `[n]` over any further axes."""
    chex.assert_equal_shape([outputs, targets])
    return jnp.mean(jnp.square(outputs - targets), axis=tuple(range(1, outputs.ndim)))


def accuracy(logits: Array, labels: Array) -> Array:
    """Gives 1 where the largest of `logits` `[n, C]` is at the label `[n]`, else 0."""
    chex.assert_rank([logits, labels], [2, 1])
    return (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)


def split_key(key: Array | None, num: int) -> list[Array] | list[None]:
    """Splits a key into `num`, or gives `num` times None for a key of None."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def query_score(
    predict: Callable[..., PyTree],
    adapted: PyTree,
    query: Examples,
    objective: Objective,
    key: Array | None = None,
) -> tuple[Array, Metrics]:
    """Computes loss and metrics of an adapted learner on a query set.

    Args:
      predict: as `Learner.predict`.
      adapted: what `Learner.adapt` returned.
      query: the examples to answer.
      objective: `(outputs, y) -> [n]`, a loss for every example.
      key: for `predict`.

    Returns:
      The mean loss, and a dict with `accuracy`, a fraction, if the outputs are logits
      `[n, C]` and the labels integers `[n]`.
    """
    outputs = predict(adapted, query.x, mask=query.mask, key=key)
    y = hide_padding(query.y, query.mask)
    metrics = {}
    if _classifies(outputs, y):
        metrics["accuracy"] = masked_mean(accuracy(outputs, y), query.mask)
    return masked_mean(objective(outputs, y), query.mask), metrics


def query_loss(
    adapt: Callable[..., PyTree],
    predict: Callable[..., PyTree],
    objective: Objective,
) -> Callable[..., tuple[Array, Metrics]]:
    """Builds the usual outer objective: adapt to the support set, then `query_score`.

    Args:
      adapt: as `Learner.adapt`.
      predict: as `Learner.predict`.
      objective: `(outputs, y) -> [n]`, a loss for every query example.

    Returns:
      A function with the signature of `Learner.loss`.
    """

    def loss(
        meta_params: PyTree, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        key_adapt, key_predict = split_key(key, 2)
        adapted = adapt(meta_params, task.support, key=key_adapt)
        return query_score(predict, adapted, task.query, objective, key_predict)

    return loss


def _classifies(outputs: PyTree, y: PyTree) -> bool:
    """Whether these are logits `[n, C]` and labels `[n]`, be they of JAX or NumPy."""
    return (
        getattr(outputs, "ndim", None) == 2
        and getattr(y, "ndim", None) == 1
        and jnp.issubdtype(y.dtype, jnp.integer)
    )
