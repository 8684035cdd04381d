"""Room in the contract: collected tasks, several updates, tasks that change, judges.

The problem is a point `theta` that is pulled: L(theta) = 1/2 |theta - c|^2, whose
gradient is theta - c, so that every step of SGD has a closed form.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic import same_bits

import metajax
from metajax.training.outer_loop import (
    init_state,
    outer_step,
    reverse_mode,
)
from metajax.types import Learner, Task

RATE, START = 0.25, 8.0
NUM_TASKS = 4


class Arm(NamedTuple):
    """The support and query of a task that holds no examples: where the pull is."""

    center: jax.Array


def sample(key):
    center = jax.random.uniform(key, (), minval=-1, maxval=1)
    return Task(Arm(center), Arm(center))


def learner(collect=None):
    """Pulls to the centre that the query, collected or drawn, holds."""

    def loss(meta_params, task, *, key=None):
        error = meta_params - task.query.center
        return error**2 / 2, {"distance": jnp.abs(error)}

    return Learner(
        init=lambda key, task: jnp.float32(START),
        adapt=lambda meta_params, support, *, key=None: meta_params,
        predict=lambda adapted, inputs, *, mask=None, key=None: inputs,
        loss=loss,
        collect=collect,
    )


def around_theta(meta_params, task, *, key=None):
    """Experience: the pull is one above where `theta` was when it was collected."""
    return Task(task.support, Arm(meta_params + 1))


def train(learner, tasks=sample, **changes):
    arguments = {"steps": 3, "tasks_per_step": NUM_TASKS, "progress": False} | changes
    return metajax.train(learner, tasks, optax.sgd(RATE), **arguments)


@pytest.mark.parametrize("updates", [1, 2, 5])
def test_updates_share_what_was_collected_before_the_first(updates):
    # The centre stays at theta + 1 while theta moves: after u updates the distance of 1
    # is (1 - RATE)^u. No gradient passes through what was collected, or it would be 0.
    result = train(learner(around_theta), updates_per_step=updates, log_every=1)
    moved = 1 - (1 - RATE) ** updates
    np.testing.assert_allclose(result.meta_params, START + 3 * moved, rtol=1e-6)
    losses = [record["loss"] for record in result.history]
    mean = np.mean([(1 - RATE) ** (2 * u) / 2 for u in range(updates)])
    np.testing.assert_allclose(losses, mean, rtol=1e-5)
    assert result.state.step == 3


def test_collecting_gets_keys_of_its_own(key):
    def noisy(meta_params, task, *, key=None):
        return Task(task.support, Arm(jax.random.uniform(key)))

    def loss(meta_params, task, *, key=None):
        return task.query.center - jax.random.uniform(key) + 0 * meta_params, {}

    tasks = jax.vmap(sample)(jax.random.split(key, NUM_TASKS))
    keys = jax.random.split(key, NUM_TASKS)
    noise = learner(noisy)._replace(loss=loss)
    state = init_state(key, noise, sample(key), optax.sgd(RATE), reverse_mode())
    take = functools.partial(outer_step, noise, optax.sgd(RATE), reverse_mode(), state)
    assert abs(take(tasks, keys)[1]["loss"]) > 1e-3  # one key would make it 0
    losses = [
        take(tasks, keys, updates_per_step=updates)[1]["loss"] for updates in (2, 3)
    ]
    assert abs(losses[0] - losses[1]) > 1e-3  # every update draws anew


def test_a_step_is_taken_back_whole_if_a_later_update_fails(key):
    def loss(meta_params, task, *, key=None):
        # Finite at the start, and not after the first update.
        return jnp.where(meta_params >= START, meta_params, jnp.nan), {}

    bad = learner()._replace(loss=loss)
    state = init_state(key, bad, sample(key), optax.sgd(RATE), reverse_mode())
    tasks = jax.vmap(sample)(jax.random.split(key, NUM_TASKS))
    new, metrics = outer_step(
        bad,
        optax.sgd(RATE),
        reverse_mode(),
        state,
        tasks,
        jax.random.split(key, NUM_TASKS),
        updates_per_step=2,
    )
    assert not metrics["is_finite"]
    assert same_bits(new, state)


@jax.tree_util.register_pytree_node_class
class Drifting:
    """Tasks whose centre is the number of the outer step; the referee's is 100."""

    def __init__(self, center=100.0):
        self.center = center

    def __call__(self, key):
        return Task(Arm(jnp.float32(self.center)), Arm(jnp.float32(self.center)))

    def at(self, step):
        return Drifting(jnp.asarray(step, jnp.float32))

    def tree_flatten(self):
        return (self.center,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


class DriftingPlain:
    """The same, but no pytree."""

    def __call__(self, key):
        return Drifting()(key)

    def at(self, step):
        return Drifting().at(step)


@pytest.mark.parametrize("tasks", [Drifting(), DriftingPlain()])
@pytest.mark.parametrize("steps_per_dispatch", [1, 4])
def test_tasks_may_change_with_the_outer_step(tasks, steps_per_dispatch, tmp_path):
    expected = START
    for step in range(5):
        expected -= RATE * (expected - step)
    run = functools.partial(train, learner(), tasks, run_dir=tmp_path / "run")
    run(steps=2, steps_per_dispatch=steps_per_dispatch)
    resumed = run(steps=5, steps_per_dispatch=steps_per_dispatch)
    np.testing.assert_allclose(resumed.meta_params, expected, rtol=1e-6)
    whole = jax.jit(
        metajax.whole_run(
            lambda hyper: (learner(), optax.sgd(RATE)),
            tasks,
            steps=5,
            tasks_per_step=NUM_TASKS,
        )
    )(jax.random.key(0))
    np.testing.assert_allclose(whole.meta_params, expected, rtol=1e-6)


def distance_below(adapted, query, *, key):
    """A judge with a known answer, and a number of its key."""
    return {
        "return": -jnp.abs(adapted - query.center),
        "noise": jax.random.uniform(key),
    }


def test_a_judge_measures_tasks_without_examples():
    bank = functools.partial(metajax.evaluate, learner(), jnp.float32(2.0), num_tasks=8)
    report = bank(sample, judge=distance_below)
    centers = [metajax.evaluation.bank_task(sample, i).query.center for i in range(8)]
    expected = [-abs(2.0 - float(center)) for center in centers]
    np.testing.assert_allclose(report.values["return"], expected, rtol=1e-6)
    assert report.protocol == "unchecked"
    assert len(set(report.values["noise"].tolist())) == 8
    again = bank(sample, judge=distance_below)
    np.testing.assert_array_equal(again.values["noise"], report.values["noise"])
    with pytest.raises(ValueError, match="whose query is `Examples`, .*give `judge`"):
        bank(sample)
    with pytest.raises(ValueError, match="either `metrics_fn` or `judge`"):
        bank(sample, judge=distance_below, metrics_fn=lambda outputs, query: {})
    with pytest.raises(ValueError, match="`buckets` cut `Examples`, .* leave them out"):
        bank(sample, judge=distance_below, buckets=[(1, 1)])
    with pytest.raises(ValueError, match="`judge` must return scalars, but 'x'"):
        bank(sample, judge=lambda adapted, query, *, key: {"x": jnp.zeros(2)})


def test_the_best_step_is_that_of_the_largest_return(tmp_path):
    arguments = {
        "validation": sample,
        "judge": distance_below,
        "monitor": "return",
        "validate_every": 5,
        "num_validation_tasks": 8,
        "steps": 10,
        "run_dir": tmp_path / "run",
    }
    result = train(learner(), **arguments)
    assert result.best_step == 10  # it comes nearer all the time
    # Meta-parameters that are a single array are saved and read like any other.
    loaded = metajax.load_meta_params(tmp_path / "run", jnp.float32(0))
    assert loaded == result.best_params == result.meta_params
    [first, *_, last] = [r for r in result.history if r["kind"] == "validation"]
    assert first["return"] < last["return"] < 0


def test_adding_updates_is_a_setting_of_the_run(tmp_path):
    train(learner(), run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="updates_per_step"):
        train(learner(), run_dir=tmp_path / "run", updates_per_step=2, steps=4)


def test_a_judge_belongs_to_a_validation():
    with pytest.raises(ValueError, match="`judge` needs `validation`"):
        train(learner(), judge=distance_below)
    with pytest.raises(ValueError, match="`judge` needs `validation`"):
        metajax.whole_run(
            lambda hyper: (learner(), optax.sgd(RATE)),
            sample,
            steps=1,
            tasks_per_step=1,
            judge=distance_below,
        )


def test_numbers_of_updates_are_checked():
    with pytest.raises(ValueError, match="`updates_per_step` must be an integer"):
        train(learner(), updates_per_step=0)
