"""Implicit MAML: closed forms, the gradient through all steps, memory, and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.constant import QUERY, SUPPORT, constant_model, constant_task
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.compute.program_costs import planned_memory
from metajax.objectives import squared_error

ENTRIES = {
    "imaml": Entry(
        lambda: metajax.learners.imaml(
            small_mlp(WAY),
            optax.sgd(0.05),
            inner_steps=20,
            cg_iterations=20,
            max_residual=1.0,
        )
    ),
}

THETA = jnp.array([1.0, -2.0])


def smooth_model():
    """A network without kinks, so that the inner problem has a Hessian everywhere."""
    return metajax.models.from_functions(
        lambda key, x: {
            "w": 0.5 * jax.random.normal(key, (x.shape[1], 5)),
            "v": jnp.cos(jnp.arange(15.0)).reshape(5, 3),
        },
        lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"],
    )


@pytest.mark.parametrize(("strength", "damping"), [(0.5, 0.0), (2.0, 0.0), (0.5, 3.0)])
def test_matches_closed_form(strength, damping):
    """The Hessian is a multiple of the identity: one step of each solver is exact."""
    learner = metajax.learners.imaml(
        constant_model(),
        optax.sgd(1 / (1 + strength)),
        inner_steps=1,
        eval_inner_steps=3,
        strength=strength,
        damping=damping,
        cg_iterations=1,
        max_residual=1e-4,
        objective=squared_error,
    )
    task = constant_task()
    phi = (SUPPORT + strength * THETA) / (1 + strength)
    chex.assert_trees_all_close(learner.adapt(THETA, task.support), phi, rtol=1e-5)
    run = jax.jit(jax.value_and_grad(lambda p: learner.loss(p, task), has_aux=True))
    (loss, metrics), gradient = run(THETA)
    np.testing.assert_allclose(loss, 0.5 * np.sum(np.square(phi - QUERY)), rtol=1e-5)
    pull = strength + damping
    expected = pull / (1 + pull) * (phi - QUERY)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-5)
    assert metrics["implicit_residual"] < 1e-6
    before = 0.5 * np.sum(np.square(THETA - SUPPORT))  # theta is at distance 0
    np.testing.assert_allclose(metrics["support_loss_0"], before, rtol=1e-5)


def test_agrees_with_the_gradient_through_all_steps(key):
    """The relative difference was 3e-8, in double precision."""
    task = sample(key)
    model = smooth_model()
    params = jax.jit(model.init)(key, task.support.x)

    def learner(gradient):
        return metajax.learners.imaml(
            model,
            optax.sgd(0.1, momentum=0.5),
            inner_steps=60,
            cg_iterations=40,
            gradient=gradient,
        )

    with jax.enable_x64(True):
        params, task = jax.tree.map(
            lambda x: np.float64(x) if x.dtype == np.float32 else x, (params, task)
        )

        @jax.jit
        def both(params):
            losses = [
                lambda p, m=m: learner(m).loss(p, task) for m in ("implicit", "remat")
            ]
            (got, metrics), (expected, _) = (
                jax.grad(loss, has_aux=True)(params) for loss in losses
            )
            gap = optax.tree.norm(optax.tree.sub(got, expected))
            return gap, optax.tree.norm(expected), metrics["implicit_residual"]

        gap, size, residual = map(float, both(params))
    assert gap / size < 1e-4
    assert residual < 1e-8


def test_inner_optimizers_need_no_derivative():
    """Adam without `eps_root`, and a coordinate whose gradient is exactly 0."""
    theta = SUPPORT.at[0].add(1.0)
    learner = metajax.learners.imaml(
        constant_model(), optax.adam(0.1), inner_steps=200, objective=squared_error
    )
    task = constant_task()
    gradient = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(theta)
    phi = (SUPPORT + 2 * theta) / 3
    np.testing.assert_allclose(gradient, 2 / 3 * (phi - QUERY), rtol=1e-3)


def test_a_line_search_may_solve_the_inner_problem(key):
    """L-BFGS comes in 10 steps to where gradient descent comes in 400."""
    task = sample(key)

    def gradient(optimizer, steps):
        learner = metajax.learners.imaml(
            smooth_model(),
            optimizer,
            inner_steps=steps,
            cg_iterations=40,
            max_residual=1e-3,
        )
        params = learner.init(key, task)
        return jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(params)

    chex.assert_trees_all_close(
        gradient(optax.lbfgs(), 10), gradient(optax.sgd(0.1), 400), rtol=1e-2, atol=1e-4
    )


def test_memory_does_not_grow_with_the_inner_steps(key):
    """As planned by XLA for the outer gradient."""
    task = sample(key)
    model = metajax.models.mlp(3, hidden_sizes=(32,))

    def memory(gradient, steps):
        learner = metajax.learners.imaml(
            model, optax.sgd(0.1), inner_steps=steps, gradient=gradient
        )
        params = jax.eval_shape(learner.init, key, task)
        run = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))
        return planned_memory(run.lower(params).compile())[1]

    few, many = (memory("implicit", steps) for steps in (5, 30))
    assert many < 1.05 * few, (few, many)  # but for the support losses
    few, many = (memory("remat", steps) for steps in (5, 30))
    assert many > 2.5 * few, (few, many)


def test_a_solve_that_is_not_good_enough_has_no_gradient(key):
    learner = metajax.learners.imaml(
        smooth_model(),
        optax.sgd(0.1),
        inner_steps=2,
        cg_iterations=1,
        max_residual=1e-3,
    )
    task = sample(key)
    params = jax.jit(learner.init)(key, task)
    run = jax.jit(jax.value_and_grad(lambda p: learner.loss(p, task), has_aux=True))
    (loss, metrics), gradient = run(params)
    assert np.isfinite(loss)
    assert metrics["implicit_residual"] > 1e-3
    assert np.isnan(jax.flatten_util.ravel_pytree(gradient)[0]).all()


@pytest.mark.parametrize(("max_residual", "failed"), [(1.0, 0), (1e-3, 1)])
def test_a_task_whose_solve_fails_may_be_left_out(key, max_residual, failed):
    learner = metajax.learners.imaml(
        smooth_model(),
        optax.sgd(0.1),
        inner_steps=2,
        cg_iterations=1,
        max_residual=max_residual,
        skips_failed=True,
    )
    task = sample(key)
    params = jax.jit(learner.init)(key, task)
    run = jax.jit(jax.grad(lambda p: learner.loss(p, task), has_aux=True))
    gradient, metrics = run(params)
    assert metrics["implicit_failed"] == failed
    numbers = jax.flatten_util.ravel_pytree(gradient)[0]
    assert np.isfinite(numbers).all()
    assert numbers.any() == (not failed)


ERRORS = {
    "no steps": (
        {"inner_steps": 0},
        ValueError,
        "`inner_steps` must be an integer of at least 1",
    ),
    "eval_inner_steps": (
        {"eval_inner_steps": -1},
        ValueError,
        "`eval_inner_steps` must be .*got -1",
    ),
    "eval_inner_steps of 1.0": (
        {"eval_inner_steps": 1.0},
        ValueError,
        "`eval_inner_steps` .*got 1.0",
    ),
    "strength": ({"strength": 0.0}, ValueError, "`strength` must be above 0.*got 0.0"),
    "strength of NaN": ({"strength": float("nan")}, ValueError, "`strength`.*got nan"),
    "damping": ({"damping": -1.0}, ValueError, "`damping` must be at least 0.*got -1"),
    "cg_iterations": (
        {"cg_iterations": 0},
        ValueError,
        "`cg_iterations` must be an integer.*got 0",
    ),
    "max_residual": ({"max_residual": 2}, ValueError, "`max_residual` must .*got 2"),
    "gradient": ({"gradient": "exact"}, ValueError, "first_order, got 'exact'"),
    "optimizer": ({"inner_optimizer": 0.1}, TypeError, "optax.sgd.*got 0.1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, kind, message = ERRORS[name]
    settings = {"inner_optimizer": optax.sgd(0.1), "inner_steps": 1} | changes
    with pytest.raises(kind, match=message):
        metajax.learners.imaml(constant_model(), **settings)
