"""Random quadratics: the test bed of learned optimizers.

M. Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
NeurIPS 2016, https://arxiv.org/abs/1606.04474, section 3.1.

    f(theta) = ||W theta - y||^2,   entries of W and y drawn from N(0, 1)

As a task it is linear regression: the rows of W are inputs and y their targets, and
support and query are the same, as a function is to be minimised and not to be learned
from a sample. `linear` is the model, whose parameters are theta, and `row_loss` the
objective of which f is the mean over examples.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from metajax.models.adapters import from_functions
from metajax.types import Array, Examples, Model, PyTree, Task

__all__ = ["linear", "quadratic", "row_loss"]


def quadratic(*, dim: int = 10) -> Callable[[Array], Task]:
    """The distribution of these tasks.

    Args:
      dim: of theta and of y, at least 1.

    Returns:
      A function of a key; inputs are `[dim, dim]` and targets `[dim]`.

    Raises:
      ValueError: if `dim` is out of range.
    """
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise ValueError(f"`dim` must be an integer of at least 1, got {dim!r}.")

    def sample(key: Array) -> Task:
        key_x, key_y = jax.random.split(key)
        x = jax.random.normal(key_x, (dim, dim))
        examples = Examples(x, jax.random.normal(key_y, (dim,)))
        return Task(examples, examples)

    return sample


def linear() -> Model:
    """The model `x @ theta` of inputs `[n, d]`, with theta from N(0, 1) at first."""

    def init(key: Array, x: Array) -> Array:
        return jax.random.normal(key, (x.shape[-1],))

    def apply(theta: Array, x: Array) -> Array:
        return x @ theta

    return from_functions(init, apply)


def row_loss(outputs: PyTree, targets: PyTree) -> Array:
    """Squared errors `[n]` times n, so that their mean is f."""
    return outputs.shape[0] * jnp.square(outputs - targets)
