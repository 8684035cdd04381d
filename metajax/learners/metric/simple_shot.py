"""SimpleShot: the nearest class mean, between embeddings centred by the training set.

Y. Wang, W.-L. Chao, K. Q. Weinberger, L. van der Maaten, "SimpleShot: Revisiting
Nearest-Neighbor Classification for Few-Shot Learning", 2019,
https://arxiv.org/abs/1911.04623, section 3.

    z(x) = u(f(x) - m),   u(v) = v / ||v||                 "CL2N"; "L2N" where m is 0
    c_k  = mean of z(x_i) over support examples i of class k
    logits(x)_k = cosine of z(x) and c_k,   or   -||z(x) - c_k||^2

f is `model`, m the mean embedding of training examples, which `center_embeddings`
measures once f is trained. It is no parameter that is descended on: no gradient
reaches it.

Differs from the paper: the cosine is the default, as in easyfsl 1.5, and the paper's
squared Euclidean distance is `distance="squared_euclidean"`. With one example of each
class both classify alike, with more they may not, as a mean of unit vectors is shorter
where these differ. Between vectors that are not normalised, `normalize=False`, the
paper's "UN", cosines are what easyfsl gives unless told to normalise.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from metajax.builders.heads import (
    Embedded,
    Head,
    HeadLearnerParams,
    cosines,
    head_learner,
    unit,
)
from metajax.builders.prototypes import linear_head
from metajax.checks import (
    check_choice,
    check_flags,
    check_instances,
    check_integers,
    check_keys,
    check_parts,
    check_positive,
)
from metajax.masks import hide_padding
from metajax.types import (
    Array,
    Embedding,
    Learner,
    Metrics,
    Model,
    TaskDistribution,
    Way,
)

__all__ = ["center_embeddings", "simple_shot"]

Distance = Literal["cosine", "squared_euclidean"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)


def simple_shot(
    model: Embedding,
    *,
    way: Way = "support",
    distance: Distance = "cosine",
    normalize: bool = True,
    scale: float = 1.0,
) -> Learner:
    """Builds SimpleShot.

    Choose it on embeddings that were trained by classification, as the first number
    that any other method on the same embeddings has to beat.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples, which always suffices.
      distance: `"cosine"` or the paper's `"squared_euclidean"`.
      normalize: whether embeddings are scaled to length 1, after centring.
      scale: factor of the logits, above 0. Cosines lie in [-1, 1] and need about 10 to
        be able to express certainty.

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams`, with the centre m `[D]` as
      `head`, 0 until `center_embeddings` sets it; `adapted` holds the means `[N, D]` as
      `fitted`. `predict` gives logits `[n, N]`, minus infinity for classes without a
      support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import center_embeddings, simple_shot
      >>> from metajax.models import identity
      >>> from metajax.tasks import synthetic_table
      >>> learner, tasks = simple_shot(identity()), synthetic_table(way=2, shot=4)
      >>> meta_params = learner.init(jax.random.key(0), tasks(jax.random.key(1)))
      >>> meta_params = center_embeddings(
      ...     identity(), meta_params, tasks, jax.random.key(2)
      ... )
      >>> meta_params.head.shape
      (20,)
    """
    check_flags(normalize=normalize)
    check_choice(DISTANCES, distance=distance)
    check_positive(scale=scale)

    def transform(center: Array, features: Array) -> Array:
        centred = features - jax.lax.stop_gradient(center)[None, :]
        return unit(centred) if normalize else centred

    def init(key: Array, support: Embedded) -> Array:
        del key
        return jnp.zeros(support.features.shape[1], support.features.dtype)

    def fit(
        center: Array, support: Embedded, key: Array | None
    ) -> tuple[Array, Metrics]:
        del key
        features = transform(center, support.features)
        return support._replace(features=features).means, {}

    def classify(
        center: Array,
        means: Array,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del mask, key
        if distance == "cosine":  # of which lengths are no part
            centred = features - jax.lax.stop_gradient(center)[None, :]
            return scale * cosines(centred, means)
        features = transform(center, features)
        kernel, bias = linear_head(means)
        squares = jnp.sum(jnp.square(features), axis=1, keepdims=True)
        return scale * (features @ kernel + bias[None, :] - squares)

    return head_learner(model, Head(fit, classify, init), way=way)


def center_embeddings(
    model: Model,
    meta_params: HeadLearnerParams,
    tasks: TaskDistribution,
    key: Array,
    *,
    num_tasks: int = 100,
) -> HeadLearnerParams:
    """Measures the mean embedding over tasks, and makes it the centre of SimpleShot.

    Args:
      model: the learner's.
      meta_params: of a `simple_shot` learner.
      tasks: a task distribution; use the one of training.
      key: chooses the tasks; the key is consumed.
      num_tasks: how many tasks to average over, at least 1.

    Returns:
      `meta_params` whose `head` is the mean over all support and query examples. Where
      the embeddings of a whole table are at hand, `meta_params._replace(head=...)` with
      their mean `[D]` does the same without sampling.

    Raises:
      ValueError: if `num_tasks` is not at least 1.
    """
    check_parts(model=model, tasks=tasks)
    check_instances(
        HeadLearnerParams, "give those of `simple_shot`", meta_params=meta_params
    )
    check_integers(1, num_tasks=num_tasks)
    check_keys(num_tasks=num_tasks)
    if jax.tree_util.all_leaves([tasks]):
        tasks = jax.tree_util.Partial(tasks)  # a plain function is no pytree

    @jax.jit
    def measure(
        params: HeadLearnerParams, tasks: TaskDistribution, keys: Array
    ) -> Array:
        def add(carry: tuple, key: Array) -> tuple[tuple, None]:
            total, count = carry
            for examples in tasks(key):
                features = model.apply(params.embedding, examples.x, mask=examples.mask)
                features = hide_padding(features, examples.mask)
                total = total + jnp.sum(features, axis=0)
                count = count + jnp.sum(examples.is_real)
            return (total, count), None

        start = jnp.zeros_like(params.head), jnp.int32(0)
        (total, count), _ = jax.lax.scan(add, start, keys)
        return (total / count).astype(params.head.dtype)

    keys = jax.random.split(key, num_tasks)
    return meta_params._replace(head=measure(meta_params, tasks, keys))
