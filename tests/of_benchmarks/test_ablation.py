"""Runs from its settings to a JSON file, and its part of the page."""

import pytest
from of_benchmarks.outcome import read_result

import metajax
from benchmarks import ablation, omniglot, results_page


@pytest.mark.usefixtures("data_dir")
def test_ablation(tmp_path, monkeypatch):
    model = metajax.models.mlp(5, hidden_sizes=(3,), normalization="batch")
    monkeypatch.setattr(omniglot.MamlPlusPlus, "model", lambda self: model)
    kept = ("all", "none (MAML)")
    monkeypatch.setattr(
        ablation, "VARIANTS", {name: ablation.VARIANTS[name] for name in kept}
    )
    ablation.main(ablation.Settings(outer_steps=2, tasks_per_step=2, num_test_tasks=3))
    full, none = read_result(tmp_path)["results"]
    assert (full["variant"], none["variant"]) == kept
    assert none["worse_by"]["mean"] == pytest.approx(full["mean"] - none["mean"])
    assert "worse than all by" in results_page.page(tmp_path / "results")
