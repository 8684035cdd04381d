"""Small convex problems that a head solves for every task, and their derivatives.

What takes iterations is differentiated at its solution by the implicit function
theorem and not through them, so that memory does not grow with them, and says how far
it is from the solution. All have fixed shapes and numbers of iterations, so they run
under `vmap` on any device. n rows, D columns, N classes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from metajax.types import Array

__all__ = [
    "Solution",
    "box_program",
    "from_gap",
    "logistic_dual",
    "relative_error",
    "ridge",
    "solve",
]


class Solution(NamedTuple):
    """What an iterative solver found.

    Attributes:
      value: the variables.
      residual: scalar, how far from the solution; 0 at it.
    """

    value: Array
    residual: Array


def solve(matrix: Array, targets: Array, *, is_positive: bool = False) -> Array:
    """Solves A X = B for X, for `vmap` over tasks, with derivatives of any order.

    On CPU the matrices of a batch are taken one after the other. LAPACK would take the
    batch apart for the host's threads, and the thread that asked waits for them: if all
    threads ask, as on a host whose cores are devices, all wait for ever (JAX 0.10.2).
    For matrices as small as those of tasks, one after the other takes no longer.

    Args:
      matrix: A `[n, n]`.
      targets: B `[n]` or `[n, m]`.
      is_positive: promises that A is symmetric and positive; half the work. Nothing
        checks it: NaN, or the answer of another system, where it does not hold.

    Returns:
      X, in the shape of B.
    """

    def one(matrix: Array, targets: Array) -> Array:
        if is_positive:
            return jax.scipy.linalg.solve(matrix, targets, assume_a="pos")
        return jnp.linalg.solve(matrix, targets)

    matrix, targets = _of_one_type(matrix, targets)
    # It has no reverse mode of its own; the system around it never asks for that.
    by_lapack = sequential_vmap(one) if jax.default_backend() == "cpu" else one
    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x,
        targets,
        lambda _, b: by_lapack(matrix, b),
        lambda _, b: by_lapack(matrix.T, b),
        symmetric=is_positive,
    )


def ridge(features: Array, targets: Array, strength: Array) -> Array:
    """Finds the weights `[D, N]` that minimise ||X W - Y||^2 + strength ||W||^2.

    The system that is solved is the smaller one: of n equations by the Woodbury
    identity, W = X^T (X X^T + strength I)^-1 Y, where rows are fewer than columns, else
    of D. Rows of zeros in both X and Y change nothing.

    Args:
      features: X `[n, D]`.
      targets: Y `[n, N]`.
      strength: scalar above 0.
    """
    num, size = features.shape
    if num <= size:
        gram = features @ features.T + strength * jnp.eye(num, dtype=features.dtype)
        return features.T @ solve(gram, targets, is_positive=True)
    gram = features.T @ features + strength * jnp.eye(size, dtype=features.dtype)
    return solve(gram, features.T @ targets, is_positive=True)


def logistic_dual(
    kernel: Array, signs: Array, strength: Array, *, iterations: int
) -> Solution:
    """Fits one regularised logistic regression for each class, in its dual variables.

    The weights w_k = X^T a_k minimise, for the class k,

        sum over i of log(1 + exp(-y_ik x_i . w_k)) + strength / 2 ||w_k||^2

    and are found as the root of F(a) = a - y sigmoid(-y K a) / strength by Newton's
    method: with K a = X w this is the step of iteratively reweighted least squares, in
    a system of n equations.

    Args:
      kernel: K = X X^T `[n, n]`.
      signs: y `[n, N]`, 1 for the class, -1 for others, and 0 for padding.
      strength: scalar above 0.
      iterations: of Newton's method, at least 1.

    Returns:
      a `[n, N]`, and the largest absolute value of F. The error of w_k is at most
      ||X^T F(a_k)||, as that is the gradient over `strength`, the least curvature.
    """
    kernel, signs, strength = _of_one_type(kernel, signs, jnp.asarray(strength))

    def one(signs: Array) -> tuple[Array, Array]:
        def root(a: Array) -> Array:
            return a - signs * jax.nn.sigmoid(-signs * (kernel @ a)) / strength

        def dense_solve(linear: Callable, target: Array) -> Array:
            matrix = jax.jacobian(linear)(jnp.zeros_like(target))
            return solve(matrix, target)

        def newton(root: Callable, a: Array) -> Array:
            def step(a: Array, _: None) -> tuple[Array, None]:
                value, linear = jax.linearize(root, a)
                return a - dense_solve(linear, value), None

            return jax.lax.scan(step, a, None, length=iterations)[0]

        start = jnp.zeros_like(signs)
        a = jax.lax.custom_root(root, start, newton, dense_solve)
        return a, jax.lax.stop_gradient(jnp.max(jnp.abs(root(a))))

    value, residuals = jax.vmap(one, in_axes=1, out_axes=(1, 0))(signs)
    return Solution(value, jnp.max(residuals))


def box_program(
    kernel: Array, linear: Array, lower: Array, upper: Array, axis: int, iterations: int
) -> Array:
    """Solves the dual of a support vector machine.

        minimise over a   1/2 <a, K a> - <a, p>
        with              lower <= a <= upper,   sum of a along an axis = 0

    by accelerated projected gradients (A. Beck, M. Teboulle, "A Fast Iterative
    Shrinkage-Thresholding Algorithm", SIAM J. Imaging Sciences 2009), started again
    whenever the momentum points uphill (B. O'Donoghue, E. Candes, Foundations of
    Computational Mathematics 2015).

    Its derivatives for K and p are those of the linear system that the solution
    satisfies on the face of the box where it lies; the bounds have none.

    Args:
      kernel: K `[n, n]`, symmetric and positive semidefinite.
      linear: p `[n, ...]`.
      lower: `[n, ...]`, at most 0; may be minus infinity.
      upper: `[n, ...]`, at least 0 and finite.
      axis: along which the variables sum to 0.
      iterations: iterations.

    Returns:
      a `[n, ...]`.
    """
    arrays = _of_one_type(kernel, linear, lower, upper)
    return _box_program(*arrays, axis, iterations)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _box_program(
    kernel: Array, linear: Array, lower: Array, upper: Array, axis: int, iterations: int
) -> Array:
    # The Frobenius norm bounds the largest eigenvalue, and takes no iteration.
    rate = 1 / jnp.maximum(jnp.linalg.norm(kernel), 1e-12)

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple, None]:
        a, ahead, momentum = carry
        slope = jnp.tensordot(kernel, ahead, 1) - linear
        new = _project(ahead - rate * slope, lower, upper, axis)
        next_momentum = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        is_uphill = jnp.vdot(ahead - new, new - a) > 0
        next_momentum = jnp.where(is_uphill, 1.0, next_momentum)
        pace = jnp.where(is_uphill, 0.0, (momentum - 1) / next_momentum)
        return (new, new + pace * (new - a), next_momentum), None

    start = jnp.zeros_like(linear)
    carry = (start, start, jnp.ones((), linear.dtype))
    (a, _, _), _ = jax.lax.scan(step, carry, None, length=iterations)
    return a


def _box_forward(
    kernel: Array, linear: Array, lower: Array, upper: Array, axis: int, iterations: int
) -> tuple[Array, tuple]:
    a = _box_program(kernel, linear, lower, upper, axis, iterations)
    return a, (kernel, lower, upper, a)


def _box_backward(axis: int, iterations: int, saved: tuple, cotangent: Array) -> tuple:
    del iterations
    kernel, lower, upper, a = saved
    margin = 1e-5 * jnp.maximum(jnp.max(upper), 1e-12)
    is_free = (a > lower + margin) & (a < upper - margin)

    def on_face(v: Array) -> Array:
        """Projects on directions that keep to the face and to the sum."""
        v = jnp.where(is_free, v, 0)
        num = jnp.maximum(jnp.sum(is_free, axis, keepdims=True), 1)
        return jnp.where(is_free, v - jnp.sum(v, axis, keepdims=True) / num, 0)

    # A trace of the identity, as the kernel of fewer columns than rows is singular.
    ridge = 1e-6 * jnp.trace(kernel) / len(kernel)

    def restricted(v: Array) -> Array:
        return on_face(jnp.tensordot(kernel, on_face(v), 1)) + ridge * v

    u, _ = jax.scipy.sparse.linalg.cg(
        restricted, on_face(cotangent), tol=1e-6, maxiter=min(a.size, 200)
    )
    u = on_face(u)
    columns = a.reshape(len(a), -1)
    to_kernel = -u.reshape(len(u), -1) @ columns.T
    return to_kernel, u, jnp.zeros_like(lower), jnp.zeros_like(upper)


_box_program.defvjp(_box_forward, _box_backward)


def from_gap(gap: Array, rounding: Array) -> Array:
    """Bounds the distance of w from the minimum of 1/2 ||w||^2 and a convex function.

    Args:
      gap: scalar, at least 0, between primal and dual as computed. The true one is at
        least the squared distance.
      rounding: scalar, the most that it may be off by.

    Returns:
      A scalar that, where the gap is nothing but rounding, does not change with it.
    """
    return jnp.sqrt(2 * jnp.maximum(gap, rounding))  # at least gap + rounding


def relative_error(error: Array, norm: Array) -> Array:
    """Gives a bound on an error as a share of what it is an error of, for reports.

    Args:
      error: scalar, at least 0.
      norm: scalar, of what was found; where it is 0, nothing was to be found.
    """
    share = jnp.where(norm == 0, 0, error / jnp.where(norm == 0, 1, norm))
    return jax.lax.stop_gradient(share)


def _of_one_type(*arrays: Array) -> list[Array]:
    """Arrays in the widest of their types, as loops and systems ask for."""
    dtype = jnp.result_type(*arrays)
    return [array.astype(dtype) for array in arrays]


def _project(v: Array, lower: Array, upper: Array, axis: int) -> Array:
    """The nearest point of the box whose sum along the axis is 0.

    It is clip(v - t) for the one t at which that sum is 0, found by bisection.
    """

    def total(t: Array) -> Array:
        return jnp.sum(jnp.clip(v - t, lower, upper), axis, keepdims=True)

    # At the low end all variables are at least 0, at the high end at most 0.
    low = jnp.min(v - jnp.maximum(upper, 0), axis, keepdims=True)
    high = jnp.max(v, axis, keepdims=True)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        is_above = total(middle) > 0
        return jnp.where(is_above, middle, low), jnp.where(is_above, high, middle)

    low, high = jax.lax.fori_loop(0, 40, halve, (low, high))
    return jnp.clip(v - (low + high) / 2, lower, upper)
