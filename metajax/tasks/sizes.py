"""Way, shot and number of queries of classification tasks: ranges, checks and masks."""

import jax
import jax.numpy as jnp

from metajax.checks import LARGEST, check_integers, is_integer
from metajax.types import Array

__all__ = ["as_range", "check_num_queries", "size_masks"]


def as_range(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Makes an inclusive range from an integer or a pair `(low, high)`.

    Args:
      name: of the argument, for the error.
      value: at least 1, and `low <= high`.

    Raises:
      ValueError: if it is anything else.
    """
    low, high = value if isinstance(value, tuple) and len(value) == 2 else (value,) * 2
    if not (is_integer(low) and is_integer(high) and 1 <= low <= high):
        raise ValueError(
            f"`{name}` must be an integer of at least 1 or a range `(low, high)` of "
            f"such with low <= high, got {value!r}."
        )
    if high > LARGEST:
        raise ValueError(f"`{name}` must be at most {LARGEST}, got {value!r}.")
    return int(low), int(high)


def check_num_queries(num_queries: int) -> None:
    """Raises a ValueError unless `num_queries` is an integer of at least 1."""
    check_integers(1, num_queries=num_queries)


def size_masks(
    key: Array, way: tuple[int, int], shot: tuple[int, int], num_queries: int
) -> tuple[Array | None, Array | None]:
    """Draws a task's way and shot, and says what they leave of the largest task.

    Args:
      key: random key, consumed.
      way: inclusive range of the number of classes; its end is N.
      shot: inclusive range of the support examples of a class; its end is K.
      num_queries: Q.

    Returns:
      Bool masks `[N * K]` and `[N * Q]` for sets in order of class; None where the
      ranges leave nothing open.
    """
    if way[0] == way[1] and shot[0] == shot[1]:
        return None, None
    key_way, key_shot = jax.random.split(key)
    has_class = jnp.arange(way[1]) < jax.random.randint(key_way, (), way[0], way[1] + 1)
    num_shots = jax.random.randint(key_shot, (), shot[0], shot[1] + 1)
    has_shot = jnp.arange(shot[1]) < num_shots
    support_mask = (has_class[:, None] & has_shot[None, :]).reshape(-1)
    if way[0] == way[1]:
        return support_mask, None
    return support_mask, jnp.repeat(has_class, num_queries)
