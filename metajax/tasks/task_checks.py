"""Checks of one concrete task, on the host, before a long computation starts.

Inside `jit` values cannot raise errors, so a wrong label or a NaN would surface as a
strange loss much later. Trainer and evaluation check the first task they draw instead.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_instances
from metajax.types import Examples, PyTree, Task

__all__ = ["check_task"]


def check_task(task: Any, name: str) -> None:
    """Raises an error unless `task` is one that learners can work with.

    Args:
      task: one task with concrete arrays. A support or query that is not `Examples`,
        such as the parameters of an environment, is not looked at.
      name: what to call its source in messages, such as `"tasks"`.

    Raises:
      ValueError: if it is not a `Task`; a set is empty; leading sizes differ; inputs or
        targets hold NaN or infinity (in padding too, as it would spoil gradients);
        integer targets are negative; or a mask is not bool `[n]` or hides everything.
    """
    check_instances(str, "give a word such as 'tasks'", name=name)
    if not isinstance(task, Task):
        raise ValueError(
            f"`{name}` must give a `Task(support, query)`, got {type(task).__name__}; "
            "return `metajax.types.Task`."
        )
    for part, examples in zip(Task._fields, task, strict=True):
        if isinstance(examples, Examples):
            _check_examples(examples, f"{name}: `{part}")


def _check_examples(examples: Examples, name: str) -> None:
    """`name` opens a backtick that the messages close, as in `support.x`."""
    num = _check_arrays(examples.x, f"{name}.x")
    _check_arrays(examples.y, f"{name}.y", num)
    for y in map(np.asarray, jax.tree.leaves(examples.y)):
        if np.issubdtype(y.dtype, np.integer) and y.min() < 0:
            raise ValueError(
                f"{name}.y` holds integers, so class labels in [0, N), but the lowest "
                f"is {y.min()}; count labels from 0, or make targets floats."
            )
    if examples.mask is None:
        return
    mask = np.asarray(examples.mask)
    if mask.dtype != np.bool_ or mask.shape != (num,):
        raise ValueError(
            f"{name}.mask` must be bool [{num}], True where an example is real, got "
            f"{mask.dtype} {list(mask.shape)}; convert it, or use None if all are real."
        )
    if not mask.any():
        raise ValueError(
            f"{name}.mask` hides all {num} examples, so the set has no loss; at least "
            "one must be real (True)."
        )


def _check_arrays(tree: PyTree, name: str, num: int | None = None) -> int:
    """Checks the arrays of `x` or `y`; returns their leading size, `num` if given."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        raise ValueError(f"{name}` holds no array; give at least one `[n, ...]`.")
    for leaf in leaves:
        if leaf.ndim == 0 or leaf.shape[0] == 0:
            raise ValueError(
                f"{name}` must have a leading axis of at least one example, got shape "
                f"{leaf.shape}."
            )
        num = leaf.shape[0] if num is None else num
        if leaf.shape[0] != num:
            raise ValueError(
                f"{name}` must have as many examples as the rest of the set, {num}, "
                f"got {leaf.shape[0]}."
            )
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            is_bad = ~np.isfinite(leaf.reshape(num, -1)).all(axis=1)
            raise ValueError(
                f"{name}` must be finite, but {is_bad.sum()} of {num} examples hold "
                f"NaN or infinity, the first at place {np.argmax(is_bad)}; repair or "
                "remove them."
            )
    return leaves[0].shape[0]
