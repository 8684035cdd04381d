"""Meta Networks (MetaNet): fast weights made from loss gradients, kept in a memory.

T. Munkhdalai, H. Yu, "Meta Networks", ICML 2017, https://arxiv.org/abs/1703.00837,
algorithm 1, in the variant of the official code whose embedding is slow and whose last
layers are fast.

z = f(x) is the embedding. u(z) = Q_1 z gives keys, b(z) = W_2 relu(W_1 z) answers.

    Q* = mean over i of d(grad_Q loss(Q_2 relu(Q_1 z_i), y_i))           of the task
    R_i = Q_1 z_i + Q_1* z_i                                             keys
    M_i = m(grad_W loss(b(z_i), y_i))                                    of an example
    W* = sum over i of softmax(s cos(Q_1 z + Q_1* z, R_i)) M_i           of a query
    h = relu(W_1 z) + relu(W_1* z),   logits = W_2 h + W_2* h            augmented

d and m are networks on single weights, which see the logarithm and the sign of a
gradient (`log_and_sign`). As in the official code the gradients are constants for the
outer gradient. What an example writes depends on its label through the loss alone.

Differs from the paper: d is a network whose outputs are averaged, and not an LSTM over
examples, so that their order does not matter; the attention has a learned scale s,
which is 1 there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from metajax.builders.heads import Embedded, Head, head_learner, unit
from metajax.checks import check_integers, check_parts, check_positive
from metajax.inner.lstm_cells import log_and_sign
from metajax.models.deep_sets import set_mean
from metajax.types import Array, Embedding, Learner, PyTree

__all__ = ["meta_net"]

# Weight of what is not there: finite, so that no gradient is NaN.
_NOTHING = -1e9


class _Memory(NamedTuple):
    """`key_weights` [D, U] with the fast ones, `keys` [n, U], `fast` [n, P]."""

    key_weights: Array
    keys: Array
    fast: Array
    is_real: Array


class _Generator(nn.Module):
    """Fast weights `[P]` from gradients `[P]`, each by itself."""

    hidden_size: int
    threshold: float

    @nn.compact
    def __call__(self, gradient: Array) -> Array:
        x = log_and_sign(gradient, self.threshold)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.hidden_size)(x))
        return nn.Dense(1)(x)[:, 0]


def meta_net(
    model: Embedding,
    *,
    way: int,
    units: int = 64,
    hidden_size: int = 20,
    threshold: float = 7.0,
    scale: float = 10.0,
) -> Learner:
    """Builds MetaNet.

    Choose it to see what a gradient can tell without a step along it: every query has
    weights of its own. Its memory holds a copy of the fast layers for each example.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: classes of a task, N; labels are below it.
      units: U, of the keys and of the layer before the answers.
      hidden_size: units of the networks on single weights.
      threshold: p of `log_and_sign`; gradients below e^-p count as small.
      scale: s at first, above 0.

    Returns:
      A learner whose `meta_params` are `metajax.builders.heads.HeadLearnerParams`;
      `predict` gives logits `[n, N]`, minus infinity for classes without a support
      example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import meta_net
      >>> from metajax.models import conv4
      >>> learner = meta_net(conv4(normalization="calibrated"), way=5)
    """
    check_parts(model=model)
    check_integers(1, way=way, units=units, hidden_size=hidden_size)
    check_positive(threshold=threshold, scale=scale)
    generator = _Generator(hidden_size, threshold)

    def init(key: Array, support: Embedded) -> dict[str, PyTree]:
        keys = jax.random.split(key, 4)
        size = support.features.shape[-1]
        layers = [_layers(k, size, units, way) for k in keys[:2]]
        ones = jnp.ones(1)
        return {
            "key": layers[0],
            "base": layers[1],
            "key_generator": generator.init(keys[2], ones),
            "base_generator": generator.init(keys[3], ones),
            "log_scale": jnp.log(jnp.float32(scale)),
        }

    def written(params: PyTree, layers: PyTree, support: Embedded) -> Array:
        """Computes the fast weights `[n, P]` that the examples ask for."""

        def loss(layers: PyTree, features: Array, one_hot: Array) -> Array:
            logits = nn.relu(features @ layers["first"]) @ layers["second"]
            return -jnp.sum(one_hot * jax.nn.log_softmax(logits))

        def of_example(features: Array, one_hot: Array) -> Array:
            gradient = jax.grad(loss)(jax.lax.stop_gradient(layers), features, one_hot)
            flat = jax.lax.stop_gradient(ravel_pytree(gradient)[0])
            return generator.apply(params, flat)  # type: ignore[return-value]

        return jax.vmap(of_example)(support.features, support.one_hot)

    def fit(
        head_params: PyTree, support: Embedded, key: Array | None
    ) -> tuple[_Memory, dict[str, Array]]:
        del key
        slow = head_params["key"]
        _, unravel = ravel_pytree(slow)
        asked = written(head_params["key_generator"], slow, support)
        fast = unravel(set_mean(asked, support.is_real))
        key_weights = slow["first"] + fast["first"]
        keys = support.features @ key_weights
        fast = written(head_params["base_generator"], head_params["base"], support)
        return _Memory(key_weights, keys, fast, support.is_real), {}

    def classify(
        head_params: PyTree,
        memory: _Memory,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del mask, key
        slow = head_params["base"]
        _, unravel = ravel_pytree(slow)
        cosines = unit(features @ memory.key_weights) @ unit(memory.keys).T
        scores = jnp.exp(head_params["log_scale"]) * cosines
        scores = jnp.where(memory.is_real[None, :], scores, _NOTHING)
        read = jax.nn.softmax(scores, axis=1) @ memory.fast

        def answer(z: Array, flat: Array) -> Array:
            fast = unravel(flat)
            h = nn.relu(z @ slow["first"]) + nn.relu(z @ fast["first"])
            return h @ slow["second"] + h @ fast["second"]

        return jax.vmap(answer)(features, read)

    return head_learner(model, Head(fit, classify, init), way=way)


def _layers(key: Array, size: int, units: int, way: int) -> dict[str, Array]:
    key_first, key_second = jax.random.split(key)
    initial = nn.initializers.lecun_normal()
    return {
        "first": initial(key_first, (size, units)),
        "second": initial(key_second, (units, way)),
    }
