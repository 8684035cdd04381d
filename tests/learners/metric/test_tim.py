"""TIM: its descent against NumPy, each weight, masks, absent classes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import Entry, sample, small_mlp
from learners.metric.oracles import adam, cosines, numbers, softmax

import metajax
from metajax.learners import prototypical, tim

ENTRIES = {
    "tim": Entry(
        lambda: tim(
            small_mlp(5), way=4, inner_optimizer=optax.adam(0.03), inner_steps=3
        ),
        is_inductive=False,
    ),
}

IDENTITY = metajax.models.identity()


def descended(task, rate, steps, tau, weights):
    """Query logits of the prototypes that minimise the paper's objective."""
    support, labels, queries = numbers(task)
    cross_entropy, marginal, conditional = weights

    def entropy(chances):
        return -np.sum(chances * np.log(chances), axis=-1)

    def loss(centers):
        of_support = softmax(tau * cosines(support, centers))
        own = of_support[np.arange(len(labels)), labels]
        chances = softmax(tau * cosines(queries, centers))
        return (
            cross_entropy * -np.log(own).mean()
            - marginal * entropy(chances.mean(0))
            + conditional * entropy(chances).mean()
        )

    start = [support[labels == k].mean(0) for k in range(3)]
    return tau * cosines(queries, adam(loss, start, rate, steps))


# Queries of mostly one class, so that the marginal entropy pulls.
def uneven(key):
    task = sample(key)
    return jax.tree.map(lambda leaf: leaf[:5], task.query), task.support


@pytest.mark.parametrize(
    "weights", [(1, 1, 0.1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 2, 3)]
)
def test_against_numpy(weights, key):
    query, support = uneven(key)
    task = metajax.Task(support, query)
    names = ("cross_entropy", "marginal_entropy", "conditional_entropy")
    learner = tim(
        IDENTITY,
        way=3,
        inner_optimizer=optax.adam(0.05),
        inner_steps=4,
        temperature=3.0,
        **{f"{n}_weight": w for n, w in zip(names, weights, strict=True)},
    )
    adapted = learner.adapt({}, task.support)
    logits = jax.jit(learner.predict)(adapted, task.query.x)
    wanted = descended(task, 0.05, 4, 3.0, weights)
    np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-4)


def test_adam_and_50_steps_are_the_default(key):
    query, support = uneven(key)
    as_default = tim(IDENTITY, way=3)
    named = tim(IDENTITY, way=3, inner_optimizer=optax.adam(1e-4), inner_steps=50)
    answers = [
        jax.jit(learner.predict)(learner.adapt({}, support), query.x)
        for learner in (as_default, named, tim(IDENTITY, way=3, inner_steps=49))
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert np.abs(answers[0] - answers[2]).max() > 1e-5


def test_without_steps_it_is_a_prototypical_network(key):
    """Its gradient as well: the prototypes' start is no constant."""
    task, model = sample(key), small_mlp(5)
    learner = tim(model, way=3, inner_steps=0)
    theirs = prototypical(model, way=3, distance="cosine", scale=10.0)
    params = learner.init(key, task)
    found, wanted = (
        jax.jit(jax.value_and_grad(lambda p, f=one.loss: f(p, task)[0]))(params)
        for one in (learner, theirs)
    )
    for ours, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-5)


def test_absent_classes_and_padding_change_nothing(key):
    query, support = uneven(key)
    padded = jnp.concatenate([query.x, jnp.full((2, 4), jnp.nan)])
    optimizer = optax.adam(0.05)
    few, many = (
        tim(IDENTITY, way=way, inner_optimizer=optimizer, inner_steps=3)
        for way in (3, 6)
    )
    wanted = jax.jit(few.predict)(few.adapt({}, support), query.x)
    found = jax.jit(many.predict)(
        many.adapt({}, support), padded, mask=jnp.arange(7) < 5
    )
    np.testing.assert_allclose(found[:5, :3], wanted, rtol=1e-4, atol=1e-4)
    assert np.all(np.isneginf(np.asarray(found)[:, 3:]))


ERRORS = {
    "steps": ({"inner_steps": -1}, ValueError, "`inner_steps` must be .* got -1"),
    "optimizer": ({"inner_optimizer": 0.1}, TypeError, "must be an optax.Gradient"),
    "temperature": ({"temperature": 0}, ValueError, "`temperature` must be above 0"),
    "cross_entropy": (
        {"cross_entropy_weight": -1},
        ValueError,
        "`cross_entropy_weight` must be at least 0",
    ),
    "marginal": (
        {"marginal_entropy_weight": float("inf")},
        ValueError,
        "`marginal_entropy_weight` must be .* got inf",
    ),
    "conditional": (
        {"conditional_entropy_weight": None},
        ValueError,
        "`conditional_entropy_weight` must be .* got None",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        tim(IDENTITY, **changes)
