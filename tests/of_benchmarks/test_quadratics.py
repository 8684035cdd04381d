"""Runs from its settings to a JSON file, and its part of the page."""

from of_benchmarks.outcome import read_result

from benchmarks import quadratics, results_page


def test_quadratics(tmp_path, monkeypatch):
    monkeypatch.setattr(quadratics, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(quadratics, "RATES", quadratics.RATES[8:11])
    quadratics.main(
        quadratics.Settings(
            dim=3,
            inner_steps=4,
            piece=2,
            outer_steps=2,
            tasks_per_step=2,
            num_tuning_tasks=3,
            num_test_tasks=5,
            rate_steps=(2,),
        )
    )
    *tuned, found = read_result(tmp_path)["results"]
    assert [row["optimizer"] for row in tuned] == ["LSTM", *quadratics.BASELINES]
    assert found["difference"] < 1e-5
    assert (tmp_path / "results/quadratics.png").exists()
    assert "Nesterov" in results_page.page(tmp_path / "results")
