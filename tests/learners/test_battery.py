"""What every learner must satisfy, whatever it does inside."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import pad
from learners.registry import REGISTRY

from metajax.evaluation.transduction import leakage
from metajax.objectives import cross_entropy
from metajax.training.checkpoints import Checkpoints
from metajax.training.outer_loop import init_state, outer_step, reverse_mode
from metajax.types import Examples, Learner, Task

# The tests of one learner follow one another, and so share its compiled programs.
pytestmark = pytest.mark.parametrize("name", REGISTRY, scope="module")

close = functools.partial(chex.assert_trees_all_close, rtol=2e-4, atol=1e-5)


@functools.lru_cache(maxsize=1)
def built(name: str) -> tuple[Learner, Task, chex.ArrayTree]:
    """A learner, a task, and meta-parameters moved off their initial values."""
    learner = REGISTRY[name].make()
    task = REGISTRY[name].sample(jax.random.key(1))
    meta_params = learner.init(jax.random.key(2), task)
    leaves, structure = jax.tree.flatten(meta_params)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return learner, task, structure.unflatten(moved)


@functools.lru_cache(maxsize=1)
def compiled_answer(name: str):
    """The learner's answer to a query set, as a compiled function.

    Compiling is what the battery costs: sets are as `sample` makes them, or `padded`.
    """
    learner, _, _ = built(name)

    def answer(meta_params, support, query):
        adapted = learner.adapt(meta_params, support, key=None)
        return learner.predict(adapted, query.x, mask=query.mask, key=None)

    return jax.jit(answer)


def padded(task: Task) -> Task:
    return Task(pad(task.support, 3), pad(task.query, 4))


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_jit_equals_no_jit(name, key):
    learner, task, meta_params = built(name)
    close(
        jax.jit(learner.loss)(meta_params, task, key=key),
        learner.loss(meta_params, task, key=key),
    )
    answer = compiled_answer(name)(meta_params, task.support, task.query)
    assert {len(leaf) for leaf in jax.tree.leaves(answer)} == {len(task.query.y)}


def test_one_trace_over_repeated_steps_and_same_key_same_result(name, key):
    chex.clear_trace_counter()
    learner, task, _ = built(name)
    traced = learner._replace(loss=chex.assert_max_traces(n=1)(learner.loss))
    optimizer, outer_gradient = optax.adam(1e-3), reverse_mode()
    step = jax.jit(functools.partial(outer_step, traced, optimizer, outer_gradient))
    state = init_state(key, traced, task, optimizer, outer_gradient)
    keys = jax.random.split(key, 2)
    for i in range(3):
        tasks = jax.vmap(REGISTRY[name].sample)(jax.random.split(jax.random.key(i), 2))
        new_state, metrics = step(state, tasks, keys)
        chex.assert_trees_all_equal((new_state, metrics), step(state, tasks, keys))
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        assert metrics["is_finite"]
        state = new_state
    assert state.step == 3
    initial = [learner.init(key, task) for _ in range(2)]
    chex.assert_trees_all_equal(*initial)


def test_padded_in_a_batch_equals_one_by_one(name):
    """`vmap` over tasks is a loop, and masked examples are as if absent."""
    learner, task, meta_params = built(name)
    gradient = jax.value_and_grad(learner.loss, has_aux=True)
    # Tasks on which no learner comes near a tie, which rounding would break.
    tasks = [task, *(REGISTRY[name].sample(jax.random.key(seed)) for seed in (5, 6))]
    batched = jax.jit(jax.vmap(gradient, (None, 0)))
    batch = stack([padded(task) for task in tasks])
    one = jax.jit(gradient)
    expected = stack([one(meta_params, t) for t in tasks])
    # Where terms cancel (a bias before a normalisation), what remains is the rounding
    # of terms, which are as large as other gradients.
    largest = max(np.max(np.abs(leaf)) for leaf in jax.tree.leaves(expected))
    close(batched(meta_params, batch), expected, atol=1e-5 * max(1, largest))


def test_masked_examples_do_not_change_answers(name):
    _, task, meta_params = built(name)
    answer = compiled_answer(name)
    all_outputs = jax.tree.leaves(answer(meta_params, *padded(task)))
    all_expected = jax.tree.leaves(answer(meta_params, *task))
    for outputs, expected in zip(all_outputs, all_expected, strict=True):
        outputs = outputs[: len(task.query.y)]
        # More support rows may mean more columns, all of them for absent classes.
        close(outputs[:, : expected.shape[1]], expected)
        assert np.all(outputs[:, expected.shape[1] :] == -np.inf)


def test_support_order_does_not_matter(name, key):
    if not REGISTRY[name].ignores_order:
        pytest.skip("its support set is read as a sequence")
    _, task, meta_params = built(name)
    answer = compiled_answer(name)
    order = jax.random.permutation(key, len(task.support.y))
    shuffled = Examples(task.support.x[order], task.support.y[order])
    close(
        answer(meta_params, shuffled, task.query),
        answer(meta_params, task.support, task.query),
    )


def test_queries_do_not_leak(name):
    learner, task, meta_params = built(name)
    found = leakage(learner, meta_params, task)
    assert found.is_inductive == REGISTRY[name].is_inductive, found


def test_adapting_lowers_the_support_loss(name):
    if not REGISTRY[name].uses_labels_untrained:
        pytest.skip("what it makes of labels is all learned, or they are not asked")
    _, task, meta_params = built(name)
    answer = compiled_answer(name)

    def loss_after(labels):
        support = Examples(task.support.x, labels)
        # Asked about its own support set, in shapes that are compiled already.
        query = pad(task.support, len(task.query.y) + 4 - len(labels))
        outputs = answer(meta_params, pad(support, 3), query)[: len(labels)]
        return jnp.mean(cross_entropy(outputs, task.support.y))

    labels = task.support.y
    assert loss_after(labels) < loss_after(jnp.roll(labels, 2))


def test_checkpoint_round_trip(name, key, tmp_path):
    learner, task, _ = built(name)
    optimizer, outer_gradient = optax.adam(1e-3), reverse_mode()
    state = init_state(key, learner, task, optimizer, outer_gradient)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, {"state": state}, {"note": name})
    step, trees, record = checkpoints.restore_latest({"state": state})
    checkpoints.close()
    assert (step, record) == (0, {"note": name})
    chex.assert_trees_all_equal(trees["state"], state)
    chex.assert_trees_all_equal_shapes_and_dtypes(trees["state"], state)
