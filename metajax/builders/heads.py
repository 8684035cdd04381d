"""Learners that embed a task's examples and fit a head to the support embeddings.

    h = fit(omega, {(f(x_i), y_i)}),    logits(x) = classify(omega, h, f(x))

f is a model that all tasks share, omega what the outer loop learns of the head itself.
A head never sees an input, only embeddings: a metric or solver learner is a page that
says `fit` and `classify`, and it works as well on embeddings that were computed once
(give `identity()` as the model).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metajax.checks import check_parts, check_positive, check_way
from metajax.masks import hide_padding
from metajax.models.adapters import from_functions
from metajax.models.normalization import freeze_support_statistics
from metajax.objectives import (
    class_vectors,
    cross_entropy,
    query_score,
    split_key,
)
from metajax.types import (
    Array,
    Examples,
    Learner,
    Metrics,
    Model,
    Objective,
    PyTree,
    Task,
    Way,
)

__all__ = [
    "Embedded",
    "Fitted",
    "Head",
    "HeadLearnerParams",
    "check_vectors",
    "cosines",
    "embedded",
    "head_learner",
    "keep_support",
    "solved_head",
    "squared_distances",
    "table_rows",
    "unit",
]


class Embedded(NamedTuple):
    """A support set as a head sees it.

    Attributes:
      features: embeddings `[n, ...]`; rows of padding are 0.
      one_hot: labels `[n, N]`; rows of padding are 0.
      is_real: bool `[n]`, False for padding.
    """

    features: Array
    one_hot: Array
    is_real: Array

    @property
    def is_present(self) -> Array:
        """Bool `[N]`, whether a class has a support example."""
        return jnp.sum(self.one_hot, axis=0) > 0

    @property
    def with_ones(self) -> Array:
        """Embeddings `[n, D]` with a column of ones, `[n, D + 1]`; padding stays 0."""
        ones = self.is_real[:, None].astype(self.features.dtype)
        return jnp.concatenate([self.features, ones], axis=1)

    @property
    def means(self) -> Array:
        """Prototypes `[N, ...]`: mean embeddings, 0 for a class without examples."""
        counts = jnp.maximum(jnp.sum(self.one_hot, axis=0), 1)
        sums = jnp.tensordot(self.one_hot.T, self.features, 1)
        return sums / counts.reshape(-1, *(1,) * (self.features.ndim - 1))


class Head(NamedTuple):
    """What is fitted to embeddings.

    `head_learner` masks classes without support examples; a head may ignore them.

    Attributes:
      fit: `(head_params, embedded, key) -> (fitted, metrics)`, a pytree and a dict of
        scalars to report, such as a solver's residual.
      classify: `(head_params, fitted, features, mask, key) -> logits [m, N]`, for all
        query embeddings at once. `mask` marks the real rows, for transductive heads.
      init: `(key, embedded) -> head_params`, what the outer loop learns; None if there
        is nothing to learn.
    """

    fit: Callable[..., tuple[PyTree, dict[str, Array]]]
    classify: Callable[..., Array]
    init: Callable[[Array, Embedded], PyTree] | None = None


class HeadLearnerParams(NamedTuple):
    """What is learned, of a head with parameters of its own.

    Attributes:
      embedding: parameters of the model.
      head: those of the head.
    """

    embedding: PyTree
    head: PyTree


class Fitted(NamedTuple):
    """What one task teaches.

    Attributes:
      embedding: parameters of the model.
      head: those of the head that the outer loop learns; () if there are none.
      fitted: what `Head.fit` made of the support set.
      is_present: bool `[N]`, whether the class has a support example.
    """

    embedding: PyTree
    head: PyTree
    fitted: PyTree
    is_present: Array


def solved_head(
    solve: Callable[[Embedded, Array], tuple[Array, Metrics]],
    *,
    scale: float,
    learn: bool,
    name: str,
    value: float,
) -> Head:
    """Builds a linear classifier that a solver fits under a number that may be learned.

        logits(x) = scale [f(x), 1] W

    Args:
      solve: `(embedded, number) -> (W, metrics)`, weights `[D + 1, N]`, of which the
        last row belongs to the ones of `Embedded.with_ones`.
      scale: factor of the logits at first, above 0; it is learned, as `log_scale`.
      learn: whether the number is learned.
      name: of the number; it is learned as `log_` and this.
      value: of the number at first, above 0.

    Raises:
      ValueError: if a number is out of range.
    """
    check_positive(scale=scale, **{name: value})

    def init(key: Array, support: Embedded) -> dict[str, Array]:
        del key, support
        numbers = {"scale": scale} | ({name: value} if learn else {})
        return {f"log_{k}": jnp.log(jnp.float32(v)) for k, v in numbers.items()}

    def fit(
        head_params: PyTree, support: Embedded, key: Array | None
    ) -> tuple[Array, Metrics]:
        del key
        used = jnp.exp(head_params[f"log_{name}"]) if learn else jnp.float32(value)
        return solve(support, used)

    def classify(
        head_params: PyTree,
        weights: Array,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del mask, key
        outputs = features @ weights[:-1] + weights[-1][None, :]
        return jnp.exp(head_params["log_scale"]) * outputs

    return Head(fit, classify, init)


def table_rows(learner: str) -> Model:
    """Builds a model that returns table rows `[n, D]`, in at least single precision.

    Args:
      learner: whose rows they are, for the error.

    Raises:
      ValueError: in its functions, if inputs are no such rows.
    """

    def apply(params: PyTree, x: Array) -> Array:
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(
                f"`{learner}` takes rows of a table, `[n, D]` with D of at least 1, "
                f"got inputs of shape {list(x.shape)}; flatten them, or use a learner "
                "with a model, such as `svm`."
            )
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    return from_functions(lambda key, x: {}, apply)


def unit(vectors: Array, epsilon: float = 1e-12) -> Array:
    """Vectors `[..., D]` scaled to length 1; the gradient is finite at 0 too.

    Args:
      vectors: `[..., D]`.
      epsilon: added to squared lengths; the gradient is at most 1 / sqrt(epsilon).
    """
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(squares + epsilon)


def cosines(rows: Array, centers: Array) -> Array:
    """Computes cosines `[n, N]` between `[n, D]` and `[N, D]`; 0 with a vector of 0.

    The many rows are scaled after the product, which is of N columns and not of D.
    """
    squares = jnp.sum(jnp.square(rows), axis=1, keepdims=True)
    return (rows @ unit(centers).T) * jax.lax.rsqrt(squares + 1e-12)


def squared_distances(rows: Array, centers: Array) -> Array:
    """Computes squared Euclidean distances `[n, N]` from `[n, D]` to `[N, D]`.

    By a product of matrices, after a shift of both that keeps the terms, whose
    difference a distance is, about as large as distances.
    """
    origin = jax.lax.stop_gradient(jnp.mean(centers, axis=0, keepdims=True))
    rows, centers = rows - origin, centers - origin
    products = jnp.matmul(rows, centers.T, precision="highest")
    squares = (jnp.sum(jnp.square(x), axis=1) for x in (rows, centers))
    of_rows, of_centers = squares
    return jnp.maximum(of_rows[:, None] + of_centers[None, :] - 2 * products, 0)


def check_vectors(features: Array) -> None:
    """Raises a ValueError unless embeddings are `[n, D]`."""
    if features.ndim != 2:
        raise ValueError(
            "This learner needs embeddings that are vectors, `[n, D]`, and the model "
            f"gives {list(features.shape)}; flatten them, or use conv4(pooling='max'). "
            "One input needs an axis of examples too, x[None]."
        )


def keep_support(
    head_params: PyTree, support: Embedded, key: Array | None
) -> tuple[Embedded, Metrics]:
    """Fits nothing: the `fit` of heads that answer from the support set itself."""
    del head_params, key
    return support, {}


def embedded(features: Array, support: Examples, num_classes: int) -> Embedded:
    """Makes a support set with embeddings `[n, ...]` of its inputs, for N classes."""
    is_real = support.is_real
    one_hot = class_vectors(support.y, num_classes, features.dtype)
    # `where` rather than a product: what stands in padding may be anything.
    one_hot = jnp.where(is_real[:, None], one_hot, 0)
    return Embedded(hide_padding(features, support.mask), one_hot, is_real)


def head_learner(
    model: Model,
    head: Head,
    *,
    way: Way,
    objective: Objective = cross_entropy,
    takes_maps: bool = False,
) -> Learner:
    """Builds a learner from an embedding and a head.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`, or to what the head takes.
      head: what is fitted to a task.
      way: the most classes a task may have, N; labels are below it. "support" takes
        the number of support examples, which always suffices.
      objective: `(logits, y) -> [n]`, the loss of every query example.
      takes_maps: whether embeddings may have further axes, `[n, H, W, C]`.

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams`, or parameters of `model` if
      the head has none; `adapted` is `Fitted`. `predict` gives logits `[n, N]`, minus
      infinity for classes without a support example. Its loss reports what `Head.fit`
      reports.

    Raises:
      ValueError: if `way` is out of range; in all four functions, if embeddings are no
        vectors and have to be.
    """
    check_parts(model=model, objective=objective)
    check_way(way)

    def embed(params: PyTree, support: Examples, key: Array | None) -> Embedded:
        features = model.apply(params, support.x, mask=support.mask, key=key)
        if not takes_maps:
            check_vectors(features)
        return embedded(features, support, len(support.y) if way == "support" else way)

    def split(meta_params: PyTree) -> tuple[PyTree, PyTree]:
        return (meta_params, ()) if head.init is None else meta_params

    def init(key: Array, task: Task) -> PyTree:
        if head.init is None:
            return model.init(key, task.support.x)
        key_model, key_head = jax.random.split(key)
        params = model.init(key_model, task.support.x)
        return HeadLearnerParams(
            params, head.init(key_head, embed(params, task.support, None))
        )

    def fit(
        meta_params: PyTree, support: Examples, key: Array | None
    ) -> tuple[Fitted, dict[str, Array]]:
        params, head_params = split(meta_params)
        params = freeze_support_statistics(model, params, support)
        key_embed, key_fit = split_key(key, 2)
        seen = embed(params, support, key_embed)
        fitted, metrics = head.fit(head_params, seen, key_fit)
        return Fitted(params, head_params, fitted, seen.is_present), metrics

    def adapt(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> Fitted:
        return fit(meta_params, support, key)[0]

    def predict(
        adapted: Fitted,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        key_embed, key_classify = split_key(key, 2)
        features = model.apply(adapted.embedding, inputs, mask=mask, key=key_embed)
        if not takes_maps:
            check_vectors(features)
        features = hide_padding(features, mask)
        logits = head.classify(
            adapted.head, adapted.fitted, features, mask, key_classify
        )
        return jnp.where(adapted.is_present[None, :], logits, -jnp.inf)

    def loss(
        meta_params: PyTree, task: Task, *, key: Array | None = None
    ) -> tuple[Array, dict[str, Any]]:
        key_adapt, key_predict = split_key(key, 2)
        adapted, metrics = fit(meta_params, task.support, key_adapt)
        value, of_query = query_score(
            predict, adapted, task.query, objective, key_predict
        )
        return value, of_query | metrics

    return Learner(init, adapt, predict, loss)
