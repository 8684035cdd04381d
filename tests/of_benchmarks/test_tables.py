"""Runs from its settings to a JSON file, and its part of the page."""

import pytest
from of_benchmarks.outcome import read_result

from benchmarks import results_page, tables


def test_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "REGULARISATIONS", [0.1, 1.0])
    tables.main(
        tables.Settings(
            family=1, outer_steps=2, hidden=4, num_test_tasks=3, num_tuning_tasks=1
        )
    )
    rows = read_result(tmp_path)["results"]
    assert [row["method"] for row in rows[:2]] == ["maml", "meta-sgd"]
    assert len(rows) == 6
    difference = rows[0]["mean"] - rows[2]["mean"]
    assert rows[2]["maml_is_better_by"]["mean"] == pytest.approx(difference, abs=1e-6)
    assert "Meta-SGD is better by" in results_page.page(tmp_path / "results")
