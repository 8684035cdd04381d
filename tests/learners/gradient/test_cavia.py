"""CAVIA: a closed form, what adapts and what does not, FiLM, and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.objectives import squared_error
from metajax.types import Examples

ENTRIES = {
    "cavia": Entry(
        lambda: metajax.learners.cavia(
            small_mlp(WAY), optax.sgd(1.0), inner_steps=2, context_size=3
        )
    ),
    "cavia, support statistics": Entry(
        lambda: metajax.learners.cavia(
            small_mlp(WAY, "support"), optax.sgd(0.5), context_size=3
        )
    ),
}

RATE = 0.3


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_matches_closed_form(steps):
    """Of w x + v c: the context goes to the mean residual over v."""
    model = metajax.models.from_functions(
        lambda key, pair: {},
        lambda params, pair: params["w"] * pair[0] + params["v"] * pair[1],
    )
    learner = metajax.learners.cavia(
        model,
        optax.sgd(RATE),
        context_size=1,
        inner_steps=steps,
        objective=squared_error,
    )
    x, y = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([[3.0], [-1.0], [2.0]])
    params = {"w": jnp.float32(0.5), "v": jnp.float32(0.8)}
    adapted = learner.adapt(params, Examples(x, y))
    context = np.mean(y - 0.5 * x) / 0.8 * (1 - (1 - 2 * RATE * 0.8**2) ** steps)
    np.testing.assert_allclose(adapted["context"], [context], rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(adapted["network"], params)
    expected = 0.5 * x + 0.8 * context
    np.testing.assert_allclose(learner.predict(adapted, x), expected, rtol=1e-5)


def test_only_the_context_adapts_and_starts_at_zero(key):
    task = sample(key)
    model = metajax.models.mlp(3, hidden_sizes=(4,))
    learner = metajax.learners.cavia(
        model, optax.sgd(RATE), context_size=2, inner_steps=2
    )
    params = jax.jit(learner.init)(key, task)
    assert params["params"]["context"]["kernel"].shape == (2, 4)
    path = jax.jit(learner.adapt_steps)(params, task.support)
    assert path["context"].shape == (3, 2)
    np.testing.assert_array_equal(path["context"][0], 0)
    assert np.all(np.any(np.diff(path["context"], axis=0) != 0, axis=1))
    for step in range(3):
        at = jax.tree.map(lambda leaf, step=step: leaf[step], path["network"])
        chex.assert_trees_all_equal(at, params)


def test_meta_gradient_matches_finite_differences(key):
    task = sample(key)
    learner = metajax.learners.cavia(
        metajax.models.mlp(3, hidden_sizes=(4,)),
        optax.sgd(RATE),
        context_size=2,
        inner_steps=2,
    )
    params = jax.jit(learner.init)(key, task)
    with jax.enable_x64(True):
        params, task = jax.tree.map(
            lambda x: np.float64(x) if x.dtype == np.float32 else x, (params, task)
        )
        loss = jax.jit(lambda params: learner.loss(params, task)[0])
        check_grads(loss, (params,), order=1, modes=["rev"])


def test_images_by_film(key):
    """The context counts after the normalisation, which would undo it."""
    model = metajax.models.conv4(2, features=4, pooling="stride", normalization="batch")
    learner = metajax.learners.cavia(model, optax.sgd(RATE), context_size=2)
    images = jax.random.normal(key, (4, 5, 5, 1))
    support = Examples(images, jnp.array([0, 1, 0, 1]))
    params = jax.jit(model.init)(key, (images, jnp.zeros((4, 2))))

    @jax.jit
    def run(params):
        adapted = learner.adapt(params, support)
        start = adapted | {"context": jnp.zeros(2)}
        return adapted["context"], [
            learner.predict(p, images) for p in (adapted, start)
        ]

    context, (outputs, without) = run(params)
    assert np.abs(context).min() > 1e-6
    assert np.abs(outputs - without).max() > 1e-5


ERRORS = {
    "context_size": (
        {"context_size": 0},
        ValueError,
        "`context_size` must be an integer of at least 1, got 0",
    ),
    "fractional": ({"context_size": 2.5}, ValueError, "`context_size` .* got 2.5"),
    "inner_steps": ({"inner_steps": -1}, ValueError, "`inner_steps` must be .*got -1"),
    "eval_inner_steps": (
        {"eval_inner_steps": 0.5},
        ValueError,
        "`eval_inner_steps` must be .*got 0.5",
    ),
    "gradient": ({"gradient": "second"}, ValueError, "reverse, remat, mixed"),
    "optimizer": ({"inner_optimizer": 0.4}, TypeError, "optax.sgd.*got 0.4"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, kind, message = ERRORS[name]
    settings = {"inner_optimizer": optax.sgd(RATE)} | changes
    with pytest.raises(kind, match=message):
        metajax.learners.cavia(metajax.models.mlp(1), **settings)
