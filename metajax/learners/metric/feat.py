"""FEAT: prototypes that a transformer adapts to one another.

H.-J. Ye, H. Hu, D.-C. Zhan, F. Sha, "Few-Shot Learning via Embedding Adaptation with
Set-to-Set Functions", CVPR 2020, https://arxiv.org/abs/1812.03664.

    {psi_k} = T({c_k}),   T(c) = LayerNorm(c + dropout(W_fc attention(c, c, c)))
                                                                       Eqs. (4) to (6)
    p(y = k | x) = softmax over k of -d(f(x), psi_k) / tau                      Eq. (3)

c_k are the mean support embeddings and T is one block of self-attention with one head
over the classes of the task: what sets them apart depends on which they are.

Differs from the paper: without its contrastive term on the embeddings of a class, and
meant to be trained from scratch, or from an embedding that is trained already.
"""

import math
from typing import cast

import jax
from flax import linen as nn

from metajax.builders.heads import Embedded, Head, head_learner
from metajax.builders.prototypes import linear_head
from metajax.checks import check_parts, check_positive, is_number
from metajax.types import Array, Embedding, Learner, Metrics, PyTree, Way

__all__ = ["feat"]


class SetToSet(nn.Module):
    """Self-attention over the rows of a set, with a residual connection.

    Attributes:
      dropout: share of the values that is dropped while a key is given.
    """

    dropout: float

    @nn.compact
    def __call__(self, x: Array, is_present: Array, *, deterministic: bool) -> Array:
        """Maps `[N, D]` to `[N, D]`; rows that are not present are not attended to."""
        size = x.shape[-1]
        initial = nn.initializers.normal(1 / math.sqrt(size))
        query, key, value = (
            nn.Dense(size, use_bias=False, kernel_init=initial, name=name)(x)
            for name in ("query", "key", "value")
        )
        attended = jax.nn.dot_product_attention(
            query[:, None], key[:, None], value[:, None], mask=is_present[None, None, :]
        )[:, 0]
        out = nn.Dense(size, name="out")(attended)
        out = nn.Dropout(self.dropout, deterministic=deterministic)(out)
        return nn.LayerNorm()(x + out)  # Eqs. (4) to (6)


def feat(
    model: Embedding,
    *,
    way: Way = "support",
    temperature: float = 1.0,
    dropout: float = 0.1,
) -> Learner:
    """Builds FEAT.

    Choose it over `prototypical` where classes within a task are alike, so that what
    tells them apart is not what tells most classes apart.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes
        the number of support examples, which always suffices.
      temperature: tau, above 0; the paper's depends on the embedding (up to 64).
      dropout: of the attended values in training, in [0, 1).

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams` and whose `adapted` holds
      the adapted prototypes `[N, D]` as `fitted`; `predict` gives logits `[n, N]`,
      minus infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import feat
      >>> from metajax.models import conv4
      >>> learner = feat(conv4(normalization="calibrated"))
    """
    check_parts(model=model)
    check_positive(temperature=temperature)
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), got {dropout!r}.")
    module = SetToSet(dropout)

    def init(key: Array, support: Embedded) -> PyTree:
        return module.init(key, support.means, support.is_present, deterministic=True)

    def fit(
        head_params: PyTree, support: Embedded, key: Array | None
    ) -> tuple[Array, Metrics]:
        centers = module.apply(
            head_params,
            support.means,
            support.is_present,
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
        )
        return cast(Array, centers), {}

    def classify(
        head_params: PyTree,
        centers: Array,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del head_params, mask, key
        kernel, bias = linear_head(centers)
        return (features @ kernel + bias[None, :]) / temperature  # Eq. (3)

    return head_learner(model, Head(fit, classify, init), way=way)
