"""An LSTM that turns gradients into updates, one coordinate at a time.

M. Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
NeurIPS 2016, https://arxiv.org/abs/1606.04474, section 2.1 and appendix A.

    [u_t, h_{t+1}] = m(grad_t, h_t, w),   phi_{t+1} = phi_t + u_t                Eq. (4)

Every parameter has a state h of its own, all share the weights w, so that one optimizer
serves networks of any shape. A gradient enters as the logarithm of its size and its
sign (`log_and_sign`), because its size may span many orders of magnitude.
"""

from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from metajax.checks import check_positive
from metajax.inner.learned_optimizer import LearnedOptimizer
from metajax.inner.lstm_cells import LSTM, check_lstm, log_and_sign
from metajax.types import Array, PyTree

__all__ = ["lstm_optimizer"]


class _Update(nn.Module):
    """What makes updates of preprocessed gradients."""

    hidden_sizes: tuple[int, ...]
    threshold: float

    @nn.compact
    def __call__(self, states: PyTree, grads: Array) -> tuple[PyTree, Array]:
        """Maps gradients `[P]` to updates `[P]` before scaling."""
        states, x = LSTM(self.hidden_sizes)(states, log_and_sign(grads, self.threshold))
        return states, nn.Dense(1)(x)[:, 0]


def lstm_optimizer(
    *,
    hidden_sizes: tuple[int, ...] = (20, 20),
    output_scale: float = 0.1,
    threshold: float = 10.0,
) -> LearnedOptimizer:
    """Builds an optimizer to be learned by `optimizer_learner`.

    Args:
      hidden_sizes: sizes of the LSTM's layers; the default is the paper's.
      output_scale: factor of the updates, above 0, so that they are small at first.
      threshold: p of `log_and_sign`, above 0.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> from metajax.learners import optimizer_learner
      >>> from metajax.models import mlp
      >>> from metajax.optimizers import lstm_optimizer
      >>> learner = optimizer_learner(
      ...     mlp(5), lstm_optimizer(), inner_steps=20, gradient="first_order"
      ... )
    """
    check_lstm(hidden_sizes, threshold)
    check_positive(output_scale=output_scale)
    module = _Update(tuple(hidden_sizes), threshold)
    memory = LSTM(tuple(hidden_sizes))

    def init(key: Array, params: PyTree) -> PyTree:
        del params  # the weights serve any
        return module.init(key, memory.start(1), jnp.zeros(1))

    def build(optimizer_params: PyTree) -> optax.GradientTransformation:
        def init_fn(params: PyTree) -> PyTree:
            return memory.start(ravel_pytree(params)[0].size)

        def update_fn(
            updates: PyTree, state: PyTree, params: PyTree = None
        ) -> tuple[PyTree, PyTree]:
            del params
            grads, unravel = ravel_pytree(updates)
            result: Any = module.apply(optimizer_params, state, grads)
            state, steps = result
            return unravel(output_scale * steps), state

        return optax.GradientTransformation(init_fn, update_fn)

    return LearnedOptimizer(init, build)
