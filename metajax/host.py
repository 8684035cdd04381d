"""What a process on CPU should settle before JAX is first used in it.

    import metajax

    metajax.use_cores()

It is a call of its own, which only the command line makes unasked, because it concerns
the whole process and not what metajax does in it.
"""

import ctypes
import os
import platform

import jax

from metajax.arguments import check_integers

__all__ = ["use_cores"]

# Numbers of glibc's `mallopt`, from malloc.h, and what to set them to.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_KEEP_MEMORY = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0, _ARENA_MAX: 1}


def use_cores(count: int | None = None, *, keep_memory: bool = False) -> None:
    """Makes cores of the host JAX's devices, and may let the process keep its memory.

    `train` and `evaluate` spread tasks over devices. Each keeps a copy of the data; the
    threads of a single device would wait for one another after every small operation.
    Call LAPACK (`jnp.linalg`) in learners of your own by `metajax.solvers.solve`, whose
    documentation says why.

    Args:
      count: number of devices, at least 1. None means what JAX was told before, by the
        environment variable `JAX_NUM_CPU_DEVICES` for example; if nothing, as many as
        cores that this process may use, and 8 at most.
      keep_memory: worth it where a step takes more than 32 MiB for temporary arrays, as
        convolutions without strides do: XLA frees them all after every call, and glibc
        returns a piece of that size to Linux, which hands out and clears every page
        anew in the next. If True, freed memory stays with the process, which saved a
        fifth of the time of Prototypical Networks. All threads then share one heap, for
        which compilation took a third longer. Without glibc nothing changes.

    Raises:
      ValueError: if `count` is not an integer of at least 1.
      RuntimeError: if JAX has been used already: its devices are what they are.
    """
    if count is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        decided = jax.config.jax_num_cpu_devices  # below 1 if by nobody
        count = decided if decided > 0 else min(cores, 8)
    check_integers(1, count=count)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise RuntimeError(
            f"JAX has been used already and has {jax.device_count()} devices; call "
            "`use_cores` right after the imports."
        ) from error
    if keep_memory and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in _KEEP_MEMORY.items():
            libc.mallopt(option, value)
