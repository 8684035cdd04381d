"""Forms: a constructor's signature as a frozen dataclass, for tyro and for JSON.

`form_of` makes a field of each argument; its help is the docstring of the constructor.
Arguments that are functions or Optax optimizers have no form in JSON: `_form_of_type`
says what stands for them. `metajax.command_line.configuration` turns filled forms into
the real thing.
"""

import dataclasses
import functools
import inspect
import os
import typing
from typing import Annotated, Any, Literal, Union

import optax
import tyro

from metajax.builders.descent import InnerOptimizer as AnyOptimizer
from metajax.checks import check_positive
from metajax.command_line.cards import title
from metajax.command_line.catalogue import (
    LEARNERS,
    MODELS,
    TASKS,
    Constructor,
    has_one_way,
    hints_of,
)
from metajax.filters import everything
from metajax.inner.learned_optimizer import HyperParameter, LearnedOptimizer, learned
from metajax.inner.lstm_optimizer import lstm_optimizer
from metajax.tasks.images.few_shot import few_shot
from metajax.types import CommandLine, Filter, Objective

__all__ = [
    "FORMS",
    "ClassSplit",
    "InnerOptimizer",
    "OuterOptimizer",
    "choice",
    "form_of",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerOptimizer:
    """What adapts the parameters to one task."""

    name: Literal["sgd", "momentum", "adam", "lstm"] = "sgd"
    """`momentum` is SGD with momentum 0.9, `adam` has `eps_root` 1e-8, without which
    it cannot be differentiated, `lstm` is a learned network without learning rate."""
    learning_rate: float = 0.1
    """Step size: 0.4 is MAML's on Omniglot, 0.01 on sinusoids, 0.001 ARML's,
    1 CAVIA's."""
    learned: Literal["optimizer", "leaf", "parameter"] | None = None
    """Whether the rate is learned too: one for all, for each array of parameters, or
    for each parameter."""

    def build(self) -> AnyOptimizer:
        """Builds the optimizer."""
        if self.name == "lstm":
            return lstm_optimizer()
        check_positive(**{"inner_optimizer.learning_rate": self.learning_rate})
        make: Constructor = functools.partial(optax.adam, eps_root=1e-8)
        if self.name != "adam":
            momentum = 0.9 if self.name == "momentum" else None
            make = functools.partial(optax.sgd, momentum=momentum)
        if self.learned is None:
            return make(self.learning_rate)
        rate = HyperParameter(self.learning_rate, per=self.learned)
        return learned(make, learning_rate=rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterOptimizer:
    """What improves the meta-parameters from step to step."""

    name: Literal["adam", "adamw", "sgd", "momentum"] = "adam"
    """`momentum` is SGD with momentum 0.9."""
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    """`cosine` takes the learning rate to 0 over the run, whose number of steps is then
    fixed: it cannot be extended later."""
    clip_norm: float | None = None
    """Longest gradient; longer ones are shortened to it."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """Builds the Optax optimizer for a run of `steps`."""
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`optimizer.{name}` must be above 0, got {value}.")
        rate: Any = self.learning_rate
        if self.schedule == "cosine":
            rate = optax.cosine_decay_schedule(rate, steps)
        makers: dict[str, Constructor] = {
            "adam": optax.adam,
            "adamw": optax.adamw,
            "sgd": optax.sgd,
            "momentum": functools.partial(optax.sgd, momentum=0.9),
        }
        optimizer = makers[self.name](rate)
        if self.clip_norm is None:
            return optimizer
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), optimizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassSplit:
    """How the classes of a data set without a split of its own are divided."""

    fractions: tuple[float, float, float] = (0.64, 0.16, 0.2)
    """Shares of the classes for meta_train, meta_valid and meta_test."""
    split_seed: int = 0
    """Which classes go where. A run and its evaluation must use the same."""


_ObjectiveName = Literal["cross_entropy", "squared_error"] | None

# What stands on the command line and in JSON for arguments of these names.
_TYPES: dict[str, Any] = {
    "dtype": Literal["float32", "bfloat16", "float16"],
    "num_classes": int | None,
    "num_outputs": int | None,
}
# Defaults for arguments that have none, or whose default is a function.
_DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "inner_optimizer": InnerOptimizer(),
    "inner_steps": 1,
    "num_outputs": None,
    "num_queries": 15,
    "objective": None,
    "shot": 1,
    "way": 5,
}
_HELP = {
    "adapts": "Which parameters adapt: `everything`, or `only:PART` or `all_but:PART` "
    "with a part of their path, or several, such as `only:head` or `only:scale,bias`.",
    "gates": "Which parameters are gated; as `adapts`.",
    "generates": "Which parameters are generated; as `adapts`.",
    "num_outputs": "Size of the output; by default what learner and tasks call for.",
    "objective": "Loss of every example; by default what the tasks call for.",
}
# Arguments that cannot be given on the command line.
_ONLY_IN_CODE = ("augment", "embedding", "model", "table")


def form_of(
    name: str,
    *constructors: Constructor,
    without: tuple[str, ...] = (),
    **defaults: Any,
) -> type:
    """Makes a frozen dataclass of the arguments of some constructors.

    Args:
      name: of the class.
      constructors: functions with annotations, or dataclasses.
      without: names of arguments to leave out.
      defaults: for arguments that have none.

    Returns:
      A class with keyword-only fields. Its bases have one docstring each, where tyro
      finds the help of every field.
    """
    bases = [
        c if dataclasses.is_dataclass(c) else _form_of_one(c, without, defaults)
        for c in constructors
    ]
    return dataclasses.make_dataclass(
        name,
        (),
        bases=tuple(bases),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": inspect.getdoc(constructors[0])},
    )


def _form_of_one(
    constructor: Constructor, without: tuple[str, ...], defaults: dict[str, Any]
) -> type:
    hints = hints_of(constructor)
    fields = []
    for name, parameter in inspect.signature(constructor).parameters.items():
        if name in (*without, *_ONLY_IN_CODE):
            continue
        hint, own = _split(hints[name])
        kind = _TYPES.get(name) or _form_of_type(hint)
        default = parameter.default
        if default is parameter.empty or kind != hint:
            default = defaults.get(name, _DEFAULTS.get(name, default))
        if default is everything:
            default = "everything"
        if own is not None:
            default = own.default
            if kind is InnerOptimizer:
                default = InnerOptimizer(**default)
        if name == "way" and constructor in LEARNERS.values():
            if has_one_way(constructor):
                kind, default = int | None, None
        if default is parameter.empty:
            default = dataclasses.MISSING
        elif callable(default):
            raise TypeError(
                f"The default of `{name}` of `{constructor.__name__}` is a function, "
                "which the command line cannot show; say its name there by "
                "`Annotated[..., CommandLine(...)]`."
            )
        if name in _HELP:
            kind = Annotated[kind, tyro.conf.arg(help=_HELP[name])]
        fields.append((name, kind, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(
        constructor.__name__,
        fields,
        frozen=True,
        kw_only=True,
        namespace={"__doc__": inspect.getdoc(constructor)},
    )


def _split(hint: Any) -> tuple[Any, CommandLine | None]:
    """An annotation, and what it says of the command line."""
    if typing.get_origin(hint) is not Annotated:
        return hint, None
    hint, *notes = typing.get_args(hint)
    return hint, next((n for n in notes if isinstance(n, CommandLine)), None)


def _form_of_type(hint: Any) -> Any:
    """What stands on the command line and in JSON for a type."""
    members = typing.get_args(hint) or (hint,)
    if hint == Filter:
        return str
    if hint == Objective or Objective in members:
        return _ObjectiveName
    if optax.GradientTransformation in members or LearnedOptimizer in members:
        return InnerOptimizer
    if any(typing.get_origin(m) is os.PathLike for m in members):
        return str | None if type(None) in members else str
    return hint


FORMS: dict[str, dict[str, type]] = {
    "learner": {
        name: form_of(name, constructor) for name, constructor in LEARNERS.items()
    },
    "model": {name: form_of(name, constructor) for name, constructor in MODELS.items()},
    "tasks": {
        "glyphs": form_of("glyphs", TASKS["glyphs"], without=("split",)),
        "omniglot": form_of(
            "omniglot", TASKS["omniglot"], few_shot, without=("split",)
        ),
        "folder": form_of("folder", TASKS["folder"], few_shot, ClassSplit),
        "tfds": form_of("tfds", TASKS["tfds"], few_shot, ClassSplit),
        "sinusoid": form_of("sinusoid", TASKS["sinusoid"]),
        "regression_families": form_of(
            "regression_families", TASKS["regression_families"]
        ),
        "gaussian_process": form_of("gaussian_process", TASKS["gaussian_process"]),
        "synthetic_table": form_of("synthetic_table", TASKS["synthetic_table"]),
    },
}


def choice(part: str) -> Any:
    """Makes the type, for tyro, of a choice between learners, models or tasks.

    Args:
      part: `"learner"`, `"model"` or `"tasks"`.
    """
    constructors = {"learner": LEARNERS, "model": MODELS, "tasks": TASKS}[part]
    kinds = tuple(
        Annotated[
            kind,
            tyro.conf.subcommand(
                name, description=title(constructors[name]), prefix_name=False
            ),
        ]
        for name, kind in FORMS[part].items()
    )
    return Union[kinds]  # noqa: UP007, the members are known at run time only
