"""Runs from its settings to a JSON file, and its part of the page."""

import numpy as np
import pytest
from of_benchmarks.outcome import read_result

import metajax
from benchmarks import recommend_trees, results_page, task_map


@pytest.mark.usefixtures("data_dir")
def test_task_map(tmp_path, monkeypatch):
    """All of it but meta-features and trees, which have tests of their own."""
    rng = np.random.default_rng(0)
    small = []
    for number in range(4):
        x, y = rng.normal(size=(80, 3)), np.arange(80) % 2
        names = ("a", "b", "c"), ("0", "1"), f"t{number}"
        small.append(metajax.tasks.tables.tables.Table(x, y, *names))
    described = rng.normal(size=(8, 28))
    scores = rng.normal(size=(8, len(recommend_trees.CONFIGURATIONS)))
    labels = np.repeat([table.name for table in small], 2)
    known = recommend_trees.Measured(labels, labels, described, scores)
    monkeypatch.setattr(recommend_trees, "measure", lambda *arguments: known)
    monkeypatch.setattr(task_map, "read_tables", lambda num: small)
    monkeypatch.setattr(task_map, "describe", lambda t, drawn: described[: len(drawn)])
    monkeypatch.setattr(task_map, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(
        task_map,
        "conv4",
        lambda **kw: metajax.models.mlp(3, hidden_sizes=(4,), normalization="none"),
    )
    monkeypatch.setattr(task_map, "calibrate", lambda model, params, *others: params)
    settings = task_map.Settings(
        probe_steps=2,
        tasks_per_domain=3,
        tasks_per_alphabet=2,
        num_alphabets=2,
        folds=2,
        samples_per_table=2,
        outer_steps=2,
        tasks_per_step=2,
        num_pairs=2,
        tasks_per_table=2,
        num_neighbors=(1,),
    )
    task_map.main(settings)
    rows = read_result(tmp_path)["results"]
    found = {(r["of"], r["representation"]): r for r in rows if "of" in r}
    assert len(found) == 4 + 4 + 5
    assert found["domain", "Task2Vec"]["chance"] == pytest.approx(1 / 6)
    assert set(found["table", "Dataset2Vec"]["each"]) == set(labels)
    # Reference and tested samples are described alike here, and tables as well.
    assert found["table", "meta-features"]["mean"] == 0.5
    warm = {(r["trials"], r["features"]): r for r in rows if r["part"] == "warm start"}
    difference = warm[1, "meta-features"]["mean"] - warm[1, "both"]["mean"]
    lower = warm[1, "both"]["lower_than_meta_features_by"]
    assert lower["mean"] == pytest.approx(difference, abs=1e-9)
    assert (tmp_path / "results/task-map.png").exists()
    assert "| mean embedding |" in results_page.page(tmp_path / "results")
