"""Parameters of one network that another generates from the code of a task.

D. Ha, A. Dai, Q. Le, "HyperNetworks", ICLR 2017, https://arxiv.org/abs/1609.09106.

    phi = theta + V^T c,   or theta + V^T (U^T c) with a rank

c is the code, theta what all tasks share; V and U are learned. V starts small, so that
phi is about theta at first. It may concern some of the parameters: with scales and
shifts of normalisations, or of channels, it is feature-wise modulation (E. Perez,
F. Strub, H. de Vries, V. Dumoulin, A. Courville, "FiLM: Visual Reasoning with a General
Conditioning Layer", AAAI 2018, https://arxiv.org/abs/1709.07871).
"""

import math

import jax
from jax.flatten_util import ravel_pytree

from metajax.checks import check_positive, is_integer
from metajax.filters import combine, partition
from metajax.types import Array, Filter, PyTree

__all__ = ["check_generator", "generate", "init_generator"]


def check_generator(size: int, rank: int | None, offset_scale: float) -> None:
    """Raises a ValueError unless these can be arguments of `init_generator`."""
    if rank is not None and (not is_integer(rank) or not 1 <= rank <= size):
        raise ValueError(
            f"`rank` must be None or an integer from 1 to {size}, the size of the code "
            f"of a task, got {rank!r}."
        )
    check_positive(offset_scale=offset_scale)


def init_generator(
    key: Array,
    theta: PyTree,
    *,
    size: int,
    rank: int | None,
    offset_scale: float,
    generates: Filter,
) -> dict[str, Array]:
    """Draws V and U.

    Args:
      key: random key, consumed.
      theta: parameters of the network that has offsets.
      size: of the code.
      rank: r, or None for a full matrix.
      offset_scale: size of an offset V^T c at first, for codes of unit size; above 0,
        as the generator could not learn from 0 at both of its sides.
      generates: which of the parameters have an offset; see `metajax.filters`.

    Returns:
      `{"up": V}`, `[size, P]` for P generated parameters; with a rank `{"down": U,
      "up": V}`, `[size, r]` and `[r, P]`.
    """
    key_down, key_up = jax.random.split(key)
    num_params = ravel_pytree(partition(theta, generates)[0])[0].size
    generator = {}
    if rank is not None:
        generator["down"] = jax.random.normal(key_down, (size, rank)) / math.sqrt(size)
    inner = size if rank is None else rank
    up = jax.random.normal(key_up, (inner, num_params)) / math.sqrt(inner)
    return generator | {"up": offset_scale * up}


def generate(
    generator: dict[str, Array],
    theta: PyTree,
    code: Array,
    generates: Filter,
) -> PyTree:
    """Generates phi, of the structure of theta, for the code `[size]` of a task."""
    offsets = code
    for part in ("down", "up") if "down" in generator else ("up",):
        offsets = offsets @ generator[part]
    chosen, others = partition(theta, generates)
    flat, unravel = ravel_pytree(chosen)
    return combine(unravel(flat + offsets), others)
