"""Cores as devices, in a process of its own."""

import os
import subprocess
import sys

import jax
import pytest

import metajax


def output_of(code, **environment):
    """What a process prints that runs `code`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ("", {}, lambda cores: min(cores, 8)),
        ("3", {}, lambda cores: 3),
        ("", {"JAX_NUM_CPU_DEVICES": "2"}, lambda cores: 2),
        ("3", {"JAX_NUM_CPU_DEVICES": "2"}, lambda cores: 3),
    ],
)
def test_devices(arguments, environment, expected, monkeypatch):
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import os, jax, metajax\n"
        f"metajax.use_cores({arguments})\n"
        "cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') "
        "else os.cpu_count()\n"
        "print(cores, jax.device_count())"
    )
    cores, devices = map(int, output_of(code, **environment).split())
    assert devices == expected(cores)


def test_after_jax_was_used_it_is_too_late(monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    assert jax.device_count() == 1
    with pytest.raises(RuntimeError, match="already and has 1 devices; call `use_core"):
        metajax.use_cores()
    metajax.use_cores(1)  # as it is


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_bad_counts_are_explained(count):
    with pytest.raises(ValueError, match=f"`count` must be an integer .*got {count}"):
        metajax.use_cores(count)
