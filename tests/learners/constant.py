"""A model whose answer is its parameters, so that losses are quadratics in them."""

import jax.numpy as jnp

import metajax
from metajax.types import Examples, Model, Task

SUPPORT, QUERY = jnp.array([0.5, 3.0]), jnp.array([2.0, -1.0])


def constant_model(start: tuple[float, ...] = (0.0, 0.0)) -> Model:
    """Answers every input `[n, 1]` with its parameters `[2]`, at first `start`."""
    return metajax.models.from_functions(
        lambda key, x: jnp.array(start),
        lambda params, x: jnp.broadcast_to(params[None, :], (len(x), len(start))),
    )


def constant_task() -> Task:
    """`L(phi) = ||phi - s||^2 / 2`: the mean of squares over two coordinates."""
    return Task(
        Examples(jnp.zeros((3, 1)), jnp.stack([SUPPORT] * 3)),
        Examples(jnp.zeros((4, 1)), jnp.stack([QUERY] * 4)),
    )
