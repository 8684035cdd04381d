"""Runs from its settings to a JSON file, and its part of the page."""

import pytest
from of_benchmarks.outcome import few_characters, read_result

import metajax
from benchmarks import readers, results_page


@pytest.mark.usefixtures("data_dir")
def test_readers(tmp_path, monkeypatch):
    """All on embeddings of one network, beside the one that made them."""
    monkeypatch.setattr(readers, "omniglot", few_characters)
    monkeypatch.setattr(
        readers, "conv4", lambda **kw: metajax.models.conv4(features=2, **kw)
    )
    makers = {
        "mm_net": lambda: metajax.learners.mm_net(
            metajax.models.identity(), way=5, slots=5
        )
    }
    monkeypatch.setattr(readers, "MAKERS", makers)
    monkeypatch.setattr(readers, "STEPS", {"mm_net": 1})
    settings = readers.Settings(
        learners=("mm_net",),
        embedding_way=5,
        embedding_steps=1,
        tasks_per_step=1,
        num_queries=1,
        num_test_tasks=2,
    )
    readers.main(settings)
    rows = read_result(tmp_path)["results"]
    assert [(r["learner"], r["shot"]) for r in rows] == [
        ("prototypical", 1),
        ("prototypical", 5),
        ("mm_net", 1),
        ("mm_net", 5),
    ]
    difference = rows[2]["mean"] - rows[0]["mean"]
    assert rows[2]["better_by"]["mean"] == pytest.approx(difference, abs=1e-6)
    page = results_page.page(tmp_path / "results")
    assert "| mm_net, 1 steps | inductive |" in page
    with pytest.raises(ValueError, match="`learner` must be one of mm_net, got 'no'"):
        readers.main(readers.Settings(learners=("no",)))
