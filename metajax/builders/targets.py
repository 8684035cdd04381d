"""What a learner answers: one of N classes, or numbers, as its arguments say.

`way=N` builds a learner for labels in [0, N), `num_outputs=d` one for `d` real numbers.
"""

import jax.numpy as jnp

from metajax.checks import check_integers, check_parts
from metajax.objectives import cross_entropy, squared_error
from metajax.types import Array, Objective

__all__ = ["check_targets", "choose_objective"]


def choose_objective(
    way: int | None, num_outputs: int | None, objective: Objective | None
) -> Objective:
    """Gives the loss of every example, and checks what the learner is built for.

    Args:
      way: number of classes, at least 1, or None.
      num_outputs: numbers of a target, at least 1, or None.
      objective: `(outputs, y) -> [n]`; None for cross-entropy of classes and the
        squared error of numbers.

    Raises:
      ValueError: unless one of the two is given and in range, or if the loss is for
        classes and there are none.
    """
    if (way is None) == (num_outputs is None):
        raise ValueError(
            "Give either `way`, the number of classes, or `num_outputs`, how many real "
            f"numbers a target has; got {way!r} and {num_outputs!r}."
        )
    if objective is not None:
        check_parts(objective=objective)
    if way is not None:
        check_integers(1, way=way)
        return cross_entropy if objective is None else objective
    check_integers(1, num_outputs=num_outputs)
    if objective is cross_entropy:
        raise ValueError(
            f"`num_outputs` is {num_outputs}, so targets are real numbers, and the "
            "objective is cross_entropy; give `way`, the number of classes, or leave "
            "`objective` out."
        )
    return squared_error if objective is None else objective


def check_targets(
    y: Array, way: int | None, num_outputs: int | None, *, size: int
) -> None:
    """Raises a ValueError unless targets are what the learner was built for.

    Args:
      y: the targets.
      way: number of classes, or None.
      num_outputs: numbers of a target, or None.
      size: numbers that a target has, if they are real.
    """
    are_labels = jnp.issubdtype(y.dtype, jnp.integer)
    if are_labels and way is None:
        raise ValueError(
            "Targets are integers, so class labels: give `way`, the number of classes, "
            f"in place of `num_outputs`, {num_outputs}."
        )
    if way is not None and not are_labels:
        raise ValueError(
            f"`way` is {way}, and targets are not labels but {y.dtype}; give "
            "`num_outputs` in its place."
        )
    if way is None and size != num_outputs:
        raise ValueError(
            f"`num_outputs` is {num_outputs}, and a target has {size} numbers, in an "
            f"array of shape {list(y.shape)}."
        )
