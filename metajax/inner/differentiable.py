"""Whether an optimizer of Optax can be differentiated through: it is tried.

Optimizers divide by roots and norms, whose derivatives are infinite where a gradient
is exactly 0. That is so wherever a ReLU is off, for a whole array where a layer is, and
for all arrays where the support set is fitted exactly. A NaN in the outer gradient is
then all that is seen of it, perhaps after hours; so optimizers are tried there first.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.compute.program_costs import has_while
from metajax.types import Array, PyTree

__all__ = ["is_search", "lacks_derivative", "parts_of"]


class _Trial(NamedTuple):
    """Gradients and parameters at which updates are differentiated; what is so there.

    The parameters are `offset` and the gradients, so that one derivative shows both.
    """

    where: str
    gradients: PyTree
    offset: float = 1.0
    steps: int = 1


_SOME = {"matrix": [[3.0, 1.0], [2.0, 2.0]], "vector": [1.0, 2.0]}
_TRIALS = (
    _Trial(
        "a gradient is 0, as it is wherever a ReLU is off",
        {"matrix": [[0.0, 1.0], [0.0, 2.0]]},
        steps=6,  # some begin with steps of another kind, as RAdam does
    ),
    _Trial(
        "all gradients of an array are 0, as where a layer is off",
        _SOME | {"off": [[0.0, 0.0], [0.0, 0.0]], "vector": [0.0, 0.0]},
    ),
    _Trial(
        "all gradients are 0, as where the support set is fitted exactly",
        {"matrix": [[0.0, 0.0], [0.0, 0.0]], "vector": [0.0, 0.0]},
    ),
    _Trial(
        "an array of parameters is 0, as biases are in the beginning",
        _SOME | {"vector": [1.0, 1.0]},
        offset=-1.0,
    ),
)
_ANYWHERE = f"its first {_TRIALS[0].steps} steps are differentiated, at any gradient"

_known: Any = weakref.WeakKeyDictionary()


def lacks_derivative(optimizer: optax.GradientTransformation) -> str | None:
    """Says where the updates of an optimizer have no, or a wrong, derivative.

    Returns:
      The end of a sentence that begins with "where"; None if nothing was found, also
      for optimizers that cannot be tried: those that hold traced values, or that expect
      the parameters of a certain network.
    """
    if optimizer.update not in _known:
        _known[optimizer.update] = _lacks_derivative(optimizer)
    return _known[optimizer.update]


def _lacks_derivative(optimizer: optax.GradientTransformation) -> str | None:
    for where, gradients, offset, steps in _TRIALS:
        try:
            # One operation after the other: these are compiled once for all optimizers.
            with jax.ensure_compile_time_eval():
                total = _sum_of_updates(optimizer, steps, offset)
                leaves = {k: jnp.asarray(v, jnp.float32) for k, v in gradients.items()}
                if not _is_finite_at(total, leaves):
                    ones = jax.tree.map(jnp.ones_like, leaves)
                    anywhere = steps > 1 and not _is_finite_at(total, ones)
                    return _ANYWHERE if anywhere else where
                if not any(map(jnp.any, leaves.values())) and _differs(total, leaves):
                    return where
        except Exception:
            continue
    return None


def _is_finite_at(
    total: Callable[[dict[str, Array]], Array], gradients: dict[str, Array]
) -> bool:
    slopes = jax.grad(total)(gradients)
    return all(bool(jnp.all(jnp.isfinite(slope))) for slope in slopes.values())


def _differs(
    total: Callable[[dict[str, Array]], Array], zeros: dict[str, Array]
) -> bool:
    """Whether differences settle on another derivative where all gradients are 0.

    They do not settle at a jump, such as that of a sign, where there is no derivative.
    """

    def moved(by: float | Array) -> Array:
        return total({name: leaf + by for name, leaf in zeros.items()})

    expected = float(jax.grad(moved)(0.0))
    rough, fine = (float(moved(by) - moved(-by)) / (2 * by) for by in (1e-6, 1e-7))
    size = 1 + abs(fine)
    return abs(rough - fine) < 0.01 * size and abs(expected - fine) > 0.1 * size


def is_search(optimizer: optax.GradientTransformation) -> bool:
    """Whether the update has a loop of unknown length; False if it cannot be tried."""
    try:
        update = _sum_of_updates(optimizer, 1, 1.0)
        return has_while(jax.make_jaxpr(update)({"matrix": jnp.ones((2, 2))}).jaxpr)
    except Exception:
        return False


def _sum_of_updates(
    optimizer: optax.GradientTransformation, steps: int, offset: float
) -> Callable[[dict[str, Array]], Array]:
    """The sum of the first updates, from gradients that stay the same."""
    update = optax.with_extra_args_support(optimizer).update

    def total(leaves: PyTree) -> Array:
        return sum(map(jnp.sum, jax.tree.leaves(leaves)), jnp.float32(0))

    def sum_of_updates(gradients: dict[str, Array]) -> Array:
        params = jax.tree.map(lambda leaf: leaf + offset, gradients)
        extra = {"value": jnp.float32(0), "grad": gradients, "value_fn": total}
        state, so_far = optimizer.init(params), jnp.float32(0)
        for _ in range(steps):
            updates, state = update(gradients, state, params, **extra)
            so_far += total(updates)
        return so_far

    return sum_of_updates


def parts_of(optimizer: optax.GradientTransformation) -> str:
    """Names what an optimizer is chained of, such as "scale_by_adam, scale"."""
    return ", ".join(_names(optimizer.update))


def _names(update: Any) -> list[str]:
    """Found in the closures of Optax: a transformation has no name of its own."""
    inner: dict[str, None] = {}
    for cell in getattr(update, "__closure__", None) or ():
        inside = cell.cell_contents
        for part in inside if isinstance(inside, (tuple, list)) else [inside]:
            if isinstance(part, optax.GradientTransformation):
                part = part.update
            if getattr(part, "__name__", "").startswith("update"):
                inner |= dict.fromkeys(_names(part))
    own = getattr(update, "__qualname__", type(update).__name__).split(".")[0]
    if own in ("chain", "named_chain", "with_extra_args_support") and inner:
        return list(inner)
    return [f"{own}({', '.join(inner)})" if set(inner) - {own} else own]
