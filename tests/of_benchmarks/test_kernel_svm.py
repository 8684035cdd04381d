"""Runs from its settings to a JSON file, and its part of the page."""

import pytest
from of_benchmarks.outcome import read_result

from benchmarks import kernel_svm, results_page


@pytest.mark.usefixtures("data_dir")
def test_kernel_svm(tmp_path):
    settings = kernel_svm.Settings(
        folds=2, tasks_per_table=2, num_tables=2, outer_steps=2, num_family_tasks=4
    )
    kernel_svm.main(settings)
    rows = read_result(tmp_path)["results"]
    folds = [row for row in rows if "fold" in row]
    assert sum((row["tables"] for row in folds), []) != []
    assert len(folds[0]["numbers"]["learned"]["relevance"]) == 4
    folded = [row for row in rows if row["part"] == "tables" and "fold" not in row]
    means = {row["method"]: row for row in folded}
    difference = means["learned"]["mean"] - means["default"]["mean"]
    found = means["default"]["learned_is_higher_by"]
    assert found["mean"] == pytest.approx(difference, abs=1e-9)
    assert "| mix, not learned |" in results_page.page(tmp_path / "results")
