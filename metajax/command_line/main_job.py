"""The main job: MAML and Prototypical Networks learn to learn, on drawn characters.

Both are meta-trained on glyphs and then tested, together with two baselines that have
learned nothing from other tasks, on one bank of 5-way 1-shot tasks with new characters:

* nearest centroid on pixels: `prototypical` with the identity for a model;
* the same network trained from scratch on each support set: `maml` from the random
  parameters that its meta-training started with, and more inner steps.

The networks normalise by the statistics of the support set (`"support"`), so that no
answer depends on the other queries of a task.
"""

import dataclasses
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from metajax.command_line.configuration import (
    Config,
    build_learner,
    build_tasks,
    resolve,
    train_run,
)
from metajax.command_line.forms import FORMS, InnerOptimizer, OuterOptimizer
from metajax.evaluation.bank import bank_task, evaluate
from metajax.evaluation.reports import Report, compare
from metajax.learners.metric.prototypical import prototypical
from metajax.models.adapters import from_functions
from metajax.plots import plot_learning_curves, plot_tasks
from metajax.training.run_folder import Record
from metajax.types import Learner, PyTree, Task

__all__ = ["Sizes", "main_job"]

_PICTURED_TASKS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much the main job does.

    Attributes:
      features: channels of the network.
      prototypical_steps: outer steps of Prototypical Networks, one 20-way task each.
      maml_steps: outer steps of MAML, four 5-way tasks each.
      scratch_steps: gradient steps on the support set without meta-training.
      num_validation_tasks: for the learning curves.
      num_test_tasks: for the table.
    """

    features: int = 32
    prototypical_steps: int = 500
    maml_steps: int = 800
    scratch_steps: int = 20
    num_validation_tasks: int = 100
    num_test_tasks: int = 600


class _Contestant(NamedTuple):
    learner: Learner
    meta_params: PyTree
    history: list[Record] | None = None  # None for what was not meta-trained


def main_job(
    folder: str | os.PathLike[str] = "runs/main",
    *,
    sizes: Sizes = Sizes(),  # noqa: B008, it is immutable
    console: Console | None = None,
) -> dict[str, Report]:
    """Trains, tests, prints a table and draws pictures.

    What is trained already in `folder` is not trained again: a second call only tests,
    and a call after a kill goes on where that one stopped.

    Args:
      folder: for the run folders of both learners, and the pictures.
      sizes: how much to do.
      console: where to write; standard output by default.

    Returns:
      Name of the method -> its report, all on the same tasks.

    Raises:
      ValueError: if `folder` holds runs with other settings.
    """
    began = time.monotonic()
    console = console or Console()
    folder = pathlib.Path(folder)
    test_tasks = build_tasks(_glyphs(way=5, num_queries=15), "meta_test")

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(
        "Learning to tell 5 drawn characters apart from 1 example of each. Training "
        "and test tasks have no character in common."
    )
    contestants = {}
    for name, config, training in (
        ("Prototypical Networks", *_prototypical(sizes)),
        ("MAML", *_maml(sizes)),
    ):
        run_dir = folder / type(config.learner).__name__
        if (run_dir / "checkpoints").exists():
            say(f"\n{name}: using what {run_dir} holds; delete it to train anew.")
        else:
            say(f"\n{name}: training.")
        try:
            learner, result = train_run(
                config,
                run_dir,
                validate_every=max(training["steps"] // 5, 1),
                num_validation_tasks=sizes.num_validation_tasks,
                **training,
            )
        except ValueError as error:
            raise ValueError(f"{error}\nOr delete {run_dir}.") from error
        contestants[name] = _Contestant(learner, result.best_params, result.history)
    contestants |= {
        "same network from scratch": _scratch(sizes, test_tasks),
        "nearest centroid on pixels": _pixels(),
    }

    say(f"\nTesting on {sizes.num_test_tasks} tasks, the same for all.")
    reports = {
        name: evaluate(
            c.learner, c.meta_params, test_tasks, num_tasks=sizes.num_test_tasks
        )
        for name, c in contestants.items()
    }
    console.print(_table(reports))
    say(f"MAML - Prototypical Networks: {_difference(*list(reports.values())[1::-1])}")
    try:
        for path in _draw(folder, contestants, reports, test_tasks):
            say(f"picture: {path}")
    except ImportError as error:
        say(f"No pictures: {error}")
    say(
        f"That took {time.monotonic() - began:.0f} s. The runs are in {folder}; next: "
        f"python -m metajax evaluate {folder}/prototypical --way 5 --shot 5"
    )
    return reports


def _prototypical(sizes: Sizes) -> tuple[Config, dict[str, Any]]:
    """What to train, and how long. Training with more classes than testing helps."""
    learner = FORMS["learner"]["prototypical"]()
    config = _config(sizes, learner, _glyphs(way=20, num_queries=5))
    return config, {"steps": sizes.prototypical_steps, "tasks_per_step": 1}


def _maml(sizes: Sizes) -> tuple[Config, dict[str, Any]]:
    learner = FORMS["learner"]["maml"](
        inner_steps=1,
        eval_inner_steps=3,
        inner_optimizer=InnerOptimizer(learning_rate=0.4),
    )
    config = _config(sizes, learner, _glyphs(way=5, num_queries=5))
    return config, {"steps": sizes.maml_steps, "tasks_per_step": 4}


def _config(sizes: Sizes, learner: Any, tasks: Any) -> Config:
    return resolve(
        Config(
            learner=learner,
            model=FORMS["model"]["conv4"](
                features=sizes.features, pooling="stride", normalization="support"
            ),
            tasks=tasks,
            validation=_glyphs(way=5, num_queries=15),
            optimizer=OuterOptimizer(learning_rate=3e-3, schedule="cosine"),
        )
    )


def _glyphs(*, way: int, num_queries: int) -> Any:
    return FORMS["tasks"]["glyphs"](way=way, shot=1, num_queries=num_queries)


def _scratch(sizes: Sizes, tasks: Any) -> _Contestant:
    config, _ = _maml(sizes)
    values = dataclasses.replace(
        config.learner,
        inner_steps=0,
        eval_inner_steps=sizes.scratch_steps,
        # The best of 0.05, 0.4 and 1 (and of Adam) on validation tasks.
        inner_optimizer=InnerOptimizer(learning_rate=1.0),
    )
    _, learner = build_learner(dataclasses.replace(config, learner=values))
    meta_params = jax.jit(learner.init)(jax.random.key(0), bank_task(tasks, 0))
    return _Contestant(learner, meta_params)


def _pixels() -> _Contestant:
    def flatten(params: PyTree, x: jax.Array) -> jax.Array:
        del params
        return x.reshape(x.shape[0], -1)

    return _Contestant(prototypical(from_functions(lambda key, x: {}, flatten)), {})


def _table(reports: dict[str, Report]) -> Table:
    *_, baseline = reports
    protocols = " and ".join(sorted({r.protocol for r in reports.values()}))
    table = Table(
        "method",
        "accuracy in %",
        f"more than {baseline}",
        "log loss",
        box=box.SIMPLE_HEAD,
        caption="± 95 % interval over tasks; differences are paired, task by task; "
        f"all predictions are {protocols}",
    )
    table.columns[0].no_wrap = True
    for name, report in sorted(
        reports.items(), key=lambda item: -item[1].mean["accuracy"]
    ):
        accuracy, nll = report.mean["accuracy"], report.mean["nll"]
        table.add_row(
            name,
            f"{100 * accuracy:.1f} ± {100 * report.half_width['accuracy']:.1f}",
            "" if name == baseline else _difference(report, reports[baseline]),
            f"{nll:.2f} ± {report.half_width['nll']:.2f}",
        )
    return table


def _difference(a: Report, b: Report) -> str:
    result = compare(a, b, "accuracy")
    return f"{100 * result.difference:+.1f} ± {100 * result.half_width:.1f}"


def _draw(
    folder: pathlib.Path,
    contestants: dict[str, _Contestant],
    reports: dict[str, Report],
    tasks: Any,
) -> list[pathlib.Path]:
    """Draws what the trained ones answer in the first test tasks, and how they learned.

    Raises:
      ImportError: without matplotlib.
    """
    histories = {n: c.history for n, c in contestants.items() if c.history is not None}
    levels = {
        f"{name} (test)": report.mean["accuracy"]
        for name, report in reports.items()
        if name not in histories
    }
    paths = [folder / "learning_curves.png", folder / "tasks.png"]
    plot_learning_curves(paths[0], histories, levels)
    pictured = [bank_task(tasks, index) for index in range(_PICTURED_TASKS)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pictured)
    answers = {
        name: _answers(contestants[name].learner, contestants[name].meta_params, batch)
        for name in histories
    }
    plot_tasks(paths[1], pictured, answers)
    return paths


def _answers(learner: Learner, meta_params: PyTree, tasks: Task) -> np.ndarray:
    """Predicted labels `[B, n]` of the queries of tasks `[B]`."""

    @jax.jit
    def answer(meta_params: PyTree, tasks: Task) -> jax.Array:
        def of_one(task: Task) -> jax.Array:
            adapted = learner.adapt(meta_params, task.support)
            return jnp.argmax(learner.predict(adapted, task.query.x), axis=-1)

        return jax.lax.map(of_one, tasks)

    return np.asarray(answer(meta_params, tasks))
