"""Per-example losses, and the default objective of the outer loop.

Every mean is `metajax.masks.masked_mean`, so padding never counts.
"""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from metajax.checks import (
    check_dtype,
    check_functions,
    check_integers,
    check_parts,
    check_same_shapes,
    check_shapes,
)
from metajax.masks import hide_padding, masked_mean
from metajax.types import Array, Examples, Metrics, Objective, PyTree, Task

__all__ = [
    "accuracy",
    "class_vectors",
    "cross_entropy",
    "example_losses",
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
    check_shapes(logits=(logits, "n C"), labels=(labels, "n"))
    chex.assert_type(labels, int)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.where(labels >= 0, losses, jnp.nan)  # NumPy's -1 is the last class


def class_vectors(
    labels: Array, num_classes: int, dtype: DTypeLike = jnp.float32
) -> Array:
    """Makes labels `[n, ...]` one-hot `[n, ..., N]`; NaN for a label that is no class.

    Such a label is a mistake, in the data or in the number of classes, which a vector
    of zeros would hide.

    Raises:
      ValueError: at trace time, if labels are not integers.
    """
    check_shapes(labels=(labels, "n ..."))
    check_integers(1, num_classes=num_classes)
    check_dtype(dtype)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"Class labels must be integers from 0 to {num_classes - 1}, got an array "
            f"of type {labels.dtype}; convert them, or use a learner for regression."
        )
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=dtype)
    is_class = (labels >= 0) & (labels < num_classes)
    return jnp.where(is_class[..., None], one_hot, jnp.nan)


def squared_error(outputs: Array, targets: Array) -> Array:
    """Averages the squared error of each example `[n]` over any further axes."""
    check_same_shapes(outputs=outputs, targets=targets)
    return jnp.mean(jnp.square(outputs - targets), axis=tuple(range(1, outputs.ndim)))


def accuracy(logits: Array, labels: Array) -> Array:
    """Gives 1 where the largest of `logits` `[n, C]` is at the label `[n]`, else 0.

    NaN for a label that is no class, of which there are as many as logits.
    """
    check_shapes(logits=(logits, "n C"), labels=(labels, "n"))
    is_right = (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)
    is_class = (labels >= 0) & (labels < logits.shape[1])
    return jnp.where(is_class, is_right, jnp.nan)


def example_losses(objective: Objective, outputs: PyTree, y: PyTree) -> Array:
    """Computes the loss of every example, `[n]`.

    Raises:
      ValueError: at trace time, if the objective gives another shape, or broadcasts
        outputs `[n, 1]` against targets `[n]` to all pairs of examples.
    """
    check_parts(objective=objective)
    for leaf in jax.tree.leaves(outputs):
        check_shapes(outputs=(leaf, "..."))
    for leaf in jax.tree.leaves(y):
        check_shapes(y=(leaf, "..."))
    losses = objective(outputs, y)
    shapes = [
        [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)]
        for tree in (outputs, y)
    ]
    about = f"for outputs of shape {shapes[0]} and targets of shape {shapes[1]}"
    num = next((shape[0] for shape in shapes[1] + shapes[0] if shape), None)
    if jnp.shape(losses) != (num,):
        raise ValueError(
            f"`objective` must give a loss for each of {num} examples, [{num}], got "
            f"{list(jnp.shape(losses))} {about}. Average over further axes, and give "
            "outputs and targets one shape before you compare them."
        )
    if _mixes_examples(objective, outputs, y):
        raise ValueError(
            f"`objective` mixes examples: the loss of one depends on others {about}. "
            "It broadcasts; give outputs and targets one shape, as by `y[:, None]`."
        )
    return losses


def _mixes_examples(objective: Objective, outputs: PyTree, y: PyTree) -> bool:
    """Whether the losses of later examples change with the first one.

    Tried on numbers of its own, and only where ranks are promoted, as broadcasting
    from `[n]` to `[n, n]` does. False for what cannot be tried.
    """
    try:
        with jax.numpy_rank_promotion("raise"):
            jax.eval_shape(objective, outputs, y)
    except Exception:
        pass
    else:
        return False

    def filled(tree: PyTree, first: float) -> PyTree:
        def fill(leaf: Array) -> Array:
            shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
            if not jnp.issubdtype(dtype, jnp.floating):
                return jnp.zeros(shape, dtype)
            values = np.cos(np.arange(math.prod(shape))).reshape(shape)
            values[0] += first
            return jnp.asarray(values, dtype)

        return jax.tree.map(fill, tree)

    try:
        with jax.ensure_compile_time_eval():
            one, other = (
                np.asarray(objective(filled(outputs, first), filled(y, first)))
                for first in (0.0, 0.5)
            )
    except Exception:
        return False
    return not np.allclose(one[1:], other[1:], rtol=1e-4, equal_nan=True)


def split_key(key: Array | None, num: int) -> list[Array] | list[None]:
    """Splits a key into `num`, or gives `num` times None for a key of None."""
    check_integers(1, num=num)
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
    _check_answers(predict, objective)
    check_parts(query=query)
    outputs = predict(adapted, query.x, mask=query.mask, key=key)
    y = hide_padding(query.y, query.mask)
    metrics = {}
    if _classifies(outputs, y):
        metrics["accuracy"] = masked_mean(accuracy(outputs, y), query.mask)
    losses = example_losses(objective, outputs, y)
    return masked_mean(losses, query.mask), metrics


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
    arguments = ("meta_params", "support")
    check_functions(arguments, "`Learner.adapt`", keywords=("key",), adapt=adapt)
    _check_answers(predict, objective)

    def loss(
        meta_params: PyTree, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        key_adapt, key_predict = split_key(key, 2)
        adapted = adapt(meta_params, task.support, key=key_adapt)
        return query_score(predict, adapted, task.query, objective, key_predict)

    return loss


def _check_answers(predict: Any, objective: Any) -> None:
    arguments, keywords = ("adapted", "inputs"), ("mask", "key")
    check_functions(arguments, "`Learner.predict`", keywords=keywords, predict=predict)
    if objective is not None:  # the loss of a learner that is only judged
        check_parts(objective=objective)


def _classifies(outputs: PyTree, y: PyTree) -> bool:
    """Whether these are logits `[n, C]` and labels `[n]`, be they of JAX or NumPy."""
    return (
        getattr(outputs, "ndim", None) == 2
        and getattr(y, "ndim", None) == 1
        and jnp.issubdtype(y.dtype, jnp.integer)
    )
