"""Runs from its settings to a JSON file, and its part of the page."""

import numpy as np
import pytest
from of_benchmarks.outcome import read_result

from benchmarks import results_page, soft_trees
from metajax.tasks.tables.tables import Table


@pytest.mark.usefixtures("data_dir")
def test_soft_trees(tmp_path, monkeypatch):
    monkeypatch.setattr(soft_trees, "RESULTS", tmp_path / "results")
    settings = soft_trees.Settings(
        folds=2,
        tasks_per_table=12,
        num_tables=2,
        depth=1,
        inner_steps=1,
        outer_steps=2,
        tasks_per_step=2,
        drawn="analcatdata_boxing1",
    )
    soft_trees.main(settings)
    rows = read_result(tmp_path)["results"]
    by_method = {r["method"]: r for r in rows if r["part"] == "methods"}
    cart = by_method["CART, same depth"]
    difference = by_method["learned"]["mean"] - cart["mean"]
    assert cart["learned_is_higher_by"]["mean"] == pytest.approx(difference)
    tested = [r["tables"] for r in rows if r["part"] == "fold"]
    assert len(tested) == 4
    assert len({name for names in tested for name in names}) == 2
    assert (tmp_path / "results/soft-trees.png").exists()
    assert "higher than CART by" in results_page.page(tmp_path / "results")


def test_soft_trees_keep_five_classes():
    y = np.repeat(np.arange(7), [3, 9, 4, 8, 5, 9, 6])
    x = np.arange(len(y))[:, None]
    table = Table(x, y, ("place",), tuple("abcdefg"))
    kept = soft_trees.five_classes(table)
    assert kept.class_names == ("b", "d", "e", "f", "g")
    np.testing.assert_array_equal(np.bincount(kept.y), [9, 8, 5, 9, 6])
    assert set(y[kept.x[:, 0].astype(int)]) == {1, 3, 4, 5, 6}
