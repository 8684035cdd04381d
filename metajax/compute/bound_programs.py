"""Compiled programs that are kept for the next call, but not for ever.

`jax.jit` of a function of a module keeps each program, and whatever its static
arguments and the structures of its arguments hold, until the process ends. Where every
call may bring another learner, as in a search for hyper-parameters, memory then grows
by each of them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["bound_jit"]

_NUM_KEPT = 64


def bound_jit(function: Callable[..., Any], *bound: Any) -> Any:
    """Gives `jax.jit` of a function whose first arguments are bound.

    The same arguments give the same jitted function again, unless 64 others were asked
    for since then: with it go its programs and what was bound.

    Args:
      function: of a module, as one that is made anew each time is another one.
      bound: what is compiled into the program, such as a learner; hashable.

    Returns:
      A jitted function of the other arguments. These should be plain containers of
      arrays: JAX may remember structures that hold functions for good.
    """
    return _bound_jit(function, *bound)


@functools.lru_cache(maxsize=_NUM_KEPT)
def _bound_jit(function: Callable[..., Any], *bound: Any) -> Any:
    return jax.jit(functools.partial(function, *bound))
