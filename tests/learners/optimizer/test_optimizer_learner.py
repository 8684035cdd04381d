"""Learned optimizers: the best rate of quadratics, what judges, starts, and errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.constant import QUERY, SUPPORT, constant_model, constant_task
from learners.entry import PADDING, WAY, Entry, sample, small_mlp

import metajax
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.objectives import squared_error
from metajax.training.trainer import train
from metajax.types import Examples, Task

ENTRIES = {
    "optimizer_learner": Entry(
        lambda: metajax.learners.optimizer_learner(
            small_mlp(WAY),
            metajax.optimizers.learned(
                optax.sgd,
                learning_rate=metajax.optimizers.HyperParameter(0.1, domain="positive"),
            ),
            inner_steps=4,
            judges="query",
        )
    ),
    "optimizer_learner, lstm": Entry(
        lambda: metajax.learners.optimizer_learner(
            small_mlp(WAY),
            metajax.optimizers.lstm_optimizer(hidden_sizes=(4,), output_scale=0.01),
            inner_steps=3,
            gradient="first_order",
        ),
        laws=PADDING,
    ),
}

CURVATURE = jnp.array([0.5, 2.0])
STEPS, RATE = 3, 0.2


def rate(value, **settings):
    return learned(optax.sgd, learning_rate=HyperParameter(value, **settings))


def random_model():
    """As `constant_model`, but starts are drawn."""
    return constant_model()._replace(init=lambda key, x: jax.random.normal(key, (2,)))


def curved(outputs, targets):
    """c (phi - s)^2 / 2, summed over two coordinates of other curvatures."""
    return 0.5 * jnp.sum(CURVATURE[None] * jnp.square(outputs - targets), axis=1)


def random_task(key):
    target = jnp.broadcast_to(jax.random.normal(key, (1, 2)), (3, 2))
    examples = Examples(jnp.zeros((3, 1)), target)
    return Task(examples, examples)


@pytest.mark.parametrize("judges", ["path", "query"])
def test_learns_the_best_rate(judges):
    """Against a search over all rates of the mean loss, which is known.

    Distances have the same variance in both coordinates, so that the mean loss at step
    t is that variance times sum of c (1 - c alpha)^(2 t) / 2. What was found was less
    than 0.1 % off.
    """
    learner = metajax.learners.optimizer_learner(
        random_model(),
        rate(0.1, domain="positive"),
        inner_steps=STEPS,
        judges=judges,
        objective=curved,
    )
    result = train(
        learner,
        random_task,
        optax.adam(optax.linear_schedule(0.1, 0.0, 120)),
        steps=120,
        tasks_per_step=64,
        steps_per_dispatch=60,
        mesh=None,
        progress=False,
    )
    rates = np.linspace(0.01, 1.0, 1000)
    t = np.arange(1, STEPS + 1) if judges == "path" else np.array([STEPS])
    c = np.asarray(CURVATURE)[:, None, None]
    losses = (c * (1 - c * rates[:, None]) ** (2 * t)).sum(axis=0).mean(axis=1)
    best = rates[np.argmin(losses)]
    found = np.exp(result.meta_params.optimizer["learning_rate"])
    assert 0.3 < best < 0.9
    np.testing.assert_allclose(found, best, rtol=0.01)


@pytest.mark.parametrize("judges", ["path", "query"])
def test_loss_is_what_judges(judges):
    """In closed forms: support losses on the way, or the query loss at its end."""
    start = (1.0, -2.0)
    learner = metajax.learners.optimizer_learner(
        constant_model(start),
        rate(RATE),
        inner_steps=STEPS,
        judges=judges,
        objective=squared_error,
    )
    task = constant_task()
    meta_params = learner.init(jax.random.key(0), task)
    assert meta_params.params is None
    loss, metrics = learner.loss(meta_params, task)
    decays = (1 - RATE) ** np.arange(STEPS + 1)
    gap = np.array(start) - SUPPORT
    on_the_way = 0.5 * decays**2 * np.sum(gap**2)
    at_the_end = 0.5 * np.sum(np.square(SUPPORT + decays[-1] * gap - QUERY))
    expected = {"path": on_the_way[1:].mean(), "query": at_the_end}[judges]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    if judges == "path":
        np.testing.assert_allclose(metrics["query_loss"], at_the_end, rtol=1e-5)
    else:
        curve = [metrics[f"support_loss_{t}"] for t in range(STEPS)]
        np.testing.assert_allclose(curve, on_the_way[:-1], rtol=1e-5)


def test_starts_are_drawn_with_the_key():
    """Others for other keys, in loss and adaptation; one and the same without a key."""
    learner = metajax.learners.optimizer_learner(
        random_model(),
        rate(RATE),
        inner_steps=2,
        eval_inner_steps=1,
        objective=squared_error,
    )
    task = constant_task()
    meta_params = learner.init(jax.random.key(0), task)

    @jax.jit
    def run(key):
        path = learner.adapt_steps(meta_params, task.support, key=key)
        return path, learner.loss(meta_params, task, key=key)[0]

    first, again, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    assert first[0].shape == (2, 2)  # one step in adapting
    assert not np.allclose(first[0][0], other[0][0])
    assert first[1] != other[1]
    chex.assert_trees_all_equal(run(None), run(None))


def test_a_schedule_is_learned(key):
    """A rate for each step, of which each has a gradient, and no initialisation."""
    task = sample(key)
    learner = metajax.learners.optimizer_learner(
        metajax.models.mlp(3, hidden_sizes=(4,)),
        rate(RATE, inner_steps=2),
        inner_steps=2,
        judges="query",
    )
    meta_params = jax.jit(learner.init)(key, task)
    run = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))
    gradient = run(meta_params).optimizer["learning_rate"]
    assert gradient.shape == (2,)
    assert np.all(np.abs(gradient) > 1e-3)


ERRORS = {
    "optimizer": (
        {"inner_optimizer": optax.sgd(0.1)},
        TypeError,
        r"must be a LearnedOptimizer, .*HyperParameter\(0.1\)\), as it is all that",
    ),
    "judges": ({"judges": "end"}, ValueError, "one of path, query, got 'end'"),
    "no steps": (
        {"inner_steps": 0},
        ValueError,
        "`inner_steps` must be an integer of at least 1, got 0",
    ),
    "fractional steps": (
        {"inner_steps": 1.5},
        ValueError,
        "`inner_steps` must be an .*got 1.5",
    ),
    "eval_inner_steps": (
        {"eval_inner_steps": -1},
        ValueError,
        "`eval_inner_steps` must be .*got -1",
    ),
    "gradient": ({"gradient": "second"}, ValueError, "reverse, remat, mixed"),
    "adam": (
        {"inner_optimizer": learned(optax.adam, learning_rate=HyperParameter(0.1))},
        ValueError,
        "no finite derivative.*eps_root=1e-8",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, kind, message = ERRORS[name]
    settings = {"inner_optimizer": rate(RATE), "inner_steps": 1} | changes
    with pytest.raises(kind, match=message):
        metajax.learners.optimizer_learner(constant_model(), **settings)
