"""Checks of what users pass to constructors, with one wording for all of them."""

import inspect
import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import jax
import optax

from metajax.types import Model, PyTree

__all__ = [
    "LARGEST",
    "check_batch",
    "check_choice",
    "check_fits",
    "check_flags",
    "check_integers",
    "check_keys",
    "check_not_negative",
    "check_optimizer",
    "check_parts",
    "check_positive",
    "check_ranges",
    "check_seed",
    "check_sizes",
    "check_way",
    "check_words",
    "host_memory",
    "is_integer",
    "is_number",
]


# Sizes and counts end here, as indices of JAX are of 32 bits.
LARGEST = 2**31 - 1


def is_integer(value: Any) -> bool:
    """Says whether a value is an integer of Python or NumPy, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Says whether a value is a real number of Python, NumPy or JAX, and not a bool."""
    if isinstance(value, Real):
        return not isinstance(value, bool)
    dtype = getattr(value, "dtype", None)
    return (
        getattr(value, "shape", None) == () and dtype is not None and dtype.kind == "f"
    )


def check_choice(allowed: Iterable[str], **values: str) -> None:
    """Raises a ValueError unless all are among the allowed names."""
    allowed = tuple(allowed)
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(
                f"`{name}` must be one of {', '.join(allowed)}, got {value!r}."
            )


def check_flags(**values: bool) -> None:
    """Raises a ValueError unless all are True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be True or False, got {value!r}.")


def check_words(**values: Any) -> None:
    """Raises a ValueError unless all are lists of names or words, and not one word."""
    for name, words in values.items():
        is_list = isinstance(words, Iterable) and not isinstance(words, str | bytes)
        if not is_list:
            raise ValueError(
                f"`{name}` must be a list of words, got {words!r}; write [...]."
            )


def check_integers(least: int, **values: Any) -> None:
    """Raises a ValueError unless all are integers from `least` to `LARGEST`."""
    for name, value in values.items():
        if not is_integer(value) or value < least:
            raise ValueError(
                f"`{name}` must be an integer of at least {least}, got {value!r}."
            )
        if value > LARGEST:
            raise ValueError(
                f"`{name}` must be an integer of at most {LARGEST}, got {value!r}."
            )


def check_seed(seed: int) -> None:
    """Raises a ValueError unless it is an integer from 0 to 2^32 - 1.

    Of larger ones JAX takes the last 32 bits, which are those of another seed.
    """
    if not is_integer(seed) or not 0 <= seed < 2**32:
        raise ValueError(
            f"`seed` must be an integer from 0 to {2**32 - 1}, got {seed!r}."
        )


def check_sizes(*, fewest: int = 0, **values: Any) -> None:
    """Raises a ValueError unless all are sequences of integers of at least 1.

    Args:
      fewest: how many each must have.
      **values: the sequences by name.
    """
    for name, sizes in values.items():
        if not isinstance(sizes, Sequence) or isinstance(sizes, str):
            raise ValueError(
                f"`{name}` must be a sequence of sizes, such as (64, 64), got "
                f"{sizes!r}."
            )
        if len(sizes) < fewest:
            raise ValueError(
                f"`{name}` must hold at least {fewest} size, got {sizes!r}."
            )
        for place, size in enumerate(sizes):
            check_integers(1, **{f"{name}[{place}]": size})


def host_memory() -> int | None:
    """Reads the memory of this machine in bytes; None where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not of all systems
        return None


def check_fits(
    what: str, arrays: PyTree, remedy: str, *, limit: int | None = None
) -> None:
    """Raises a ValueError if arrays that are yet to be made would not fit the memory.

    A system that is asked for more ends the process, without a word of Python's.

    Args:
      what: they are, for the error, with the name of an argument.
      arrays: a pytree of `jax.ShapeDtypeStruct`, or of arrays.
      remedy: what to do, for the error.
      limit: bytes there are; by default `host_memory`, and no check where that is
        unknown.
    """
    limit = host_memory() if limit is None else limit
    sizes = {
        path: math.prod(leaf.shape) * leaf.dtype.itemsize
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }
    total = sum(sizes.values())
    if limit is None or total <= limit:
        return
    largest = max(sizes, key=lambda path: sizes[path])
    path = jax.tree_util.keystr(largest, simple=True, separator="/")
    [leaf] = [x for p, x in jax.tree_util.tree_leaves_with_path(arrays) if p == largest]
    of_largest = f", `{path}` of them with shape {list(leaf.shape)}" if path else ""
    raise ValueError(
        f"{what} would take {total / 2**30:,.4g} GiB{of_largest}, and there are "
        f"{limit / 2**30:,.4g} GiB of memory; {remedy}."
    )


def check_batch(task: PyTree, *, limit: int | None = None, **counts: int) -> None:
    """Raises a ValueError if one task, or so many with their keys, would not fit.

    Args:
      task: shapes of one task of `tasks`.
      limit: as for `check_fits`.
      **counts: numbers of tasks by name, at least 1.
    """
    lower = "lower a size of the tasks, such as `way` or `shot`"
    check_fits("A task of `tasks`", task, lower, limit=limit)
    for name, count in counts.items():
        many = jax.tree.map(lambda x, n=count: _many(x, n), task)
        what = f"`{name}` = {count} tasks"
        check_fits(what, many, f"lower `{name}`, or a size of the tasks", limit=limit)


def check_keys(**counts: int) -> None:
    """Raises a ValueError if random keys for so many tasks would not fit.

    Args:
      **counts: numbers of tasks by name, at least 1.
    """
    key = jax.ShapeDtypeStruct((8,), "uint32")  # two of them, and what makes them
    for name, count in counts.items():
        check_fits(f"Keys for `{name}` = {count}", _many(key, count), f"lower `{name}`")


def _many(array: Any, count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *array.shape), array.dtype)


# What functions are called with, and what to give in place of something else.
_CALLS = {
    "objective": (("outputs", "y"), "`metajax.objectives.cross_entropy`"),
    "metrics_fn": (("outputs", "query"), "a function that returns a dict of scalars"),
    "augment": (("key", "images"), "a function that returns images"),
    "before": (("params", "x"), "a function that returns inputs of the model"),
    "after": (("params", "outputs"), "a function that returns outputs"),
}
_FILTER = (("path",), "`metajax.filters.only('head')`")


def check_parts(**parts: Any) -> None:
    """Raises a ValueError unless all are what arguments of these names must be.

    Args:
      **parts: `model`, a `Model`; others are functions: `objective`, `metrics_fn`,
        `augment`, `before`, `after`, and any other name is a filter of paths.
    """
    for name, part in parts.items():
        if name == "model":
            _check_model(part)
            continue
        arguments, example = _CALLS.get(name, _FILTER)
        if not callable(part) or not _takes(part, len(arguments)):
            raise ValueError(
                f"`{name}` must be a function of ({', '.join(arguments)}), such as "
                f"{example}, got {_short(part)}."
            )


def _check_model(model: Any) -> None:
    if isinstance(model, Model):
        if callable(model.init) and callable(model.apply):
            return
        raise ValueError(
            f"`model` must hold two functions, got init {_short(model.init)} and apply "
            f"{_short(model.apply)}; `metajax.models.from_functions` builds it."
        )
    classes = (model if isinstance(model, type) else type(model)).__mro__
    origins = {".".join(base.__module__.split(".")[:2]) for base in classes}
    instead = "`metajax.models` has `mlp`, `conv4` and `from_functions` to build one"
    if "flax.linen" in origins:
        instead = "wrap it by `metajax.models.from_linen(module)`"
    if "flax.nnx" in origins:
        instead = "give `metajax.models.from_nnx(lambda rngs: Net(..., rngs=rngs))`"
    raise ValueError(
        f"`model` must be a `metajax.Model`, got {_short(model)}; {instead}."
    )


def check_optimizer(*, others: str = "", **optimizers: Any) -> None:
    """Raises a TypeError unless all are optimizers of Optax.

    Args:
      others: what else the caller takes and has found these not to be, for the error.
      **optimizers: optimizers by name.
    """
    for name, optimizer in optimizers.items():
        if isinstance(optimizer, optax.GradientTransformation):
            continue
        hint = "; call it, to make one" if callable(optimizer) else ""
        raise TypeError(
            f"`{name}` must be an optax.GradientTransformation, such as "
            f"optax.sgd(0.01){others}, got {_short(optimizer)}{hint}."
        )


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _takes(function: Any, count: int) -> bool:
    """Whether it can be called with so many arguments, or does not say."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def check_way(way: Any) -> None:
    """Raises a ValueError unless the number of classes is `"support"` or at least 1."""
    if way == "support":
        return
    if not is_integer(way) or way < 1:
        raise ValueError(
            "`way` must be an integer of at least 1, or 'support' for as many classes "
            f"as there are support examples, got {way!r}."
        )
    check_integers(1, way=way)


def check_positive(**values: float) -> None:
    """Raises a ValueError unless all are above 0 and finite."""
    for name, value in values.items():
        if not is_number(value) or not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be above 0 and finite, got {value!r}.")


def check_not_negative(**values: float) -> None:
    """Raises a ValueError unless all are at least 0 and finite."""
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < math.inf:
            raise ValueError(f"`{name}` must be at least 0 and finite, got {value!r}.")


def check_ranges(**ranges: tuple[float, float]) -> None:
    """Raises a ValueError unless all are `(low, high)`, finite, with low <= high."""
    for name, bounds in ranges.items():
        is_pair = len(bounds) == 2 and all(map(math.isfinite, bounds))
        if not is_pair or bounds[0] > bounds[1]:
            raise ValueError(
                f"`{name}` must be two finite numbers (low, high) with low <= high, "
                f"got {bounds}."
            )
