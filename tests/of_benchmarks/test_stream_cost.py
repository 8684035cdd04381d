"""Runs from its settings to a JSON file, and its part of the page."""

import jax
import jax.numpy as jnp
from of_benchmarks.outcome import read_result

import metajax
from benchmarks import results_page, stream_cost


def test_stream_cost(tmp_path, monkeypatch):
    """Every learner is built, at one small length."""
    monkeypatch.setattr(stream_cost, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    support = metajax.Examples(jnp.zeros((6, 64)), jnp.arange(6) % 5)
    for make in stream_cost.MAKERS.values():
        learner = make(6)
        params = jax.eval_shape(
            learner.init, jax.random.key(0), metajax.Task(support, support)
        )
        jax.eval_shape(learner.adapt, params, support)
    settings = stream_cost.Settings(
        learners=("prototypical", "lstm"), lengths=(4, 6), repeats=1
    )
    stream_cost.main(settings)
    rows = read_result(tmp_path)["results"]
    assert len(rows) == 4
    assert all(row["adapt_s"] > 0 and row["answer_s"] > 0 for row in rows)
    assert (tmp_path / "results/stream-cost.png").exists()
    assert "| lstm |" in results_page.page(tmp_path / "results")
