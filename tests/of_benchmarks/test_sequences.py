"""Runs from its settings to a JSON file, and its part of the page."""

import pytest
from of_benchmarks.outcome import read_result

from benchmarks import results_page, sequences


def test_sequences(tmp_path):
    settings = sequences.Settings(
        num_seeds=2,
        hidden=3,
        encoder_hidden=3,
        inner_steps=1,
        outer_steps=2,
        tasks_per_step=2,
        scratch_rates=(0.01,),
        scratch_steps=(1, 2),
        num_test_tasks=3,
    )
    sequences.main(settings)
    rows = read_result(tmp_path)["results"]
    assert len(rows) == 5 * (1 + settings.num_seeds) + 1
    ours, maml = (
        [r["mean"] for r in rows if r["learner"] == name and "seed" in r]
        for name in ("generator", "maml")
    )
    found = [r["difference"] for r in rows if r["learner"] == "maml" and "seed" in r]
    assert found == pytest.approx([a - b for a, b in zip(ours, maml, strict=True)])
    assert "generator less this" in results_page.page(tmp_path / "results")
