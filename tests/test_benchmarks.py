"""Benchmarks run from their settings to a JSON file, on two steps."""

import json

import pytest

from benchmarks import omniglot, record, sinusoid


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
