"""Runs from its settings to a JSON file, and its part of the page."""

import pytest
from of_benchmarks.outcome import few_characters, read_result

import metajax
from benchmarks import embeddings, results_page


@pytest.mark.usefixtures("data_dir")
def test_embeddings(tmp_path, monkeypatch):
    """Differences are those of means, as all learners have the same tasks."""
    monkeypatch.setattr(embeddings, "omniglot", few_characters)
    monkeypatch.setattr(
        embeddings, "conv4", lambda **kw: metajax.models.conv4(features=2, **kw)
    )
    monkeypatch.setattr(embeddings, "PROTOCOLS", ((5, 1),))
    settings = embeddings.Settings(
        learners=("ridge",), outer_steps=2, way=5, num_queries=1, num_test_tasks=3
    )
    embeddings.main(settings)
    reference, ridge = read_result(tmp_path)["results"]
    difference = ridge["mean"] - reference["mean"]
    assert ridge["better_by"]["mean"] == pytest.approx(difference, abs=1e-6)
    assert "| ridge | inductive |" in results_page.page(tmp_path / "results")
