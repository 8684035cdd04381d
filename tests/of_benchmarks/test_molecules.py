"""Runs from its settings to a JSON file, and its part of the page."""

import dataclasses
import gzip

import numpy as np
import pytest
from of_benchmarks.outcome import read_result

from benchmarks import molecules, results_page


def test_molecules(tmp_path, monkeypatch):
    """On a table of 90 molecules, where one assay decides what the others say."""
    generator = np.random.default_rng(0)
    is_active = generator.random(90) < 0.5
    lines = [",".join(["smiles", *(f"assay {i}" for i in range(27))])]
    for number, active in enumerate(is_active):
        cells = ["" if number % 9 == i % 9 else str(int(active)) for i in range(27)]
        lines.append(",".join(["C" * (number + 1) + "NO"[int(active)], *cells]))
    (tmp_path / "molecules").mkdir()
    with gzip.open(tmp_path / "molecules/sider.csv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    monkeypatch.setenv("METAJAX_DATA_DIR", str(tmp_path))
    settings = molecules.Settings(
        data="sider",
        fingerprint="ngrams",
        num_draws=2,
        num_seeds=2,
        num_tuning_draws=1,
        hidden=4,
        outer_steps=(1,),
        tasks_per_step=2,
        inner_steps=1,
        regularisations=(1.0,),
        neighbors=(1, 3),
        trees=2,
    )
    problem, tuning = molecules.problems(settings)
    assert not set(problem.train_assays) & set(problem.test_assays)
    assert not set(tuning.test_assays) & set(problem.test_assays)
    assert set(tuning.train_assays + tuning.test_assays) == set(problem.train_assays)
    apart, _ = molecules.problems(dataclasses.replace(settings, apart=True))
    is_known = [
        np.any(table.labels >= 0, axis=1) for table in (apart.train, apart.test)
    ]
    np.testing.assert_array_equal(is_known[0], ~is_known[1])

    few = {"prototypical": molecules.learners(settings)["prototypical"]}
    monkeypatch.setattr(molecules, "learners", lambda settings: few)
    molecules.main(settings)
    result = read_result(tmp_path)
    rows = {(row["method"], row["assay"]): row for row in result["results"]}
    assert rows["frequent hitter", "all"]["mean"] == 1
    ours, forest = rows["prototypical", "all"], rows["random forest", "all"]
    above = ours["above"]["random forest"]["mean"]
    assert above == pytest.approx(ours["mean"] - forest["mean"])
    assert len(rows) == 5 * (1 + len(problem.test_assays))
    assert set(result["settings"]["chosen"]) == {"nearest neighbours"}
    assert "above frequent hitter" in results_page.page(tmp_path / "results")


@pytest.mark.parametrize("support", [[0, 1], [1, 0]])
def test_scores_of_molecules_follow_the_support(support):
    """The query is one of two molecules without a common bit."""
    bits = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.uint8)
    problem = molecules.Problem(None, (), None, (), bits, 1)
    queries = np.array([0, 1])
    for make in (molecules.nearest, molecules.logistic, molecules.forest):
        score = make(1, problem, 0)
        inactive, active = score(np.array(support), queries)[support]
        assert active >= inactive
        assert make is molecules.forest or active > inactive
