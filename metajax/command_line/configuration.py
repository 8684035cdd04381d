"""The configuration of a run: as JSON, and as the learner and tasks it stands for."""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from metajax import filters, objectives
from metajax.command_line.catalogue import (
    LEARNERS,
    MODELS,
    TASKS,
    embeds,
    has_one_way,
    is_for_classes,
    is_for_numbers,
    takes,
)
from metajax.command_line.forms import FORMS, InnerOptimizer, OuterOptimizer
from metajax.tasks.images.class_table import ClassTable, split_classes
from metajax.tasks.images.few_shot import ClassTableTasks, few_shot, whole_classes
from metajax.training.trainer import TrainResult, train
from metajax.types import Filter, Learner, Model, Task, TaskDistribution

__all__ = [
    "SPLITS",
    "Config",
    "build_learner",
    "build_tasks",
    "changed",
    "check_way",
    "config_from_json",
    "resolve",
    "train_run",
]

SPLITS = ("meta_train", "meta_valid", "meta_test")

_EMBEDDING_SIZE = 64  # of models that must be told one
_WITHOUT_SPLITS = (
    "sinusoid",
    "regression_families",
    "gaussian_process",
    "synthetic_table",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What a run is made of, besides the arguments of `metajax.training.trainer.train`.

    Attributes:
      learner: arguments of a learner.
      model: arguments of a model.
      tasks: arguments of a task distribution, for training.
      validation: arguments of a task distribution, for validation.
      optimizer: of the outer loop.
    """

    learner: Any
    model: Any
    tasks: Any
    validation: Any
    optimizer: OuterOptimizer

    def to_json(self) -> dict[str, Any]:
        """Gives JSON values: `{"learner": {"maml": {"inner_steps": 1, ...}}, ...}`."""
        parts = {part: getattr(self, part) for part in _names(self)}
        return {
            part: {type(value).__name__: dataclasses.asdict(value)}
            for part, value in parts.items()
        }


def config_from_json(values: dict[str, Any]) -> Config:
    """Undoes `Config.to_json`.

    Raises:
      ValueError: if something in `values` is unknown or missing.
    """
    classes = FORMS | {
        "validation": FORMS["tasks"],
        "optimizer": {"OuterOptimizer": OuterOptimizer},
    }
    try:
        parts = {}
        for part, kinds in classes.items():
            [(name, given)] = values[part].items()
            parts[part] = kinds[name](**{k: _from_json(k, v) for k, v in given.items()})
        return Config(**parts)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The configuration cannot be read ({type(error).__name__}: {error}). It "
            "must be what `metajax train` wrote; runs of `metajax.train` from Python, "
            "or of another version of metajax, are evaluated from Python."
        ) from error


def build_tasks(values: Any, split: str) -> TaskDistribution:
    """Builds the task distribution of one split.

    Args:
      values: arguments of a task distribution.
      split: one of `SPLITS`. Sinusoids, families of functions, Gaussian processes and
        synthetic tables have none: their tasks differ by the seed.

    Raises:
      ValueError: as the constructors.
    """
    name = type(values).__name__
    if name in _WITHOUT_SPLITS:
        return _call(TASKS[name], values)
    if name == "glyphs":
        return _call(TASKS[name], values, split=split)
    if name == "omniglot":
        return _call(few_shot, values, table=_call(TASKS[name], values, split=split))
    table = _split_tables(values)[SPLITS.index(split)]
    return _call(few_shot, values, table=table)


@functools.lru_cache(maxsize=1)
def _split_tables(values: Any) -> tuple[ClassTable, ...]:
    table = _call(TASKS[type(values).__name__], values)
    key = jax.random.key(values.split_seed)
    return split_classes(table, key, values.fractions, SPLITS)


def build_learner(config: Config) -> tuple[Model, Learner]:
    """Builds the model and the learner of a resolved configuration.

    Raises:
      ValueError: as the constructors.
    """
    model = _call(MODELS[type(config.model).__name__], config.model)
    learner = _constructor(config.learner)
    others = {"model": model} if takes(learner, "model") else {}
    return model, _call(learner, config.learner, **others)


def train_run(
    config: Config, run_dir: str | os.PathLike[str], **training: Any
) -> tuple[Learner, TrainResult]:
    """Trains on meta_train and validates on meta_valid.

    Args:
      config: a resolved configuration.
      run_dir: folder of the run.
      **training: further arguments of `metajax.training.trainer.train`.

    Returns:
      The learner, and what `train` returns.

    Raises:
      ValueError: as the constructors and `train`.
    """
    _, learner = build_learner(config)
    return learner, train(
        learner,
        _training_tasks(config),
        config.optimizer.build(training["steps"]),
        validation=build_tasks(config.validation, "meta_valid"),
        config=config.to_json(),
        run_dir=run_dir,
        **training,
    )


def _training_tasks(config: Config) -> TaskDistribution:
    """Few-shot tasks, or for `baseline` batches of as many examples."""
    tasks = build_tasks(config.tasks, "meta_train")
    if type(config.learner).__name__ != "baseline":
        return tasks
    if not isinstance(tasks, ClassTableTasks):
        raise ValueError(
            "`baseline` first classifies all classes of a data set, and "
            f"{type(config.tasks).__name__!r} tasks have no fixed classes; use "
            "`omniglot`, `folder` or `tfds`."
        )
    size = tasks.way[1] * (tasks.shot[1] + tasks.num_queries)
    return whole_classes(tasks.table, batch_size=size, dtype=tasks.dtype)


def resolve(config: Config) -> Config:
    """Fills in what learner and tasks decide: the loss, and the size of the output.

    Raises:
      ValueError: if learner, model and tasks do not go together.
    """
    task = jax.eval_shape(build_tasks(config.tasks, "meta_train"), jax.random.key(0))
    classifies = jnp.issubdtype(task.query.y.dtype, jnp.integer)
    _check_together(config, task, classifies=classifies)
    _check_kept_state(config)
    config = dataclasses.replace(
        config,
        model=_resolved_model(config, task, classifies=classifies),
        learner=_resolved_learner(config, task, classifies=classifies),
    )
    for tasks in (config.tasks, config.validation):
        check_way(config, tasks)
    return config


def _check_together(config: Config, task: Task, *, classifies: bool) -> None:
    """Raises a ValueError if learner, model and tasks are not of one kind."""
    learner, model = _constructor(config.learner), type(config.model).__name__
    name, tasks = type(config.learner).__name__, type(config.tasks).__name__
    if not takes(learner, "model") and model != "identity":
        raise ValueError(
            f"`{name}` reads its inputs itself and takes no model, got `{model}`; "
            "write `identity`."
        )
    if takes(learner, "model") and not embeds(learner) and model == "identity":
        raise ValueError(
            f"`{name}` adapts the parameters of a model, and `identity` has none; use "
            "`mlp` or `conv4`."
        )
    if is_for_classes(learner) and not classifies:
        raise ValueError(
            f"`{name}` classifies, but the targets of {tasks!r} tasks are real "
            "numbers; use `maml`."
        )
    if is_for_numbers(learner) and classifies:
        raise ValueError(
            f"`{name}` predicts real numbers, but the targets of {tasks!r} tasks are "
            "class labels; use `prototypical`."
        )
    if model in ("conv4", "resnet12") and task.query.x.ndim != 4:
        raise ValueError(
            f"`{model}` needs images, but the inputs of {tasks!r} tasks have shape "
            f"{list(task.query.x.shape[1:])}; use `mlp`."
        )


def _check_kept_state(config: Config) -> None:
    """Raises a ValueError if what Reptile keeps would not be a mean of states."""
    outer = config.optimizer
    if getattr(config.learner, "keeps_state", False) and (
        outer.name != "sgd" or outer.learning_rate > 1
    ):
        raise ValueError(
            "`learner.keeps_state` needs `--optimizer.name sgd` with a learning rate "
            f"of at most 1, so that what is kept is a mean of states; got {outer.name} "
            f"with {outer.learning_rate}."
        )


def _resolved_model(config: Config, task: Task, *, classifies: bool) -> Any:
    """The form of the model with a number of outputs."""
    model = config.model
    if "num_outputs" not in _names(model) or model.num_outputs is not None:
        return model
    if not embeds(_constructor(config.learner)):
        size = max_way(config.tasks) if classifies else task.query.y.shape[-1]
        return dataclasses.replace(model, num_outputs=size)
    if type(model).__name__ == "mlp":
        return dataclasses.replace(model, num_outputs=_EMBEDDING_SIZE)
    return model


def _resolved_learner(config: Config, task: Task, *, classifies: bool) -> Any:
    """The form of the learner with its loss, and what it must know of the targets."""
    learner = config.learner
    names = _names(learner)
    changes: dict[str, Any] = {}
    if "objective" in names:
        changes["objective"] = "cross_entropy" if classifies else "squared_error"
        if learner.objective not in (None, changes["objective"]):
            kind = "class labels" if classifies else "real numbers"
            raise ValueError(
                f"`learner.objective` is {learner.objective}, but the targets of "
                f"{type(config.tasks).__name__!r} tasks are {kind}; leave it out, or "
                f"write {changes['objective']}."
            )
    if classifies and has_one_way(_constructor(learner)) and learner.way is None:
        changes["way"] = max_way(config.tasks)
    if not classifies and "num_outputs" in names and learner.num_outputs is None:
        changes["num_outputs"] = task.query.y.shape[-1]
    if "num_classes" in names and learner.num_classes is None:
        tasks: Any = _training_tasks(config)
        changes["num_classes"] = tasks.table.num_classes
    return dataclasses.replace(learner, **changes)


def check_way(config: Config, tasks: Any) -> None:
    """Raises a ValueError if tasks have more classes than learner or model can tell."""
    if "way" not in _names(tasks):
        return
    learner = _constructor(config.learner)
    if has_one_way(learner) and max_way(tasks) > config.learner.way:
        raise ValueError(
            f"`way` must be at most {config.learner.way}, the classes that "
            f"`{type(config.learner).__name__}` was built for, got {max_way(tasks)}. "
            "Train with a larger `way`, or a learner that takes any, such as "
            "`prototypical`."
        )
    if embeds(learner) or not takes(learner, "model"):
        return
    if max_way(tasks) > config.model.num_outputs:
        raise ValueError(
            f"`way` must be at most {config.model.num_outputs}, the number of outputs "
            f"of the model, got {max_way(tasks)}. Train with a larger `way` or "
            "`--model.num-outputs`, or a learner without a head, such as "
            "`prototypical`."
        )


def _constructor(learner: Any) -> Callable[..., Any]:
    return LEARNERS[type(learner).__name__]


def max_way(tasks: Any) -> int:
    """Gives the largest number of classes that a task can have."""
    return tasks.way if isinstance(tasks.way, int) else tasks.way[1]


def changed(values: Any, what: str, **changes: Any) -> Any:
    """Copies `values` with every change that is not None.

    Args:
      values: arguments of a learner or of a task distribution.
      what: what to call it in an error.
      **changes: new values by name, or None.

    Raises:
      ValueError: if there is no argument of that name.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    for name in changes:
        if name not in _names(values):
            raise ValueError(
                f"{type(values).__name__!r} {what} have no `{name}` to change; they "
                f"have {', '.join(sorted(_names(values)))}."
            )
    return dataclasses.replace(values, **changes)


def _names(values: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(values)]


def _call(constructor: Callable[..., Any], values: Any, **others: Any) -> Any:
    """Calls a constructor with those of `values` that are its arguments."""
    accepted = inspect.signature(constructor).parameters
    chosen = {
        name: _to_object(name, getattr(values, name))
        for name in _names(values)
        if name in accepted
    }
    return constructor(**(chosen | others))


def _to_object(name: str, value: Any) -> Any:
    """What a constructor wants, for what stands in JSON."""
    if name == "inner_optimizer":
        return value.build()
    if name == "objective":
        return getattr(objectives, value)
    if name == "dtype":
        return jnp.dtype(value)
    is_filter = name in ("adapts", "gates", "generates")
    return _filter(name, value) if is_filter else value


def _filter(name: str, text: str) -> Filter:
    kind, _, parts = text.partition(":")
    if text == "everything":
        return filters.everything
    if kind not in ("only", "all_but") or not all(parts.split(",")):
        raise ValueError(
            f"`{name}` must be `everything`, `only:PART` or `all_but:PART`, such as "
            f"`only:head` or `only:scale,bias`, got {text!r}."
        )
    return getattr(filters, kind)(*parts.split(","))


def _from_json(name: str, value: Any) -> Any:
    if name == "inner_optimizer":
        return InnerOptimizer(**value)
    return tuple(value) if isinstance(value, list) else value
