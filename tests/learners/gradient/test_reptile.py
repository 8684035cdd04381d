"""Reptile: its update in closed form, its batches, and its errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.constant import QUERY, SUPPORT, constant_model, constant_task
from learners.entry import LAWS, WAY, Entry, pad, sample, small_mlp

import metajax
from metajax.learners.gradient.reptile import draw_batches
from metajax.objectives import squared_error
from metajax.training.outer_loop import init_state, outer_step, reverse_mode
from metajax.types import Examples

ENTRIES = {
    "reptile": Entry(
        lambda: metajax.learners.reptile(
            small_mlp(WAY), optax.adam(0.02, b1=0.0), inner_steps=3, eval_inner_steps=5
        )
    ),
    "reptile, keeps state": Entry(
        lambda: metajax.learners.reptile(
            small_mlp(WAY),
            optax.sgd(0.02, momentum=0.9),
            inner_steps=3,
            keeps_state=True,
        ),
        laws=LAWS,
    ),
}

THETA, RATE = jnp.array([1.0, -2.0]), 0.2
TARGETS = jnp.array([[0.0, 1.0], [3.0, -1.0], [1.5, 0.5], [-0.5, 4.0]])


def quadratic(**settings):
    settings = {"inner_steps": 3} | settings
    return metajax.learners.reptile(
        constant_model(), optax.sgd(RATE), objective=squared_error, **settings
    )


def rows(num):
    """Examples that say which they are."""
    index = jnp.arange(num)
    return Examples({"id": index[:, None].astype(float)}, index)


@pytest.mark.parametrize("steps", [2, 5])
def test_gradient_is_the_way_to_the_solution(steps):
    """And its value the query loss, whose labels the gradient does not see."""
    learner, task = quadratic(inner_steps=steps), constant_task()
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
    optimizer, outer_gradient = optax.sgd(epsilon), reverse_mode()
    state = init_state(key, learner, constant_task(), optimizer, outer_gradient)
    state = state._replace(meta_params=THETA)
    keys = jax.random.split(key, 2)
    new, _ = outer_step(learner, optimizer, outer_gradient, state, tasks, keys)
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
    # Each step adds a * (1 - a)^t of one target to phi_T. Within a pass over n targets
    # none comes twice, so that two of them have the covariance -variance / (n - 1).
    factors = RATE * (1 - RATE) ** np.arange(3)
    own = np.sum(factors**2)
    among = np.sum(factors) ** 2 - own
    factor = own - among / (len(TARGETS) - 1)
    variance = factor * np.asarray(TARGETS).var(axis=0)
    np.testing.assert_allclose(updates.var(axis=0), variance, rtol=0.1)


@pytest.mark.parametrize("is_padded", [False, True])
def test_batches_are_cut_from_passes_over_the_real_examples(key, is_padded):
    """Also where a pass ends within a batch, and where a batch is several passes."""
    examples = rows(5)
    real = {0, 1, 2, 3, 4}
    if is_padded:
        examples = rows(7)._replace(mask=jnp.array([1, 1, 0, 1, 0, 1, 1], bool))
        real = {0, 1, 3, 5, 6}
    for steps, size in [(10, 3), (4, 25), (2, 1)]:
        batches = draw_batches(key, examples, steps, size)
        ids = np.asarray(batches.y)
        assert ids.shape == (steps, size)
        assert np.all(batches.is_real)
        np.testing.assert_array_equal(batches.x["id"][:, :, 0], ids)
        passes = [ids.ravel()[i : i + 5] for i in range(0, ids.size, 5)]
        assert all(set(of) == real for of in passes if len(of) == 5)
        assert all(len(set(of)) == len(of) for of in passes)
        if ids.size > 25:
            assert len({tuple(of) for of in passes}) > len(passes) / 2  # new orders


def test_batches_without_a_key_are_always_the_same(key):
    first, second = (draw_batches(None, rows(9), 4, 3) for _ in range(2))
    chex.assert_trees_all_equal(first, second)
    assert not np.array_equal(first.y, draw_batches(key, rows(9), 4, 3).y[::-1])
    assert len({tuple(row) for row in np.asarray(first.y)}) == 4


def adam_path(start, steps, gradient):
    """What Adam does if it is never reset."""
    optimizer = optax.adam(0.1)
    params, state = start, optimizer.init(start)
    for _ in range(steps):
        updates, state = optimizer.update(gradient(params), state)
        params = optax.apply_updates(params, updates)
    return params


def test_kept_state_goes_on_as_if_the_optimizer_were_never_reset(key):
    """With one task and a full outer step, Reptile is then the inner optimizer."""
    learner = metajax.learners.reptile(
        constant_model(),
        optax.adam(0.1),
        inner_steps=3,
        eval_inner_steps=4,
        objective=squared_error,
        keeps_state=True,
    )
    task, optimizer, outer_gradient = constant_task(), optax.sgd(1.0), reverse_mode()
    state = init_state(key, learner, task, optimizer, outer_gradient)
    start = state.meta_params._replace(params=THETA)
    state = state._replace(meta_params=start)
    tasks = jax.tree.map(lambda leaf: leaf[None], task)
    for _ in range(5):
        state, _ = outer_step(
            learner, optimizer, outer_gradient, state, tasks, key[None]
        )
    expected = adam_path(THETA, 15, lambda phi: phi - SUPPORT)
    chex.assert_trees_all_close(state.meta_params.params, expected, rtol=1e-4)
    adapted = learner.adapt(state.meta_params, task.support)
    expected = adam_path(THETA, 19, lambda phi: phi - SUPPORT)
    chex.assert_trees_all_close(adapted, expected, rtol=1e-4)


def test_kept_state_is_the_mean_over_tasks(key):
    """Counts and moments; the second moments are those of unlike gradients."""
    learner = metajax.learners.reptile(
        constant_model(),
        optax.adam(0.1, b1=0.0, b2=0.9),
        inner_steps=2,
        objective=squared_error,
        keeps_state=True,
    )
    tasks = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), constant_task())
    optimizer, outer_gradient = optax.sgd(0.5), reverse_mode()
    state = init_state(key, learner, constant_task(), optimizer, outer_gradient)
    start = state.meta_params._replace(params=jnp.zeros(2))
    keys = jax.random.split(key, 2)
    new, _ = outer_step(
        learner,
        optimizer,
        outer_gradient,
        state._replace(meta_params=start),
        tasks,
        keys,
    )
    # By symmetry both tasks have the same second moments: two steps of 0.1 each.
    gradients = [-SUPPORT, 0.1 * np.sign(SUPPORT) - SUPPORT]
    nu = 0.1 * (0.9 * gradients[0] ** 2 + gradients[1] ** 2)
    count, _, second = new.meta_params.optimizer
    assert float(count) == 1.0  # half way to 2
    chex.assert_trees_all_close(second, 0.5 * nu, rtol=1e-5)
    chex.assert_trees_all_close(new.meta_params.params, jnp.zeros(2), atol=1e-6)


def test_random_keys_of_an_optimizer_are_not_kept(key):
    noisy = optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(RATE))
    learner = metajax.learners.reptile(
        constant_model(),
        noisy,
        inner_steps=2,
        objective=squared_error,
        keeps_state=True,
    )
    params = learner.init(key, constant_task())
    leaves = params.optimizer
    assert [leaf.dtype for leaf in leaves] == [jnp.float32]  # the count
    gradient = jax.grad(lambda p: learner.loss(p, constant_task())[0])(params)
    assert float(gradient.optimizer[0]) == -2.0


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
    learner = metajax.learners.reptile(
        metajax.models.mlp(3, hidden_sizes=(4,)),
        optax.sgd(RATE),
        inner_steps=2,
        batch_size=50,
    )
    padded = task._replace(support=pad(task.support, 5))
    params = jax.jit(learner.init)(key, task)
    run = jax.jit(jax.grad(lambda p: learner.loss(p, padded, key=key)[0]))
    assert optax.tree.norm(run(params)) < 10  # inputs in the padding are 1000


def test_what_does_not_adapt_is_learned_by_nobody(key):
    model, task = metajax.models.mlp(3, hidden_sizes=(4,)), sample(key)
    learner = metajax.learners.reptile(
        model, optax.sgd(RATE), inner_steps=2, adapts=metajax.filters.only("head")
    )
    params = jax.jit(learner.init)(key, task)
    run = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))
    gradient = run(params)["params"]
    assert optax.tree.norm(gradient["Dense_0"]) == 0
    assert optax.tree.norm(gradient["head"]) > 0


ERRORS = {
    "one step": (
        {"inner_steps": 1},
        ValueError,
        "must be at least 2, got 1: .* jointly",
    ),
    "inner_steps": (
        {"inner_steps": 2.0},
        ValueError,
        "`inner_steps` must be an integer.*got 2.0",
    ),
    "eval_inner_steps": (
        {"eval_inner_steps": -1},
        ValueError,
        "`eval_inner_steps` must be .*got -1",
    ),
    "batch_size": (
        {"batch_size": 0},
        ValueError,
        "`batch_size` must be an integer of at least 1, got 0",
    ),
    "eval_batch_size": (
        {"eval_batch_size": 2.5},
        ValueError,
        "`eval_batch_size` must be .* got 2.5",
    ),
    "optimizer": ({"inner_optimizer": 0.1}, TypeError, "optax.sgd.*got 0.1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, kind, message = ERRORS[name]
    settings = {"inner_optimizer": optax.sgd(0.1)} | changes
    with pytest.raises(kind, match=message):
        metajax.learners.reptile(constant_model(), **settings)


def test_nothing_real_is_nothing_to_learn_from(key):
    """And not a batch of padding."""
    hidden = rows(4)._replace(mask=jnp.zeros(4, bool))
    assert not np.any(draw_batches(key, hidden, 3, 2).is_real)
    shown = hidden._replace(mask=jnp.array([True, False, False, False]))
    assert np.all(draw_batches(key, shown, 3, 2).is_real)
