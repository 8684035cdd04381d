"""Hypergradient descent: SGD, Nesterov and Adam that learn their rate as they run.

A. G. Baydin, R. Cornish, D. Martinez Rubio, M. Schmidt, F. Wood, "Online Learning Rate
Adaptation with Hypergradient Descent", ICLR 2018, https://arxiv.org/abs/1703.04782,
the additive rule.

    u_t     = -alpha_t * d_t(g_1, ..., g_t)           the update, theta_t + u_t follows
    h_t     = <g_t, d u_{t-1} / d alpha> = -<g_t, d_{t-1}>,   h_1 = 0
    alpha_t = alpha_{t-1} - beta * h_t                and only then u_t

h_t is the derivative of the loss at theta_{t-1} + u_{t-1}, where g_t is taken, by the
rate of the update that led there. One rule serves every direction d that does not
itself depend on alpha: g_t is SGD-HD, g_t + mu * m_t with m_t = mu * m_{t-1} + g_t is
SGDN-HD, and m_t / (sqrt(v_t) + eps) of bias-corrected moments is Adam-HD. alpha_0 is
`learning_rate`, beta `hyper_rate`, mu `momentum`.

These are ordinary Optax transformations. They have no meta-training: nothing is carried
from task to task, unlike with Meta-SGD or a rate learned through
`metajax.inner.unroll`. Of the official code
(https://github.com/gbaydin/hypergradient-descent) the SGD ones do the same, Nesterov's
look-ahead within d_{t-1} included. Its Adam changes the one shared rate after every
tensor of parameters, so that a step's first tensors move by another rate than its last;
here, as in the paper, one product over all of them comes first. It also adds eps before
the correction of the bias, here as in Optax it is after.

Traps. Nothing bounds alpha. It may fall below 0 and come back, as it does in the
official results; with a large beta, or gradients that are large at first, it overshoots
and training diverges. beta depends on the scale of the loss: c times the loss takes the
same path at alpha / c and beta / c^3 for SGD, and at beta / c for Adam. A gradient that
is not finite spoils alpha for good; `optax.apply_if_finite` skips it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.filters import path_names
from metajax.types import Array, PyTree

__all__ = ["HypergradientState", "adam_hd", "hypergradient", "sgd_hd", "sgdn_hd"]


class HypergradientState(NamedTuple):
    """What hypergradient descent carries from step to step.

    Attributes:
      learning_rate: scalar alpha_t, that of the last update; float32, or float64 where
        a parameter is.
      direction: d_t of the last update, like the parameters; zeros before the first.
      direction_state: of the transformation that gives the directions.
    """

    learning_rate: Array
    direction: PyTree
    direction_state: PyTree


def hypergradient(
    direction: optax.GradientTransformation, learning_rate: Any, *, hyper_rate: Any
) -> optax.GradientTransformationExtraArgs:
    """Descends along any direction, at a rate that learns from its own hypergradient.

    It costs one product with the previous direction a step, and the memory for that
    direction. Decay of weights that is part of the gradient goes in front, and so
    counts in the hypergradient: `optax.chain(optax.add_decayed_weights(1e-4),
    sgd_hd(1e-3))`. Decay apart from the gradient, as in AdamW, goes into `direction`.

    Args:
      direction: gives d_t, of which the update is minus a multiple; for example
        `optax.scale_by_rms()`. It must not depend on the learning rate.
      learning_rate: scalar alpha_0, finite and at least 0. From 0 the rate rises as
        soon as two gradients agree. No schedule: the rule takes its place.
      hyper_rate: scalar beta, finite and at least 0. 0 keeps `learning_rate`.

    Returns:
      An Optax transformation with a `HypergradientState`. Updates have the dtypes of
      the gradients. The rates may be traced, and are then not checked.

    Raises:
      ValueError: if a rate is not a scalar, not finite or negative.
      TypeError: if `direction` is not an Optax transformation; from `init`, if a
        parameter is not a real floating-point number.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from metajax.inner.hypergradient import sgd_hd
      >>> optimizer = sgd_hd(0.1, hyper_rate=0.01)
      >>> params = jnp.array([3.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(2):  # of the loss params**2 / 2
      ...     updates, state = optimizer.update(params, state)
      ...     params = optax.apply_updates(params, updates)
      >>> print(f"{state.learning_rate:.3f}")  # 0.1 + 0.01 * 3.0 * 2.7
      0.181
    """
    if not isinstance(direction, optax.GradientTransformation):
        raise TypeError(
            "`direction` must be an optax.GradientTransformation, such as "
            f"optax.scale_by_adam(), got {direction!r}."
        )
    _check_number("learning_rate", learning_rate)
    _check_number("hyper_rate", hyper_rate)
    inner = optax.with_extra_args_support(direction)

    def init(params: PyTree) -> HypergradientState:
        _check_parameters(params)
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return HypergradientState(
            jnp.asarray(learning_rate, dtype),
            jax.tree.map(jnp.zeros_like, params),
            inner.init(params),
        )

    def update(
        updates: PyTree,
        state: HypergradientState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, HypergradientState]:
        dtype = state.learning_rate.dtype
        # A sum of products rather than a dot, which accelerators round to fewer bits.
        products = jax.tree.map(
            lambda g, d: jnp.sum(g.astype(dtype) * d.astype(dtype)),
            updates,
            state.direction,
        )
        hyper = -sum(jax.tree.leaves(products), start=jnp.zeros((), dtype))
        rate = (state.learning_rate - hyper_rate * hyper).astype(dtype)
        directions, direction_state = inner.update(
            updates, state.direction_state, params, **extra_args
        )
        # Gradients may have other dtypes than parameters, but those of a state stay.
        kept = jax.tree.map(
            lambda new, old: new.astype(old.dtype), directions, state.direction
        )
        updates = jax.tree.map(
            lambda g, d: (-rate * d.astype(dtype)).astype(g.dtype), updates, directions
        )
        return updates, HypergradientState(rate, kept, direction_state)

    return optax.GradientTransformationExtraArgs(init, update)


def sgd_hd(
    learning_rate: Any, *, hyper_rate: Any = 1e-3
) -> optax.GradientTransformationExtraArgs:
    """Builds SGD-HD: stochastic gradient descent that learns its rate.

    Choose it where even the decade of the right rate is unknown.

    Args:
      learning_rate: scalar alpha_0, finite and at least 0.
      hyper_rate: scalar beta, finite and at least 0; the default is that of the paper's
        logistic regression. 0 is `optax.sgd`.

    Returns:
      An Optax transformation with a `HypergradientState`.

    Raises:
      ValueError: if a rate is out of range.

    Example:
      >>> import optax
      >>> from metajax.inner.hypergradient import sgd_hd
      >>> optimizer = optax.chain(optax.add_decayed_weights(1e-4), sgd_hd(1e-3))
      >>> rate = optax.tree.get(optimizer.init({"w": 1.0}), "learning_rate")
      >>> print(f"{rate:.3f}")
      0.001
    """
    return hypergradient(optax.identity(), learning_rate, hyper_rate=hyper_rate)


def sgdn_hd(
    learning_rate: Any, *, hyper_rate: Any = 1e-3, momentum: Any = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Builds SGDN-HD: SGD with Nesterov momentum that learns its rate.

    Args:
      learning_rate: scalar alpha_0, finite and at least 0.
      hyper_rate: scalar beta, finite and at least 0; the default is that of the paper's
        logistic regression. 0 is `optax.sgd(..., momentum, nesterov=True)`.
      momentum: scalar mu, in [0, 1).

    Returns:
      An Optax transformation with a `HypergradientState`.

    Raises:
      ValueError: if a rate or `momentum` is out of range.
    """
    _check_number("momentum", momentum, below=1.0)
    direction = optax.trace(momentum, nesterov=True)
    return hypergradient(direction, learning_rate, hyper_rate=hyper_rate)


def adam_hd(
    learning_rate: Any,
    *,
    hyper_rate: Any = 1e-7,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Builds Adam-HD: Adam that learns its rate.

    Args:
      learning_rate: scalar alpha_0, finite and at least 0.
      hyper_rate: scalar beta, finite and at least 0; the default is that of the paper's
        logistic regression. 0 is `optax.adam`.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: at least 0, added to the square root of the second moment.
      eps_root: at least 0, added under that root; above 0 where an outer gradient
        passes through, see `metajax.inner.unroll`.

    Returns:
      An Optax transformation with a `HypergradientState`.

    Raises:
      ValueError: if an argument is out of range.
    """
    _check_number("b1", b1, below=1.0)
    _check_number("b2", b2, below=1.0)
    _check_number("eps", eps)
    _check_number("eps_root", eps_root)
    direction = optax.scale_by_adam(b1, b2, eps, eps_root)
    return hypergradient(direction, learning_rate, hyper_rate=hyper_rate)


def _check_number(name: str, value: Any, *, below: float = np.inf) -> None:
    """Raises ValueError unless `value` is traced, or a finite scalar in [0, below)."""
    if isinstance(value, jax.core.Tracer):
        return
    array = np.asarray(value)
    is_real = any(
        jnp.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer)
    )
    if array.ndim or not is_real or not 0 <= float(array) < below:
        upper = "" if below == np.inf else f" and below {below:g}"
        raise ValueError(
            f"`{name}` must be one finite number of at least 0{upper}, got {value!r}."
        )


def _check_parameters(params: PyTree) -> None:
    """Raises TypeError for the first leaf that has no real gradient to follow."""
    for path, leaf in zip(path_names(params), jax.tree.leaves(params), strict=True):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.floating):
            continue
        if jnp.issubdtype(dtype, jnp.complexfloating):
            remedy = "wrap the optimizer in optax.contrib.split_real_and_imaginary"
        else:
            remedy = "keep it out of the parameters, as metajax.filters.partition does"
        raise TypeError(
            "Hypergradient descent needs real floating-point parameters, but the leaf "
            f"{path!r} is {dtype}; {remedy}."
        )
