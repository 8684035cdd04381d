"""Runs from its settings to a JSON file, and its part of the page."""

from of_benchmarks.outcome import read_result

from benchmarks import gradients, results_page


def test_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    gradients.main(
        gradients.Settings(outer_steps=1, num_tasks=2, repeats=2, num_pairs=2)
    )
    cases = read_result(tmp_path)["results"]
    assert [case["case"] for case in cases] == ["sinusoid", "quadratic"]
    names = [row["name"] for row in cases[0]["rows"]]
    assert {"exact", "implicit", "proximal, exact", "PES"} <= set(names)
    assert "truncated" in results_page.page(tmp_path / "results")
