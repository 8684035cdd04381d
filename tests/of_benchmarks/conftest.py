"""Benchmarks write into a temporary folder."""

import pytest

from benchmarks import record


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run folders and results go into a temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
