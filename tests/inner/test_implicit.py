"""The implicit gradient: closed forms, the unrolled one, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.inner.implicit import check_solve, implicit_loss
from metajax.inner.unroll import unroll

DIM = 6


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def matrices(seed, eigenvalues):
    """Symmetric `[..., DIM, DIM]` with given eigenvalues `[..., DIM]`, as NumPy."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(*np.shape(eigenvalues), DIM)))
    return np.einsum("...ij,...j,...kj->...ik", rotation, eigenvalues, rotation)


def spd(seed):
    """Of condition 10."""
    return matrices(seed, np.linspace(0.3, 3.0, DIM))


def split(phi):
    """A vector as a pytree."""
    return {"first": phi[:2], "rest": phi[2:]}


def join(phi):
    return jnp.concatenate([phi["first"], phi["rest"]])


def inner(phi, theta, others):
    """phi' A phi / 2 - theta' B phi, which phi* = A^-1 B' theta minimises."""
    a, b, *_ = others
    return 0.5 * join(phi) @ a @ join(phi) - theta["theta"] @ b @ join(phi)


def outer(phi, others):
    *_, target, scale = others
    distance = jnp.sum(jnp.square(join(phi) - target))
    return 0.5 * scale * distance, {"distance": distance}


def problem(a, scale=1.0):
    """Theta, and what stays: A, B, the target and a factor of the outer loss."""
    rng = np.random.default_rng(1)
    b = matrices(7, np.linspace(1, 2, DIM))
    theta, target = rng.normal(size=(2, DIM))
    return jax.tree.map(
        lambda x: jnp.asarray(x, float), ({"theta": theta}, (a, b, target, scale))
    )


@jax.jit
def solve(theta, others):
    a, b, *_ = others
    return split(jnp.linalg.solve(a, b.T @ theta["theta"]))


@jax.jit
def closed_form(theta, others):
    """dL/dtheta = B A^-1 (phi* - target)."""
    a, b, target, scale = others
    phi = jnp.linalg.solve(a, b.T @ theta["theta"])
    return scale * b @ jnp.linalg.solve(a, phi - target)


@functools.partial(jax.jit, static_argnames=("cg_iterations", "max_residual"))
def implicit(theta, others, *, cg_iterations=DIM, max_residual=1e-3):
    """The gradient and the residual, at the solution."""

    def loss(theta):
        phi = solve(jax.lax.stop_gradient(theta), others)
        value, _, residual = implicit_loss(
            outer, inner, cg_iterations, max_residual, np.nan, phi, theta, others
        )
        return value, residual

    gradient, residual = jax.grad(loss, has_aux=True)(theta)
    return gradient["theta"], residual


def relative(a, b):
    return np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.usefixtures("float64")
def test_matches_closed_form_and_the_unrolled_gradient():
    """Relative errors were below 1e-15, of the gradient through 400 steps too."""

    @jax.jit
    @jax.grad
    def unrolled(theta, others):
        result = unroll(
            lambda phi, args, key: inner(phi, *args),
            optax.sgd(0.5, momentum=0.5),
            split(jnp.zeros(DIM)),
            (theta, others),
            inner_steps=400,
        )
        return outer(result.params, others)[0]

    for seed in range(3):
        theta, others = problem(spd(seed))
        gradient, residual = implicit(theta, others)
        assert relative(gradient, closed_form(theta, others)) < 1e-12
        assert relative(gradient, unrolled(theta, others)["theta"]) < 1e-10
        assert residual < 1e-12


def test_in_single_precision():
    """The relative error was 2e-7."""
    theta, others = problem(spd(0))
    gradient, residual = implicit(theta, others)
    assert relative(gradient, closed_form(theta, others)) < 1e-5
    assert residual < 1e-5


@pytest.mark.usefixtures("float64")
def test_the_residual_is_that_of_the_solve_and_decides():
    """Against conjugate gradients written out: it falls from 0.65 to 0.27."""
    theta, others = problem(spd(0))
    a, b, target, _ = jax.tree.map(np.asarray, others)
    v = np.asarray(join(solve(theta, others))) - target
    u, r, p, limit = np.zeros(DIM), v, v, 0.5
    refused = []
    for steps in range(1, 4):
        step = (r @ r) / (p @ a @ p)
        u, new = u + step * p, r - step * a @ p
        p, r = new + (new @ new) / (r @ r) * p, new
        size = np.linalg.norm(a @ u - v) / np.linalg.norm(v)
        gradient, residual = implicit(
            theta, others, cg_iterations=steps, max_residual=limit
        )
        np.testing.assert_allclose(residual, size, rtol=1e-6)
        expected = b @ u if size <= limit else np.full(DIM, np.nan)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)
        refused.append(bool(size > limit))
    assert refused == [True, False, False]


@pytest.mark.usefixtures("float64")
def test_without_a_minimum_a_gradient_solves_its_equation_or_is_nan():
    """Of 200 Hessians that are not definite.

    Where conjugate gradients solve the system all the same, the answer is that of the
    saddle point. With half of the steps none does, with three times as many all do.
    """
    rng, limit = np.random.default_rng(0), 1e-6
    sizes = rng.uniform(0.3, 3, (200, DIM))
    a = matrices(0, sizes * [1, 1, 1, -1, -1, -1])
    theta, others = problem(spd(0))
    b, target = map(np.asarray, others[1:3])
    phi = np.linalg.solve(a, np.tile(b.T @ theta["theta"], (200, 1))[..., None])
    exact = (b @ np.linalg.solve(a, phi - target[:, None]))[..., 0]
    for cg_iterations, num_solved in ((DIM // 2, 0), (3 * DIM, 200)):
        gradient, residual = jax.vmap(
            lambda a, n=cg_iterations: implicit(
                theta, (a, *others[1:]), cg_iterations=n, max_residual=limit
            )
        )(a)
        is_refused = np.isnan(gradient).any(axis=1)
        np.testing.assert_array_equal(is_refused, ~(residual <= limit))
        assert np.sum(~is_refused) == num_solved
        assert np.all(np.asarray(residual)[is_refused] > 1e-3)
        # No error is above the residual times the conditions of A and B.
        error = relative(gradient, exact)
        assert np.all(error[~is_refused] < 20 * limit)


def test_a_number_that_is_not_finite_is_refused():
    theta, (a, *others) = problem(spd(0))
    gradient, residual = implicit(theta, (a.at[0, 0].set(jnp.nan), *others))
    assert np.isnan(residual)
    assert np.isnan(gradient).all()


@pytest.mark.parametrize("size", [1e-16, 1e-8, 1e8])
@pytest.mark.parametrize("curvature", [1e-3, 1e3])
def test_more_steps_than_needed_do_no_harm(curvature, size):
    """However small Hessian and slope are: squares of residuals must not become 0."""
    theta, others = problem(curvature * spd(0), size)
    gradient, residual = implicit(theta, others, cg_iterations=100)
    assert residual < 1e-4
    assert relative(gradient / size, closed_form(theta, others) / size) < 1e-4


def test_zero_slope_gives_zero_gradient():
    theta, (a, b, _, scale) = problem(spd(0))
    target = join(solve(theta, (a, b)))
    gradient, residual = implicit(theta, (a, b, target, scale))
    np.testing.assert_array_equal(gradient, 0)
    assert residual == 0


def test_vmap_equals_single_calls():
    """Also where one batch holds both outcomes."""
    theta, others = problem(spd(0))
    a = jnp.stack([jnp.asarray(spd(seed), float) for seed in range(4)])

    def run(a):
        return implicit(theta, (a, *others[1:]), cg_iterations=3, max_residual=0.25)

    batched = jax.vmap(run)(a)
    assert 0 < np.isnan(batched[0]).any(axis=1).sum() < 4
    for i in range(4):
        for got, expected in zip(batched, run(a[i]), strict=True):
            np.testing.assert_allclose(got[i], expected, rtol=1e-4)


def test_gradient_is_that_of_the_loss_and_reaches_theta_only():
    theta, others = problem(spd(0))

    @jax.jit
    def gradients(solution, theta, others):
        def loss(solution, theta, others):
            value, aux, residual = implicit_loss(
                outer, inner, DIM, 0.1, np.nan, solution, theta, others
            )
            return 3 * value + aux["distance"] + residual

        return jax.grad(loss, (0, 1, 2))(solution, theta, others)

    by_solution, by_theta, by_others = gradients(solve(theta, others), theta, others)
    expected = 3 * closed_form(theta, others)
    np.testing.assert_allclose(by_theta["theta"], expected, rtol=1e-4, atol=1e-5)
    for leaf in jax.tree.leaves((by_solution, by_others)):
        np.testing.assert_array_equal(leaf, 0)


ERRORS = {
    "cg_iterations": (
        (0, 0.5),
        "`cg_iterations` must be an integer of at least 1, got 0",
    ),
    "cg_iterations is a bool": ((True, 0.5), "`cg_iterations` must be .* got True"),
    "fractional": ((2.5, 0.5), "`cg_iterations` must be .* got 2.5"),
    "max_residual": ((5, 0.0), "`max_residual` must be above 0 and at most 1, got 0.0"),
    "above 1": ((5, 1.5), "got 1.5: a residual of 1 is that of no solution"),
    "residual of NaN": ((5, float("nan")), "`max_residual` must be .* got nan"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        check_solve(*arguments)
