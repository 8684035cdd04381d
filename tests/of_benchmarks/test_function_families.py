"""Runs from its settings to a JSON file, and its part of the page."""

import jax
import numpy as np
import optax
import pytest
from of_benchmarks.outcome import read_result

import metajax
from benchmarks import function_families, results_page


def test_function_families(tmp_path, monkeypatch):
    """With learners that compile at once; its own are only built."""
    monkeypatch.setattr(function_families, "RESULTS", tmp_path / "results")
    settings = function_families.Settings(
        num_seeds=2, inner_steps=1, outer_steps=1, tasks_per_step=2, num_test_tasks=3
    )
    task = metajax.tasks.regression_families()(jax.random.key(0))
    for learner in function_families.learners(settings).values():
        meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
        jax.eval_shape(learner.loss, meta_params, task)
    few = {
        name: metajax.learners.maml(
            metajax.models.mlp(1, hidden_sizes=()),
            optax.sgd(0.001),
            inner_steps=steps,
            objective=metajax.objectives.squared_error,
        )
        for steps, name in enumerate(("maml", "arml"))
    }
    monkeypatch.setattr(function_families, "learners", lambda settings: few)
    function_families.main(settings)
    rows = {(r["learner"], r["family"]): r for r in read_result(tmp_path)["results"]}
    assert len(rows) == 2 * 7
    ours, maml = rows["arml", "all"], rows["maml", "all"]
    assert ours["num_tasks"] == 6 * 3
    families = [rows["arml", f]["mean"] for f in function_families.FAMILIES]
    assert ours["mean"] == pytest.approx(np.mean(families), rel=1e-6)
    below = maml["mean"] - ours["mean"]
    assert ours["below_maml"]["mean"] == pytest.approx(below, rel=1e-4)
    ratios = np.divide(ours["seeds"], maml["seeds"])
    assert ours["of_maml"] == pytest.approx(ratios.tolist())
    assert (tmp_path / "results/function-families.png").exists()
    assert "largest share of MAML's" in results_page.page(tmp_path / "results")
