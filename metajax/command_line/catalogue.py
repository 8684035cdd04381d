"""Learners, models and tasks by name, for the command line.

A constructor that stands in one of the tables below is all that the command line needs:
`arguments` makes a frozen dataclass of its signature, whose help is its docstring.
`metajax.command_line.configuration` turns instances of it into the real thing, and into
JSON.

Arguments that are functions or Optax optimizers have no form in JSON. `_TYPES` says
what stands for them.
"""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union

import optax
import tyro

from metajax.builders.descent import InnerOptimizer as AnyOptimizer
from metajax.builders.streams import TRAINS_ON
from metajax.checks import check_positive
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.inner.lstm_optimizer import lstm_optimizer
from metajax.inner.unroll import GRADIENT_MODES
from metajax.learners.gradient.cavia import cavia
from metajax.learners.gradient.imaml import imaml
from metajax.learners.gradient.leo import leo
from metajax.learners.gradient.maml import maml
from metajax.learners.gradient.maml_plus_plus import maml_plus_plus
from metajax.learners.gradient.meta_curvature import meta_curvature
from metajax.learners.gradient.meta_sgd import meta_sgd
from metajax.learners.gradient.proto_maml import proto_maml
from metajax.learners.gradient.reptile import reptile
from metajax.learners.memory.attentive_np import attentive_np
from metajax.learners.memory.class_np import class_np
from metajax.learners.memory.cnaps import cnaps
from metajax.learners.memory.conditional_np import conditional_np
from metajax.learners.memory.hypernetwork import hypernetwork
from metajax.learners.memory.in_context import in_context
from metajax.learners.memory.latent_np import latent_np
from metajax.learners.memory.lstm_learner import lstm_learner
from metajax.learners.memory.mann import mann
from metajax.learners.memory.meta_net import meta_net
from metajax.learners.memory.mm_net import mm_net
from metajax.learners.memory.sgdstore import sgdstore
from metajax.learners.memory.snail import snail
from metajax.learners.memory.transformer_np import transformer_np
from metajax.learners.metric import prototypical as metric
from metajax.learners.metric.baseline import HEADS, baseline
from metajax.learners.metric.feat import feat
from metajax.learners.metric.matching import SIMILARITIES, matching
from metajax.learners.metric.prototypical import prototypical
from metajax.learners.metric.relation import NORMALIZATIONS as OF_PAIRS
from metajax.learners.metric.relation import relation
from metajax.learners.optimizer.lstm_generator import lstm_generator
from metajax.learners.optimizer.meta_lstm import meta_lstm
from metajax.learners.optimizer.optimizer_learner import JUDGES, optimizer_learner
from metajax.learners.representation.arml import arml
from metajax.learners.representation.graph import graph
from metajax.learners.representation.label_propagation import label_propagation
from metajax.learners.solver.kernel_svm import KERNELS, LEARNED, kernel_svm
from metajax.learners.solver.logistic import logistic
from metajax.learners.solver.ridge import ridge
from metajax.learners.solver.soft_tree import soft_tree
from metajax.learners.solver.svm import svm
from metajax.models.networks import POOLINGS, conv4, identity, mlp
from metajax.models.normalization import NORMALIZATIONS
from metajax.models.precision import PRECISIONS
from metajax.tasks.functions.gaussian_process import KERNELS as COVARIANCES
from metajax.tasks.functions.gaussian_process import gaussian_process
from metajax.tasks.functions.regression_families import FAMILIES, regression_families
from metajax.tasks.functions.sinusoid import sinusoid
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.glyphs import glyphs
from metajax.tasks.images.loaders import from_folder, from_tfds
from metajax.tasks.images.omniglot import omniglot
from metajax.tasks.tables.synthetic_table import synthetic_table

__all__ = [
    "ARGUMENTS",
    "EMBEDDING_LEARNERS",
    "LEARNERS",
    "MODELS",
    "REGRESSION_LEARNERS",
    "TASKS",
    "ClassSplit",
    "InnerOptimizer",
    "OuterOptimizer",
    "arguments",
    "choice",
    "choices_in",
    "paper",
    "papers",
    "title",
]

Constructor = Callable[..., Any]

LEARNERS: dict[str, Constructor] = {
    "maml": maml,
    "meta_sgd": meta_sgd,
    "maml_plus_plus": maml_plus_plus,
    "proto_maml": proto_maml,
    "reptile": reptile,
    "imaml": imaml,
    "cavia": cavia,
    "leo": leo,
    "meta_curvature": meta_curvature,
    "meta_lstm": meta_lstm,
    "optimizer_learner": optimizer_learner,
    "lstm_generator": lstm_generator,
    "arml": arml,
    "prototypical": prototypical,
    "matching": matching,
    "relation": relation,
    "feat": feat,
    "ridge": ridge,
    "logistic": logistic,
    "svm": svm,
    "kernel_svm": kernel_svm,
    "soft_tree": soft_tree,
    "label_propagation": label_propagation,
    "graph": graph,
    "baseline": baseline,
    "mann": mann,
    "lstm_learner": lstm_learner,
    "sgdstore": sgdstore,
    "in_context": in_context,
    "snail": snail,
    "mm_net": mm_net,
    "meta_net": meta_net,
    "hypernetwork": hypernetwork,
    "cnaps": cnaps,
    "class_np": class_np,
    "conditional_np": conditional_np,
    "latent_np": latent_np,
    "attentive_np": attentive_np,
    "transformer_np": transformer_np,
}
MODELS: dict[str, Constructor] = {
    "conv4": conv4,
    "mlp": mlp,
    "identity": identity,
}
TASKS: dict[str, Constructor] = {
    "glyphs": glyphs,
    "omniglot": omniglot,
    "folder": from_folder,
    "tfds": from_tfds,
    "sinusoid": sinusoid,
    "regression_families": regression_families,
    "gaussian_process": gaussian_process,
    "synthetic_table": synthetic_table,
}
# Their model has no head for the classes.
EMBEDDING_LEARNERS = (
    "prototypical",
    "proto_maml",
    "leo",
    "matching",
    "relation",
    "feat",
    "ridge",
    "logistic",
    "svm",
    "kernel_svm",
    "soft_tree",
    "label_propagation",
    "graph",
    "baseline",
    "mann",
    "lstm_learner",
    "sgdstore",
    "in_context",
    "snail",
    "mm_net",
    "meta_net",
    "cnaps",
    "class_np",
)
# Their targets are real numbers.
REGRESSION_LEARNERS = (
    "conditional_np",
    "latent_np",
    "attentive_np",
    "transformer_np",
)
# They read their inputs themselves: their model is `identity`.
LEARNERS_WITHOUT_MODEL = ("kernel_svm", "soft_tree", *REGRESSION_LEARNERS)
# They have an answer for each class of a task, and so a number of classes.
LEARNERS_OF_ONE_WAY = (
    "lstm_generator",
    "arml",
    "graph",
    "kernel_svm",
    "soft_tree",
    "mann",
    "lstm_learner",
    "sgdstore",
    "in_context",
    "snail",
    "mm_net",
    "meta_net",
    "class_np",
    "hypernetwork",
)


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
        """The optimizer."""
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
        """The Optax optimizer for a run of `steps`."""
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


# What stands on the command line and in JSON for arguments of these names.
_TYPES: dict[str, Any] = {
    "adapts": str,
    "baseline.head": Literal[HEADS],
    "baseline.num_classes": int | None,
    "data_dir": str | None,
    "distance": Literal[metric.DISTANCES],
    "dtype": Literal["float32", "bfloat16", "float16"],
    "gates": str,
    "gaussian_process.kernel": Literal[COVARIANCES],
    "generates": str,
    "gradient": Literal[GRADIENT_MODES],
    "imaml.gradient": Literal[("implicit", *GRADIENT_MODES)],
    "inner_optimizer": InnerOptimizer,
    "judges": Literal[JUDGES],
    "kernel_svm.kernel": Literal[KERNELS],
    "kernel_svm.learn": tuple[Literal[LEARNED], ...],  # type: ignore[valid-type]
    "normalization": Literal[NORMALIZATIONS],
    "num_outputs": int | None,
    "objective": Literal["cross_entropy", "squared_error"] | None,
    "path": str,
    "pooling": Literal[POOLINGS],
    "precision": Literal[PRECISIONS],
    "protocol": Literal["vinyals", "lake"],
    "regression_families.family": Literal[FAMILIES] | None,
    "relation.normalization": Literal[OF_PAIRS],
    "rotations": Literal[1, 2, 4],
    "similarity": Literal[SIMILARITIES],
    "tasks_per_block": int | Literal["auto"] | None,
    "trains_on": Literal[TRAINS_ON],
    "in_context.trains_on": Literal[TRAINS_ON] | None,
}
# Defaults for arguments that have none, or whose default is a function.
_DEFAULTS: dict[str, Any] = {
    "adapts": "everything",
    "dtype": "float32",
    "gates": "everything",
    "generates": "everything",
    "arml.inner_optimizer": InnerOptimizer(learning_rate=0.001),
    "baseline.inner_optimizer": InnerOptimizer(name="momentum", learning_rate=0.01),
    "baseline.num_classes": None,
    "cavia.inner_optimizer": InnerOptimizer(learning_rate=1.0),
    "cnaps.generates": "only:scale,bias",
    "imaml.inner_steps": 16,
    "inner_optimizer": InnerOptimizer(),
    "optimizer_learner.inner_optimizer": InnerOptimizer(learned="optimizer"),
    "soft_tree.inner_optimizer": InnerOptimizer(learning_rate=10.0, learned="leaf"),
    "optimizer_learner.inner-steps": 20,
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
# What only the code has a use for.
_HIDDEN = ("augment", "embedding", "model", "table")


def arguments(
    name: str,
    *constructors: Constructor,
    without: tuple[str, ...] = (),
    **defaults: Any,
) -> type:
    """A frozen dataclass of the arguments of some constructors.

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
        c if dataclasses.is_dataclass(c) else _arguments_of(c, without, defaults)
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


def _arguments_of(
    constructor: Constructor, without: tuple[str, ...], defaults: dict[str, Any]
) -> type:
    hints = typing.get_type_hints(constructor)
    fields = []
    for name, parameter in inspect.signature(constructor).parameters.items():
        if name in without + _HIDDEN:
            continue
        default = parameter.default
        own = f"{constructor.__name__}.{name}"
        if default is parameter.empty or name in _TYPES:
            default = defaults.get(name, _DEFAULTS.get(name, default))
            default = _DEFAULTS.get(own, default)
        if default is parameter.empty:
            default = dataclasses.MISSING
        kind = _TYPES.get(own, _TYPES.get(name, hints[name]))
        if name == "way" and constructor.__name__ in LEARNERS_OF_ONE_WAY:
            kind, default = int | None, None
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


ARGUMENTS: dict[str, dict[str, type]] = {
    "learner": {
        name: arguments(name, constructor, inner_steps=1)
        for name, constructor in LEARNERS.items()
    },
    "model": {
        name: arguments(name, constructor) for name, constructor in MODELS.items()
    },
    "tasks": {
        "glyphs": arguments("glyphs", glyphs, without=("split",)),
        "omniglot": arguments("omniglot", omniglot, few_shot, without=("split",)),
        "folder": arguments("folder", from_folder, few_shot, ClassSplit),
        "tfds": arguments("tfds", from_tfds, few_shot, ClassSplit),
        "sinusoid": arguments("sinusoid", sinusoid),
        "regression_families": arguments("regression_families", regression_families),
        "gaussian_process": arguments("gaussian_process", gaussian_process),
        "synthetic_table": arguments("synthetic_table", synthetic_table),
    },
}


def choice(part: str) -> Any:
    """The type, for tyro, of a choice between learners, models or tasks.

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
        for name, kind in ARGUMENTS[part].items()
    )
    return Union[kinds]  # noqa: UP007, the members are known at run time only


def title(constructor: Constructor) -> str:
    """What a constructor is about, in one line.

    It is the first line of its module, or that of its own docstring if the module has
    several constructors.
    """
    owners = [*LEARNERS.values(), *MODELS.values(), *TASKS.values()]
    is_alone = [c.__module__ for c in owners].count(constructor.__module__) == 1
    source = inspect.getmodule(constructor) if is_alone else constructor
    return (inspect.getdoc(source) or "").split("\n", 1)[0]


def paper(text: str | None) -> str:
    """The first paper that a docstring cites, as title, venue and year; or nothing."""
    words = " ".join((text or "").split())
    found = re.search(r'"([^"]{12,})", ((?:[A-Za-z]+ )+\d{4})', words)
    return f"{found[1]}, {found[2]}" if found else ""


def papers(constructor: Constructor) -> str:
    """The first paper that a constructor, or else its module, cites."""
    own = paper(inspect.getdoc(constructor))
    return own or paper(inspect.getdoc(inspect.getmodule(constructor)))


def choices_in(docstring: str | None) -> dict[str, str]:
    """The named choices that a docstring describes as a list: name -> description."""
    items = re.findall(
        r'^\* `"(\w+)"`:? (.*?)(?=^\* |\n\n|\Z)',
        docstring or "",
        re.DOTALL | re.MULTILINE,
    )
    return {name: " ".join(text.split()) for name, text in items}
