"""The benchmark of hypergradient descent: its data, its result, its numbers."""

import io
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hypergradient, record
from metajax.tasks.images import loaders


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")


def small(num_rows=150, num_inputs=6):
    """Ten clusters; a batch of 128 and one of 22 make an epoch."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(size=(10, num_inputs))
    y = rng.integers(10, size=num_rows + 20).astype(np.int32)
    x = (centres[y] + 0.1 * rng.normal(size=(len(y), num_inputs))).astype(np.float32)
    return x[:num_rows], y[:num_rows], x[num_rows:], y[num_rows:]


def test_writes_result_and_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(hypergradient, "read_optdigits", small)
    settings = hypergradient.Settings(epochs=2, num_seeds=2, rates=(1e-3, 1.0))
    hypergradient.main(settings)
    name = "hypergradient-optdigits-epochs-2-rates-0.001-1.0-num-seeds-2"
    result = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    # Another script takes this key for a result of meta-learning.
    assert "steps" not in result["settings"]
    assert result["settings"]["optimizer_steps"] == 4
    picture = (tmp_path / "results" / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")

    rows = {
        (row["optimizer"], row.get("initial_rate")): row for row in result["results"]
    }
    assert len(rows) == len(result["results"]) == 6 * 2 + 6
    for name in hypergradient.FAMILIES:
        at_rates = [rows[name, rate]["validation_losses"] for rate in settings.rates]
        per_seed = np.ptp(at_rates, axis=0)
        row = rows[name, None]
        np.testing.assert_allclose(row["range_over_rates"], np.mean(per_seed))
        best = min(settings.rates, key=lambda r: rows[name, r]["validation_loss"])
        for rate in settings.rates:
            base, version = rows[name, rate], rows[f"{name}-HD", rate]
            assert base["final_rate"] == pytest.approx(rate)
            assert base["final_rate_half_width"] == 0
            gains = np.subtract(base["validation_losses"], version["validation_losses"])
            np.testing.assert_allclose(version["gain"], np.mean(gains))
            # Of two values: t(0.975, 1) = 12.7062, and s / sqrt(2) is half the range.
            np.testing.assert_allclose(
                version["gain_half_width"], 12.7062 * np.ptp(gains) / 2, rtol=1e-5
            )
            assert version["too_small"] == (rate < best)
    assert rows["SGD-HD", 1e-3]["final_rate"] > 1.5e-3
    assert rows["SGD-HD", 1e-3]["gain"] > 0


@pytest.mark.parametrize("num_rows", [5, 128, 150, 256])
def test_an_epoch_takes_every_row_once(key, num_rows):
    rows, is_row = hypergradient.batches(key, num_rows)
    assert rows.shape == is_row.shape == (-(-num_rows // 128), 128)
    np.testing.assert_array_equal(np.sort(rows[is_row]), np.arange(num_rows))
    if num_rows > 128:
        assert is_row[:-1].all()
        assert not np.array_equal(rows[is_row], np.arange(num_rows))


def test_rows_that_are_not_there_do_not_count():
    x, y, *_ = map(jnp.asarray, small(4))
    params = {"kernel": jnp.full((6, 10), 0.3).at[:, 2].set(1.0), "bias": jnp.ones(10)}
    gradient = jax.grad(hypergradient.loss)
    full = gradient(params, x, y, jnp.ones(4, bool))
    rows = jnp.array([0, 1, 2, 3, 0, 0])
    padded = gradient(params, x[rows], y[rows], jnp.arange(6) < 4)
    chex.assert_trees_all_close(padded, full, rtol=1e-5)


def test_settings_out_of_range_are_explained():
    with pytest.raises(ValueError, match="`num_seeds` must be at least 2.*got 1, 10"):
        hypergradient.main(hypergradient.Settings(num_seeds=1))


def test_names_tell_settings_apart():
    assert hypergradient.name_of(hypergradient.Settings()) == "hypergradient-optdigits"
    name = hypergradient.name_of(hypergradient.Settings(data="mnist", epochs=2))
    assert name == "hypergradient-mnist-epochs-2"
    name = hypergradient.name_of(hypergradient.Settings(standardize=False))
    assert name == "hypergradient-optdigits-standardize-false"


@pytest.mark.usefixtures("data_dir")
def test_optdigits_has_its_original_parts():
    """scikit-learn ships the test part, scaled by nothing."""
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    data = hypergradient.load(hypergradient.Settings(standardize=False))
    assert data.x.shape == (3823, 64)
    assert data.x.min() == 0
    assert data.x.max() == 1
    np.testing.assert_array_equal(data.x_valid * 16, bundled.data)
    np.testing.assert_array_equal(data.y_valid, bundled.target)

    scaled = hypergradient.load(hypergradient.Settings())
    np.testing.assert_allclose(jnp.mean(scaled.x), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(scaled.x), 1, rtol=1e-5)
    # By the numbers of the training rows, whose mean is not that of the others.
    back = scaled.x_valid * jnp.std(data.x) + jnp.mean(data.x)
    np.testing.assert_allclose(back, data.x_valid, atol=3e-6)


def test_mnist_comes_from_tfds(monkeypatch):
    """Over the true features and made-up records, as many of a class as there are."""
    tfds = pytest.importorskip("tensorflow_datasets")
    images = pytest.importorskip("PIL.Image")
    monkeypatch.setattr(loaders, "require_network", lambda url: None)
    labels = {"train": [7, 2, 7, 0], "test": [1, 1]}

    def png(grey):
        buffer = io.BytesIO()
        images.fromarray(np.full((28, 28), grey, np.uint8)).save(buffer, "png")
        return buffer.getvalue()

    def as_data_source(builder, split, decoders):
        return [
            {"image": png(10 * label + at), "label": label}
            for at, label in enumerate(labels[split])
        ]

    with tfds.testing.mock_data(as_data_source_fn=as_data_source):
        settings = hypergradient.Settings(data="mnist", standardize=False)
        data = hypergradient.load(settings)
    np.testing.assert_array_equal(data.y, [0, 2, 7, 7])
    np.testing.assert_array_equal(data.y_valid, [1, 1])
    np.testing.assert_allclose(data.x[:, 783] * 255, [3, 21, 70, 72], rtol=1e-6)
    np.testing.assert_allclose(data.x_valid[:, 0] * 255, [10, 11], rtol=1e-6)
    assert data.x.dtype == jnp.float32
    assert data.y.dtype == jnp.int32


def test_published_numbers_stand_beside_those_of_mnist():
    values = np.ones((2, 2))
    losses = {
        name: hypergradient.Losses(values, values) for name in hypergradient.PUBLISHED
    }
    settings = hypergradient.Settings(data="mnist", rates=(1e-3, 1e-2))
    rows = hypergradient.rate_rows(losses, settings)
    with_number = {row["optimizer"]: row["published"] for row in rows[::2]}
    assert with_number == hypergradient.PUBLISHED
    assert not any("published" in row for row in rows[1::2])
