"""Which learners, models and tasks the command line has, and what each of them takes.

Learners are those of `metajax.learners`; what is true of one is read from its
signature, so that a learner is declared in its own file and nowhere else.
"""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from metajax import learners
from metajax.models.networks import conv4, identity, mlp
from metajax.models.residual import resnet12
from metajax.tasks.functions.gaussian_process import gaussian_process
from metajax.tasks.functions.regression_families import regression_families
from metajax.tasks.functions.sinusoid import sinusoid
from metajax.tasks.images.glyphs import glyphs
from metajax.tasks.images.loaders import from_folder, from_tfds
from metajax.tasks.images.omniglot import omniglot
from metajax.tasks.tables.synthetic_table import synthetic_table
from metajax.types import Embedding, Learner

__all__ = [
    "LEARNERS",
    "MODELS",
    "TASKS",
    "Constructor",
    "embeds",
    "has_one_way",
    "hints_of",
    "is_for_classes",
    "is_for_numbers",
    "is_learner",
    "takes",
]

Constructor = Callable[..., Any]


def hints_of(constructor: Constructor) -> dict[str, Any]:
    """Reads the annotations of a constructor, with what `Annotated` adds to them."""
    return typing.get_type_hints(constructor, include_extras=True)


def takes(constructor: Constructor, argument: str) -> bool:
    """Says whether a constructor has an argument of this name."""
    return argument in inspect.signature(constructor).parameters


def embeds(learner: Constructor) -> bool:
    """Says whether a learner's model has no head for the classes of a task."""
    return hints_of(learner).get("model") == Embedding


def is_for_numbers(learner: Constructor) -> bool:
    """Says whether a learner's targets are real numbers and never classes."""
    return takes(learner, "num_outputs") and not takes(learner, "way")


def is_for_classes(learner: Constructor) -> bool:
    """Says whether a learner's targets are classes and never real numbers."""
    return not takes(learner, "objective") and not takes(learner, "num_outputs")


def has_one_way(learner: Constructor) -> bool:
    """Says whether it is built for a number of classes: as many as a task may have."""
    parameters = inspect.signature(learner).parameters
    return "way" in parameters and parameters["way"].default != "support"


def is_learner(value: Any) -> bool:
    """Says whether a value is the constructor of a learner."""
    return (
        inspect.isfunction(value)
        and inspect.signature(value).return_annotation is Learner
    )


def _is_of_single_tasks(learner: Constructor) -> bool:
    """Whether it learns tasks, and not pairs of tables."""
    return any(takes(learner, name) for name in ("model", "way", "num_outputs"))


LEARNERS: dict[str, Constructor] = {
    name: value
    for name, value in vars(learners).items()
    if is_learner(value) and _is_of_single_tasks(value)
}
MODELS: dict[str, Constructor] = {
    "conv4": conv4,
    "resnet12": resnet12,
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
