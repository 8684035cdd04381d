"""Transductive fine-tuning: its descent against NumPy, single examples, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import Entry, sample, small_mlp
from learners.metric.oracles import adam, distances, numbers, softmax

import metajax
from metajax.learners import transductive_fine_tuning
from metajax.learners.metric import transductive_fine_tuning as module

ENTRIES = {
    "transductive_fine_tuning": Entry(
        lambda: transductive_fine_tuning(
            small_mlp(5), way=4, inner_optimizer=optax.adam(0.03), inner_steps=3
        ),
        is_inductive=False,
    ),
}

IDENTITY = metajax.models.identity()


def descended(task, rate, steps, tau):
    """Query logits after descent on the cross-entropy and the entropy."""
    support, labels, queries = numbers(task)

    def loss(centers):
        of_support = softmax(-tau * distances(support, centers))
        own = of_support[np.arange(len(labels)), labels]
        chances = softmax(-tau * distances(queries, centers))
        return -np.log(own).mean() - np.sum(chances * np.log(chances), axis=1).mean()

    start = [support[labels == k].mean(0) for k in range(3)]
    return -tau * distances(queries, adam(loss, start, rate, steps))


@pytest.mark.parametrize("shot", [1, 2])
def test_against_numpy(shot, key):
    """A single example is its own mean: the slope of its distance counts as 0."""
    task = sample(key)
    rows = jnp.array([0, 2, 4]) if shot == 1 else jnp.arange(6)
    support = jax.tree.map(lambda leaf: leaf[rows], task.support)
    learner = transductive_fine_tuning(
        IDENTITY,
        way=3,
        inner_optimizer=optax.adam(0.05),
        inner_steps=4,
        temperature=0.5,
    )
    adapted = learner.adapt({}, support)
    logits = jax.jit(learner.predict)(adapted, task.query.x)
    wanted = descended(task._replace(support=support), 0.05, 4, 0.5)
    np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-4)


def test_adam_and_25_steps_are_the_default(key):
    task = sample(key)
    make = transductive_fine_tuning
    answers = [
        jax.jit(learner.predict)(learner.adapt({}, task.support), task.query.x)
        for learner in (
            make(IDENTITY, way=3),
            make(IDENTITY, way=3, inner_optimizer=optax.adam(5e-5), inner_steps=25),
            make(IDENTITY, way=3, inner_steps=24),
        )
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert np.abs(answers[0] - answers[2]).max() > 1e-6


def test_absent_classes_and_padding_change_nothing(key):
    task = sample(key)
    padded = jnp.concatenate([task.query.x, jnp.full((2, 4), jnp.nan)])
    few, many = (
        transductive_fine_tuning(
            IDENTITY, way=way, inner_optimizer=optax.adam(0.05), inner_steps=3
        )
        for way in (3, 6)
    )
    wanted = jax.jit(few.predict)(few.adapt({}, task.support), task.query.x)
    found = jax.jit(many.predict)(
        many.adapt({}, task.support), padded, mask=jnp.arange(11) < 9
    )
    np.testing.assert_allclose(found[:9, :3], wanted, rtol=1e-4, atol=1e-4)
    assert np.all(np.isneginf(np.asarray(found)[:, 3:]))


def test_the_gradient_of_no_distance_is_0(key):
    rows = jax.random.normal(key, (3, 2))
    slope = jax.grad(lambda centers: jnp.trace(module.distances(rows, centers)))(rows)
    np.testing.assert_array_equal(slope, 0)


def test_a_loss_has_a_finite_gradient(key):
    task = sample(key)
    learner = transductive_fine_tuning(small_mlp(5), way=3, inner_steps=2)
    params = learner.init(key, task)
    gradient = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(params)
    sizes = [np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)]
    assert np.isfinite(sizes).all()
    assert max(sizes) > 1e-4


ERRORS = {
    "steps": ({"inner_steps": 1.5}, ValueError, "`inner_steps` must be .* got 1.5"),
    "optimizer": ({"inner_optimizer": "adam"}, TypeError, "must be an optax.Gradient"),
    "temperature": ({"temperature": -1}, ValueError, "`temperature` must be above 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        transductive_fine_tuning(IDENTITY, **changes)
