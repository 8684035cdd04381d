"""Matching Networks: a query takes the labels of the support examples it resembles.

O. Vinyals, C. Blundell, T. Lillicrap, K. Kavukcuoglu, D. Wierstra, "Matching Networks
for One Shot Learning", NeurIPS 2016, https://arxiv.org/abs/1606.04080.

    p(y = k | x) = sum of a(x, x_i) over support examples i of class k          Eq. (1)
    a(x, x_i) = softmax over i of s * c(f(x), g(x_i))                   section 2.1.1

c is the cosine similarity, or minus the squared Euclidean distance. The paper's s is 1:
its attention cannot become sharp, as cosines lie in [-1, 1], and reproductions lose
several points by it. Here s is a meta-parameter, unless `learn_scale=False`.

Full-context embeddings let all of the support set change every embedding:

    g(x_i) = g'(x_i) + forward_i + backward_i, an LSTM over the support set each way,
                                                                          appendix A.2
    h_k = LSTM(f'(x), [h_{k-1}, r_{k-1}]) + f'(x),  k = 1 .. K,        Eqs. (3) to (6)
    r_{k-1} = sum over i of softmax(h_{k-1} . g(x_i)) g(x_i)

f(x) is h_K. With them the order of the support set matters. g' and f' are one model.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.builders.heads import Embedded, Head, head_learner, squared_distances, unit
from metajax.checks import (
    check_choice,
    check_flags,
    check_integers,
    check_parts,
    check_positive,
)
from metajax.filters import float_type
from metajax.types import Array, Embedding, Learner, PyTree, Way

__all__ = ["matching"]

Similarity = Literal["cosine", "squared_euclidean"]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)


def matching(
    model: Embedding,
    *,
    way: Way = "support",
    similarity: Similarity = "cosine",
    scale: float | None = None,
    learn_scale: bool = True,
    full_context: bool = False,
    reads: int = 5,
) -> Learner:
    """Builds Matching Networks.

    Choose it over `prototypical` where the examples of a class form several clumps: it
    keeps every support example, and not their mean. With one shot and squared distances
    the two are the same.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes
        the number of support examples, which always suffices.
      similarity: `"cosine"` or `"squared_euclidean"`.
      scale: s at first, above 0; None takes 10 for cosines and 1 for distances.
      learn_scale: whether s is learned; the paper's attention is `scale=1.0,
        learn_scale=False`.
      full_context: whether embeddings depend on the whole support set.
      reads: K, LSTM steps of a query over the support set, at least 1.

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams`, or parameters of `model` if
      there are no others; `predict` gives log probabilities `[n, N]`, minus infinity
      for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import matching
      >>> from metajax.models import conv4
      >>> learner = matching(conv4(normalization="calibrated"))
    """
    check_flags(learn_scale=learn_scale, full_context=full_context)
    check_parts(model=model)
    check_choice(SIMILARITIES, similarity=similarity)
    if scale is None:
        scale = 10.0 if similarity == "cosine" else 1.0
    check_positive(scale=scale)
    check_integers(1, reads=reads)

    def init(key: Array, support: Embedded) -> dict[str, PyTree]:
        size = support.features.shape[-1]
        params: dict[str, PyTree] = {}
        if learn_scale:
            params["log_scale"] = jnp.log(jnp.float32(scale))
        if full_context:
            keys = jax.random.split(key, 3)
            for name, key, width in zip(
                ("forward", "backward", "query"), keys, (1, 1, 2), strict=True
            ):
                params[name] = _init_lstm(key, size, width * size)
        return params

    def fit(
        head_params: PyTree, support: Embedded, key: Array | None
    ) -> tuple[Embedded, dict[str, Array]]:
        del key
        if full_context:
            support = support._replace(features=_in_context(head_params, support))
        return support, {}

    def classify(
        head_params: PyTree,
        support: Embedded,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del mask, key
        if full_context:
            features = _read(head_params["query"], support, features, reads)
        factor = jnp.exp(head_params["log_scale"]) if learn_scale else scale
        if similarity == "cosine":
            close = unit(features) @ unit(support.features).T
        else:
            close = -squared_distances(features, support.features)
        nothing = _nothing(close)
        weights = jnp.where(support.is_real[None, :], factor * close, nothing)
        weights = jax.nn.log_softmax(weights, axis=1)
        of_class = support.one_hot.T[None] > 0
        return jax.nn.logsumexp(jnp.where(of_class, weights[:, None], nothing), axis=2)

    has_params = learn_scale or full_context
    head = Head(fit, classify, init if has_params else None)
    return head_learner(model, head, way=way)


def _nothing(weights: Array) -> float:
    """Weight of what is not there: finite, so that no gradient is NaN."""
    return float(jnp.finfo(weights.dtype).min) / 2


def _init_lstm(key: Array, size: int, num_inputs_of_state: int) -> PyTree:
    """Parameters of a cell with `size` units that reads `size` inputs.

    Its recurrent input may be wider than its output, as the query's [h, r] is.
    """
    key_input, key_state = jax.random.split(key)
    initial = nn.initializers.lecun_normal()
    # A forget gate that is open at first.
    bias = jnp.zeros(4 * size).at[size : 2 * size].set(1.0)
    return {
        "input": initial(key_input, (size, 4 * size)),
        "state": initial(key_state, (num_inputs_of_state, 4 * size)),
        "bias": bias,
    }


def _lstm(params: PyTree, x: Array, state: Array, cell: Array) -> tuple[Array, Array]:
    """Output and cell state `[..., D]` from inputs, recurrent inputs and cell state."""
    gates = x @ params["input"] + state @ params["state"]
    gates += params["bias"].reshape((1,) * (gates.ndim - 1) + (-1,))
    enter, forget, values, leave = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(forget) * cell + nn.sigmoid(enter) * jnp.tanh(values)
    return nn.sigmoid(leave) * jnp.tanh(cell), cell


def _in_context(head_params: PyTree, support: Embedded) -> Array:
    """Embeddings `[n, D]` that know of one another; padding is stepped over."""

    def scan(params: PyTree, *, reverse: bool) -> Array:
        def step(
            carry: tuple[Array, Array], row: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], Array]:
            x, is_real = row
            new = _lstm(params, x, *carry)
            carry = jax.tree.map(lambda n, o: jnp.where(is_real, n, o), new, carry)
            return carry, new[0]

        dtype = float_type((support.features, params))
        start = (jnp.zeros(support.features.shape[1], dtype),) * 2
        rows = (support.features, support.is_real)
        return jax.lax.scan(step, start, rows, reverse=reverse)[1]

    forward = scan(head_params["forward"], reverse=False)
    backward = scan(head_params["backward"], reverse=True)
    features = support.features + forward + backward
    return jnp.where(support.is_real[:, None], features, 0)


def _read(params: PyTree, support: Embedded, features: Array, reads: int) -> Array:
    """Embeddings `[m, D]` of queries after they read the support set."""

    def attend(state: Array) -> Array:
        scores = state @ support.features.T
        scores = jnp.where(support.is_real[None, :], scores, _nothing(scores))
        return jax.nn.softmax(scores, axis=1) @ support.features

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        state, cell = carry
        both = jnp.concatenate([state, attend(state)], axis=1)
        out, cell = _lstm(params, features, both, cell)  # Eqs. (3) to (6)
        return (out + features, cell), None

    features = features.astype(float_type((features, support.features, params)))
    start = (features, jnp.zeros_like(features))
    (state, _), _ = jax.lax.scan(step, start, None, length=reads)
    return state
