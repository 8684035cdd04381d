"""Random quadratics: the test bed of learned optimizers.

M. Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
NeurIPS 2016, https://arxiv.org/abs/1606.04474, section 3.1.

    f(theta) = ||W theta - y||^2,   entries of W and y drawn from N(0, 1)

As a task it is linear regression: the rows of W are inputs and y their targets, and
support and query are the same, as a function is to be minimised and not to be learned
from a sample. `linear` is the model, whose parameters are theta, and `row_loss` the
objective of which f is the mean over examples.
"""

import dataclasses

import jax
import jax.numpy as jnp

from metajax.checks import check_integers
from metajax.models.adapters import from_functions
from metajax.types import Array, Examples, Model, PyTree, Task

__all__ = ["linear", "quadratic", "row_loss"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic:
    """Distribution over quadratics; use `quadratic` to build one.

    Two of equal fields are equal, so a compiled function that takes one is reused.
    """

    dim: int

    def __call__(self, key: Array) -> Task:
        """Draws one; inputs are `[dim, dim]` and targets `[dim]`."""
        key_x, key_y = jax.random.split(key)
        x = jax.random.normal(key_x, (self.dim, self.dim))
        examples = Examples(x, jax.random.normal(key_y, (self.dim,)))
        return Task(examples, examples)


def quadratic(*, dim: int = 10) -> Quadratic:
    """Builds the distribution of these tasks.

    Args:
      dim: of theta and of y, at least 1.

    Raises:
      ValueError: if `dim` is out of range.
    """
    check_integers(1, dim=dim)
    return Quadratic(dim=int(dim))


def linear() -> Model:
    """Builds the model `x @ theta` of inputs `[n, d]`; theta is N(0, 1) at first."""

    def init(key: Array, x: Array) -> Array:
        return jax.random.normal(key, (x.shape[-1],))

    def apply(theta: Array, x: Array) -> Array:
        return x @ theta

    return from_functions(init, apply)


def row_loss(outputs: PyTree, targets: PyTree) -> Array:
    """Computes squared errors `[n]` times n, so that their mean is f."""
    return outputs.shape[0] * jnp.square(outputs - targets)
