"""Depth and leaf size of a decision tree, recommended from meta-features.

    python -m benchmarks.recommend_trees

A configuration is a `max_depth` and a `min_samples_leaf` of scikit-learn's CART, 35 in
all. A task is a support set of 20 to 200 rows of a PMLB table; the score of a
configuration is its accuracy on all other rows of the table. For each table in turn,
the tasks of all other tables are known, and configurations are tried in an order:

* warm start: of `recommend`. The number of neighbours is chosen on the known
  tasks alone: each is answered while its own table is excluded, and the number with the
  least mean regret over the first ten trials is taken.
* default: of `recommend` with all known tasks as neighbours, so without
  meta-features.
* random: at random; the expected value over all orders.

The first two are measured with both rankings, the greedy portfolio and the mean.

Measured is the normalised regret after 1, 5 and 10 trials, (best - best so far) / (best
- worst) on the query rows: what a perfect judge of trials would reach. It is averaged
over the tasks of a table, then over tables; differences are paired over tables, with
the 95 % interval of Student's t and the two-sided sign test.

Near copies of a table are never known while it is tested, nor the reverse.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.intervals import interval, signs
from benchmarks.pages import Named, Record, interval_cell, markdown, signs_cell
from benchmarks.pmlb import group_of, read_tables
from benchmarks.record import write_result
from metajax.descriptions.table_features import meta_features
from metajax.descriptions.warm_start import (
    RANKINGS,
    Ranking,
    WarmStart,
    fit_warm_start,
    random_regret_curve,
    recommend,
    regret_curve,
)
from metajax.tasks.tables.tables import Table
from metajax.types import Examples

TITLE, FILES = "Decision trees by meta-features", "recommend-trees"
"""Of its part of the page of results, and the results that it shows."""

DEPTHS = (1, 2, 3, 4, 6, 8, None)
LEAVES = (1, 2, 4, 8, 16)
CONFIGURATIONS = [(depth, leaf) for depth in DEPTHS for leaf in LEAVES]
TRIALS = (1, 5, 10)
# Support sets are padded to these, so that three programs serve all tables.
ROWS, COLUMNS, CLASSES = 200, (10, 24, 70), 18


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the comparison is made of."""

    seed: int = 0
    tasks_per_table: int = 10
    num_tables: int | None = None
    """The first of them only; None for all."""
    num_neighbors: tuple[int, ...] = (5, 10, 20, 50, 100, 200)
    """From which the number is chosen, if there are so many known tasks."""


class Measured(NamedTuple):
    """All tasks of all tables, M of them.

    Attributes:
      tables: names `[M]`.
      groups: `[M]`, one name for all near copies.
      features: `[M, F]`.
      scores: accuracies `[M, C]`.
    """

    tables: np.ndarray
    groups: np.ndarray
    features: np.ndarray
    scores: np.ndarray


def main(settings: Settings) -> None:
    """Measures, recommends and writes the result."""
    measured = measure(settings, read_tables(settings.num_tables))
    rows = compare(measured, settings.num_neighbors)
    for row in rows:
        print(row, flush=True)
    write_result("recommend-trees", dataclasses.asdict(settings), rows)


def measure(settings: Settings, tables: list[Table]) -> Measured:
    """Draws tasks, describes their support sets, and fits all trees to them."""
    names, features, scores = [], [], []
    for number, table in enumerate(tables):
        supports = draw_supports(settings, table, number)
        features.append(describe(table, supports))
        scores += [accuracies(table, support) for support in supports]
        names += [table.name] * len(supports)
    return Measured(
        np.asarray(names),
        np.asarray([group_of(name) for name in names]),
        np.concatenate(features),
        np.asarray(scores),
    )


def draw_supports(settings: Settings, table: Table, number: int) -> list[np.ndarray]:
    """Rows of the support sets of all tasks of a table, by its place in the list."""
    generator = np.random.default_rng([settings.seed, number])
    return [draw(table, generator) for _ in range(settings.tasks_per_table)]


def draw(table: Table, generator: np.random.Generator) -> np.ndarray:
    """Rows of a support set: 20 to 200, and at most half, of at least two classes."""
    most = min(ROWS, len(table.y) // 2)
    size = int(np.exp(generator.uniform(np.log(20), np.log(most))))
    while True:
        rows = generator.choice(len(table.y), size, replace=False)
        if len(np.unique(table.y[rows])) > 1:
            return rows


def describe(table: Table, supports: list[np.ndarray]) -> np.ndarray:
    """Meta-features `[len(supports), F]`."""
    examples = pack(table, supports)
    column_mask = np.arange(examples.x.shape[2]) < table.x.shape[1]
    return np.asarray(_describe(examples, jnp.asarray(column_mask)))


def pack(table: Table, supports: list[np.ndarray]) -> Examples:
    """Support sets with a leading axis, padded to few different shapes."""
    num_columns = table.x.shape[1]
    size = min(width for width in COLUMNS if width >= num_columns)
    x = np.zeros((len(supports), ROWS, size), np.float32)
    y = np.zeros((len(supports), ROWS), np.int32)
    mask = np.zeros((len(supports), ROWS), bool)
    for index, rows in enumerate(supports):
        x[index, : len(rows), :num_columns] = table.x[rows]
        y[index, : len(rows)] = table.y[rows]
        mask[index, : len(rows)] = True
    return Examples(jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask))


@jax.jit
def _describe(supports: Examples, column_mask: jax.Array) -> jax.Array:
    def one(support: Examples) -> jax.Array:
        return meta_features(support, num_classes=CLASSES, column_mask=column_mask)

    return jax.vmap(one)(supports)


def accuracies(table: Table, support: np.ndarray) -> np.ndarray:
    """Accuracy `[C]` of each tree on the rows outside the support set."""
    from sklearn.tree import DecisionTreeClassifier

    is_query = np.ones(len(table.y), bool)
    is_query[support] = False
    x, y = table.x[is_query], table.y[is_query]
    scores = []
    for depth, leaf in CONFIGURATIONS:
        tree = DecisionTreeClassifier(
            max_depth=depth, min_samples_leaf=leaf, random_state=0
        )
        with warnings.catch_warnings():
            # Few rows of many classes; that is what is asked of them here.
            warnings.filterwarnings("ignore", "The number of unique classes")
            tree.fit(table.x[support], table.y[support])
        scores.append(np.mean(tree.predict(x) == y))
    return np.asarray(scores)


def compare(measured: Measured, grid: tuple[int, ...]) -> list[dict[str, Any]]:
    """Regret of each method over tables, and of the warm start less the others.

    Args:
      measured: all tasks.
      grid: numbers of neighbours to choose from.
    """
    regrets, taken = all_curves(measured, grid, lambda group: measured.features)
    return [
        row
        for trials in TRIALS
        for row in summary(measured.tables, regrets, taken, trials)
    ]


def all_curves(
    measured: Measured,
    grid: tuple[int, ...],
    features_for: Callable[[str], np.ndarray],
    rankings: tuple[Ranking, ...] = RANKINGS,
) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Regret curves of each method on all tasks, and numbers of neighbours.

    Args:
      measured: all tasks.
      grid: numbers of neighbours to choose from.
      features_for: name of a group -> `[M, F]`, what tasks are compared by while this
        group is tested.
      rankings: of `recommend`, to measure.

    Returns:
      Name of a method -> `[M, C]`, and name of a ranking -> the number of each group.
    """
    shape = measured.scores.shape
    regrets = {
        f"{method}, {ranking}": np.zeros(shape)
        for ranking in rankings
        for method in ("warm start", "default")
    } | {"random": np.asarray(jax.vmap(random_regret_curve)(measured.scores))}
    taken: dict[str, list[int]] = {ranking: [] for ranking in rankings}
    for group in np.unique(measured.groups):
        is_test = measured.groups == group
        features = features_for(group)
        groups, scores = measured.groups[~is_test], measured.scores[~is_test]
        known = fit_warm_start(features[~is_test], scores)
        own = groups[:, None] == groups[None, :]
        new, truth = features[is_test], measured.scores[is_test]
        nobody = np.zeros((len(new), len(groups)), bool)
        for ranking in rankings:
            number = choose(known, features[~is_test], scores, own, grid, ranking)
            taken[ranking].append(number)
            for method, k in (("warm start", number), ("default", len(groups))):
                found = curves(known, new, truth, nobody, k, ranking)
                regrets[f"{method}, {ranking}"][is_test] = found
    return regrets, taken


def summary(
    tables: np.ndarray,
    regrets: dict[str, np.ndarray],
    taken: dict[str, list[int]],
    trials: int,
) -> Iterator[dict[str, Any]]:
    """A row for each method, after so many trials."""
    means = {
        method: np.asarray(
            [curve[tables == name, trials - 1].mean() for name in np.unique(tables)]
        )
        for method, curve in regrets.items()
    }
    for method, values in means.items():
        row: dict[str, Any] = {"trials": trials, "method": method} | interval(values)
        name, _, ranking = method.partition(", ")
        if name == "warm start":
            numbers = taken[ranking]
            row["num_neighbors"] = [min(numbers), median(numbers), max(numbers)]
            for rival in ("default", "random"):
                other = means[rival if rival in means else f"{rival}, {ranking}"]
                lower = other - values
                row[f"lower_than_{rival}_by"] = interval(lower) | signs(lower)
        yield row


def choose(
    known: WarmStart,
    features: np.ndarray,
    scores: np.ndarray,
    own: np.ndarray,
    grid: tuple[int, ...],
    ranking: Ranking,
) -> int:
    """The number of neighbours that serves known tasks best, without their tables."""
    allowed = [number for number in grid if number <= len(own)]
    means = [
        curves(known, features, scores, own, number, ranking)[:, : max(TRIALS)].mean()
        for number in allowed
    ]
    return allowed[int(np.argmin(means))]


@functools.partial(jax.jit, static_argnums=(4, 5))
def curves(
    known: WarmStart,
    features: np.ndarray,
    scores: np.ndarray,
    exclude: np.ndarray,
    num_neighbors: int,
    ranking: Ranking,
) -> jax.Array:
    """Regret curves `[M, C]` of the orders that M tasks are recommended.

    Args:
      known: the tasks that may speak.
      features: `[M, F]`.
      scores: `[M, C]`, the truth.
      exclude: `[M, T]`, known tasks that must not speak to a task.
      num_neighbors: of `recommend`.
      ranking: of `recommend`.
    """

    def one(features: Any, scores: Any, exclude: Any) -> jax.Array:
        order = recommend(
            known,
            features,
            num_neighbors=num_neighbors,
            ranking=ranking,
            exclude=exclude,
        )
        return regret_curve(order, scores)

    return jax.vmap(one)(features, scores, exclude)


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(_, record)] = records
    settings = record["settings"]

    def paired(row: Record, name: str) -> str:
        if name not in row:
            return ""
        return f"{interval_cell(row[name], 3)} ({signs_cell(row[name])})"

    rows = [
        [
            r["trials"],
            r["method"],
            interval_cell(r, 3),
            paired(r, "lower_than_default_by"),
            paired(r, "lower_than_random_by"),
        ]
        for r in record["results"]
    ]
    text = (
        "Normalised regret of CART's depth and leaf size after some trials on PMLB's "
        f"tables, each held out in turn, {settings['tasks_per_table']} tasks of 20 to "
        "200 rows of each; ± over tables, differences paired, with how many tables are "
        "better and worse.\n\n"
    )
    header = ["trials", "order", "regret", "lower than default", "lower than random"]
    return text + markdown(header, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
