"""Solvers against scikit-learn, and their gradients against unrolled ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC, LinearSVC

from metajax.inner.solvers import box_program, logistic_dual, ridge, solve


@pytest.fixture(autouse=True)
def _in_double_precision():
    with jax.enable_x64(True):
        yield


def rows(num, size, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(num, size)), generator.integers(0, 2, num)


@pytest.mark.parametrize("is_positive", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2)])
def test_solve_and_its_derivatives_under_vmap(is_positive, shape):
    """Up to third order, in both modes, against what JAX makes of an inverse."""
    generator = np.random.default_rng(0)
    roots = generator.normal(size=(3, 4, 4))
    targets = generator.normal(size=shape)

    def total(solver, roots):
        matrices = roots + 4 * jnp.eye(4)[None]
        if is_positive:
            matrices = matrices @ matrices.swapaxes(1, 2)
        return jnp.sum(jnp.sin(jax.vmap(solver)(matrices, targets * roots[0, 0, 0])))

    def ours(matrix, target):
        return solve(matrix, target, is_positive=is_positive)

    def inverse(matrix, target):
        return jnp.linalg.inv(matrix) @ target

    def derivatives(solver):
        def gradient(roots):
            return jax.grad(lambda roots: total(solver, roots))(roots)

        def product(roots):
            return jax.jvp(gradient, (roots,), (jnp.sin(roots),))[1]

        third = jax.grad(lambda roots: jnp.sum(jnp.cos(product(roots))))
        return total(solver, roots), gradient(roots), product(roots), third(roots)

    for got, expected in zip(derivatives(ours), derivatives(inverse), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("is_positive", [False, True])
def test_lapack_never_gets_a_batch_on_cpu(is_positive):
    """Threads of several devices would wait for each other's shares of it."""

    def total(matrices, targets):
        solved = jax.vmap(lambda a, b: solve(a, b, is_positive=is_positive))
        return jnp.sum(solved(matrices, targets))

    program = jax.jit(jax.grad(total, (0, 1)))
    text = program.lower(jnp.zeros((6, 4, 4)), jnp.zeros((6, 4, 2))).as_text()
    calls = re.findall(r"@lapack_\w+\(.*?\) .*?: \((.*?)\)", text)
    assert len(calls) >= 2
    for arguments in calls:
        assert "6x" not in arguments, arguments


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_ridge(shape):
    x, _ = rows(*shape)
    y, _ = rows(shape[0], 3, seed=1)
    weights = jax.jit(ridge)(x, y, 0.7)
    expected = Ridge(alpha=0.7, fit_intercept=False).fit(x, y).coef_.T
    np.testing.assert_allclose(weights, expected, rtol=1e-8, atol=1e-10)
    padded = ridge(np.pad(x, ((0, 3), (0, 0))), np.pad(y, ((0, 3), (0, 0))), 0.7)
    np.testing.assert_allclose(padded, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_logistic(strength):
    x, y = rows(20, 6)
    signs = 2.0 * np.stack([y, 1 - y], 1) - 1
    found = jax.jit(logistic_dual, static_argnames="iterations")(
        x @ x.T, signs, strength, iterations=8
    )
    model = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-10)
    expected = model.fit(x, y).coef_[0]
    np.testing.assert_allclose(x.T @ found.value[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(x.T @ found.value[:, 1], -expected, atol=1e-6)
    assert found.residual < 1e-12
    assert logistic_dual(x @ x.T, signs, strength, iterations=1).residual > 1e-3


def test_gradient_of_logistic():
    """Against finite differences twice, and against Newton's steps unrolled."""
    x, y = rows(8, 3)
    signs = 2.0 * y[:, None] - 1

    def implicit(x, strength):
        found = logistic_dual(x @ x.T, signs, strength, iterations=8)
        return jnp.sum(jnp.sin(x.T @ found.value))

    def unrolled(x, strength):
        a = jnp.zeros(len(x))
        for _ in range(8):
            scores = x @ x.T @ a
            chance = jax.nn.sigmoid(-signs[:, 0] * scores)
            value = a - signs[:, 0] * chance / strength
            slopes = (chance * (1 - chance) / strength)[:, None] * (x @ x.T)
            a = a - jnp.linalg.solve(jnp.eye(len(x)) + slopes, value)
        return jnp.sum(jnp.sin(x.T @ a))

    check_grads(implicit, (x, 0.5), order=2, modes=["rev"], rtol=1e-4)
    got, expected = (jax.grad(f, (0, 1))(x, 0.5) for f in (implicit, unrolled))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-9)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-9)


def binary(kernel, signs, penalty, steps):
    """Dual variables, with signs, of a machine with two classes and a bias."""
    return penalty * box_program(
        penalty * kernel, signs, np.minimum(signs, 0), np.maximum(signs, 0), 0, steps
    )


@pytest.mark.parametrize(("penalty", "steps"), [(0.1, 100), (1.0, 200), (10.0, 2000)])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_support_vectors_of_two_classes(kernel, penalty, steps):
    x, y = rows(20, 6)
    gram = x @ x.T
    if kernel == "rbf":
        squares = np.diag(gram)
        gram = np.exp(-0.2 * (squares[:, None] + squares[None] - 2 * gram))
    a = binary(gram, 2.0 * y - 1, penalty, steps)
    machine = SVC(C=penalty, kernel=kernel, gamma=0.2, tol=1e-9).fit(x, y)
    expected = np.zeros(len(x))
    expected[machine.support_] = machine.dual_coef_[0]
    np.testing.assert_allclose(a, expected, atol=1e-4)


def test_support_vectors_of_three_classes():
    x, _ = rows(30, 5)
    y = np.random.default_rng(2).integers(0, 3, len(x))
    one_hot = np.eye(3)[y]
    lower = np.full_like(one_hot, -np.inf)
    a = box_program(x @ x.T, one_hot, lower, one_hot, 1, 2000)
    machine = LinearSVC(
        C=1.0,
        multi_class="crammer_singer",
        fit_intercept=False,
        tol=1e-10,
        max_iter=10**6,
    )
    np.testing.assert_allclose(x.T @ a, machine.fit(x, y).coef_.T, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 3])
def test_gradient_of_support_vectors(classes):
    """Against finite differences of a solution that is exact to rounding.

    Of the weights: dual variables are not unique with more rows than columns.
    """
    x, y = rows(12, 4)
    x[:, 0] += 0.5 * y
    probe, _ = rows(4, classes - 1, seed=3)

    def value(x, penalty):
        if classes == 2:
            a = binary(x @ x.T, 2.0 * y - 1, penalty, 3000)[:, None]
        else:
            one_hot = np.eye(3)[np.arange(12) % 3]
            lower = np.full_like(one_hot, -np.inf)
            a = penalty * box_program(
                penalty * x @ x.T, one_hot, lower, one_hot, 1, 3000
            )
        return jnp.sum(jnp.square(x.T @ a)[:, : classes - 1] * probe)

    compiled = jax.jit(value)
    got_x, got_penalty = jax.jit(jax.grad(value, (0, 1)))(x, 0.3)
    step = 1e-5
    slope = (compiled(x, 0.3 + step) - compiled(x, 0.3 - step)) / (2 * step)
    np.testing.assert_allclose(got_penalty, slope, rtol=1e-4)
    for i, j in ((0, 0), (3, 1), (7, 2), (11, 3)):
        change = np.zeros_like(x)
        change[i, j] = step
        slope = (compiled(x + change, 0.3) - compiled(x - change, 0.3)) / (2 * step)
        np.testing.assert_allclose(got_x[i, j], slope, rtol=1e-3, atol=1e-5)
