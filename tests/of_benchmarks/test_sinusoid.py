"""Runs from its settings to a JSON file, and its part of the page."""

import jax
import pytest
from of_benchmarks.outcome import read_result

import metajax
from benchmarks import sinusoid


def test_sinusoid(tmp_path):
    sinusoid.main(sinusoid.Settings(steps=2, num_test_tasks=3))
    result = read_result(tmp_path)
    assert [row["inner_steps"] for row in result["results"]] == list(range(11))
    assert result["settings"]["seed"] == 0
    assert {"command", "revision", "device", "versions"} <= set(result)


@pytest.mark.parametrize("name", ["fomaml", "anil", "meta-sgd", "cavia"])
def test_other_learners_on_sinusoids(name):
    settings = sinusoid.Settings(learner=name, inner_rate=0.5)
    learner = sinusoid.make_learner(settings, eval_steps=2)
    task = metajax.tasks.sinusoid()(jax.random.key(0))
    meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
    path = jax.eval_shape(learner.adapt_steps, meta_params, task.support)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(path)} == {3}
