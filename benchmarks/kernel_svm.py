"""Learned numbers of a support vector machine, on tables that were not seen.

    python -m benchmarks.kernel_svm

Tables: two classes of a PMLB classification table, 10 to 30 support rows of each,
columns standardised by the support set, RBF kernel. Tables have no columns in common,
so no scales of columns are learned. All tables are dealt into folds, near copies into
one, and those of each fold are tested with the numbers that were learned on the others.
Compared on the same tasks:

* learned: C, the widths, powers of relevance and weights of four kernels, and the
  factor of the logits, by the gradient of the query loss from `MIX` on. `MIX` was
  chosen on other tasks of all these tables, so that four kernels and the use of
  relevance are no finding of this comparison; what is learned from there is.
* mix, not learned: `MIX` itself.
* learned, one kernel: C, its width and the factor, from 1 on.
* default: C = 1 and gamma = 1/D of scikit-learn, D the columns that vary.
* grid, training tables: the C and width of best accuracy on the same training tables.
* grid, test tables: those of best accuracy on all tested tasks themselves: one value
  for all tables, chosen with their answers, so a bound for any shared value.

Default and grids are fitted by scikit-learn's `SVC`.

Columns: tasks of `metajax.tasks.synthetic_table` with one family, where the same 10 of
  20
columns tell something in every task, and 10 are noise. Learned with a scale for each
column, without, and default.

Accuracies are means over the tasks of a table, then over tables (over tasks, where
there is one family); differences are paired, with the 95 % interval of Student's t and
the two-sided sign test.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks.intervals import interval, signs
from benchmarks.pages import Named, interval_cell, markdown, signs_cell
from benchmarks.pmlb import group_of, read_tables
from benchmarks.record import write_result
from metajax.evaluation.bank import evaluate
from metajax.learners.solver.kernel_svm import Learned, kernel_svm
from metajax.tasks.tables.synthetic_table import synthetic_table
from metajax.tasks.tables.table_tasks import TableTasks, table_tasks
from metajax.tasks.tables.tables import Table
from metajax.training.trainer import train
from metajax.types import Learner, PyTree, Task, TaskDistribution

TITLE, FILES = "A support vector machine with learned numbers", "kernel-svm"
"""Of its part of the page of results, and the results that it shows."""

SHOT, NUM_QUERIES = (10, 30), 15
PENALTIES = tuple(float(v) for v in 10.0 ** np.arange(-1.5, 2.6, 0.5))
WIDTHS = tuple(float(v) for v in 2.0 ** np.arange(-1, 3.1, 0.5))
TEST_SEED = 0
MIX: dict[str, Any] = {
    "width": (0.7, 1.4, 0.7, 1.4),
    "relevance": (0.0, 0.0, 0.5, 0.5),
    "penalty": 3.0,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the comparison is made of."""

    seed: int = 0
    folds: int = 5
    tasks_per_table: int = 240
    num_tables: int | None = None
    """The first of them only; None for all."""
    outer_steps: int = 200
    outer_rate: float = 0.03
    """At the start of a cosine."""
    tasks_per_step: int = 16
    family: int = 0
    num_family_tasks: int = 500


def main(settings: Settings) -> None:
    """Trains, tests, compares and writes the result."""
    rows = [*across_tables(settings), *across_columns(settings)]
    write_result("kernel-svm", dataclasses.asdict(settings), rows)


def learn(
    settings: Settings, learner: Learner, tasks: TaskDistribution
) -> tuple[PyTree, float]:
    """Meta-parameters, and the largest duality gap of the last tenth of the steps."""
    schedule = optax.cosine_decay_schedule(settings.outer_rate, settings.outer_steps)
    result = train(
        learner,
        tasks,
        optax.adam(schedule),
        steps=settings.outer_steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        steps_per_dispatch=settings.outer_steps,
        log_every=max(1, settings.outer_steps // 10),
        progress=False,
    )
    return result.meta_params, result.history[-1]["duality_gap"]


def values(meta_params: PyTree) -> dict[str, Any]:
    """The learned numbers themselves, by name."""
    return {
        name.removeprefix("log_"): (
            np.exp(np.asarray(value, float)) if "log_" in name else np.asarray(value)
        ).tolist()
        for name, value in meta_params.head.items()
    }


# Tables.


def across_tables(settings: Settings) -> list[dict[str, Any]]:
    """Rows of the result: one for each fold, one for each method."""
    tables = usable(read_tables(None))[: settings.num_tables]
    tasks = table_tasks(
        tables, way=2, shot=SHOT, num_queries=NUM_QUERIES, small_classes="drop"
    )
    keys = jax.random.split(jax.random.key(TEST_SEED), settings.tasks_per_table)
    banks = [draw(tasks.only(place), keys) for place in range(len(tables))]
    grid = np.asarray([grid_accuracies(bank) for bank in banks])
    numbers: tuple[Learned, ...] = ("penalty", "width", "scale")
    learners = {
        "learned": kernel_svm(way=2, learn=(*numbers, "relevance", "weights"), **MIX),
        "learned, one kernel": kernel_svm(way=2, learn=numbers),
    }

    names = np.asarray([table.name for table in tables])
    scores = {name: np.zeros(len(tables)) for name in [*learners, "mix, not learned"]}
    scores |= {
        "default": grid[:, PENALTIES.index(1), WIDTHS.index(1)],
        "grid, training tables": np.zeros(len(tables)),
        "grid, test tables": grid[:, *best(grid)],
    }
    rows: list[dict[str, Any]] = []
    for fold, is_test in enumerate(
        deal(names, folds=settings.folds, seed=settings.seed)
    ):
        known = dataclasses.replace(tasks, choices=jnp.flatnonzero(~is_test))
        learned = {k: learn(settings, v, known) for k, v in learners.items()}
        first = learners["learned"].init(jax.random.key(0), tasks(keys[0]))
        judged = {k: (learners[k], found) for k, (found, _) in learned.items()}
        judged["mix, not learned"] = learners["learned"], first
        for place in np.flatnonzero(is_test):
            for name, (learner, meta_params) in judged.items():
                num_right = count_right(learner, meta_params, banks[place])
                scores[name][place] = num_right / banks[place].query.y.size
        chosen = best(grid[~is_test])
        scores["grid, training tables"][is_test] = grid[is_test][:, *chosen]
        row = {
            "part": "tables",
            "fold": fold,
            "tables": names[is_test].tolist(),
            "numbers": {k: values(found) for k, (found, _) in learned.items()},
            "grid": {"penalty": PENALTIES[chosen[0]], "width": WIDTHS[chosen[1]]},
            "duality_gap": max(gap for _, gap in learned.values()),
        }
        rows.append(row)
        print(row, flush=True)
    return rows + compare("tables", scores)


def usable(tables: list[Table]) -> list[Table]:
    """Tables with at least two classes that have rows enough."""
    needed = SHOT[1] + NUM_QUERIES
    return [table for table in tables if np.sum(np.bincount(table.y) >= needed) >= 2]


@jax.jit
def draw(tasks: TableTasks, keys: jax.Array) -> Task:
    """Tasks with a leading axis, one for each key."""
    return jax.vmap(tasks)(keys)


def deal(names: np.ndarray, *, folds: int, seed: int) -> list[np.ndarray]:
    """Bool `[tables]` for each fold, what it tests; near copies are in one."""
    of_table = np.asarray([group_of(name) for name in names])
    order = np.random.default_rng(seed).permutation(np.unique(of_table))
    return [np.isin(of_table, order[i::folds]) for i in range(folds)]


def grid_accuracies(bank: Task) -> np.ndarray:
    """Accuracy of `SVC` over all queries of a bank, `[penalties, widths]`."""
    from sklearn.svm import SVC

    support, query = jax.tree.map(np.asarray, bank)
    # Counts, as fractions would be added with rounding, and no two methods be equal.
    num_right = np.zeros((len(PENALTIES), len(WIDTHS)), int)
    for index in range(len(query.y)):
        is_real = support.mask[index]
        x, y = support.x[index][is_real], support.y[index][is_real]
        # The variance of all columns; it is their number, but for those of one value.
        spread = np.sum(x.var(axis=0))
        for i, penalty in enumerate(PENALTIES):
            for j, width in enumerate(WIDTHS):
                machine = SVC(C=penalty, gamma=1 / (width**2 * spread)).fit(x, y)
                answers = machine.predict(query.x[index])
                num_right[i, j] += np.sum(answers == query.y[index])
    return num_right / query.y.size


def best(grid: np.ndarray) -> tuple[int, int]:
    """Where the mean over tables of accuracies `[tables, penalties, widths]` peaks."""
    mean = grid.mean(axis=0)
    row, column = np.unravel_index(np.argmax(mean), mean.shape)
    return int(row), int(column)


def count_right(learner: Learner, meta_params: PyTree, bank: Task) -> int:
    """Right answers over all queries of a bank."""
    return int(_count_right(learner, meta_params, bank))


@functools.partial(jax.jit, static_argnums=0)
def _count_right(learner: Learner, meta_params: PyTree, bank: Task) -> jax.Array:
    def one(task: Task) -> jax.Array:
        adapted = learner.adapt(meta_params, task.support)
        answers = jnp.argmax(learner.predict(adapted, task.query.x), axis=-1)
        return jnp.sum(answers == task.query.y)

    return jnp.sum(jax.vmap(one)(bank))


# Columns.


def across_columns(settings: Settings) -> list[dict[str, Any]]:
    """Rows of the result: one for each method."""
    tasks = synthetic_table(family=settings.family)
    without: tuple[Learned, ...] = ("penalty", "width", "scale")
    learners = {
        "learned": kernel_svm(way=2),
        "learned, no scales": kernel_svm(way=2, learn=without),
    }
    task = tasks(jax.random.key(0))
    numbers = {k: learn(settings, v, tasks)[0] for k, v in learners.items()}
    # The same program with its first numbers.
    learners["default"] = learners["learned, no scales"]
    numbers["default"] = learners["default"].init(jax.random.key(0), task)
    scores = {}
    for name, learner in learners.items():
        report = evaluate(
            learner,
            numbers[name],
            tasks,
            num_tasks=settings.num_family_tasks,
            seed=TEST_SEED,
        )
        scores[name] = np.asarray(report.values["accuracy"], float)
    rows = compare("columns", scores)
    for row in rows:
        row["numbers"] = values(numbers[row["method"]])
    return rows


def compare(part: str, scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each method, the first also against all others."""
    rows = []
    for method, found in scores.items():
        row: dict[str, Any] = {"part": part, "method": method} | interval(found)
        if method != "learned":
            higher = scores["learned"] - found
            row["learned_is_higher_by"] = interval(higher) | signs(higher)
        print(row, flush=True)
        rows.append(row)
    return rows


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(_, record)] = records
    settings, results = record["settings"], record["results"]
    texts = {
        "tables": (
            f"PMLB's tables in {settings['folds']} folds, two classes, 10 to 30 "
            f"support rows of each, {settings['tasks_per_table']} tasks of each table; "
            "± over tables, differences paired, with how many tables are better and "
            "worse:\n"
        ),
        "columns": (
            f"Synthetic tables of one family, {settings['num_family_tasks']} tasks; ± "
            "over tasks:\n"
        ),
    }
    parts = [
        "Accuracy in percent of support vector machines on raw columns; what is "
        "compared is said in `benchmarks/kernel_svm.py`.\n"
    ]
    for part, text in texts.items():
        rows = []
        for r in results:
            if r["part"] != part or "fold" in r:
                continue
            row = [r["method"], interval_cell(r, 2, 100), ""]
            if "learned_is_higher_by" in r:
                found = r["learned_is_higher_by"]
                row[-1] = f"{interval_cell(found, 2, 100)} ({signs_cell(found)})"
            rows.append(row)
        header = ["method", "accuracy", "learned is higher by"]
        parts += [text, markdown(header, rows)]
    return "\n".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
