"""Meta-LSTM: parameters are the cell state of an LSTM that reads gradients and losses.

S. Ravi, H. Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017,
https://openreview.net/forum?id=rJY0-Kcll, section 3.

    theta_t = f_t * theta_{t-1} - i_t * grad_t                                   Eq. (2)
    i_t = sigmoid(W_I [x_t, theta_{t-1}, i_{t-1}] + b_I)
    f_t = sigmoid(W_F [x_t, theta_{t-1}, f_{t-1}] + b_F)
    x_t = LSTM([grad_t, loss_t] as logarithm and sign)

i is a learning rate and f a weight decay, both of each parameter and each step; all
parameters share the weights (section 3.2). theta_0, the initial cell state, is learned
too: it is the initialisation. As in the paper, the gradients that enter are taken for
constants, so nothing is differentiated twice. At first W = 0, b_F makes f close to 1,
and b_I makes i `rate`: learning starts from gradient descent.

Not to be confused with an LSTM that generates the parameters of another, see
`metajax.learners.optimizer.lstm_generator`.
"""

import math
from typing import Any

import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from metajax.builders.descent import descent
from metajax.checks import check_integers, check_parts, is_number
from metajax.filters import everything
from metajax.inner.learned_optimizer import LearnedOptimizer
from metajax.inner.lstm_cells import LSTM, check_lstm, log_and_sign
from metajax.objectives import cross_entropy
from metajax.types import Array, Filter, Learner, Model, Objective, PyTree

__all__ = ["lstm_gates", "meta_lstm"]


class _Gates(nn.Module):
    """The two gates of every parameter."""

    hidden_sizes: tuple[int, ...]
    rate: float
    forget: float
    threshold: float

    @nn.compact
    def __call__(
        self, state: PyTree, grads: Array, loss: Array, theta: Array
    ) -> tuple[PyTree, Array, Array]:
        """Maps gradients and parameters `[P]` to gates `[P]`."""
        states, before = state
        losses = jnp.broadcast_to(loss, grads.shape)
        x = jnp.concatenate(
            [log_and_sign(grads, self.threshold), log_and_sign(losses, self.threshold)],
            axis=-1,
        )
        states, x = LSTM(self.hidden_sizes)(states, x)

        def gate(name: str, previous: Array, start: float) -> Array:
            inputs = jnp.concatenate([x, theta[:, None], previous[:, None]], axis=-1)
            bias = math.log(start / (1 - start))
            layer = nn.Dense(
                1,
                kernel_init=nn.initializers.zeros,
                bias_init=nn.initializers.constant(bias),
                name=name,
            )
            return nn.sigmoid(layer(inputs)[:, 0])

        rates = gate("input_gate", before[0], self.rate)
        keeps = gate("forget_gate", before[1], self.forget)
        return (states, (rates, keeps)), rates, keeps


def meta_lstm(
    model: Model,
    *,
    inner_steps: int = 5,
    eval_inner_steps: int | None = None,
    rate: float = 0.1,
    forget: float = 0.9999,
    hidden_sizes: tuple[int, ...] = (20,),
    threshold: float = 10.0,
    objective: Objective = cross_entropy,
    adapts: Filter = everything,
) -> Learner:
    """Builds Meta-LSTM.

    Choose it for the comparison with its paper, or where rates should depend on how the
    descent goes; `meta_sgd` has fixed ones and is simpler and usually better.

    Args:
      model: the network.
      inner_steps: inner steps in training, at least 1.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      rate: the input gate at first, in (0, 1).
      forget: the forget gate at first, in (0, 1).
      hidden_sizes: sizes of the layers of the LSTM that reads gradients and losses.
      threshold: of the logarithms, above 0; see `log_and_sign`.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      adapts: which parameters adapt; see `metajax.filters`.

    Returns:
      A learner whose `meta_params` are `DescentParams(params, optimizer)`.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> from metajax.learners import meta_lstm
      >>> from metajax.models import conv4
      >>> learner = meta_lstm(conv4(5, pooling="stride"), rate=0.4)
    """
    check_parts(model=model, objective=objective, adapts=adapts)
    check_integers(1, inner_steps=inner_steps)
    return descent(
        model,
        lstm_gates(
            rate=rate, forget=forget, hidden_sizes=hidden_sizes, threshold=threshold
        ),
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        objective=objective,
        gradient="first_order",
        adapts=adapts,
    )


def lstm_gates(
    *,
    rate: float = 0.1,
    forget: float = 0.9999,
    hidden_sizes: tuple[int, ...] = (20,),
    threshold: float = 10.0,
) -> LearnedOptimizer:
    """Builds the optimizer of `meta_lstm`, with the same arguments."""
    for name, value in (("rate", rate), ("forget", forget)):
        if not is_number(value) or not 0 < value < 1:
            raise ValueError(f"`{name}` must be between 0 and 1, got {value!r}.")
    check_lstm(hidden_sizes, threshold)
    module = _Gates(tuple(hidden_sizes), rate, forget, threshold)
    memory = LSTM(tuple(hidden_sizes))

    def start(num: int) -> PyTree:
        return memory.start(num), (jnp.full(num, rate), jnp.full(num, forget))

    def init(key: Array, params: PyTree) -> PyTree:
        del params  # the weights serve any
        return module.init(key, start(1), jnp.zeros(1), jnp.zeros(()), jnp.zeros(1))

    def build(optimizer_params: PyTree) -> optax.GradientTransformation:
        def init_fn(params: PyTree) -> PyTree:
            return start(ravel_pytree(params)[0].size)

        def update_fn(
            updates: PyTree,
            state: PyTree,
            params: PyTree = None,
            *,
            value: Array,
            **extra_args: Any,
        ) -> tuple[PyTree, PyTree]:
            del extra_args
            grads, unravel = ravel_pytree(updates)
            theta, _ = ravel_pytree(params)
            args = (optimizer_params, state, grads, value, theta)
            result: Any = module.apply(*args)
            state, rates, keeps = result
            return unravel((keeps - 1) * theta - rates * grads), state  # Eq. (2)

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return LearnedOptimizer(init, build)
