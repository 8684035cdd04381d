"""Relation Networks: the comparison of a query with a class is learned too.

F. Sung, Y. Yang, L. Zhang, T. Xiang, P. Torr, T. Hospedales, "Learning to Compare:
Relation Network for Few-Shot Learning", CVPR 2018, https://arxiv.org/abs/1711.06025.

    r_k(x) = g([mean of f(x_i) over support examples i of class k, f(x)])       Eq. (1)
    loss = sum over k of (sigmoid(r_k(x)) - [y = k])^2                          Eq. (2)

f gives feature maps and g is two convolutions and two dense layers; on embeddings that
are vectors g is an MLP.

Differs from the paper: shots are averaged where there they are summed, so that one
model serves tasks of any shot (trained on the same shot, the two differ by a factor
that g can learn); the first layer of g is linear in the pair before its nonlinearity,
so its two halves are applied to classes and queries by themselves and added for every
pair, which is the same at a fraction of the work; g normalises each pair by itself
(`normalization="layer"`) and not over all pairs, so that the answer to one query does
not depend on the others ("batch" is the paper's); convolutions keep the size of the
maps, which are 7 x 7 for images of 28 x 28.
"""

from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.heads import Embedded, Head, head_learner
from metajax.checks import check_choice, check_integers, check_parts
from metajax.models.convolution import Conv, max_pool
from metajax.models.normalization import Normalize
from metajax.objectives import class_vectors
from metajax.types import Array, Embedding, Learner, PyTree, Way

__all__ = ["relation"]

PairNormalization = Literal["none", "layer", "batch"]
NORMALIZATIONS: tuple[PairNormalization, ...] = get_args(PairNormalization)


class Compare(nn.Module):
    """The relation module g.

    Attributes:
      features: channels of its convolutions.
      hidden_size: units of its dense layer.
      normalization: one of `NORMALIZATIONS`.
    """

    features: int
    hidden_size: int
    normalization: PairNormalization

    @nn.compact
    def __call__(self, classes: Array, queries: Array, mask: Array) -> Array:
        """Scores `[m, N]` of queries `[m, ...]` and classes `[N, ...]`.

        `mask` `[m, N]` is True where both are real.
        """
        num_queries, num_classes = len(queries), len(classes)
        has_maps = classes.ndim == 4

        def layer(name: str) -> nn.Module:
            if has_maps:
                return Conv(self.features, name=name)
            return nn.Dense(self.features, name=name)

        of_class, of_query = layer("classes")(classes), layer("queries")(queries)
        pairs = of_query[:, None] + of_class[None]
        pairs = pairs.reshape(num_queries * num_classes, *pairs.shape[2:])
        mask = mask.reshape(-1)
        pairs = self._block(pairs, mask)
        if has_maps:
            pairs = self._block(layer("pairs")(pairs), mask)
        pairs = nn.relu(nn.Dense(self.hidden_size)(pairs.reshape(len(pairs), -1)))
        return nn.Dense(1)(pairs).reshape(num_queries, num_classes)  # Eq. (1)

    def _block(self, x: Array, mask: Array) -> Array:
        x = Normalize(self.normalization)(x, mask)
        if x.ndim == 4 and min(x.shape[1:3]) >= 2:
            x = max_pool(x)
        return nn.relu(x)


def relation(
    model: Embedding,
    *,
    way: Way = "support",
    features: int = 64,
    hidden_size: int = 8,
    normalization: PairNormalization = "layer",
) -> Learner:
    """Builds Relation Networks.

    Choose it where no fixed distance between embeddings fits; it needs more training
    than `prototypical`, and its work grows with queries times classes.

    Args:
      model: an embedding, inputs `[n, ...]` to maps `[n, H, W, C]`, such as
        `conv4(pooling="maps")`, or to vectors `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples: give it where there is more than one shot, as every
        query is compared with every class.
      features: channels of the comparing convolutions.
      hidden_size: units of the dense layer after them.
      normalization: of pairs, `"none"`, `"layer"` or `"batch"`.

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams`; `predict` gives scores `[n,
      N]` before the sigmoid, minus infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import relation
      >>> from metajax.models import conv4
      >>> learner = relation(conv4(pooling="maps", normalization="calibrated"), way=5)
    """
    check_parts(model=model)
    check_integers(1, features=features, hidden_size=hidden_size)
    check_choice(NORMALIZATIONS, normalization=normalization)
    module = Compare(features, hidden_size, normalization)

    def init(key: Array, support: Embedded) -> PyTree:
        everything = jnp.ones((1, len(support.means)), bool)
        return module.init(key, support.means, support.features[:1], everything)

    def fit(
        head_params: PyTree, support: Embedded, key: Array | None
    ) -> tuple[tuple[Array, Array], dict[str, Array]]:
        del head_params, key
        return (support.means, support.is_present), {}

    def classify(
        head_params: PyTree,
        fitted: tuple[Array, Array],
        queries: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del key
        means, is_present = fitted
        real = jnp.ones(len(queries), bool) if mask is None else mask
        pairs = real[:, None] & is_present[None, :]
        return cast(Array, module.apply(head_params, means, queries, pairs))

    return head_learner(
        model,
        Head(fit, classify, init),
        way=way,
        objective=relation_error,
        takes_maps=True,
    )


def relation_error(scores: Array, labels: Array) -> Array:
    """Sums the squared errors of Eq. (2), `[n]`, from scores `[n, N]` and labels `[n]`.

    Classes without a support example have the score minus infinity, and no error. NaN
    for a label that is no class.
    """
    one_hot = class_vectors(labels, scores.shape[1])
    return jnp.sum(jnp.square(jax.nn.sigmoid(scores) - one_hot), axis=1)  # Eq. (2)
