"""Cores as devices, and memory that is kept; each in a process of its own."""

import os
import platform
import subprocess
import sys

import jax
import pytest

import metajax

FAULTS_OF_A_CALL = """
import resource
import jax, jax.numpy as jnp
import metajax
{first}
x = jnp.ones((2048, 2048))
# Two products in a row need 16 MiB each for what is between them.
run = jax.jit(lambda x: jnp.sum(jnp.stack([(x @ x) @ x, (x + 1) @ x]) @ x))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
[faults() for _ in range(3)]
print(min(faults() for _ in range(5)))
"""


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="concerns glibc")
def test_memory_of_a_program_is_kept_for_the_next_call():
    """In pages of 4 KiB, an array that is new in every call is 4,096 faults."""
    first = "metajax.use_cores(1, keep_memory=True)"
    faults = int(output_of(FAULTS_OF_A_CALL.format(first=first)))
    assert faults < 200, faults


def test_after_jax_was_used_it_is_too_late():
    assert jax.device_count() == 1
    with pytest.raises(RuntimeError, match="already and has 1 devices; call `use_core"):
        metajax.use_cores()


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_bad_counts_are_explained(count):
    with pytest.raises(ValueError, match=f"`count` must be an integer .*got {count}"):
        metajax.use_cores(count)
