"""Inner optimizers that the outer loop learns: one mechanism for all of them.

An Optax transformation is a function of its hyper-parameters. A `LearnedOptimizer` says
what these are at first (`init`), and how they make a transformation (`build`); they
join the meta-parameters, and the outer gradient reaches them through the inner loop.

    learned(optax.sgd, learning_rate=HyperParameter(0.01, per="parameter"))

is Meta-SGD's: one rate for every parameter. Rates `per="leaf"` with `inner_steps=5` are
those of MAML++, a momentum with `domain="unit"` is a learned momentum, and a rate with
`inner_steps` alone is a learned schedule. Learned networks and matrices that transform
gradients (`lstm_optimizer`, `meta_lstm`, `meta_curvature`) are built by hand from the
same two functions.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from metajax.checks import is_integer, is_number
from metajax.filters import path_names
from metajax.types import Array, PyTree

__all__ = ["DOMAINS", "GRANULARITIES", "HyperParameter", "LearnedOptimizer", "learned"]

Granularity = Literal["optimizer", "leaf", "parameter"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


class _Domain(NamedTuple):
    """Numbers `low < v < high`, which are learned as `to_raw(v)`, any number."""

    text: str
    low: float
    high: float
    to_raw: Callable[[float], float]
    from_raw: Callable[[Array], Array]


_DOMAINS = {
    "real": _Domain("a finite number", -math.inf, math.inf, lambda v: v, lambda v: v),
    "positive": _Domain("above 0 and finite", 0, math.inf, math.log, jnp.exp),
    "unit": _Domain(
        "between 0 and 1", 0, 1, lambda v: math.log(v / (1 - v)), jax.nn.sigmoid
    ),
}
DOMAINS = tuple(_DOMAINS)


class LearnedOptimizer(NamedTuple):
    """An inner optimizer with parameters of its own.

    Attributes:
      init: `(key, params) -> optimizer_params`, from the parameters that will adapt;
        the key is consumed.
      build: `(optimizer_params) -> optax.GradientTransformation`.
    """

    init: Callable[[Array, PyTree], PyTree]
    build: Callable[[PyTree], optax.GradientTransformation]


class HyperParameter(NamedTuple):
    """A number that `learned` learns.

    Attributes:
      value: at first; above 0 for `domain="positive"`, within (0, 1) for `"unit"`.
      per: `"optimizer"`, one number for all; `"leaf"`, one for each array of
        parameters; `"parameter"`, one for each parameter.
      inner_steps: None, or how many inner steps have one of their own, at least 1;
        later steps share the last.
      domain: `"real"`, any number, as Meta-SGD's rates that may become negative;
        `"positive"`, learned through its logarithm; `"unit"`, through its logit.
    """

    value: float
    per: str = "optimizer"
    inner_steps: int | None = None
    domain: str = "real"


class _CountedState(NamedTuple):
    step: Array
    inner: PyTree


def learned(
    make: Callable[..., optax.GradientTransformation], **hyper: Any
) -> LearnedOptimizer:
    """Learns hyper-parameters of any Optax optimizer.

    If any of them is `per` leaf or parameter, the optimizer is run on every leaf by
    itself. For most that changes nothing; those that look across leaves, such as
    `clip_by_global_norm`, then see one leaf only.

    Args:
      make: what makes the optimizer, such as `optax.sgd`.
      **hyper: its arguments by name; those that are a `HyperParameter` are learned.

    Returns:
      A `LearnedOptimizer` whose parameters are a dict from names to arrays, or to
      pytrees like the parameters that adapt.

    Raises:
      ValueError: if nothing is learned, `make` has no argument of a name, or a
        `HyperParameter` is out of range.
      TypeError: if `make` gives no Optax transformation.

    Example:
      >>> import optax
      >>> from metajax.inner.learned_optimizer import HyperParameter, learned
      >>> inner_optimizer = learned(
      ...     optax.sgd,
      ...     learning_rate=HyperParameter(0.1, per="leaf", inner_steps=5),
      ...     momentum=HyperParameter(0.9, domain="unit"),
      ... )
    """
    if not callable(make):
        raise ValueError(
            f"`make` must be what makes an optimizer, such as optax.sgd, got {make!r}."
        )
    numbers = {k: v for k, v in hyper.items() if isinstance(v, HyperParameter)}
    fixed = {k: v for k, v in hyper.items() if k not in numbers}
    _check(make, hyper, numbers)
    is_leafwise = any(number.per != "optimizer" for number in numbers.values())

    def init(key: Array, params: PyTree) -> PyTree:
        del key
        return {name: _initial(number, params) for name, number in numbers.items()}

    def build(optimizer_params: PyTree) -> optax.GradientTransformation:
        of_paths = {
            name: dict(jax.tree_util.tree_leaves_with_path(optimizer_params[name]))
            for name, number in numbers.items()
            if number.per != "optimizer"
        }

        def at(
            count: Array, path: tuple | None
        ) -> optax.GradientTransformationExtraArgs:
            """Builds the optimizer of one leaf (or of all) at one inner step."""
            values = {}
            for name, number in numbers.items():
                raw = optimizer_params[name]
                if name in of_paths:
                    raw = of_paths[name].get(path or ())
                if raw is None:
                    raise ValueError(
                        f"The learned {name!r} has no value for the parameter "
                        f"{jax.tree_util.keystr(path or ())}, only for "
                        f"{path_names(optimizer_params[name])}; give it the parameters "
                        "that `LearnedOptimizer.init` saw, or some of them."
                    )
                values[name] = _value(number, raw, count)
            return optax.with_extra_args_support(make(**values, **fixed))

        def init_fn(params: PyTree) -> _CountedState:
            count = jnp.int32(0)
            if not is_leafwise:
                return _CountedState(count, at(count, None).init(params))
            leaves = jax.tree_util.tree_leaves_with_path(params)
            inner = tuple(at(count, path).init(leaf) for path, leaf in leaves)
            return _CountedState(count, inner)

        def update_fn(
            updates: PyTree, state: _CountedState, params: PyTree = None, **extra: Any
        ) -> tuple[PyTree, _CountedState]:
            count, inner = state
            if not is_leafwise:
                updates, inner = at(count, None).update(updates, inner, params, **extra)
                return updates, _CountedState(count + 1, inner)
            # By path, as `optax.masked` and `optax.partition` hide some of the leaves.
            paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
            grads, structure = jax.tree.flatten(updates)
            weights = [None] * len(grads) if params is None else jax.tree.leaves(params)

            def of_leaf(i: int) -> dict[str, Any]:
                """Restricts extra arguments to leaf `i`."""
                own = dict(extra)
                if "grad" in own:
                    own["grad"] = jax.tree.leaves(own["grad"])[i]
                if "value_fn" in own:
                    before, after = weights[:i], weights[i + 1 :]
                    own["value_fn"] = lambda leaf: extra["value_fn"](
                        jax.tree.unflatten(structure, [*before, leaf, *after])
                    )
                return own

            pairs = [
                at(count, paths[i]).update(grad, inner[i], weights[i], **of_leaf(i))
                for i, grad in enumerate(grads)
            ]
            new = jax.tree.unflatten(structure, [update for update, _ in pairs])
            return new, _CountedState(count + 1, tuple(state for _, state in pairs))

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    return LearnedOptimizer(init, build)


def _initial(number: HyperParameter, params: PyTree) -> PyTree:
    raw = _DOMAINS[number.domain].to_raw(number.value)
    inner_steps = () if number.inner_steps is None else (number.inner_steps,)
    if number.per == "optimizer":
        return jnp.full(inner_steps, raw, float)

    def like(leaf: Array) -> Array:
        shape = leaf.shape if number.per == "parameter" else ()
        return jnp.full(inner_steps + shape, raw, leaf.dtype)

    return jax.tree.map(like, params)


def _value(number: HyperParameter, value: Array, count: Array) -> Array:
    """What the optimizer of one leaf is given at one inner step."""
    if number.inner_steps is not None:
        value = value[jnp.minimum(count, number.inner_steps - 1)]
    return _DOMAINS[number.domain].from_raw(value)


def _check(
    make: Callable[..., optax.GradientTransformation],
    hyper: dict[str, Any],
    numbers: dict[str, HyperParameter],
) -> None:
    if not numbers:
        raise ValueError(
            "`learned` got no HyperParameter, so there is nothing to learn; wrap what "
            "should be learned, as in learning_rate=HyperParameter(0.01), or use the "
            "optimizer as it is."
        )
    accepted = inspect.signature(make).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    for name in hyper:
        if name not in accepted and not takes_any:
            raise ValueError(
                f"`{getattr(make, '__name__', make)}` has no argument {name!r}; it has "
                f"{', '.join(accepted)}. Give another `make` or {name!r} by its name."
            )
    for name, number in numbers.items():
        _check_number(name, number)
    example = {k: v.value if k in numbers else v for k, v in hyper.items()}
    made = make(**example)
    if not isinstance(made, optax.GradientTransformation):
        raise TypeError(
            "`make` must give an optax.GradientTransformation, as optax.sgd does, got "
            f"{made!r}."
        )


def _check_number(name: str, number: HyperParameter) -> None:
    value, per, inner_steps, domain = number
    if per not in GRANULARITIES:
        raise ValueError(
            f"`per` of {name!r} must be one of {', '.join(GRANULARITIES)}, got {per!r}."
        )
    if domain not in DOMAINS:
        raise ValueError(
            f"`domain` of {name!r} must be one of {', '.join(DOMAINS)}, got {domain!r}."
        )
    if inner_steps is not None and (not is_integer(inner_steps) or inner_steps < 1):
        raise ValueError(
            f"`inner_steps` of {name!r} must be None or an integer of at least 1, got "
            f"{inner_steps!r}."
        )
    allowed = _DOMAINS[domain]
    if not is_number(value) or not allowed.low < value < allowed.high:
        raise ValueError(
            f"`value` of {name!r} must be {allowed.text} for domain={domain!r}, got "
            f"{value!r}."
        )
    if name == "learning_rate" and value <= 0:
        raise ValueError(
            f"`value` of {name!r} must be above 0 at first, got {value!r}; with "
            "domain='real' it may become negative while it is learned."
        )
