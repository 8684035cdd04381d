"""Benchmarks run from their settings to a JSON file, from which a page is made."""

import json

import pytest

from benchmarks import engine, omniglot, record, sinusoid, speed
from benchmarks.peers.items import select_items


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run folders and results go into a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")


def read_result(folder):
    (path,) = (folder / "results").glob("*.json")
    return json.loads(path.read_text())


def test_sinusoid(tmp_path):
    sinusoid.main(sinusoid.Settings(steps=2, num_test_tasks=3))
    result = read_result(tmp_path)
    assert [row["inner_steps"] for row in result["results"]] == list(range(11))
    assert result["settings"]["seed"] == 0
    assert {"command", "revision", "device", "versions"} <= set(result)


@pytest.mark.usefixtures("data_dir")
def test_prototypical_on_glyphs_and_then_real_images(tmp_path):
    settings = omniglot.Prototypical(source="glyphs", way=3, steps=2, num_test_tasks=2)
    omniglot.main(settings)
    rows = read_result(tmp_path)["results"]
    assert {row["images"] for row in rows} == {"omniglot", "devanagari", "mnist"}
    assert {row["protocol"] for row in rows} == {"inductive"}
    assert len(rows) == 4 + 2 + 2


def test_engine_describes_the_program_of_each_device(tmp_path, monkeypatch):
    """On the smallest work, in this process and on its one device."""
    (small,) = select_items(("W3 1 inner",))
    monkeypatch.setattr(engine, "item_of", lambda inner_steps: small)
    monkeypatch.setattr(engine, "SIMULATED", (1, 1))
    monkeypatch.setattr(engine, "apart", lambda function, *args: function(*args))
    engine.main(engine.Settings(("scaling",), rounds=1))
    one, same = read_result(tmp_path)["results"]
    assert one["efficiency"] == same["efficiency"] == 1
    assert one["all_reduces"] == one["bytes_reduced"] == same["loss_difference"] == 0
    assert "1.00" in speed.page(tmp_path / "results")


def test_engine_refuses_an_unknown_part():
    with pytest.raises(
        ValueError, match="among start, peak, runs, precision, scaling; got 'top'"
    ):
        engine.main(engine.Settings(("top",)))


def test_page_of_speed_is_what_the_results_give():
    remedy = "run python -m benchmarks.speed and commit benchmarks/SPEED.md"
    assert speed.page(speed.RESULTS) == speed.PAGE.read_text(), remedy
