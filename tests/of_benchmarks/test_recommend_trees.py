"""Runs from its settings to a JSON file, and its part of the page."""

import pytest
from of_benchmarks.outcome import read_result

from benchmarks import recommend_trees, results_page


@pytest.mark.usefixtures("data_dir")
def test_recommend_trees(tmp_path):
    settings = recommend_trees.Settings(
        num_tables=3, tasks_per_table=2, num_neighbors=(1, 2)
    )
    recommend_trees.main(settings)
    rows = read_result(tmp_path)["results"]
    assert {row["trials"] for row in rows} == set(recommend_trees.TRIALS)
    assert all(0 <= row["mean"] <= 1 for row in rows)
    assert "lower than random" in results_page.page(tmp_path / "results")
