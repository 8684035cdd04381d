"""Proto-MAML: MAML whose classifier starts from the prototypes of the task.

E. Triantafillou et al., "Meta-Dataset: A Dataset of Datasets for Learning to Learn from
Few Examples", ICLR 2020, https://arxiv.org/abs/1903.03096, section 3.

    W_k = 2 c_k,   b_k = -||c_k||^2,   c_k = mean support embedding of class k
    then T inner steps on embedding, W and b together, as in MAML

As the classifier is made from the support set, tasks may have any number of classes and
no class has a weight of its own to be learned. The outer gradient passes through the
prototypes, as in the paper.
"""

import jax.numpy as jnp
import optax

from metajax.builders.descent import check_descent, learner_of_start
from metajax.builders.prototypes import class_means, linear_head
from metajax.checks import check_parts, check_way
from metajax.filters import everything
from metajax.inner.unroll import GradientMode
from metajax.models.adapters import within
from metajax.objectives import cross_entropy
from metajax.types import (
    Array,
    Embedding,
    Examples,
    Filter,
    Learner,
    PyTree,
    Task,
    Way,
)

__all__ = ["proto_maml"]


def proto_maml(
    model: Embedding,
    inner_optimizer: optax.GradientTransformation,
    *,
    inner_steps: int,
    eval_inner_steps: int | None = None,
    way: Way = "support",
    gradient: GradientMode = "remat",
    adapts: Filter = everything,
    check_mixed: bool = True,
) -> Learner:
    """Builds Proto-MAML.

    Choose it for few-shot classification where the number of classes varies, or where
    test tasks are so different from training tasks that prototypes alone do not do.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      inner_optimizer: what adapts embedding and head, such as `optax.sgd(0.1)`.
      inner_steps: inner steps in training, at least 0; 0 is Prototypical Networks.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      way: the most classes a task may have, N; labels are below it. "support" takes
        the number of support examples, which always suffices.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`.
      adapts: which parameters adapt, by paths that start with `embedding` or `head`:
        `all_but("embedding")` adapts the classifier alone.
      check_mixed: see `metajax.inner.unroll.unroll`.

    Returns:
      A learner whose `meta_params` are parameters of `model`, and whose `adapted` is
      `{"embedding": ..., "head": {"kernel": [D, N], "bias": [N], "is_present": [N]}}`;
      `predict` gives logits `[n, N]`, minus infinity for classes without a support
      example.

    Raises:
      ValueError: if an argument is out of range.
      TypeError: if `inner_optimizer` is not an Optax transformation.

    Example:
      >>> import optax
      >>> from metajax.learners import proto_maml
      >>> from metajax.models import conv4
      >>> model = conv4(normalization="layer")
      >>> learner = proto_maml(model, optax.sgd(0.1), inner_steps=3)
    """
    check_parts(model=model, adapts=adapts)
    check_way(way)
    check_descent(inner_optimizer, gradient, inner_steps, eval_inner_steps)
    classifier = within(model, "embedding", after=_classify)

    def start(meta_params: PyTree, support: Examples) -> PyTree:
        features = model.apply(meta_params, support.x, mask=support.mask)
        num_classes = len(support.y) if way == "support" else way
        centers, is_present = class_means(features, support, num_classes)
        kernel, bias = linear_head(centers)
        head = {"kernel": kernel, "bias": bias, "is_present": is_present}
        return {"embedding": meta_params, "head": head}

    def init(key: Array, task: Task) -> PyTree:
        return model.init(key, task.support.x)

    return learner_of_start(
        classifier,
        init,
        start,
        inner_optimizer,
        objective=cross_entropy,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        gradient=gradient,
        adapts=adapts,
        check_mixed=check_mixed,
    )


def _classify(params: PyTree, features: Array) -> Array:
    """Logits `[n, N]` of features `[n, D]`."""
    head = params["head"]
    logits = features @ head["kernel"] + head["bias"][None, :]
    return jnp.where(head["is_present"][None, :], logits, -jnp.inf)
