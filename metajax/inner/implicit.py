"""Gradients through the solution of an inner problem, without its solver.

    phi* = argmin over phi of f(phi, theta),   L = outer(phi*)
    dL/dtheta = -(d/dtheta grad_phi f)^T u,   (grad_phi^2 f) u = grad L(phi*)

Only phi* is needed, so memory and time do not depend on how it was found. u is found by
conjugate gradients from products with the Hessian, which never stands as a matrix. They
need a Hessian that is positive definite: near a strict minimum it is. A. Rajeswaran,
C. Finn, S. Kakade, S. Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019,
https://arxiv.org/abs/1909.04630, section 3.

How well u solves the system is part of the result, and a gradient from a u that does
not is NaN, or 0 where that is asked for: it may be refused or left out, but not be
taken for the right one.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metajax.checks import check_integers, is_number
from metajax.filters import keep_types
from metajax.types import Array, PyTree

__all__ = ["check_solve", "implicit_loss"]


def check_solve(cg_iterations: int, max_residual: float) -> None:
    """Raises a ValueError unless the arguments of `implicit_loss` are in range."""
    check_integers(1, cg_iterations=cg_iterations)
    if not is_number(max_residual) or not 0 < max_residual <= 1:
        raise ValueError(
            f"`max_residual` must be above 0 and at most 1, got {max_residual!r}: a "
            "residual of 1 is that of no solution at all."
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4))
def implicit_loss(
    outer: Callable[[PyTree, PyTree], tuple[Array, Any]],
    inner: Callable[[PyTree, PyTree, PyTree], Array],
    cg_iterations: int,
    max_residual: float,
    if_failed: float,
    solution: PyTree,
    theta: PyTree,
    others: PyTree,
) -> tuple[Array, Any, Array]:
    """Gives the outer loss at a solution; its gradient by `theta` is the implicit one.

    Args:
      outer: `(phi, others) -> (loss, aux)`.
      inner: `(phi, theta, others) -> scalar`, which the solution minimises.
      cg_iterations: conjugate gradient steps, at least 1; exact after as many as `phi`
        has numbers, good after as many as the Hessian has clusters of eigenvalues.
      max_residual: above it the solve has failed; above 0, at most 1.
      if_failed: every number of the gradient then, NaN or 0.
      solution: pytree phi* of floats. It gets no gradient.
      theta: pytree of floats, which gets the gradient.
      others: pytree of whatever else there is. It gets no gradient.

    Returns:
      The loss, the aux, and the relative residual ||H u - v|| / ||v|| of the solve.
    """
    return _forward(
        outer, inner, cg_iterations, max_residual, if_failed, solution, theta, others
    )[0]


def _forward(
    outer: Callable,
    inner: Callable,
    cg_iterations: int,
    max_residual: float,
    if_failed: float,
    solution: PyTree,
    theta: PyTree,
    others: PyTree,
) -> tuple[tuple[Array, Any, Array], tuple]:
    del max_residual, if_failed
    (loss, aux), slope = jax.value_and_grad(outer, has_aux=True)(solution, others)
    gradient = jax.grad(lambda phi: inner(phi, theta, others))

    def hessian(u: PyTree) -> PyTree:
        return jax.jvp(gradient, (solution,), (u,))[1]

    # Of length 1, and no further than rounding: squares that are 0 would make it NaN.
    size = optax.tree.norm(slope)
    unit = optax.tree.scale(1 / jnp.where(size > 0, size, 1), slope)
    u, _ = jax.scipy.sparse.linalg.cg(
        hessian, unit, maxiter=cg_iterations, tol=float(jnp.finfo(size.dtype).eps)
    )
    residual = optax.tree.norm(optax.tree.sub(hessian(u), unit))
    u = optax.tree.scale(size, u)
    return (loss, aux, residual), (solution, theta, others, u, residual)


def _backward(
    outer: Callable,
    inner: Callable,
    cg_iterations: int,
    max_residual: float,
    if_failed: float,
    saved: tuple,
    cotangents: tuple,
) -> tuple:
    solution, theta, others, u, residual = saved
    loss_bar = cotangents[0]

    def stationarity(theta: PyTree) -> PyTree:
        return jax.grad(inner)(solution, theta, others)

    (theta_bar,) = jax.vjp(stationarity, theta)[1](u)
    is_solved = residual <= max_residual  # False for a residual of NaN too

    def checked(leaf: Array) -> Array:
        return jnp.where(is_solved, -loss_bar * leaf, if_failed)

    # The loss may be of another type, that of the targets.
    return None, keep_types(jax.tree.map(checked, theta_bar), theta), None


implicit_loss.defvjp(_forward, _backward)
