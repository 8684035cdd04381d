"""Runs from its settings to a JSON file, and its part of the page."""

import jax
import pytest
from of_benchmarks.outcome import read_result

import metajax
from benchmarks import omniglot


@pytest.mark.parametrize("kind", omniglot.NAMES)
def test_learners_on_omniglot(kind):
    settings = kind()
    assert omniglot.result_name(settings).count("-seed0") == 1
    learner = settings.build(settings.model())
    settings.optimizer()
    tasks = metajax.tasks.glyphs(
        way=settings.way, shot=settings.train_shot, num_queries=1
    )
    task = jax.eval_shape(tasks, jax.random.key(0))
    meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
    loss, _ = jax.eval_shape(learner.loss, meta_params, task)
    assert loss.shape == ()


def test_results_name_the_switches_that_are_not_as_usual():
    settings = omniglot.MamlPlusPlus(per_step_rates=False, way=20, steps=7)
    expected = "omniglot-maml-plus-plus-20w1s-per-step-rates-False-seed0"
    assert omniglot.result_name(settings) == expected


@pytest.mark.usefixtures("data_dir")
def test_prototypical_on_glyphs_and_then_real_images(tmp_path):
    settings = omniglot.Prototypical(source="glyphs", way=5, steps=2, num_test_tasks=2)
    omniglot.main(settings)
    rows = read_result(tmp_path)["results"]
    assert {row["images"] for row in rows} == {"omniglot", "devanagari", "mnist"}
    assert {row["protocol"] for row in rows} == {"inductive"}
    assert len(rows) == 4 + 2 + 2
