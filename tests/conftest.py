"""Strict settings for every test, and the fixtures they share."""

import os
import pathlib
import tempfile

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Nearly all of the time goes into compiling, which may be careless here: it takes a
# tenth (large programs) to a half (single operations) of what it takes with the usual
# passes. `XLA_FLAGS=' ' .ci/run` tests with those, as users have them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)

# However many cores a machine has: the same program, and so the same bits.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")

# Programs that several processes or files need are compiled once a session. Not the
# small ones, which take as long to read as to compile.
_cache = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="metajax-tests-")
)
jax.config.update("jax_compilation_cache_dir", _cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Drops the compiled programs of a file behind it: all together take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def data_dir() -> pathlib.Path:
    """The folder of real data, or a skip where there is none."""
    path = os.environ.get("METAJAX_DATA_DIR")
    if not path:
        pytest.skip("METAJAX_DATA_DIR is not set: no real data on this machine")
    return pathlib.Path(path)
