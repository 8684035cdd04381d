"""Proto-MAML: its head by hand, prototypes without steps, any way, and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from learners.entry import Entry, sample, small_mlp

import metajax

ENTRIES = {
    "proto_maml": Entry(
        lambda: metajax.learners.proto_maml(
            small_mlp(5), optax.sgd(0.01), inner_steps=2
        )
    ),
    "proto_maml, support statistics": Entry(
        lambda: metajax.learners.proto_maml(
            small_mlp(5, "support"), optax.sgd(0.01), inner_steps=2
        )
    ),
}

IDENTITY = metajax.models.from_functions(lambda key, x: {}, lambda params, x: x)
RATE = 0.1


def embedding():
    return metajax.models.from_functions(
        lambda key, x: {"w": 0.5 * jax.random.normal(key, (x.shape[1], 5))},
        lambda params, x: jnp.tanh(x @ params["w"]),
    )


def test_without_steps_is_prototypical(key):
    """Loss, accuracy, gradient and answers."""
    task = sample(key)
    learner = metajax.learners.proto_maml(embedding(), optax.sgd(RATE), inner_steps=0)
    prototypical = metajax.learners.prototypical(embedding())
    params = jax.jit(learner.init)(key, task)

    def run(learner):
        gradient = jax.value_and_grad(learner.loss, has_aux=True)(params, task)
        adapted = learner.adapt(params, task.support)
        return gradient, learner.predict(adapted, task.query.x)

    got, expected = (
        jax.jit(lambda: run(learner))(),
        jax.jit(lambda: run(prototypical))(),
    )
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_head_by_hand(steps, key):
    """Of an embedding that has nothing to adapt: softmax regression in NumPy."""
    task = sample(key)
    learner = metajax.learners.proto_maml(
        IDENTITY, optax.sgd(RATE), inner_steps=steps, way=3
    )
    head = learner.adapt({}, task.support)["head"]
    x, y = np.asarray(task.support.x), np.asarray(task.support.y)
    targets = np.eye(3)[y]
    centers = targets.T @ x / targets.sum(axis=0)[:, None]
    kernel, bias = 2 * centers.T, -np.square(centers).sum(axis=1)
    for _ in range(steps):
        logits = x @ kernel + bias
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope = (odds / odds.sum(axis=1, keepdims=True) - targets) / len(y)
        kernel, bias = kernel - RATE * x.T @ slope, bias - RATE * slope.sum(axis=0)
    np.testing.assert_allclose(head["kernel"], kernel, rtol=1e-4)
    np.testing.assert_allclose(head["bias"], bias, rtol=1e-4)
    np.testing.assert_array_equal(head["is_present"], [True] * 3)


def test_gradient_passes_through_the_prototypes(key):
    """Finite differences, which gradients that stop there do not match."""
    task = sample(key)
    learner = metajax.learners.proto_maml(embedding(), optax.sgd(RATE), inner_steps=2)
    params = jax.jit(learner.init)(key, task)
    with jax.enable_x64(True):
        params, task = jax.tree.map(
            lambda x: np.float64(x) if x.dtype == np.float32 else x, (params, task)
        )
        loss = jax.jit(lambda params: learner.loss(params, task)[0])
        check_grads(loss, (params,), order=1, modes=["rev"])


def test_one_learner_serves_any_way(key):
    learner = metajax.learners.proto_maml(embedding(), optax.sgd(RATE), inner_steps=2)
    task = sample(key)
    params = jax.jit(learner.init)(key, task)
    fewer = jax.tree.map(lambda leaf: leaf[:4], task.support)  # two of three classes
    two = metajax.learners.proto_maml(
        embedding(), optax.sgd(RATE), inner_steps=2, way=2
    )

    def run(learner):
        adapted = learner.adapt(params, fewer)
        return learner.predict(adapted, task.query.x), adapted["head"]["is_present"]

    (outputs, is_present), (expected, _) = jax.jit(lambda: (run(learner), run(two)))()
    assert outputs.shape == (9, 4)  # as many as support examples
    assert np.isneginf(outputs[:, 2:]).all()
    np.testing.assert_array_equal(is_present, [True, True, False, False])
    np.testing.assert_allclose(outputs[:, :2], expected, rtol=1e-4)


def test_absent_classes_change_no_gradient(key):
    task = sample(key)

    def gradient(way):
        learner = metajax.learners.proto_maml(
            embedding(), optax.sgd(RATE), inner_steps=2, way=way
        )
        params = jax.jit(learner.init)(key, task)
        return jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(params)

    chex.assert_trees_all_close(gradient(7), gradient(3), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", ["embedding", "head"])
def test_filters_take_one_of_the_parts(part, key):
    task = sample(key)
    learner = metajax.learners.proto_maml(
        embedding(), optax.sgd(RATE), inner_steps=2, adapts=metajax.filters.only(part)
    )
    params = jax.jit(learner.init)(key, task)
    path = jax.jit(learner.adapt_steps)(params, task.support)
    before, after = (jax.tree.map(lambda x, at=at: x[at], path) for at in (0, -1))
    other = "head" if part == "embedding" else "embedding"
    chex.assert_trees_all_equal(after[other], before[other])
    assert not same(after[part], before[part])
    assert same(before["embedding"], params)


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


ERRORS = {
    "inner_steps": ({"inner_steps": -1}, ValueError, "`inner_steps` must be .*got -1"),
    "eval_inner_steps": (
        {"eval_inner_steps": 0.5},
        ValueError,
        "`eval_inner_steps` must be .*got 0.5",
    ),
    "way": ({"way": 0}, ValueError, "`way` must be an integer .*got 0"),
    "gradient": ({"gradient": "second"}, ValueError, "reverse, remat, mixed"),
    "optimizer": ({"inner_optimizer": 0.4}, TypeError, "optax.sgd.*got 0.4"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, kind, message = ERRORS[name]
    settings = {"inner_optimizer": optax.sgd(RATE), "inner_steps": 1} | changes
    with pytest.raises(kind, match=message):
        metajax.learners.proto_maml(IDENTITY, **settings)
