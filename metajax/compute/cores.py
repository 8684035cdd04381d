"""The cores of a host as devices, to be settled before JAX is first used.

    import metajax

    metajax.use_cores()

It is a call of its own, which only the command line makes unasked, because it concerns
the whole process and not what metajax does in it.
"""

import os

import jax

from metajax.checks import check_integers

__all__ = ["use_cores"]


def use_cores(count: int | None = None) -> None:
    """Makes cores of the host JAX's devices.

    `train` and `evaluate` spread tasks over devices. Each keeps a copy of the data; the
    threads of a single device would wait for one another after every small operation.
    Leave XLA's threads (the environment variable `NPROC`) as many as cores: with twice
    as many a step of MAML took a quarter longer, with four times as many two fifths. In
    learners of your own call LAPACK (`jnp.linalg`) by `metajax.inner.solvers.solve`,
    whose documentation says why.

    Args:
      count: number of devices, at least 1. None means what the environment variable
        `JAX_NUM_CPU_DEVICES` says; without it as many as cores that this process may
        use, and 8 at most.

    Raises:
      ValueError: if `count` is not an integer of at least 1.
      RuntimeError: if JAX has been used already: its devices are what they are.
    """
    if count is None:
        if "JAX_NUM_CPU_DEVICES" in os.environ:
            return
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        count = min(cores, 8)
    check_integers(1, count=count)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        if jax.device_count("cpu") == count:
            return  # as it is asked for
        raise RuntimeError(
            f"JAX has been used already and has {jax.device_count()} devices; call "
            "`use_cores` right after the imports."
        ) from error
