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
    ARGUMENTS,
    EMBEDDING_LEARNERS,
    LEARNERS,
    LEARNERS_OF_ONE_WAY,
    LEARNERS_WITHOUT_MODEL,
    MODELS,
    REGRESSION_LEARNERS,
    TASKS,
    InnerOptimizer,
    OuterOptimizer,
)
from metajax.tasks.images.class_table import ClassTable, split_classes
from metajax.tasks.images.few_shot import ClassTableTasks, few_shot, whole_classes
from metajax.training.trainer import TrainResult, train
from metajax.types import Learner, Model, TaskDistribution

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
        """As JSON values, such as `{"learner": {"maml": {"steps": 1, ...}}, ...}`."""
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
    classes = ARGUMENTS | {
        "validation": ARGUMENTS["tasks"],
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
    """The task distribution of one split.

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
    return split_classes(table, key, values.fractions)


def build_learner(config: Config) -> tuple[Model, Learner]:
    """The model and the learner of a resolved configuration.

    Raises:
      ValueError: as the constructors.
    """
    model = _call(MODELS[type(config.model).__name__], config.model)
    name = type(config.learner).__name__
    others = {} if name in LEARNERS_WITHOUT_MODEL else {"model": model}
    return model, _call(LEARNERS[name], config.learner, **others)


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
    model, learner = config.model, config.learner
    classifies = jnp.issubdtype(task.query.y.dtype, jnp.integer)
    learner_name, model_name = type(learner).__name__, type(model).__name__
    embeds, tasks_name = learner_name in EMBEDDING_LEARNERS, type(config.tasks).__name__
    if learner_name in LEARNERS_WITHOUT_MODEL and model_name != "identity":
        raise ValueError(
            f"`{learner_name}` reads its inputs itself and takes no model, got "
            f"`{model_name}`; write `identity`."
        )
    if model_name == "identity" and learner_name not in (
        *EMBEDDING_LEARNERS,
        *LEARNERS_WITHOUT_MODEL,
    ):
        raise ValueError(
            f"`{learner_name}` adapts the parameters of a model, and `identity` has "
            "none; use `mlp` or `conv4`."
        )
    if embeds and not classifies and "objective" not in _names(learner):
        raise ValueError(
            f"`{learner_name}` classifies, but the targets of "
            f"{tasks_name!r} tasks are real numbers; use `maml`."
        )
    if learner_name in REGRESSION_LEARNERS and classifies:
        raise ValueError(
            f"`{learner_name}` predicts real numbers, but the targets of "
            f"{tasks_name!r} tasks are class labels; use `prototypical`."
        )
    if model_name == "conv4" and task.query.x.ndim != 4:
        raise ValueError(
            f"`conv4` needs images, but the inputs of {tasks_name!r} tasks have shape "
            f"{list(task.query.x.shape[1:])}; use `mlp`."
        )
    if "num_outputs" in _names(model) and model.num_outputs is None:
        if not embeds:
            size = max_way(config.tasks) if classifies else task.query.y.shape[-1]
            model = dataclasses.replace(model, num_outputs=size)
        elif model_name == "mlp":
            model = dataclasses.replace(model, num_outputs=_EMBEDDING_SIZE)
    if "num_outputs" in _names(learner) and learner.num_outputs is None:
        size = task.query.y.shape[-1]
        learner = dataclasses.replace(learner, num_outputs=size)
    if "objective" in _names(learner):
        objective = "cross_entropy" if classifies else "squared_error"
        if learner.objective not in (None, objective):
            kind = "class labels" if classifies else "real numbers"
            raise ValueError(
                f"`learner.objective` is {learner.objective}, but the targets of "
                f"{tasks_name!r} tasks are {kind}; leave it out, or write {objective}."
            )
        learner = dataclasses.replace(learner, objective=objective)
    outer = config.optimizer
    if getattr(learner, "keeps_state", False) and (
        outer.name != "sgd" or outer.learning_rate > 1
    ):
        raise ValueError(
            "`learner.keeps_state` needs `--optimizer.name sgd` with a learning rate "
            f"of at most 1, so that what is kept is a mean of states; got {outer.name} "
            f"with {outer.learning_rate}."
        )
    if learner_name in LEARNERS_OF_ONE_WAY and learner.way is None:
        way = max_way(config.tasks) if classifies else None
        learner = dataclasses.replace(learner, way=way)
    if learner_name == "baseline" and learner.num_classes is None:
        tasks: Any = _training_tasks(config)
        num_classes = tasks.table.num_classes
        learner = dataclasses.replace(learner, num_classes=num_classes)
    config = dataclasses.replace(config, model=model, learner=learner)
    for tasks in (config.tasks, config.validation):
        check_way(config, tasks)
    return config


def check_way(config: Config, tasks: Any) -> None:
    """Raises a ValueError if tasks have more classes than learner or model can tell."""
    if "way" not in _names(tasks):
        return
    name = type(config.learner).__name__
    if name in LEARNERS_OF_ONE_WAY and max_way(tasks) > config.learner.way:
        raise ValueError(
            f"`way` must be at most {config.learner.way}, the classes that `{name}` "
            f"was built for, got {max_way(tasks)}. Train with a larger `way`, or a "
            "learner that takes any, such as `prototypical`."
        )
    if name in EMBEDDING_LEARNERS:
        return
    if max_way(tasks) > config.model.num_outputs:
        raise ValueError(
            f"`way` must be at most {config.model.num_outputs}, the number of outputs "
            f"of the model, got {max_way(tasks)}. Train with a larger `way` or "
            "`--model.num-outputs`, or a learner without a head, such as "
            "`prototypical`."
        )


def max_way(tasks: Any) -> int:
    """The most classes that a task can have."""
    return tasks.way if isinstance(tasks.way, int) else tasks.way[1]


def changed(values: Any, what: str, **changes: Any) -> Any:
    """`values` with every change that is not None.

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


def _filter(name: str, text: str) -> Callable[[str], bool]:
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
