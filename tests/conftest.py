"""Strict settings for every test, and the fixtures they share."""

import contextlib
import ctypes
import gc
import os
import pathlib
import tempfile

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Nearly all of the time goes into compiling, which may be careless here: it takes a
# tenth (large programs) to a half (single operations) of what it takes with the usual
# passes. `XLA_FLAGS=' ' .ci/run` tests with those, as users have them. XLA ends the
# process at a flag that it does not know, and JAX 0.12 knows no other fusions.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 12):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)

# Tracing makes millions of small objects, and a tenth of its time went into looking for
# garbage among them. Each file of tests collects its own.
gc.set_threshold(200_000, 20, 20)

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


# Bytes of a process, before the compiled programs of tests are let go, and what may be
# added to those that stay before that is worth doing again.
MOST_MEMORY, MORE_MEMORY = 1.2 * 2**30, 0.1 * 2**30


def _memory() -> int:
    """Bytes that this process holds; 0 where the system does not say."""
    try:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _forget_programs() -> None:
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def pytest_collection_finish():
    """Lets what was imported, which stays, alone."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _forget_programs_of_a_file():
    """Drops the compiled programs of a file after it: all together take gigabytes."""
    yield
    _forget_programs()


_what_stays = [0]


@pytest.fixture(autouse=True)
def _forget_programs_in_time():
    """Drops them within a file, too, when they take more than a laptop can spare."""
    yield
    if _memory() > max(MOST_MEMORY, _what_stays[0] + MORE_MEMORY):
        _forget_programs()
        _what_stays[0] = _memory()


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
