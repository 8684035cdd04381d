"""Runs from its settings to a JSON file, and its part of the page."""

import pytest
from of_benchmarks.outcome import few_characters, read_result

import metajax
from benchmarks import cached_features, results_page


@pytest.mark.usefixtures("data_dir")
def test_cached_features(tmp_path, monkeypatch):
    makers = {"prototypical": metajax.learners.prototypical}
    monkeypatch.setattr(cached_features, "LEARNERS", makers)
    monkeypatch.setattr(cached_features, "omniglot", few_characters)
    monkeypatch.setattr(
        cached_features, "conv4", lambda **kw: metajax.models.conv4(features=2, **kw)
    )
    cached_features.main(cached_features.Settings(num_tasks=3, repeats=1))
    first, one, five = read_result(tmp_path)["results"]
    assert first["images"] == 8 * 4 * 20
    assert [one["shot"], five["shot"]] == [1, 5]
    assert "| prototypical |" in results_page.page(tmp_path / "results")
