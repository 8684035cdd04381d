"""Meta-Curvature: Kronecker products, closed forms, MAML at the start, and errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.constant import QUERY, SUPPORT, constant_model, constant_task
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.builders.descent import DescentParams
from metajax.learners.gradient.meta_curvature import curvature
from metajax.objectives import squared_error

ENTRIES = {
    "meta_curvature": Entry(
        lambda: metajax.learners.meta_curvature(small_mlp(WAY), inner_steps=2)
    ),
}

# Shape of an array of parameters -> sizes of its matrices.
SHAPES = {
    (): (1,),
    (4,): (4,),
    (2, 3): (2, 3),
    (5, 2, 3): (5, 2, 3),
    (3, 2, 2, 4): (6, 2, 4),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_transform_is_a_kronecker_product(shape):
    """Of places, inputs and outputs, in this order, as C order flattens them."""
    rng, rate = np.random.default_rng(0), 0.3
    optimizer = curvature(rate)
    gradient = rng.normal(size=shape).astype(np.float32)
    initial = optimizer.init(jax.random.key(0), jnp.asarray(gradient))
    assert [leaf.shape for leaf in initial] == [(size, size) for size in SHAPES[shape]]
    matrices = tuple(rng.normal(size=leaf.shape).astype(np.float32) for leaf in initial)
    build = optimizer.build(matrices)
    updates, _ = build.update(jnp.asarray(gradient), build.init(gradient))
    product = functools.reduce(np.kron, matrices) @ gradient.ravel()
    np.testing.assert_allclose(
        updates, -rate * product.reshape(shape), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_matches_closed_form(steps):
    """phi_T = s + (1 - alpha M)^T (theta - s), for one and several steps."""
    rate, theta = 0.2, np.array([1.0, -2.0])
    matrix = np.array([[1.0, 0.5], [-0.7, 2.0]])
    learner = metajax.learners.meta_curvature(
        constant_model(), rate=rate, inner_steps=steps, objective=squared_error
    )
    task = constant_task()
    meta_params = DescentParams(
        jnp.asarray(theta, float), (jnp.asarray(matrix, float),)
    )
    decay = np.linalg.matrix_power(np.eye(2) - rate * matrix, steps)
    phi = SUPPORT + decay @ (theta - SUPPORT)
    adapted = learner.adapt(meta_params, task.support)
    np.testing.assert_allclose(adapted, phi, rtol=1e-5)
    run = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))
    gradient = run(meta_params)
    np.testing.assert_allclose(gradient.params, decay.T @ (phi - QUERY), rtol=1e-4)
    if steps == 1:
        expected = -rate * np.outer(phi - QUERY, theta - SUPPORT)
        np.testing.assert_allclose(gradient.optimizer[0], expected, rtol=1e-4)


def test_starts_as_maml(key):
    model, task = metajax.models.mlp(3, hidden_sizes=(4,)), sample(key)
    learner = metajax.learners.meta_curvature(model, rate=0.2, eval_inner_steps=2)
    maml = metajax.learners.maml(
        model, optax.sgd(0.2), inner_steps=1, eval_inner_steps=2
    )
    meta_params = jax.jit(learner.init)(key, task)

    def run(learner, params):
        gradient = jax.value_and_grad(learner.loss, has_aux=True)(params, task)
        return gradient, learner.adapt(params, task.support)

    (got, adapted), expected = jax.jit(
        lambda: (run(learner, meta_params), run(maml, meta_params.params))
    )()
    (loss, gradient) = got
    chex.assert_trees_all_close(
        ((loss, gradient.params), adapted), expected, rtol=1e-5, atol=1e-7
    )
    # What is not on a diagonal learns too.
    matrix = gradient.optimizer["params"]["head"]["kernel"][1]
    assert np.abs(matrix - np.diag(np.diag(matrix))).max() > 1e-3


def test_filter_leaves_matrices_for_what_adapts_only(key):
    model, task = metajax.models.mlp(3, hidden_sizes=(4,)), sample(key)
    learner = metajax.learners.meta_curvature(
        model, adapts=metajax.filters.only("head")
    )
    matrices = jax.jit(learner.init)(key, task).optimizer
    assert [leaf.shape for leaf in jax.tree.leaves(matrices)] == [
        (3, 3),
        (4, 4),
        (3, 3),
    ]


ERRORS = {
    "rate": ({"rate": 0.0}, "`rate` must be above 0 and finite, got 0.0"),
    "rate of NaN": ({"rate": float("nan")}, "`rate` must be .*got nan"),
    "inner_steps": (
        {"inner_steps": 0},
        "`inner_steps` must be an integer of at least 1, got 0",
    ),
    "fractional steps": (
        {"inner_steps": 1.5},
        "`inner_steps` must be an integer.*got 1.5",
    ),
    "eval_inner_steps": (
        {"eval_inner_steps": -1},
        "`eval_inner_steps` must be .*got -1",
    ),
    "gradient": ({"gradient": "second"}, "reverse, remat, mixed"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.meta_curvature(constant_model(), **changes)
