"""Runs from its settings to a JSON file, and its part of the page."""

import jax.numpy as jnp
import numpy as np
import pytest
from of_benchmarks.outcome import few_characters, read_result

import metajax
from benchmarks import memory_sequences, results_page


@pytest.mark.usefixtures("data_dir")
def test_memory_sequences(tmp_path, monkeypatch):
    """Small learners, one of them with reads to draw."""
    monkeypatch.setattr(memory_sequences, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(memory_sequences, "omniglot", few_characters)
    sizes = {"way": 5, "hidden_size": 4}
    makers = {
        "lstm": lambda: metajax.learners.lstm_learner(
            metajax.models.identity(), **sizes
        ),
        "mann": lambda: metajax.learners.mann(
            metajax.models.identity(), slots=6, width=3, heads=2, **sizes
        ),
    }
    monkeypatch.setattr(memory_sequences, "MAKERS", makers)
    settings = memory_sequences.Settings(
        learners=("lstm", "mann"), outer_steps=1, tasks_per_step=1, num_test_tasks=50
    )
    memory_sequences.main(settings)
    lstm, mann = read_result(tmp_path)["results"]
    assert len(lstm["mean"]) == 10
    assert "published" not in lstm
    assert mann["published"]["2"] == 0.828
    assert (tmp_path / "results/memory-sequences-vinyals.png").exists()
    assert (tmp_path / "results/memory-sequences-reads.png").exists()
    assert "| mann, published | 36.4 | 82.8 |" in results_page.page(
        tmp_path / "results"
    )


def test_drawings_are_shifted_as_a_whole(key):
    images = jnp.zeros((3, 20, 20, 1)).at[:, 9:11, 9:11].set(1.0)
    moved = memory_sequences.moved(key, images)
    np.testing.assert_allclose(moved.sum(axis=(1, 2, 3)), 4, atol=1e-5)
    places = [np.argwhere(np.asarray(image[..., 0]) > 0.5)[0] - 9 for image in moved]
    assert np.abs(places).max() <= memory_sequences.MOST_SHIFT
    assert len({tuple(place) for place in places}) > 1


def test_drawings_are_turned_about_their_middle(key):
    images = jnp.zeros((40, 20, 20, 1)).at[:, 4:16, 9:11].set(1.0)  # upright bars
    moved = np.asarray(memory_sequences.moved(key, images, 0.3))[..., 0]
    rows, columns = np.indices((20, 20)) - 9.5
    mass = moved.sum(axis=(1, 2))
    middle = [(moved * at).sum(axis=(1, 2)) / mass for at in (rows, columns)]
    assert np.abs(middle).max() < memory_sequences.MOST_SHIFT + 0.05
    y = rows[None] - middle[0][:, None, None]
    x = columns[None] - middle[1][:, None, None]
    xx, xy, yy = ((moved * of).sum(axis=(1, 2)) for of in (x * x, x * y, y * y))
    angles = np.arctan2(2 * xy, yy - xx) / 2  # of the main axis
    assert 0.25 < np.abs(angles).max() < 0.31
    assert angles.min() < -0.1 < 0.1 < angles.max()
