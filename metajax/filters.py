"""Which leaves of a parameter pytree adapt: predicates on paths, and the partition.

A leaf's path is its keys joined by slashes, such as `params/head/kernel`. A predicate
says for a path whether the leaf adapts; ANIL is `only("head")`, BOIL `all_but("head")`.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from metajax.checks import check_parts
from metajax.types import Array, Filter, PyTree

__all__ = [
    "all_but",
    "combine",
    "everything",
    "float_type",
    "keep_types",
    "only",
    "partition",
    "path_names",
]


def everything(path: str) -> bool:
    """Accepts every leaf."""
    del path
    return True


def only(*parts: str) -> Filter:
    """Accepts leaves whose path has one of `parts` among its slash-separated keys.

    Raises:
      ValueError: if a part is no single key.
    """
    _check_parts(parts)
    return lambda path: not set(parts).isdisjoint(path.split("/"))


def all_but(*parts: str) -> Filter:
    """Accepts leaves whose path has none of `parts` among its keys.

    Raises:
      ValueError: as `only`.
    """
    _check_parts(parts)
    return lambda path: set(parts).isdisjoint(path.split("/"))


def _check_parts(parts: tuple[str, ...]) -> None:
    for part in parts:
        if not isinstance(part, str) or not part or "/" in part:
            raise ValueError(
                "A filter takes single keys of paths, such as 'head' for "
                f"'params/head/kernel', got {part!r} among `parts`."
            )


def path_names(tree: PyTree) -> list[str]:
    """Gives the path of every leaf, in the order of `jax.tree.leaves`."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def partition(tree: PyTree, predicate: Filter = everything) -> tuple[PyTree, PyTree]:
    """Splits a pytree into what adapts and what does not.

    Leaves that are not real floating-point arrays (counters, keys) never adapt.

    Args:
      tree: a pytree of arrays.
      predicate: path of a leaf -> whether it adapts.

    Returns:
      Two pytrees of the structure of `tree`, each with None where the other has a leaf.

    Raises:
      ValueError: if no leaf is accepted although `tree` has some.
    """
    check_parts(predicate=predicate)
    leaves, structure = jax.tree.flatten(tree)
    paths = path_names(tree)
    chosen = [
        jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        and _accepts(predicate, path)
        for leaf, path in zip(leaves, paths, strict=True)
    ]
    if leaves and not any(chosen):
        kinds = [
            f"{path} ({jnp.result_type(leaf)})"
            for leaf, path in zip(leaves, paths, strict=True)
        ]
        raise ValueError(
            "The filter accepts none of the floating-point leaves, so nothing would "
            f"adapt. The leaves are {', '.join(kinds)}; give a filter ({_NAMES}) "
            "that accepts one that is floating-point and real."
        )
    pairs = list(zip(leaves, chosen, strict=True))
    adapts = [leaf if is_chosen else None for leaf, is_chosen in pairs]
    stays = [None if is_chosen else leaf for leaf, is_chosen in pairs]
    return jax.tree.unflatten(structure, adapts), jax.tree.unflatten(structure, stays)


# What arguments that are filters are called.
_NAMES = "`predicate`, `adapts`, `generates`, `gates`"


def _accepts(predicate: Filter, path: str) -> bool:
    try:
        return bool(predicate(path))
    except Exception as error:
        raise ValueError(
            f"A filter ({_NAMES}) says of a path whether its leaf is chosen, and this "
            f"one, {predicate!r}, fails on {path!r}: {error}"
        ) from error


def float_type(tree: PyTree, default: DTypeLike = jnp.float32) -> jnp.dtype:
    """Gives the type that floating-point leaves have together, or else `default`."""
    try:
        types = [jnp.result_type(leaf) for leaf in jax.tree.leaves(tree)]
    except TypeError as error:
        raise ValueError(f"`tree` must be a pytree of arrays: {error}") from error
    floats = [dtype for dtype in types if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.dtype(default)


def keep_types(new: PyTree, old: PyTree) -> PyTree:
    """Gives `new` in the types of `old`, of the same structure, where both are floats.

    What a loop carries may not change its type, and in double precision a number of
    NumPy or a learned one makes the product wider than what it multiplies.
    """

    def keep(new: Array, old: Array) -> Array:
        types = jnp.result_type(new), jnp.result_type(old)
        are_floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in types)
        return jnp.asarray(new, types[1]) if are_floats else new

    try:
        return jax.tree.map(keep, new, old)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`new` and `old` must be arrays in trees of one structure: {error}"
        ) from error


def combine(first: PyTree, second: PyTree) -> PyTree:
    """Undoes `partition`: at each place the leaf of whichever tree has one."""
    try:
        return jax.tree.map(
            lambda one, other: other if one is None else one,
            first,
            second,
            is_leaf=lambda leaf: leaf is None,
        )
    except ValueError as error:
        raise ValueError(
            "`first` and `second` must be trees of one structure, as `partition` gives "
            f"them: {error}"
        ) from error
