"""Models from Flax Linen modules, Flax NNX modules and plain pairs of functions.

NNX is imported where it is used, as that takes a while.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import flax.errors
import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.checks import check_functions, check_mappings, check_parts
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
      init: `(key, x) -> params`; also given a mode, that of inference, if it asks.
      apply: `(params, x) -> outputs`, or `(params, rng, x) -> outputs` as
        `haiku.transform` gives it, whose `rng` is the key, None without one. It is also
        given `mask`, `key` or a mode (see `from_linen`) if it has parameters of these
        names.

    Raises:
      ValueError: if one is no function, or `apply` keeps a state, as that of
        `haiku.transform_with_state` does, or asks for something else.
    """
    for name, function in (("init", init), ("apply", apply)):
        if not callable(function):
            raise ValueError(f"`{name}` must be a function, got {function!r}.")
    # Two stand before `x` in Haiku's, of which the second is the key.
    second, *others = [*_positional(apply)[1:], "", ""]
    if second == "state":
        raise ValueError(
            "`apply` takes `state`, as that of `haiku.transform_with_state` does, but "
            "models are pure functions of their parameters. Use `haiku.transform`, and "
            "a normalisation without averages."
        )
    takes_key = second in ("rng", "rngs", "key") and others[0] != ""
    accepted = _accepted(apply, "apply", 3 if takes_key else 2, ("key",))
    modes = _accepted(init, "init", 2, ())
    example = "`lambda key, x: params`"
    check_functions(("key", "x"), example, keywords=sorted(modes), init=init)

    def init_model(key: Array, x: PyTree) -> PyTree:
        values = {"mask": None} | _modes(is_training=False)
        return init(key, x, **_only(values, modes))

    def apply_model(
        params: PyTree,
        x: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        values = {"mask": mask, "key": key} | _modes(is_training=key is not None)
        before = (params, key) if takes_key else (params,)
        return apply(*before, hide_padding(x, mask), **_only(values, accepted))

    return Model(init_model if modes else init, apply_model)


def from_linen(
    module: nn.Module,
    *,
    normalization: str = "none",
    state: dict[str, PyTree] | None = None,
) -> Model:
    """Builds a model from a Flax Linen module.

    The module is called with `x` and, where its `__call__` has parameters of these
    names, `mask` and its mode: `train`, `training`, `is_training` (True with a key),
    `deterministic` and `use_running_average` (the opposite). The key feeds every random
    stream; without one there is none.

    Args:
      module: a module whose calls change no state. In place of `nn.BatchNorm`, whose
        running averages are state, use `metajax.models.normalization.Normalize`.
      normalization: the `kind` of the module's `Normalize` layers, if it has any.
      state: what stays fixed of the module's variables besides `"params"`: constants,
        or statistics of a trained network, `{"batch_stats": ...}`. With statistics the
        module is always called in the mode of inference, in which it uses them.

    Returns:
      A model whose `params` are the module's variables, `{"params": ...}`.

    Raises:
      ValueError: if `module` is none, it asks for other arguments, or `normalization`
        is unknown; in `init`, if the module has other variables than `state` says, or
        its `Normalize` layers are not of the kind that `normalization` says; in
        `apply`, if it changes its state.
    """
    if state is not None:
        check_mappings(state=state)
    if not isinstance(module, nn.Module):
        raise ValueError(
            f"`module` must be a Flax Linen module, such as nn.Dense(5), got {module!r}"
            "; build NNX modules by `from_nnx`, which takes a function."
        )
    check_normalization(normalization)
    has_statistics = normalization in ("support", "calibrated")
    fixed = {} if state is None else dict(state)
    name_of_module = type(module).__name__
    accepted = _accepted(module.__call__, name_of_module, 1)

    def arguments(mask: Array | None, key: Array | None) -> dict[str, Any]:
        is_training = key is not None and "batch_stats" not in fixed
        return _only({"mask": mask} | _modes(is_training=is_training), accepted)

    def init(key: Array, x: PyTree) -> PyTree:
        variables = dict(module.init(key, x, **arguments(None, None)))
        params = {"params": variables.pop("params")} if "params" in variables else {}
        if set(variables) != set(fixed):
            raise ValueError(
                f"{name_of_module} keeps state in the collections {sorted(variables)}, "
                f"and `state` has {sorted(fixed)}, but models are pure functions of "
                "their parameters. What stays as it is, constants or the statistics of "
                "a trained network, is given to `from_linen` as state={name: values}; "
                "else replace nn.BatchNorm by "
                "metajax.models.normalization.Normalize, or drop the layer."
            )
        frozen = set(jax.eval_shape(statistics, params, x)) - {"params"}
        if bool(frozen) != has_statistics:
            raise ValueError(
                f"normalization={normalization!r} does not fit {name_of_module},"
                f" which has {'a' if frozen else 'no'} Normalize layer of a kind that "
                "freezes statistics ('support' or 'calibrated'). Give `from_linen` the "
                "kind of the module's layers."
            )
        return params

    def apply(
        params: PyTree,
        x: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        try:
            return module.apply(
                params | fixed,
                hide_padding(x, mask),
                rngs=_streams(key),
                **arguments(mask, key),
            )
        except flax.errors.ScopeParamShapeError as error:
            shapes = [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(x)]
            raise ValueError(
                f"Inputs of shape {shapes} are not what the parameters of "
                f"{name_of_module} were made for. All batches `[n, ...]` have examples "
                f"of one shape, and one example is a batch too, x[None]. {error}"
            ) from error
        except flax.errors.ModifyScopeVariableError as error:
            raise ValueError(
                f"{name_of_module} changes its state when it is called, but models are "
                "pure functions. Let it take its mode from an argument such as `train`,"
                f" or build it for inference. {error}"
            ) from error

    def statistics(
        params: PyTree,
        x: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        _, frozen = module.apply(
            params | fixed,
            hide_padding(x, mask),
            rngs=_streams(key),
            mutable=[STATISTICS],
            **arguments(mask, key),
        )
        return params | frozen

    return Model(init, apply, statistics if has_statistics else None, normalization)


def from_nnx(build: "Callable[[nnx.Rngs], nnx.Module]") -> Model:
    """Builds a model from a Flax NNX module.

    The module is called with `x` and, where its `__call__` has parameters of these
    names, `mask`, `rngs` (None without a key) and its mode, see `from_linen`. Layers
    with a mode of their own get it too.

    Args:
      build: `(rngs) -> module`, for example `lambda rngs: Net(1, 5, rngs=rngs)`. What
        it holds besides parameters and random streams stays as `build(nnx.Rngs(0))`
        made it: constant arrays, and averages of `nnx.BatchNorm` layers, loaded from a
        trained network, if all are built with `use_running_average=True`.

    Returns:
      A model whose `params` are the module's `nnx.Param` state as a pure dict.

    Raises:
      ValueError: if `build` gives no module, the module asks for other arguments or has
        an `nnx.BatchNorm` that is not built for inference; in `apply`, if it changes
        its state.
    """
    from flax import nnx

    if not callable(build) or isinstance(build, nnx.Module):
        raise ValueError(
            "`build` must be a function that makes the module, such as "
            f"lambda rngs: Net(1, 5, rngs=rngs), got {build!r}."
        )
    module = build(nnx.Rngs(0))
    if not isinstance(module, nnx.Module):
        raise ValueError(f"`build` must give an nnx.Module, got {module!r}.")
    name_of_module = type(module).__name__
    accepted = _accepted(module.__call__, name_of_module, 1)
    norms = [node for _, node in nnx.iter_graph(module) if _has_averages(node)]
    if not all(getattr(node, "use_running_average", False) for node in norms):
        raise ValueError(
            f"{name_of_module} keeps state of the kinds ['BatchStat'], but models are "
            "pure functions of their parameters. Replace nnx.BatchNorm by "
            "nnx.LayerNorm or nnx.GroupNorm, or drop the layer; or build it with "
            "use_running_average=True and averages of a trained network, which then "
            "stay. metajax.models.normalization.Normalize has more, in Linen."
        )
    graph, abstract, *others = nnx.split(module, nnx.Param, nnx.RngState, ...)
    streams, state = others

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
        own = jax.tree.map(lambda leaf: leaf, abstract)  # the next line writes to it
        nnx.replace_by_pure_dict(own, params)
        fixed = jax.tree.map(lambda leaf: leaf, state)
        module = nnx.merge(graph, own, _fresh_streams(streams, key_streams), fixed)
        module.eval()
        if key is not None:  # averages are used in both modes
            module.set_attributes(deterministic=False, raise_if_not_found=False)
        rngs = None if key_call is None else nnx.Rngs(key_call)
        is_training = key is not None and not norms
        values = {"mask": mask, "rngs": rngs} | _modes(is_training=is_training)
        before = _what_stays(module)
        outputs = module(hide_padding(x, mask), **_only(values, accepted))
        after = _what_stays(module)
        changed = [name for name, leaf in before.items() if after.get(name) is not leaf]
        if changed:
            raise ValueError(
                f"{name_of_module} changes its state {changed} when it is called, but "
                "models are pure functions. Let it keep nothing from call to call."
            )
        return outputs

    return Model(init, apply)


def _has_averages(node: Any) -> bool:
    """Whether a node of an NNX module is a layer with running averages."""
    from flax import nnx

    return isinstance(node, nnx.Module) and any(
        isinstance(value, nnx.BatchStat) for value in vars(node).values()
    )


def _what_stays(module: "nnx.Module") -> dict[str, Array]:
    """Arrays of an NNX module that are no parameters, streams or notes, by path."""
    from flax import nnx

    notes = (nnx.Param, nnx.RngState, nnx.Intermediate)
    others = nnx.filterlib.Not(nnx.filterlib.Any(*notes))
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(module, others))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


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

    Raises:
      ValueError: if `model` is no `Model`, or another argument no such function.
    """
    check_parts(model=model, before=before, after=after)

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


def _positional(function: Callable) -> list[str]:
    """Names of the arguments that can be passed by their place, `*args` among them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # it does not say
        return []
    by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.kind not in by_keyword]


def _accepted(
    function: Callable, name: str, num_placed: int, others: tuple[str, ...] = ("rngs",)
) -> frozenset[str]:
    """Names of the parameters that can be passed to a function by keyword.

    Args:
      function: what is called.
      name: of it, for the error.
      num_placed: how many arguments it is given by their place.
      others: what it may ask for beside `mask` and its mode.

    Raises:
      ValueError: if it must be given something else.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return frozenset()
    known = {"mask", *others, *_modes(is_training=True)}
    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    asked = [
        key
        for place, (key, p) in enumerate(parameters.items())
        if p.default is p.empty
        and p.kind not in any_number
        and (place >= num_placed or p.kind is p.KEYWORD_ONLY)
    ]
    unknown = [key for key in asked if key not in known]
    if unknown:
        raise ValueError(
            f"{name} asks for the arguments {unknown}, and a model is called with "
            f"inputs and at most {sorted(known)}; give them defaults, or wrap it in "
            "functions for `from_functions`."
        )
    return frozenset(list(parameters)[num_placed:]) | frozenset(asked)


def _modes(*, is_training: bool) -> dict[str, bool]:
    """The mode of a network, by all of its usual names."""
    on = dict.fromkeys(("train", "training", "is_training"), is_training)
    off = dict.fromkeys(("deterministic", "use_running_average"), not is_training)
    return on | off


def _only(values: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}


def _streams(key: Array | None) -> dict[str, Array]:
    if key is None:
        return {}
    # Linen takes "params" for a stream of any other name.
    return dict(zip(("dropout", "params"), jax.random.split(key), strict=True))
