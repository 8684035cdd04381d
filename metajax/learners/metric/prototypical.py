"""Prototypical Networks: a class is the mean of its support embeddings.

J. Snell, K. Swersky, R. Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS
2017, https://arxiv.org/abs/1703.05175.

    c_k = mean of f(x_i) over support examples i of class k                     Eq. (1)
    p(y = k | x) = softmax over k of -d(f(x), c_k)                              Eq. (2)

f is `model`, c_k what is `fitted`; d is the squared Euclidean distance, or minus the
scaled cosine similarity. The squared distance is computed as the linear classifier
that it is (section 2.4): -||f - c||^2 = 2 c.f - ||c||^2 - ||f||^2, whose last term is
the same for all classes and falls out of the softmax.

Differs from the paper's code: support and query set are embedded in two passes, so a
model with batch statistics normalises each by its own.
"""

from typing import Literal, get_args

from metajax.builders.heads import Embedded, Head, head_learner, unit
from metajax.builders.prototypes import linear_head
from metajax.checks import check_choice, check_parts, check_positive
from metajax.types import Array, Embedding, Learner, Metrics, Way

__all__ = ["prototypical"]

Distance = Literal["squared_euclidean", "cosine"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)


def prototypical(
    model: Embedding,
    *,
    way: Way = "support",
    distance: Distance = "squared_euclidean",
    scale: float = 1.0,
) -> Learner:
    """Builds Prototypical Networks.

    Choose it first for few-shot classification: it has no inner loop, and it takes
    another way or shot at evaluation than in training (training with more classes than
    evaluation is the paper's best setting).

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes
        the number of support examples, which always suffices.
      distance: `"squared_euclidean"` or `"cosine"`.
      scale: factor of the logits, above 0. Cosine similarities lie in [-1, 1] and need
        about 10 to be able to express certainty.

    Returns:
      A learner whose `meta_params` are parameters of `model`, and whose `adapted` holds
      the prototypes `[N, D]` as `fitted`; `predict` gives logits `[n, N]`, minus
      infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import prototypical
      >>> from metajax.models import conv4
      >>> learner = prototypical(conv4(normalization="calibrated"))
    """
    check_parts(model=model)
    check_choice(DISTANCES, distance=distance)
    check_positive(scale=scale)

    def fit(
        head_params: tuple, support: Embedded, key: Array | None
    ) -> tuple[Array, Metrics]:
        del head_params, key
        return support.means, {}  # Eq. (1)

    def classify(
        head_params: tuple,
        centers: Array,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del head_params, mask, key
        if distance == "cosine":
            return scale * unit(features) @ unit(centers).T  # Eq. (2)
        kernel, bias = linear_head(centers)
        return scale * (features @ kernel + bias[None, :])  # Eq. (2)

    return head_learner(model, Head(fit, classify), way=way)
