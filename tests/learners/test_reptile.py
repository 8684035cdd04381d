"""Reptile: its update in closed form, its batches, and its errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.constant import QUERY, SUPPORT, constant_model, constant_task
from learners.registry import pad, sample

import metajax
from metajax.learners.gradient.reptile import draw_batches
from metajax.objectives import squared_error
from metajax.outer_loop import init_state, outer_step, reverse_mode
from metajax.types import Examples

THETA, RATE = jnp.array([1.0, -2.0]), 0.2
TARGETS = jnp.array([[0.0, 1.0], [3.0, -1.0], [1.5, 0.5], [-0.5, 4.0]])


def quadratic(**settings):
    settings = {"steps": 3} | settings
    return metajax.reptile(
        constant_model(), optax.sgd(RATE), objective=squared_error, **settings
    )


def rows(num):
    """Examples that say which they are."""
    index = jnp.arange(num)
    return Examples({"id": index[:, None].astype(float)}, index)


@pytest.mark.parametrize("steps", [2, 5])
def test_gradient_is_the_way_to_the_solution(steps):
    """And its value the query loss, whose labels the gradient does not see."""
    learner, task = quadratic(steps=steps), constant_task()
    run = jax.jit(jax.value_and_grad(lambda p, t: learner.loss(p, t)[0]))
    loss, gradient = run(THETA, task)
    decay = (1 - RATE) ** steps
    phi = SUPPORT + decay * (THETA - SUPPORT)
    chex.assert_trees_all_close(gradient, (1 - decay) * (THETA - SUPPORT), rtol=1e-5)
    np.testing.assert_allclose(loss, 0.5 * np.sum(np.square(phi - QUERY)), rtol=1e-5)
    other = task._replace(query=task.query._replace(y=task.query.y + 5))
    chex.assert_trees_all_equal(run(THETA, other)[1], gradient)


def test_outer_sgd_is_the_algorithm(key):
    """theta <- theta + epsilon * mean over tasks of (phi_T - theta)."""
    learner, epsilon = quadratic(), 0.3
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), constant_task())
    optimizer, estimator = optax.sgd(epsilon), reverse_mode()
    state = init_state(key, learner, constant_task(), optimizer, estimator)
    state = state._replace(meta_params=THETA)
    keys = jax.random.split(key, 2)
    new, _ = outer_step(learner, optimizer, estimator, state, tasks, keys)
    ends = [s + (1 - RATE) ** 3 * (THETA - s) for s in (SUPPORT, 2 * SUPPORT)]
    expected = THETA + epsilon * (sum(ends) / 2 - THETA)
    chex.assert_trees_all_close(new.meta_params, expected, rtol=1e-5)


def test_expected_update_with_batches(key):
    """On a quadratic, batches change the mean of the update by nothing."""
    task = constant_task()._replace(support=Examples(jnp.zeros((4, 1)), TARGETS))
    learner = quadratic(batch_size=1)

    @jax.jit
    @jax.vmap
    def run(key):
        return jax.grad(lambda p: learner.loss(p, task, key=key)[0])(THETA)

    updates = np.asarray(run(jax.random.split(key, 4000)))
    mean = np.asarray(TARGETS).mean(axis=0)
    expected = (1 - (1 - RATE) ** 3) * (np.asarray(THETA) - mean)
    error = updates.std(axis=0) / np.sqrt(len(updates))
    assert np.all(np.abs(updates.mean(axis=0) - expected) < 4 * error)
    # Each step adds a * (1 - a)^t of the variance of one target to phi_T.
    factor = RATE**2 * sum((1 - RATE) ** (2 * t) for t in range(3))
    variance = factor * np.asarray(TARGETS).var(axis=0)
    np.testing.assert_allclose(updates.var(axis=0), variance, rtol=0.1)


def test_batches_hold_real_examples_without_repetition(key):
    examples, mask = rows(7), jnp.array([1, 1, 0, 1, 0, 1, 1], bool)
    batches = draw_batches(key, examples._replace(mask=mask), 100, 3)
    ids = np.asarray(batches.y)
    assert ids.shape == (100, 3)
    assert batches.mask is None
    np.testing.assert_array_equal(batches.x["id"][:, :, 0], ids)
    assert all(len(set(row)) == 3 for row in ids)
    assert set(ids.ravel()) == {0, 1, 3, 5, 6}
    # Ten sets of three of five: nearly all come, and each example in 3/5 of batches.
    assert len({frozenset(row) for row in ids}) >= 9
    counts = np.bincount(ids.ravel(), minlength=7)[np.asarray(mask)]
    np.testing.assert_allclose(counts, 60, atol=4 * np.sqrt(100 * 0.6 * 0.4))


def test_batches_larger_than_the_set_repeat_all_of_it(key):
    examples = rows(4)._replace(mask=jnp.array([True, False, True, True]))
    ids = np.asarray(draw_batches(key, examples, 5, 7).y)
    for row in ids:
        assert sorted(np.bincount(row, minlength=4)) == [0, 2, 2, 3]
        assert 1 not in row


def test_batches_without_a_key_are_always_the_same(key):
    first, second = (draw_batches(None, rows(9), 4, 3) for _ in range(2))
    chex.assert_trees_all_equal(first, second)
    assert not np.array_equal(first.y, draw_batches(key, rows(9), 4, 3).y[::-1])
    assert len({tuple(row) for row in np.asarray(first.y)}) == 4


def test_sizes_in_training_and_in_adapting(key):
    support = Examples(jnp.zeros((4, 1)), TARGETS)
    task = constant_task()._replace(support=support)
    keys = jnp.stack([key, jax.random.key(1)])

    def run(**sizes):
        learner = quadratic(**sizes)

        def one(key):
            loss, _ = learner.loss(THETA, task, key=key)
            return loss, learner.adapt(THETA, support, key=key)

        return jax.jit(jax.vmap(one))(keys)

    def is_same(pair):
        return np.array_equal(pair[0], pair[1])

    for sizes in ({}, {"batch_size": 2}, {"eval_batch_size": 2}):
        loss, adapted = run(**sizes)
        assert is_same(loss) == ("batch_size" not in sizes)
        assert is_same(adapted) == ("eval_batch_size" not in sizes)


def test_padding_is_not_learned_from(key):
    task = sample(key)
    learner = metajax.reptile(
        metajax.mlp(3, hidden=(4,)), optax.sgd(RATE), steps=2, batch_size=50
    )
    padded = task._replace(support=pad(task.support, 5))
    params = jax.jit(learner.init)(key, task)
    run = jax.jit(jax.grad(lambda p: learner.loss(p, padded, key=key)[0]))
    assert optax.tree.norm(run(params)) < 10  # inputs in the padding are 1000


def test_what_does_not_adapt_is_learned_by_nobody(key):
    model, task = metajax.mlp(3, hidden=(4,)), sample(key)
    learner = metajax.reptile(
        model, optax.sgd(RATE), steps=2, adapts=metajax.only("head")
    )
    params = jax.jit(learner.init)(key, task)
    run = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))
    gradient = run(params)["params"]
    assert optax.tree.norm(gradient["Dense_0"]) == 0
    assert optax.tree.norm(gradient["head"]) > 0


ERRORS = {
    "one step": ({"steps": 1}, ValueError, "must be at least 2, got 1: .* jointly"),
    "steps": ({"steps": 2.0}, ValueError, "`steps` must be an integer.*got 2.0"),
    "eval_steps": ({"eval_steps": -1}, ValueError, "`steps` must be .*got -1"),
    "batch_size": (
        {"batch_size": 0},
        ValueError,
        "`batch_size` must be None or an integer of at least 1, got 0",
    ),
    "eval_batch_size": (
        {"eval_batch_size": 2.5},
        ValueError,
        "`eval_batch_size` must be None or .* got 2.5",
    ),
    "optimizer": ({"inner_optimizer": 0.1}, TypeError, "optax.sgd.*got 0.1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, kind, message = ERRORS[name]
    settings = {"inner_optimizer": optax.sgd(0.1)} | changes
    with pytest.raises(kind, match=message):
        metajax.reptile(constant_model(), **settings)
