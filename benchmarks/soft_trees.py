"""Soft trees that harden, against CART of the same depth, on tables that were not seen.

    python -m benchmarks.soft_trees

A task is 5 to 50 rows of a PMLB classification table and 30 others of it to answer, as
`metajax.tasks.row_tasks` draws them; tables of more than five classes keep their five
largest, and those of fewer than 80 rows are left out. Columns stay in their own units.

Tables are dealt into folds, near copies into one, and those of each fold are tested
with what was learned on the others, of which only those of at most 24 columns are
trained on, to save time. Compared on the same tasks:

* learned: the tree that the soft tree comes to, `metajax.learners.harden`.
* soft: the soft tree itself.
* no inner steps, and soft: the same, trained and tested without them.
* first: the hardened tree before any learning.
* CART, same depth: scikit-learn's, of the depth that the learned tree of that task has.
  A tree of depth 0 is the larger class.
* CART, same depth, entropy: the same by another criterion, that of the first tree.
* CART, full depth: of the depth that the soft tree may have at most.
* CART, default: of no limit.
* CART, training tables: of the depth and least rows of a leaf that are best on the
  tables of the other folds.
* CART, test tables: those that are best on all tested tasks themselves: one value for
  all, chosen with their answers, so a bound for any shared value.

Accuracies are means over the tasks of a table, then over tables; differences are paired
over tables, with the 95 % interval of Student's t and the two-sided sign test. The
difference to CART of the same depth is also given by the size of the support set.

The rate of the inner steps and the smoothing that training starts from were chosen by
the accuracy of untrained trees on tables that are mostly among those tested here, so
that what `first` is above CART by is slightly optimistic.

A picture shows the tree of one held-out table, from its largest support set.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks.intervals import interval, signs
from benchmarks.kernel_svm import compare, deal, draw
from benchmarks.pages import Named, Record, interval_cell, markdown, picture, signs_cell
from benchmarks.pmlb import read_tables
from benchmarks.record import RESULTS, write_result
from metajax.builders.decision_tree import decide, depth_of
from metajax.learners.solver.soft_tree import harden, soft_tree
from metajax.plots import plot_tree
from metajax.tasks.tables.table_tasks import RowTasks, row_tasks
from metajax.tasks.tables.tables import Table
from metajax.training.trainer import train
from metajax.types import Learner, PyTree, Task, TaskDistribution

TITLE, FILES = "Soft decision trees, hardened", "soft-trees"
"""Of its part of the page of results, and the results that it shows."""

ROWS, NUM_QUERIES, CLASSES = (5, 50), 30, 5
SIZES = ((5, 15), (16, 30), (31, 50))
# Tables are padded to the first of these that they fit; the last are not trained on.
COLUMNS = (24, 70)
LEAVES = (1, 2, 4, 8)
TEST_SEED = 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the comparison is made of."""

    seed: int = 0
    folds: int = 5
    tasks_per_table: int = 60
    num_tables: int | None = None
    """The first of them only; None for all."""
    depth: int = 3
    inner_steps: int = 3
    outer_steps: int = 150
    outer_rate: float = 0.03
    """At the start of a cosine."""
    tasks_per_step: int = 16
    drawn: str = "heart-statlog"
    """The table whose tree is drawn."""


class Answers(NamedTuple):
    """What is right of some tasks, in queries; one number for each.

    Attributes:
      hard: of the hardened tree.
      soft: of the soft tree.
      depth: of the hardened tree.
      expected_depth: of the soft tree, in the mean over its queries.
    """

    hard: Any
    soft: Any
    depth: Any
    expected_depth: Any


def main(settings: Settings) -> None:
    """Trains, tests, compares, draws and writes the result."""
    tables = read(settings)
    learners = {
        name: soft_tree(way=CLASSES, depth=settings.depth, inner_steps=steps)
        for name, steps in (("learned", settings.inner_steps), ("no inner steps", 0))
    }
    sources, banks = draw_banks(settings, tables)
    carts = [fit_carts(bank, settings.depth) for bank in banks]
    names = np.asarray([table.name for table in tables])
    rows: list[dict[str, Any]] = []
    # Its network is still 0, so it is the same in all folds.
    start = learners["learned"].init(jax.random.key(0), sources[0](jax.random.key(0)))
    first = [answer(learners["learned"], start, bank) for bank in banks]
    found = {name: list(first) for name in learners}
    shared = np.zeros(len(tables))
    grid = np.asarray([cart["grid"].mean(axis=0) for cart in carts])
    folds = deal(names, folds=settings.folds, seed=settings.seed)
    for fold, is_test in enumerate(folds):
        chosen = best(grid[~is_test])
        shared[is_test] = grid[is_test][:, *chosen]
        for name, learner in learners.items():
            meta_params = learn(settings, learner, sources[0], ~is_test)
            places = np.flatnonzero(is_test).tolist()
            for place in places:
                found[name][place] = answer(learner, meta_params, banks[place])
                if names[place] == settings.drawn and name == "learned":
                    draw_tree(learner, meta_params, banks[place], tables[place])
            tested = [found[name][place] for place in places]
            row = {
                "part": "fold",
                "fold": fold,
                "method": name,
                "tables": names[is_test].tolist(),
                "learned": values(meta_params),
                "expected_depth": mean_of([a.expected_depth for a in tested]),
                "hard_depth": mean_of([a.depth for a in tested]),
                "cart": {
                    "depth": depths(settings)[chosen[0]],
                    "leaf": LEAVES[chosen[1]],
                },
            }
            rows.append(row)
            print(row, flush=True)
    same = [
        {
            criterion: cart[criterion][np.arange(len(tree.depth)), tree.depth]
            for criterion in ("gini", "entropy")
        }
        for cart, tree in zip(carts, found["learned"], strict=True)
    ]
    scores = {
        "learned": shares(a.hard for a in found["learned"]),
        "soft": shares(a.soft for a in found["learned"]),
        "no inner steps": shares(a.hard for a in found["no inner steps"]),
        "no inner steps, soft": shares(a.soft for a in found["no inner steps"]),
        "first": shares(a.hard for a in first),
        "CART, same depth": shares(s["gini"] for s in same),
        "CART, same depth, entropy": shares(s["entropy"] for s in same),
        "CART, full depth": shares(c["gini"][:, settings.depth] for c in carts),
        "CART, default": shares(c["grid"][:, -1, 0] for c in carts),
        "CART, training tables": shared / NUM_QUERIES,
        "CART, test tables": grid[:, *best(grid)] / NUM_QUERIES,
    }
    rows += compare("methods", scores)
    rows += by_size(banks, found["learned"], [s["gini"] for s in same])
    write_result("soft-trees", dataclasses.asdict(settings), rows)


def read(settings: Settings) -> list[Table]:
    """The tables, narrow ones first, each of at most five classes."""
    tables = [five_classes(table) for table in read_tables(None)]
    tables = [t for t in tables if len(t.y) >= ROWS[1] + NUM_QUERIES]
    tables.sort(key=lambda table: table.x.shape[1] > COLUMNS[0])
    return tables[: settings.num_tables]


def five_classes(table: Table) -> Table:
    """Rows of the five largest classes."""
    kept = np.sort(np.argsort(-np.bincount(table.y), kind="stable")[:CLASSES])
    is_kept = np.isin(table.y, kept)
    return dataclasses.replace(
        table,
        x=table.x[is_kept],
        y=np.searchsorted(kept, table.y[is_kept]),
        class_names=tuple(table.class_names[label] for label in kept),
    )


def draw_banks(
    settings: Settings, tables: list[Table]
) -> tuple[list[RowTasks], list[Task]]:
    """Task distributions of each width, and the test tasks of each table."""
    keys = jax.random.split(jax.random.key(TEST_SEED), settings.tasks_per_table)
    sources, banks = [], []
    for low, high in zip((0, *COLUMNS), COLUMNS, strict=False):
        wide = [table for table in tables if low < table.x.shape[1] <= high]
        if wide:
            tasks = row_tasks(
                wide,
                rows=ROWS,
                num_queries=NUM_QUERIES,
                num_columns=high,
                standardize=None,
            )
            sources.append(tasks)
            banks += [draw(tasks.only(place), keys) for place in range(len(wide))]
    return sources, banks


def learn(
    settings: Settings, learner: Learner, tasks: RowTasks, is_known: np.ndarray
) -> PyTree:
    """Meta-parameters, trained on the known tables of `tasks`."""
    num = len(tasks.tables.starts)
    known: TaskDistribution = dataclasses.replace(
        tasks, choices=jnp.flatnonzero(is_known[:num])
    )
    schedule = optax.cosine_decay_schedule(settings.outer_rate, settings.outer_steps)
    result = train(
        learner,
        known,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        steps=settings.outer_steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        steps_per_dispatch=max(1, settings.outer_steps // 4),
        log_every=max(1, settings.outer_steps // 4),
        progress=False,
    )
    for record in result.history:
        print(record, flush=True)
    return result.meta_params


@functools.partial(jax.jit, static_argnums=0)
def _answer(learner: Learner, meta_params: PyTree, bank: Task) -> Answers:
    def one(task: Task) -> Answers:
        adapted = learner.adapt(meta_params, task.support)
        tree = harden(adapted)
        hard = jnp.argmax(decide(tree, task.query.x), axis=-1)
        soft = jnp.argmax(learner.predict(adapted, task.query.x), axis=-1)
        _, metrics = learner.loss(meta_params, task)
        return Answers(
            jnp.sum(hard == task.query.y),
            jnp.sum(soft == task.query.y),
            depth_of(tree),
            metrics["expected_depth"],
        )

    return jax.lax.map(one, bank)


def answer(learner: Learner, meta_params: PyTree, bank: Task) -> Answers:
    """Right answers and depths for each task of a bank."""
    return jax.tree.map(np.asarray, _answer(learner, meta_params, bank))


def depths(settings: Settings) -> list[int | None]:
    """Depths of CART that are tried; the last has no limit."""
    return [*range(1, settings.depth + 3), None]


def fit_carts(bank: Task, depth: int) -> dict[str, np.ndarray]:
    """Right answers of scikit-learn's trees on each task of a bank.

    Returns:
      `gini` and `entropy`, `[tasks, depth + 1]`, by depth from 0; and `grid`, `[tasks,
      depths, leaves]` by `depths` and `LEAVES`.
    """
    from sklearn.tree import DecisionTreeClassifier

    support, query = jax.tree.map(np.asarray, bank)
    found: dict[str, list] = {"gini": [], "entropy": [], "grid": []}
    for index in range(len(query.y)):
        is_real = support.mask[index]
        x, y = support.x[index][is_real], support.y[index][is_real]

        def num_right(x: Any = x, y: Any = y, index: int = index, **how: Any) -> int:
            tree = DecisionTreeClassifier(random_state=0, **how).fit(x, y)
            return np.sum(tree.predict(query.x[index]) == query.y[index])

        alone = np.sum(query.y[index] == np.argmax(np.bincount(y)))
        for criterion in ("gini", "entropy"):
            below = [
                num_right(max_depth=level, criterion=criterion)
                for level in range(1, depth + 1)
            ]
            found[criterion].append([alone, *below])
        found["grid"].append(
            [
                [num_right(max_depth=level, min_samples_leaf=leaf) for leaf in LEAVES]
                for level in depths(Settings(depth=depth))
            ]
        )
    return {name: np.asarray(rows) for name, rows in found.items()}


def best(grid: np.ndarray) -> tuple[int, int]:
    """Where the mean over tables of `[tables, depths, leaves]` peaks."""
    mean = grid.mean(axis=0)
    row, column = np.unravel_index(np.argmax(mean), mean.shape)
    return int(row), int(column)


def values(meta_params: PyTree) -> dict[str, Any]:
    """The learned numbers that mean something by themselves."""
    head = meta_params.head
    numbers = {
        name.removeprefix("log_"): float(np.exp(value))
        for name, value in head.items()
        if name.startswith("log_")
    }
    gates = jax.nn.sigmoid(head["depth_gates"])
    return numbers | {"depth_gates": np.asarray(gates, float).tolist()}


def shares(num_right: Any) -> np.ndarray:
    """Accuracy of each table from right answers `[tasks]` of each."""
    return np.asarray([found.mean() / NUM_QUERIES for found in num_right])


def mean_of(numbers: list[np.ndarray]) -> float:
    """Mean over tables of means over tasks."""
    return float(np.mean([found.mean() for found in numbers]))


def by_size(
    banks: list[Task], learned: list[Answers], carts: list[np.ndarray]
) -> list[dict[str, Any]]:
    """Rows of the result: learned less CART of the same depth, by support rows."""
    rows = []
    for low, high in SIZES:
        higher, accuracy = [], []
        for bank, found, cart in zip(banks, learned, carts, strict=True):
            size = np.asarray(bank.support.mask).sum(axis=1)
            is_in = (low <= size) & (size <= high)
            if is_in.any():
                accuracy.append(found.hard[is_in].mean() / NUM_QUERIES)
                higher.append((found.hard - cart)[is_in].mean() / NUM_QUERIES)
        difference = np.asarray(higher)
        row: dict[str, Any] = {"part": "sizes", "rows": [low, high]}
        row |= interval(np.asarray(accuracy))
        row["learned_is_higher_by"] = interval(difference) | signs(difference)
        print(row, flush=True)
        rows.append(row)
    return rows


def draw_tree(learner: Learner, meta_params: PyTree, bank: Task, table: Table) -> None:
    """Prints and draws the tree of the largest support set of a bank."""
    index = int(np.argmax(np.asarray(bank.support.mask).sum(axis=1)))
    support = jax.tree.map(lambda leaf: leaf[index], bank.support)
    tree = harden(learner.adapt(meta_params, support))
    print(tree.text(table.column_names, table.class_names), flush=True)
    RESULTS.mkdir(exist_ok=True)
    plot_tree(
        RESULTS / "soft-trees.png",
        tree,
        column_names=table.column_names,
        class_names=table.class_names,
    )


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    of_part: dict[str, list[Record]] = {}
    for r in results:
        of_part.setdefault(r["part"], []).append(r)
    rows = []
    for r in of_part["methods"]:
        row = [r["method"], interval_cell(r, 2, 100), ""]
        if "learned_is_higher_by" in r:
            found = r["learned_is_higher_by"]
            row[-1] = f"{interval_cell(found, 2, 100)} ({signs_cell(found)})"
        rows.append(row)
    sizes = []
    for r in of_part["sizes"]:
        found = r["learned_is_higher_by"]
        sizes.append(
            [
                "{} to {}".format(*r["rows"]),
                interval_cell(r, 2, 100),
                f"{interval_cell(found, 2, 100)} ({signs_cell(found)})",
            ]
        )
    folds = [
        [
            r["fold"],
            r["method"],
            f"{r['expected_depth']:.2f}",
            f"{r['hard_depth']:.2f}",
            ", ".join(f"{gate:.2f}" for gate in r["learned"]["depth_gates"]),
            *(
                f"{r['learned'][name]:.2f}"
                for name in ("min_mass", "penalty", "smoothing", "temperature")
            ),
        ]
        for r in of_part["fold"]
    ]
    header = ["fold", "tree", "expected depth", "hard depth", "gates"]
    header += ["least rows", "penalty", "smoothing", "temperature"]
    return "\n".join(
        [
            f"Accuracy in percent on PMLB's tables in {settings['folds']} folds, tasks "
            f"of 5 to 50 support rows, {settings['tasks_per_table']} of each table, "
            f"trees of at most {settings['depth']} levels; ± over tables, differences "
            "paired, with how many tables are better and worse. What is compared is "
            "said in `benchmarks/soft_trees.py`.\n",
            markdown(["method", "accuracy", "learned is higher by"], rows),
            "The learned tree, hardened, against CART of the same depth, by support "
            "rows:\n",
            markdown(["rows", "accuracy", "higher than CART by"], sizes),
            "What was learned: depth of the soft tree in the mean over query rows, "
            "that of the hard one, probabilities to go on at each level before what "
            "the node adds, and the numbers of `metajax.learners.soft_tree`:\n",
            markdown(header, folds),
            picture(path),
        ]
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
