"""Runs from its settings to a JSON file, and its part of the page."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from of_benchmarks.outcome import read_result

from benchmarks import endurance, results_page

# When a read fails, Orbax leaves others of its reads unfinished.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def test_damage(tmp_path):
    endurance.main(endurance.Damage(trials=6))
    rows = read_result(tmp_path)["results"]
    assert sum(row["count"] for row in rows) == 6
    assert {row["outcome"] for row in rows} <= {"gone back", "without effect"}
    assert "| damaged | " in results_page.page(tmp_path / "results")


def test_damage_that_is_taken_is_told(tmp_path, monkeypatch):
    """Were arrays not hashed, others would be taken for them."""
    monkeypatch.setattr("metajax.training.checkpoints._hash", lambda leaf: "")

    def older(path, how, generator):
        """An array file of the step before, as a disk may bring back."""
        folder = pathlib.Path("runs/endurance-damage/damaged/checkpoints")
        shutil.rmtree(folder / "16" / "rest")
        shutil.copytree(folder / "12" / "rest", folder / "16" / "rest")

    monkeypatch.setattr(endurance, "damaged", older)
    endurance.main(endurance.Damage(trials=1))
    (row,) = read_result(tmp_path)["results"]
    assert row["outcome"].startswith("other")


def test_kills(tmp_path):
    """In a process of its own, as one that has started JAX cannot be copied."""
    program = (
        "from benchmarks import endurance, record; import pathlib, sys;"
        "record.RESULTS = pathlib.Path('results');"
        "endurance.RUNS = {'maml': endurance.RUNS['maml']};"
        "endurance.main(endurance.Kills(kills=2, length=8))"
    )
    root = pathlib.Path(endurance.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    rows = read_result(tmp_path)["results"]
    assert sum(row["count"] for row in rows) >= 2
    assert not any(row["wrong"] for row in rows)
    assert "| maml | " in results_page.page(tmp_path / "results")


def test_differences():
    found = {"history": [1], "events": [2], "meta-parameters": endurance.bits([1.0])}
    assert endurance.differences(found, found) == []
    changed = found | {"meta-parameters": endurance.bits([np.nextafter(1.0, 2.0)])}
    assert endurance.differences(changed, found) == ["meta-parameters"]
