"""Runs from its settings to a JSON file, and its part of the page."""

import jax
import pytest
from of_benchmarks.outcome import read_result

import metajax
from benchmarks import domains, results_page


@pytest.mark.usefixtures("data_dir")
def test_domains(tmp_path, monkeypatch):
    def make_model(num_outputs, *, normalization, **_):
        return metajax.models.mlp(
            num_outputs or 4, hidden_sizes=(3,), normalization=normalization
        )

    # As few programs as show all paths.
    monkeypatch.setattr(domains, "conv4", make_model)
    monkeypatch.setattr(domains, "fit_buckets", lambda *_: ((400, 100),))
    monkeypatch.setattr(domains, "PROTOCOLS", ("5-way 1-shot", "variable"))
    monkeypatch.setattr(domains, "RESULTS", tmp_path / "results")
    settings = domains.Settings(
        learners=("maml", "baseline"),
        domains=("mnist",),
        outer_steps=2,
        num_glyphs=32,
        num_test_tasks=3,
        num_variable_tasks=3,
    )
    domains.main(settings)
    rows = read_result(tmp_path)["results"]
    assert [row["protocol"] for row in rows] == list(domains.PROTOCOLS)
    assert set(rows[0]["learners"]) == set(settings.learners)
    assert set(rows[1]["learners"]) == {"baseline"}
    for row in rows:
        assert {found["protocol"] for found in row["learners"].values()} == {
            "inductive"
        }
        ranks = [found["average_rank"] for found in row["learners"].values()]
        assert sum(ranks) == len(ranks) * (len(ranks) + 1) / 2
    assert (tmp_path / "results/domains.png").exists()
    page = results_page.page(tmp_path / "results")
    assert "| learner | mnist | average rank |" in page
    # What is there already is not computed again.
    monkeypatch.setattr(domains, "train", None)
    domains.main(settings)
    assert read_result(tmp_path)["results"] == rows


@pytest.mark.parametrize("name", domains.MAKERS)
def test_learners_of_the_domains(name):
    model = metajax.models.conv4(
        5 if name == "maml" else None,
        features=8,
        pooling="maps" if name == "relation" else "max",
        normalization="layer",
    )
    learner = domains.MAKERS[name](model, 5, 10)
    task = jax.eval_shape(
        metajax.tasks.glyphs(way=5, shot=2, num_queries=1), jax.random.key(0)
    )
    meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
    loss, _ = jax.eval_shape(learner.loss, meta_params, task)
    assert loss.shape == ()
