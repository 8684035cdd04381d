"""Runs from its settings to a JSON file, and its part of the page."""

import jax
import numpy as np
import pytest
from of_benchmarks.outcome import read_result

import metajax
from benchmarks import neural_processes, results_page


def test_neural_processes(tmp_path, monkeypatch):
    """With learners and images that compile at once; its own are only built."""
    monkeypatch.setattr(neural_processes, "RESULTS", tmp_path / "results")
    settings = neural_processes.Settings(
        num_queries=4,
        shot=(1, 3),
        outer_steps=1,
        tasks_per_step=2,
        num_test_tasks=3,
        image_steps=1,
        image_tasks_per_step=2,
        image_shot=(1, 3),
        image_queries=4,
        shown_pixels=(5,),
        num_test_images=2,
    )
    task = neural_processes.curves(settings)(jax.random.key(0))
    for build in (neural_processes.learners, neural_processes.image_learners):
        for learner in build(settings).values():
            meta_params = jax.eval_shape(learner.init, jax.random.key(1), task)
            jax.eval_shape(learner.loss, meta_params, task)

    def few(settings):
        del settings
        return {
            name: metajax.learners.conditional_np(
                code_size=size, encoder_layers=1, decoder_layers=1
            )
            for size, name in enumerate(("one", "other"), start=2)
        }

    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 5, 1), np.uint8)
    table = metajax.tasks.images.class_table.class_table(images)
    monkeypatch.setattr(neural_processes, "learners", few)
    monkeypatch.setattr(neural_processes, "image_learners", few)
    monkeypatch.setattr(neural_processes, "omniglot", lambda split: table)
    monkeypatch.setitem(neural_processes.READERS, "mnist", lambda: table)
    neural_processes.main(settings)
    rows = read_result(tmp_path)["results"]
    exact, one, other = (r for r in rows if r["part"] == "curves")
    assert exact["learner"] == "exact posterior"
    for row in (one, other):
        gap = exact["mean"] - row["mean"]
        assert row["gap"]["mean"] == pytest.approx(gap, rel=1e-4)
    assert one["mean"] != other["mean"]
    of_images = [r for r in rows if r["part"] == "images"]
    places = {(r["data"], r["pixels"], r["learner"]) for r in of_images}
    assert len(places) == len(of_images) == 2 * 2
    for picture in ("neural-processes", "neural-processes-images"):
        assert (tmp_path / f"results/{picture}.png").exists()
    page = results_page.page(tmp_path / "results")
    assert "below that of the exact posterior" in page
    assert "neural-processes-images.png" in page
