"""Models from Flax Linen modules, Flax NNX modules and plain pairs of functions.

NNX is imported where it is used, as that takes a while.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.masks import hide_padding
from metajax.models.normalization import STATISTICS, check_normalization
from metajax.objectives import split_key
from metajax.types import Array, Model, PyTree

if TYPE_CHECKING:
    from flax import nnx

__all__ = ["from_functions", "from_linen", "from_nnx", "within"]


def from_functions(init: Callable[..., PyTree], apply: Callable[..., PyTree]) -> Model:
    """Builds a model from two functions (Haiku's pair, or Equinox through `partition`).

    Args:
      init: `(key, x) -> params`.
      apply: `(params, x) -> outputs`; it is also given `mask` or `key` if it has
        parameters of these names.
    """
    accepted = _accepted(apply)

    def apply_model(
        params: PyTree,
        x: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        values = {"mask": mask, "key": key}
        return apply(params, hide_padding(x, mask), **_only(values, accepted))

    return Model(init, apply_model)


def from_linen(module: nn.Module, *, normalization: str = "none") -> Model:
    """Builds a model from a Flax Linen module.

    The module is called with `x` and, where its `__call__` has parameters of these
    names, `mask`, `deterministic` (True without a key) and `train` (the opposite). The
    key feeds every random stream; without one there is none.

    Args:
      module: a module without state of its own: parameters only. In place of
        `nn.BatchNorm`, whose running averages are state, use
        `metajax.models.normalization.Normalize`.
      normalization: the `kind` of the module's `Normalize` layers, if it has any.

    Returns:
      A model whose `params` are the module's variables, `{"params": ...}`.

    Raises:
      ValueError: if `normalization` is unknown; in `init`, if the module keeps state or
        its `Normalize` layers are not of the kind that `normalization` says.
    """
    check_normalization(normalization)
    has_statistics = normalization in ("support", "calibrated")
    accepted = _accepted(type(module).__call__)

    def arguments(mask: Array | None, key: Array | None) -> dict[str, Any]:
        values = {"mask": mask, "deterministic": key is None, "train": key is not None}
        return _only(values, accepted)

    def init(key: Array, x: PyTree) -> PyTree:
        variables = module.init(key, x, **arguments(None, None))
        state = sorted(set(variables) - {"params"})
        if state:
            raise ValueError(
                f"{type(module).__name__} keeps state in the collections {state}, but "
                "models are pure functions of their parameters. Replace nn.BatchNorm "
                "by metajax.models.normalization.Normalize, or drop the layer."
            )
        frozen = set(jax.eval_shape(statistics, variables, x)) - {"params"}
        if bool(frozen) != has_statistics:
            raise ValueError(
                f"normalization={normalization!r} does not fit {type(module).__name__},"
                f" which has {'a' if frozen else 'no'} Normalize layer of a kind that "
                "freezes statistics ('support' or 'calibrated'). Give `from_linen` the "
                "kind of the module's layers."
            )
        return variables

    def apply(
        params: PyTree,
        x: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        return module.apply(
            params, hide_padding(x, mask), rngs=_streams(key), **arguments(mask, key)
        )

    def statistics(
        params: PyTree,
        x: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        _, frozen = module.apply(
            params,
            hide_padding(x, mask),
            rngs=_streams(key),
            mutable=[STATISTICS],
            **arguments(mask, key),
        )
        return params | frozen

    return Model(init, apply, statistics if has_statistics else None, normalization)


def from_nnx(build: "Callable[[nnx.Rngs], nnx.Module]") -> Model:
    """Builds a model from a Flax NNX module.

    Args:
      build: `(rngs) -> module`, for example `lambda rngs: Net(1, 5, rngs=rngs)`. The
        module is called with `x` and, where its `__call__` has parameters of these
        names, `mask` and `rngs` (None without a key).

    Returns:
      A model whose `params` are the module's `nnx.Param` state as a pure dict.

    Raises:
      ValueError: if the module keeps state besides parameters and random streams.
    """
    from flax import nnx

    module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    accepted = _accepted(type(module).__call__)
    graph, abstract, *others = nnx.split(module, nnx.Param, nnx.RngState, ...)
    streams, state = others
    if jax.tree.leaves(state):
        kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(state)})
        raise ValueError(
            f"{type(module).__name__} keeps state of the kinds {kinds}, but models are "
            "pure functions of their parameters. Replace nnx.BatchNorm by "
            "nnx.LayerNorm or nnx.GroupNorm, or drop the layer."
        )

    def init(key: Array, x: PyTree) -> PyTree:
        del x  # an NNX module knows its input sizes
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(key)), nnx.Param))

    def apply(
        params: PyTree,
        x: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        key_streams, key_call = split_key(key, 2)
        state = jax.tree.map(lambda leaf: leaf, abstract)  # the next line writes to it
        nnx.replace_by_pure_dict(state, params)
        module = nnx.merge(graph, state, _fresh_streams(streams, key_streams))
        if key is None:
            module.eval()
        else:
            module.train()
        rngs = None if key_call is None else nnx.Rngs(key_call)
        values = {"mask": mask, "rngs": rngs}
        return module(hide_padding(x, mask), **_only(values, accepted))

    return Model(init, apply)


def within(
    model: Model,
    part: str,
    *,
    before: Callable[[PyTree, PyTree], PyTree] = lambda params, x: x,
    after: Callable[[PyTree, PyTree], PyTree] = lambda params, outputs: outputs,
) -> Model:
    """Builds a model whose parameters are one part of a dict that holds more than them.

    Args:
      model: the model.
      part: the key of its own parameters.
      before: `(params, x) -> x`, what it is given, from the whole dict.
      after: `(params, outputs) -> outputs`, what becomes of what it gives.
    """

    def apply(params: PyTree, x: PyTree, **others: Any) -> PyTree:
        outputs = model.apply(params[part], before(params, x), **others)
        return after(params, outputs)

    def statistics(params: PyTree, x: PyTree, **others: Any) -> PyTree:
        assert model.statistics is not None
        return params | {
            part: model.statistics(params[part], before(params, x), **others)
        }

    return model._replace(
        apply=apply, statistics=None if model.statistics is None else statistics
    )


def _fresh_streams(streams: PyTree, key: Array | None) -> PyTree:
    """The random streams of an NNX module, each at its start and with its own key."""
    if key is None:  # a deterministic module has streams too, but does not draw
        key = jax.random.key(0)
    leaves, structure = jax.tree.flatten(streams)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    fresh = [
        jax.random.fold_in(key, i) if is_key[i] else jnp.zeros(leaf.shape, leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, fresh)


def _accepted(function: Callable) -> frozenset[str]:
    """Names of the parameters that can be passed to a function by keyword."""
    return frozenset(inspect.signature(function).parameters)


def _only(values: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _streams(key: Array | None) -> dict[str, Array]:
    if key is None:
        return {}
    # Linen takes "params" for a stream of any other name.
    return dict(zip(("dropout", "params"), jax.random.split(key), strict=True))
