"""Baselines: classify all training classes first, then fit a new head to each task.

W.-Y. Chen, Y.-C. Liu, Z. Kira, Y.-C. F. Wang, J.-B. Huang, "A Closer Look at Few-shot
Classification", ICLR 2019, https://arxiv.org/abs/1904.04232, section 3.2.

    training:  minimise over f and W   cross entropy(W f(x), class of x)
    a task:    minimise over W'        cross entropy(W' f(x_i), y_i) on the support set

`head="linear"` is the paper's Baseline (and a linear probe), `"cosine"` its Baseline++:
logits are s times the cosines between f(x) and the rows of W'. `"centroid"` takes the
class means instead of fitting, and `fine_tune=True` descends on f as well.

Train it on `whole_classes` tasks, whose labels are classes of the whole table, and
validate and test it on few-shot tasks: `loss` is the first line, `adapt` the second.

Differs from the paper: the new head is fitted to the whole support set at each step,
and starts at 0 (`"linear"`) or at the class means (`"cosine"`) rather than at random.
The authors' code takes batches of 4 for 100 passes, damps the gradient by 0.9 under the
momentum, and decays weights by 0.001; the default here does neither.
"""

from typing import Annotated, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from metajax.builders.heads import Embedded, check_vectors, embedded, unit
from metajax.builders.prototypes import linear_head
from metajax.checks import (
    check_choice,
    check_flags,
    check_integers,
    check_optimizer,
    check_parts,
    check_positive,
    check_way,
)
from metajax.filters import all_but, everything
from metajax.inner.unroll import check_inner_loop, unroll
from metajax.masks import masked_mean
from metajax.models.normalization import freeze_support_statistics
from metajax.objectives import cross_entropy, query_score, split_key
from metajax.types import (
    Array,
    CommandLine,
    Embedding,
    Examples,
    Learner,
    Metrics,
    PyTree,
    Task,
    Way,
)

__all__ = ["AdaptedBaseline", "Classifier", "baseline"]

HeadKind = Literal["linear", "cosine", "centroid"]
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)


class Classifier(NamedTuple):
    """An embedding with a head, of the training classes or of a task's.

    Attributes:
      embedding: parameters of the model.
      kernel: `[D, N]`.
      bias: `[N]`; 0 and unused for cosines.
    """

    embedding: PyTree
    kernel: Array
    bias: Array


class AdaptedBaseline(NamedTuple):
    """What one task teaches.

    Attributes:
      classifier: with the head of the task.
      is_present: bool `[N]`, whether the class has a support example.
    """

    classifier: Classifier
    is_present: Array


def baseline(
    model: Embedding,
    *,
    num_classes: Annotated[int, CommandLine(None)],
    head: HeadKind = "linear",
    way: Way = "support",
    inner_optimizer: Annotated[
        optax.GradientTransformation | None,
        CommandLine({"name": "momentum", "learning_rate": 0.01}),
    ] = None,
    inner_steps: int = 100,
    scale: float = 10.0,
    fine_tune: bool = False,
) -> Learner:
    """Builds a baseline that does not learn to learn.

    Choose it to see what meta-learning gains: with many training classes it often gains
    little.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      num_classes: classes of the training table; labels of training are below it.
      head: `"linear"`, `"cosine"` or `"centroid"`.
      way: the most classes a few-shot task may have, N; "support" takes the number of
        support examples.
      inner_optimizer: fits the head; None takes SGD with a rate of 0.01 and momentum
        0.9.
      inner_steps: its steps, at least 0; 100 are the paper's.
      scale: s of `"cosine"`, above 0.
      fine_tune: whether the embedding is fitted as well.

    Returns:
      A learner whose `meta_params` are a `Classifier` and whose `adapted` is
      `AdaptedBaseline`; `predict` gives logits `[n, N]`,
      minus infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range, or `"centroid"` is to fine-tune.
      TypeError: if `inner_optimizer` is none of Optax.

    Example:
      >>> from metajax.learners import baseline
      >>> from metajax.models import conv4
      >>> learner = baseline(conv4(normalization="calibrated"), num_classes=4112)
    """
    check_flags(fine_tune=fine_tune)
    check_parts(model=model)
    check_integers(1, num_classes=num_classes)
    check_choice(HEADS, head=head)
    check_way(way)
    check_positive(scale=scale)
    if inner_optimizer is None:
        inner_optimizer = optax.sgd(0.01, momentum=0.9)
    check_optimizer(inner_optimizer=inner_optimizer)
    check_inner_loop(inner_optimizer, inner_steps, "first_order")
    if fine_tune and head == "centroid":
        raise ValueError(
            "head='centroid' is computed and not fitted, so it cannot be fine-tuned; "
            "use head='linear' or 'cosine'."
        )

    def logits_of(params: Classifier, features: Array) -> Array:
        if head == "cosine":
            return scale * unit(features) @ unit(params.kernel.T).T
        return features @ params.kernel + params.bias[None, :]

    def apply(
        params: Classifier, x: PyTree, *, mask: Array | None, key: Array | None
    ) -> Array:
        return logits_of(params, model.apply(params.embedding, x, mask=mask, key=key))

    def init(key: Array, task: Task) -> Classifier:
        key_model, key_head = jax.random.split(key)
        params = model.init(key_model, task.support.x)
        features = model.apply(params, task.support.x, mask=task.support.mask)
        check_vectors(features)
        size = features.shape[1]
        kernel = jax.nn.initializers.lecun_normal()(key_head, (size, num_classes))
        return Classifier(params, kernel, jnp.zeros(num_classes))

    def loss(
        meta_params: Classifier, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        return query_score(apply, meta_params, task.query, cross_entropy, key)

    def first_head(seen: Embedded) -> tuple[Array, Array]:
        size, num = seen.features.shape[1], seen.one_hot.shape[1]
        if head == "linear":
            return jnp.zeros((size, num)), jnp.zeros(num)
        if head == "cosine":
            return seen.means.T, jnp.zeros(num)
        return linear_head(seen.means)

    def adapt(
        meta_params: Classifier, support: Examples, *, key: Array | None = None
    ) -> AdaptedBaseline:
        key_embed, key_fit = split_key(key, 2)
        params = freeze_support_statistics(model, meta_params.embedding, support)
        features = model.apply(params, support.x, mask=support.mask, key=key_embed)
        num = len(support.y) if way == "support" else way
        seen = embedded(features, support, num)
        classifier = Classifier(params, *first_head(seen))
        if head == "centroid":
            return AdaptedBaseline(classifier, seen.is_present)

        def support_loss(
            classifier: Classifier, args: tuple[Examples, Embedded], key: Array | None
        ) -> Array:
            examples, seen = args
            if fine_tune:
                logits = apply(classifier, examples.x, mask=examples.mask, key=key)
            else:  # the embedding stays, so it is applied once
                logits = logits_of(classifier, seen.features)
            logits = jnp.where(seen.is_present[None, :], logits, -jnp.inf)
            return masked_mean(cross_entropy(logits, examples.y), examples.mask)

        result = unroll(
            support_loss,
            inner_optimizer,
            classifier,
            (support, seen),
            inner_steps=inner_steps,
            gradient="first_order",
            adapts=everything if fine_tune else all_but("embedding"),
            key=key_fit,
        )
        return AdaptedBaseline(result.params, seen.is_present)

    def predict(
        adapted: AdaptedBaseline,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        logits = apply(adapted.classifier, inputs, mask=mask, key=key)
        return jnp.where(adapted.is_present[None, :], logits, -jnp.inf)

    return Learner(init, adapt, predict, loss)
