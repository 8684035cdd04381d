"""Runs from its settings to a JSON file, and its part of the page."""

import pytest
from of_benchmarks.outcome import read_result

from benchmarks import engine, speed
from benchmarks.peers.items import select_items


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
