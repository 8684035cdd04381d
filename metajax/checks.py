"""Checks of what users pass to constructors, with one wording for all of them."""

import contextlib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metajax.types import Array, Examples, Model, PyTree, Task

__all__ = [
    "LARGEST",
    "as_array",
    "as_numbers",
    "check_batch",
    "check_choice",
    "check_instances",
    "check_dtype",
    "check_fits",
    "check_flags",
    "check_functions",
    "check_integers",
    "check_keys",
    "check_lists",
    "check_mappings",
    "check_not_negative",
    "check_optimizer",
    "check_parts",
    "check_paths",
    "check_positive",
    "check_ranges",
    "check_same_shapes",
    "check_seed",
    "check_shapes",
    "check_sizes",
    "check_way",
    "check_words",
    "host_memory",
    "is_integer",
    "is_number",
    "named_if_other",
]


# Sizes and counts end here, as indices of JAX are of 32 bits.
LARGEST = 2**31 - 1


def is_integer(value: Any) -> bool:
    """Says whether a value is an integer of Python or NumPy, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Says whether a value is a real number of Python, NumPy or JAX, and not a bool.

    Nor an integer of more than 32 bits, which JAX does not take for a number: 10**12 is
    to be written 1e12.
    """
    if isinstance(value, Real):
        is_wide = isinstance(value, Integral) and abs(int(value)) >= 2**31
        return not isinstance(value, bool) and not is_wide
    dtype = getattr(value, "dtype", None)
    return (
        getattr(value, "shape", None) == () and dtype is not None and dtype.kind == "f"
    )


def check_choice(allowed: Iterable[str], **values: str) -> None:
    """Raises a ValueError unless all are among the allowed names."""
    allowed = tuple(allowed)
    for name, value in values.items():
        if not isinstance(value, str | int) or value not in allowed:
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
        is_list = is_list and getattr(words, "shape", None) != ()
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
_TASKS = (("key",), "`metajax.tasks.sinusoid()`")
_CALLS = {
    "objective": (("outputs", "y"), "`metajax.objectives.cross_entropy`"),
    "metrics_fn": (("outputs", "query"), "a function that returns a dict of scalars"),
    "augment": (("key", "images"), "a function that returns images"),
    "before": (("params", "x"), "a function that returns inputs of the model"),
    "after": (("params", "outputs"), "a function that returns outputs"),
    "tasks": _TASKS,
    "validation": _TASKS,
}
_FILTER = (("path",), "`metajax.filters.only('head')`")
_CLASSES: dict[str, tuple[type, str]] = {
    "task": (Task, "tasks are `Task(support, query)`, as `metajax.tasks` draws them"),
    "examples": (Examples, "give `Examples(x, y)`, such as `task.support`"),
    "support": (Examples, "give `Examples(x, y)`, such as `task.support`"),
    "query": (Examples, "give `Examples(x, y)`, such as `task.query`"),
}


def check_parts(**parts: Any) -> None:
    """Raises a ValueError unless all are what arguments of these names must be.

    Args:
      **parts: `model` or `embedding`, a `Model`; `task`, `examples`, `support` and
        `query`, of their classes; others are functions: `objective`, `metrics_fn`,
        `augment`, `tasks`, `validation`, `before`, `after`, and any other name is a
        filter of paths.
    """
    for name, part in parts.items():
        if name in ("model", "embedding"):
            _check_model(name, part)
        elif name in _CLASSES:
            wanted, instead = _CLASSES[name]
            check_instances(wanted, instead, **{name: part})
        else:
            arguments, example = _CALLS.get(name, _FILTER)
            check_functions(arguments, example, **{name: part})


def check_functions(
    arguments: Sequence[str],
    example: str,
    *,
    keywords: Sequence[str] = (),
    **functions: Any,
) -> None:
    """Raises a ValueError unless all can be called with so many arguments.

    Args:
      arguments: what to call them.
      example: what to give instead.
      keywords: arguments that are given by name.
      **functions: by name.
    """
    for name, function in functions.items():
        if not callable(function) or not _takes(function, len(arguments), keywords):
            listed = ", ".join([*arguments, *(f"{word}=..." for word in keywords)])
            raise ValueError(
                f"`{name}` must be a function of ({listed}), such as {example}, got "
                f"{_short(function)}."
            )


def check_instances(
    wanted: type | tuple[type, ...], instead: str, **values: Any
) -> None:
    """Raises a ValueError unless all are objects of a class.

    Args:
      wanted: the class, or several of which any is right.
      instead: what to do about it.
      **values: by name.
    """
    for name, value in values.items():
        if not isinstance(value, wanted):
            several = wanted if isinstance(wanted, tuple) else (wanted,)
            names = " or ".join(f"`{one.__name__}`" for one in several)
            raise ValueError(
                f"`{name}` must be a {names}, got {_short(value)}; {instead}."
            )


def check_lists(**values: Any) -> None:
    """Raises a ValueError unless all are lists or the like, and not one word."""
    for name, value in values.items():
        is_list = isinstance(value, Sequence) or getattr(value, "shape", ()) != ()
        if not is_list or isinstance(value, str | bytes):
            raise ValueError(
                f"`{name}` must be a list, got {_short(value)}; write [...]."
            )


def check_mappings(**values: Any) -> None:
    """Raises a ValueError unless all are dicts or the like."""
    for name, value in values.items():
        if not isinstance(value, Mapping):
            raise ValueError(
                f"`{name}` must be a dict, got {_short(value)}; write {{name: ...}}."
            )


def check_paths(**paths: Any) -> None:
    """Raises a ValueError unless all are paths of files or folders."""
    for name, path in paths.items():
        if not isinstance(path, str | os.PathLike):
            raise ValueError(
                f"`{name}` must be a path, a str or a `pathlib.Path`, got "
                f"{_short(path)}."
            )


def check_dtype(dtype: Any) -> None:
    """Raises a ValueError unless it is a type of floating-point numbers."""
    try:
        is_float = isinstance(dtype, str | type | np.dtype)
        is_float = is_float and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except (TypeError, ValueError):
        is_float = False
    if not is_float:
        raise ValueError(
            "`dtype` must be a floating type, such as jnp.float32, got "
            f"{_short(dtype)}."
        )


def as_array(**values: Any) -> Array:
    """Makes one value, given by its name, an array of JAX.

    Raises:
      ValueError: if it holds something else than numbers.
    """
    ((name, value),) = values.items()
    try:
        if isinstance(value, str | bytes):
            raise TypeError("Words are no numbers.")
        return jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"`{name}` must be an array of numbers, got {_short(value)}."
        ) from error


def as_numbers(**values: Any) -> np.ndarray:
    """Makes one value, given by its name, an array of NumPy in double precision.

    Raises:
      ValueError: if it holds something else than numbers.
    """
    ((name, value),) = values.items()
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be numbers, got {_short(value)}: {error}."
        ) from error


@contextlib.contextmanager
def named_if_other(
    init: Callable[..., PyTree], example: Any, **trees: PyTree
) -> Iterator[None]:
    """Names a pytree of parameters if an error comes and `init` draws another kind.

    Whether parameters fit is told by their use, as they may be others than those that
    `init` draws. Only where their use fails, it says whether they are why.

    Args:
      init: `(key, example) -> parameters`.
      example: for `init`.
      **trees: one pytree by its name.

    Raises:
      ValueError: in place of an error within, if structure or shapes are others.
    """
    ((name, tree),) = trees.items()

    def shapes(tree: PyTree) -> tuple[Any, list[Any]]:
        return jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)]

    try:
        yield
    except Exception as error:
        try:
            wanted = jax.eval_shape(init, jax.random.key(0), example)
            is_other = shapes(tree) != shapes(wanted)
        except Exception:  # `init` says nothing of it
            is_other = False
        if not is_other:
            raise
        raise ValueError(
            f"`{name}` must be as `init` draws them, got {_short(tree)}: {error}"
        ) from error


def check_shapes(**arrays: tuple[Any, str]) -> None:
    """Raises an error unless arrays have the axes that they must have.

        check_shapes(logits=(logits, "n C"), labels=(labels, "n"))

    Args:
      **arrays: by name, each with its axes. An axis has one size wherever it stands;
        `...` at the end are any further axes.

    Raises:
      ValueError: if one is no array of numbers.
      AssertionError: at trace time, if shapes disagree.
    """
    sizes: dict[str, int] = {}
    for name, (array, axes) in arrays.items():
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
        letters = axes.split()
        wanted = f"[{', '.join(letters)}]"
        if not isinstance(shape, tuple) or getattr(dtype, "kind", "O") in "OSU":
            raise ValueError(
                f"`{name}` must be an array {wanted}, got {_short(array)}."
            )
        known = [letter for letter in letters if letter in sizes]
        is_open = letters[-1:] == ["..."]
        letters = letters[: len(letters) - is_open]
        fits = len(shape) >= len(letters) if is_open else len(shape) == len(letters)
        for letter, size in zip(letters, shape, strict=False):
            fits &= sizes.setdefault(letter, size) == size
        if not fits:
            rank = f"{len(letters)} or more" if is_open else len(letters)
            where = " and ".join(f"{letter} = {sizes[letter]}" for letter in known)
            raise AssertionError(
                f"`{name}` must be of rank {rank} and shape {wanted}"
                f"{' with ' * bool(where)}{where}, got {list(shape)}."
            )


def check_same_shapes(**arrays: Any) -> None:
    """Raises an error unless all arrays have the shape of the first.

    Raises:
      ValueError: if one is no array of numbers.
      AssertionError: at trace time, if shapes disagree.
    """
    check_shapes(**{name: (array, "...") for name, array in arrays.items()})
    first = next(iter(arrays))
    for name, array in arrays.items():
        if array.shape != arrays[first].shape:
            raise AssertionError(
                f"`{name}` must have the shape of `{first}`, "
                f"{list(arrays[first].shape)}, got {list(array.shape)}."
            )


def _check_model(name: str, model: Any) -> None:
    if isinstance(model, Model):
        if callable(model.init) and callable(model.apply):
            return
        raise ValueError(
            f"`{name}` must hold two functions, got init {_short(model.init)} and "
            f"apply {_short(model.apply)}; `metajax.models.from_functions` builds it."
        )
    classes = (model if isinstance(model, type) else type(model)).__mro__
    origins = {".".join(base.__module__.split(".")[:2]) for base in classes}
    instead = "`metajax.models` has `mlp`, `conv4` and `from_functions` to build one"
    if "flax.linen" in origins:
        instead = "wrap it by `metajax.models.from_linen(module)`"
    if "flax.nnx" in origins:
        instead = "give `metajax.models.from_nnx(lambda rngs: Net(..., rngs=rngs))`"
    raise ValueError(
        f"`{name}` must be a `metajax.Model`, got {_short(model)}; {instead}."
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


def _takes(function: Any, count: int, keywords: Sequence[str]) -> bool:
    """Whether it can be called with so many arguments, or does not say."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count), **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def check_way(way: Any) -> None:
    """Raises a ValueError unless the number of classes is `"support"` or at least 1."""
    if isinstance(way, str) and way == "support":
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
        is_pair = isinstance(bounds, tuple | list | np.ndarray) and len(bounds) == 2
        is_pair = is_pair and all(is_number(x) and math.isfinite(x) for x in bounds)
        if not is_pair or bounds[0] > bounds[1]:
            raise ValueError(
                f"`{name}` must be two finite numbers (low, high) with low <= high, "
                f"got {bounds}."
            )
