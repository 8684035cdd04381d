"""Meta-Curvature: matrices that transform every gradient, learned with the start.

E. Park, J. Oliva, "Meta-Curvature", NeurIPS 2019, https://arxiv.org/abs/1902.03356,
sections 3.1 and 3.2 (MC2, the one with a matrix for each axis).

    MC(G) = G x_1 M_1 x_2 M_2 ... x_k M_k,   phi_{t+1} = phi_t - alpha * MC(grad L)

`x_i M_i` multiplies the tensor G along its axis i by the square matrix M_i; the paper's
M_f, M_i and M_o are those of a kernel's places, of its inputs and of its outputs. All
start as identities, so that learning starts from MAML. Differs from the paper: a bias
has a matrix too, and the axes of places of a kernel are taken as one.
"""

import jax
import jax.numpy as jnp
import optax

from metajax.builders.descent import descent
from metajax.checks import check_integers, check_parts, check_positive
from metajax.filters import everything
from metajax.inner.learned_optimizer import LearnedOptimizer
from metajax.inner.unroll import GradientMode
from metajax.objectives import cross_entropy
from metajax.types import Array, Filter, Learner, Model, Objective, PyTree

__all__ = ["curvature", "meta_curvature"]


def meta_curvature(
    model: Model,
    *,
    rate: float = 0.1,
    inner_steps: int = 1,
    eval_inner_steps: int | None = None,
    objective: Objective = cross_entropy,
    gradient: GradientMode = "remat",
    adapts: Filter = everything,
) -> Learner:
    """Builds Meta-Curvature.

    Choose it where Meta-SGD helps and rates of single parameters are not enough: the
    matrices let the gradient of one unit move another, at a small cost in time and the
    square of the layers' widths in meta-parameters.

    Args:
      model: the network.
      rate: alpha, above 0, fixed; the matrices learn what it should have been.
      inner_steps: inner steps in training, at least 1.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`.
      adapts: which parameters adapt; see `metajax.filters`.

    Returns:
      A learner whose `meta_params` are `DescentParams(params, optimizer)`, the latter
      with a tuple of matrices for each array of parameters.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> from metajax.learners import meta_curvature
      >>> from metajax.models import mlp
      >>> learner = meta_curvature(mlp(5), rate=0.1)
    """
    check_parts(model=model, objective=objective, adapts=adapts)
    check_integers(1, inner_steps=inner_steps)
    return descent(
        model,
        curvature(rate),
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        objective=objective,
        gradient=gradient,
        adapts=adapts,
    )


def curvature(rate: float) -> LearnedOptimizer:
    """Builds gradient descent at `rate` on gradients that learned matrices transform.

    Raises:
      ValueError: unless `rate` is above 0 and finite.
    """
    check_positive(rate=rate)

    def init(key: Array, params: PyTree) -> PyTree:
        del key

        def identities(leaf: Array) -> tuple[Array, ...]:
            return tuple(jnp.eye(size, dtype=leaf.dtype) for size in _axes(leaf))

        return jax.tree.map(identities, params)

    def build(optimizer_params: PyTree) -> optax.GradientTransformation:
        def transform(grad: Array, matrices: tuple[Array, ...]) -> Array:
            tensor = grad.reshape(_axes(grad))
            for axis, matrix in enumerate(matrices):
                product = jnp.tensordot(matrix, tensor, axes=(1, axis))
                tensor = jnp.moveaxis(product, 0, axis)
            return -rate * tensor.reshape(grad.shape)

        def update(updates: PyTree, params: PyTree = None) -> PyTree:
            del params
            return jax.tree.map(transform, updates, optimizer_params)

        return optax.stateless(update)

    return LearnedOptimizer(init, build)


def _axes(leaf: Array) -> tuple[int, ...]:
    """Sizes of the axes that have a matrix: places, inputs and outputs of a kernel."""
    if leaf.ndim <= 2:
        return leaf.shape or (1,)
    *places, inputs, outputs = leaf.shape
    size = 1
    for place in places:
        size *= place
    return size, inputs, outputs
