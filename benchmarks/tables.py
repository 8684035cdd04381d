"""A meta neural network on synthetic tables, against scikit-learn on each support set.

    python -m benchmarks.tables --family 0
    python -m benchmarks.tables

An MLP with 32 hidden units learns its initialisation (MAML), and also a rate for every
parameter (Meta-SGD), over two-class tasks with 20 columns and 32 support rows. It is
compared on 500 held-out tasks with what scikit-learn fits to each support set from
scratch: an MLP of the same size and a logistic regression, whose regularisation is the
best of a grid on 100 tasks of its own, and both with their defaults. Columns are
standardised for these by the support set.

With `--family`, tasks share which columns are informative, redundant or noise (see
`metajax.tasks.tables.synthetic_table`); without, only how tables are drawn.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np
import optax
import tyro

from benchmarks.intervals import interval
from benchmarks.pages import Named, interval_cell, markdown
from benchmarks.record import write_result
from metajax.evaluation.bank import bank_task, evaluate
from metajax.learners.gradient.maml import maml
from metajax.learners.gradient.meta_sgd import meta_sgd
from metajax.models.networks import mlp
from metajax.tasks.tables.synthetic_table import synthetic_table
from metajax.training.trainer import train
from metajax.types import TaskDistribution

TITLE, FILES = "A meta neural network on synthetic tables", "tables-*"
"""Of its part of the page of results, and the results that it shows."""

TEST_SEED, TUNING_SEED = 0, 1
REGULARISATIONS = [float(v) for v in 10.0 ** np.arange(-4, 3)]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the comparison is made of."""

    family: int | None = None
    seed: int = 0
    outer_steps: int = 20_000
    outer_rate: float = 1e-3
    """At the start of a cosine."""
    tasks_per_step: int = 32
    inner_steps: int = 5
    inner_rate: float = 0.1
    hidden: int = 32
    num_test_tasks: int = 500
    num_tuning_tasks: int = 100


def main(settings: Settings) -> None:
    """Trains, fits and writes the result."""
    tasks = synthetic_table(family=settings.family)
    name = f"tables-family-{settings.family}-seed{settings.seed}".lower()
    scores = meta_learned(settings, tasks, name)
    scores |= fitted(settings, tasks)
    rows = []
    for method, accuracies in scores.items():
        row: dict[str, Any] = {"method": method} | interval(accuracies)
        for ours in ("maml", "meta-sgd"):
            if method not in ("maml", "meta-sgd"):
                row[f"{ours}_is_better_by"] = interval(scores[ours] - accuracies)
        print(row, flush=True)
        rows.append(row)
    write_result(name, dataclasses.asdict(settings), rows)


def meta_learned(
    settings: Settings, tasks: TaskDistribution, name: str
) -> dict[str, np.ndarray]:
    """Accuracy on each test task of both learners."""
    model = mlp(2, hidden_sizes=(settings.hidden,))
    steps, rate = settings.inner_steps, settings.inner_rate
    learners = {
        "maml": maml(model, optax.sgd(rate), inner_steps=steps),
        "meta-sgd": meta_sgd(model, rate=rate, inner_steps=steps),
    }
    scores = {}
    for method, learner in learners.items():
        schedule = optax.cosine_decay_schedule(
            settings.outer_rate, settings.outer_steps
        )
        result = train(
            learner,
            tasks,
            optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule)),
            steps=settings.outer_steps,
            tasks_per_step=settings.tasks_per_step,
            seed=settings.seed,
            steps_per_dispatch=500,
            log_every=1000,
            checkpoint_every=5000,
            run_dir=f"runs/{name}-{method}",
            config=dataclasses.asdict(settings) | {"method": method},
        )
        report = evaluate(
            learner,
            result.meta_params,
            tasks,
            num_tasks=settings.num_test_tasks,
            seed=TEST_SEED,
        )
        scores[method] = report.values["accuracy"].astype(float)
    return scores


def fitted(settings: Settings, tasks: TaskDistribution) -> dict[str, np.ndarray]:
    """Accuracy on each test task of scikit-learn's models, default and tuned."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    def logistic(strength: float | None) -> Any:
        chosen = {} if strength is None else {"C": 1 / strength}
        return LogisticRegression(max_iter=1000, **chosen)

    def network(strength: float | None) -> Any:
        chosen = {} if strength is None else {"alpha": strength}
        return MLPClassifier((settings.hidden,), random_state=0, **chosen)

    scores = {}
    for name, make in (("logistic regression", logistic), ("mlp", network)):
        tuning = [
            score(make, strength, tasks, settings.num_tuning_tasks, TUNING_SEED).mean()
            for strength in REGULARISATIONS
        ]
        best = REGULARISATIONS[int(np.argmax(tuning))]
        count = settings.num_test_tasks
        scores[f"{name}, default"] = score(make, None, tasks, count, TEST_SEED)
        scores[f"{name}, regularisation {best:g}"] = score(
            make, best, tasks, count, TEST_SEED
        )
    return scores


def score(
    make: Any, strength: float | None, tasks: TaskDistribution, count: int, seed: int
) -> np.ndarray:
    """Accuracy `[count]` of a model fitted to the support set of each task."""
    accuracies = []
    for index in range(count):
        task = bank_task(tasks, index, seed=seed)
        x, y = np.asarray(task.support.x), np.asarray(task.support.y)
        center, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        with warnings.catch_warnings():
            # 200 passes, the default, do not always converge; that is what it does.
            warnings.simplefilter("ignore")
            model = make(strength).fit((x - center) / scale, y)
        queries = (np.asarray(task.query.x) - center) / scale
        accuracies.append(model.score(queries, np.asarray(task.query.y)))
    return np.asarray(accuracies)


def section(records: Named) -> str:
    """Its part of the page of results."""
    parts = [
        "Accuracy in percent on 500 held-out tasks of two classes, 20 columns and 32 "
        "support rows; differences are paired.\n"
    ]
    for _, record in records:
        family = record["settings"]["family"]
        what = "draw everything anew" if family is None else "are of one family"
        parts.append(f"Tasks that {what}:\n")
        rows = [
            [
                r["method"],
                interval_cell(r, 2, 100),
                *(
                    interval_cell(r[f"{ours}_is_better_by"], 2, 100)
                    if f"{ours}_is_better_by" in r
                    else ""
                    for ours in ("maml", "meta-sgd")
                ),
            ]
            for r in record["results"]
        ]
        header = ["method", "accuracy", "MAML is better by", "Meta-SGD is better by"]
        parts.append(markdown(header, rows))
    return "\n".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
