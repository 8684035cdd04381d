"""Whether a learner keeps the contract, told by its functions' names.

What JAX says of a loss without metrics, or of labels that no output stands for, names
neither.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.types import Examples, Learner, PyTree, Task

__all__ = ["check_classes", "check_learner", "checked_loss"]

# Number of positional arguments, those by keyword, and what to show.
_CONTRACT = {
    "init": (2, (), "(key, task)"),
    "adapt": (2, ("key",), "(meta_params, support, *, key=None)"),
    "predict": (2, ("mask", "key"), "(adapted, inputs, *, mask=None, key=None)"),
    "loss": (2, ("key",), "(meta_params, task, *, key=None)"),
    "adapt_steps": (2, ("key",), "(meta_params, support, *, key=None)"),
    "scheduled_loss": (3, ("key",), "(step, meta_params, task, *, key=None)"),
    "collect": (2, ("key",), "(meta_params, task, *, key=None)"),
}


def check_learner(learner: Learner, asked: Sequence[str] = ("init", "loss")) -> None:
    """Raises a ValueError unless its functions take what they are called with.

    Those that are not `asked` for may be None.
    """
    if not isinstance(learner, Learner):
        raise TypeError(
            f"`learner` must be a `metajax.Learner`, got {type(learner).__name__}; "
            "constructors are in `metajax.learners`."
        )
    for name, (count, keywords, shown) in _CONTRACT.items():
        function = getattr(learner, name)
        if function is None and name not in asked:
            continue
        if not callable(function):
            raise ValueError(f"`Learner.{name}` must be a function, got {function!r}.")
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # it does not say
            continue
        try:
            signature.bind(*range(count), **dict.fromkeys(keywords))
        except TypeError as error:
            raise ValueError(
                f"`Learner.{name}` is called as `{name}{shown}`, and this one takes "
                f"{signature}: {error}."
            ) from error


def checked_loss(loss: Callable[..., Any], name: str = "loss") -> Callable[..., Any]:
    """Gives the same function, but with a check of what it returns.

    It raises a ValueError while a program is traced, unless that is `(loss, metrics)`.
    """

    def checked(*args: Any, **kwargs: Any) -> Any:
        found = loss(*args, **kwargs)
        is_pair = isinstance(found, tuple) and len(found) == 2
        if not is_pair or not isinstance(found[1], dict):
            kinds = type(found).__name__
            if isinstance(found, tuple):
                kinds = f"({', '.join(type(part).__name__ for part in found)})"
            raise ValueError(
                f"`Learner.{name}` must return `(loss, metrics)`, a scalar and a dict "
                f"of scalars, got {kinds}; return `loss, {{}}` if there is nothing to "
                "report."
            )
        scalars = {"the loss": found[0]} | {repr(k): v for k, v in found[1].items()}
        for what, value in scalars.items():
            if jnp.shape(value) != ():
                raise ValueError(
                    f"`Learner.{name}` must return scalars for one task, and {what} "
                    f"has shape {list(jnp.shape(value))}; take the mean of examples by "
                    "`metajax.masks.masked_mean`."
                )
        return found

    return checked


def check_classes(learner: Learner, meta_params: PyTree, task: Task) -> None:
    """Raises a ValueError if labels of a task are none of the classes that it answers.

    Traces `adapt` and `predict` for the shape of logits, and only where targets are
    integers `[n]`, one array.

    Args:
      learner: what answers.
      meta_params: arrays, or their shapes.
      task: one with concrete arrays.
    """
    query = task.query
    if learner.predict is None or not isinstance(query, Examples):
        return
    y = query.y
    if getattr(y, "ndim", None) != 1 or not jnp.issubdtype(
        jnp.result_type(y), jnp.integer
    ):
        return

    def answer(meta_params: PyTree, task: Task) -> PyTree:
        adapted = learner.adapt(meta_params, task.support, key=None)
        inputs, mask = task.query.x, task.query.mask
        return learner.predict(adapted, inputs, mask=mask, key=None)

    outputs = jax.eval_shape(answer, meta_params, task)
    if getattr(outputs, "ndim", None) != 2:
        return
    labels = np.asarray(y)[np.asarray(query.is_real)]
    if labels.max() >= outputs.shape[1]:
        raise ValueError(
            f"The labels of the first task go up to {labels.max()}, and the learner "
            f"answers with {outputs.shape[1]} outputs, for classes 0 to "
            f"{outputs.shape[1] - 1}: build it, or its model, with at least "
            f"{labels.max() + 1} outputs, or lower `way` of the tasks."
        )
