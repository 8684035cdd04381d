"""Maps of tasks: how well each representation of a task tells where it is from.

    python -m benchmarks.task_map

Measured is the accuracy of the nearest neighbour: a task is said to be from where the
nearest of the reference tasks is from, which never share an example with it.

Images: tasks of 3 classes with 10 images each, 28 x 28 and grey, of six domains, and
those of Omniglot of 20 alphabets. The classes of each domain (and alphabet) are cut in
two: reference tasks have classes of one half, tested tasks of the other, so the same
domain or alphabet is recognised by other classes. The probe is a Conv-4 that was
trained as Prototypical Network on the background alphabets of Lake's split, which are
no tested ones. Compared by:

* Task2Vec: Fisher information, symmetric distance of its paper.
* Task2Vec, random probe: the same before training.
* mean embedding: of all images by the probe, without labels, Euclidean; the paper's
  domain embedding.
* pixels: mean and standard deviation of all pixels, Euclidean.

Tables: samples of 20 to 200 rows of PMLB tables, of which each is held out in one of
four folds, near copies in one, from everything that learns. Rows of a table are cut in
two, for reference and tested samples. The table is to be found among those of its fold.
All are compared by the L1 distance of features, each divided by its standard deviation
over samples of the tables that are not held out:

* Dataset2Vec, trained on the tables that are not held out; and before training.
* meta-features: all of `meta_features`; and without those that say, or follow from, the
  numbers of columns, rows and classes, which Dataset2Vec does not see either.
* columns and classes: the logarithms of their numbers, only.

Accuracies are means over tables (over domains, alphabets) with the 95 % interval of
Student's t over these. Pairs: how well trained Dataset2Vec says whether two samples are
of the same held-out table, as it was trained to, by `evaluate`.

Warm start: that of `benchmarks.recommend_trees` with the greedy portfolio, by
meta-features, by Dataset2Vec, trained for each tested table without its fold, and by
both; the regret is paired over tables.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks import kernel_svm, recommend_trees
from benchmarks.images import READERS
from benchmarks.intervals import interval, signs
from benchmarks.pages import Named, interval_cell, markdown, picture, signs_cell
from benchmarks.pmlb import read_tables
from benchmarks.recommend_trees import describe, pack
from benchmarks.record import RESULTS, write_result
from metajax.descriptions.fisher import TaskVector, symmetric_distance, task2vec
from metajax.descriptions.table_features import META_FEATURES
from metajax.evaluation.bank import evaluate
from metajax.learners.metric.prototypical import prototypical
from metajax.learners.representation.dataset2vec import dataset2vec
from metajax.models.networks import conv4
from metajax.models.normalization import calibrate
from metajax.plots import TaskMap, plot_task_maps, task_places
from metajax.tasks.images.class_table import ClassTable
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.loaders import from_arrays
from metajax.tasks.images.omniglot import omniglot
from metajax.tasks.tables.table_pairs import TablePairs, table_pairs
from metajax.tasks.tables.tables import Table
from metajax.training.trainer import train
from metajax.types import Examples, Learner, Model, PyTree

TITLE, FILES = "Maps of tasks", "task-map"
"""Of its part of the page of results, and the results that it shows."""

WAY, SHOT = 3, 10
ROWS, MAX_COLUMNS = (20, 200), 24
# They say, or follow from, the numbers of rows, columns and classes.
COUNTS = (
    "log_rows",
    "log_columns",
    "log_rows_per_column",
    "log_classes",
    "smallest_class",
    "largest_class",
    "class_entropy",
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the comparison is made of; numbers of tasks are of each half."""

    seed: int = 0
    probe_steps: int = 500
    probe_features: int = 32
    tasks_per_domain: int = 20
    tasks_per_alphabet: int = 8
    num_alphabets: int = 20
    strength: float = 1.0
    """Of the head of Task2Vec: the best of 0.001, 0.01, 0.1 and 1 on other tasks, with
    classes in other halves, but of the same domains and alphabets."""
    folds: int = 4
    samples_per_table: int = 10
    num_tables: int | None = None
    """The first of them only; None for all."""
    outer_steps: int = 1000
    outer_rate: float = 1e-3
    """At the start of a cosine."""
    tasks_per_step: int = 16
    num_pairs: int = 500
    """Tasks to test Dataset2Vec with, of each fold."""
    tasks_per_table: int = 10
    """Of the warm start."""
    num_neighbors: tuple[int, ...] = (10, 50, 200)
    """Of the warm start, to choose from."""


class Places(NamedTuple):
    """Tasks to be recognised.

    Attributes:
      labels: `[T]`, where each is from.
      is_reference: bool `[T]`.
    """

    labels: np.ndarray
    is_reference: np.ndarray

    def neighbors(self, distances: np.ndarray) -> dict[str, float]:
        """Accuracy of the nearest reference for each label, from `[T, T]`."""
        distances = distances[~self.is_reference][:, self.is_reference]
        found = self.labels[self.is_reference][np.argmin(distances, axis=1)]
        truth = self.labels[~self.is_reference]
        return {
            str(label): float(np.mean(found[truth == label] == label))
            for label in dict.fromkeys(truth)
        }


def main(settings: Settings) -> None:
    """Measures, draws the maps and writes the result."""
    rows: list[dict[str, Any]] = []
    maps: list[TaskMap] = []
    for found in (*images(settings), *tables(settings)):
        (maps if isinstance(found, TaskMap) else rows).append(found)
    RESULTS.mkdir(exist_ok=True)
    plot_task_maps(RESULTS / "task-map.png", maps)
    write_result("task-map", dataclasses.asdict(settings), rows)


def neighbors_row(
    of: str, name: str, found: dict[str, float], chance: float
) -> dict[str, Any]:
    """A row of the result: accuracies of each label, and their mean."""
    row = {"part": "neighbours", "of": of, "representation": name, "chance": chance}
    row |= interval(np.asarray(list(found.values())))
    print(row, flush=True)
    return row | {"each": found}


# Images.


def images(settings: Settings) -> Iterator[Any]:
    """Rows of the result, and maps, for tasks of images."""
    supports, names, is_reference = draw_images(settings)
    probe = conv4(features=settings.probe_features, normalization="calibrated")
    random, trained = train_probe(settings, probe)
    print(f"{len(names)} tasks of images", flush=True)
    distances = image_distances(settings, probe, random, trained, supports)

    is_omniglot = np.asarray([name.startswith("Omniglot") for name in names])
    # As many tasks of Omniglot as of another domain, from all alphabets in turn.
    order = np.argsort(_rank_within(names, is_reference), kind="stable")
    few = np.zeros(len(names), bool)
    for part in (True, False):
        chosen = order[(is_omniglot & (is_reference == part))[order]]
        few[chosen[: settings.tasks_per_domain]] = True
    for of, is_used, labels in (
        ("domain", few | ~is_omniglot, np.where(is_omniglot, "Omniglot", names)),
        ("alphabet", is_omniglot, np.char.replace(names, "Omniglot ", "")),
    ):
        places = Places(labels[is_used], is_reference[is_used])
        chance = 1 / len(np.unique(places.labels))
        for name, between in distances.items():
            found = places.neighbors(between[np.ix_(is_used, is_used)])
            yield neighbors_row(of, name, found, chance)
        between = distances["Task2Vec"][np.ix_(is_used, is_used)]
        yield TaskMap(
            f"Tasks of images by Task2Vec: {of}",
            task_places(between, seed=settings.seed),
            places.labels.tolist(),
        )


def draw_images(settings: Settings) -> tuple[Examples, np.ndarray, np.ndarray]:
    """Support sets `[T, WAY * SHOT, 28, 28, 1]`, where from, and whether reference."""
    x, names, is_reference = [], [], []
    sources = read_domains() | read_alphabets(settings.num_alphabets)
    for number, (name, table) in enumerate(sources.items()):
        generator = np.random.default_rng([settings.seed, number])
        is_alphabet = name.startswith("Omniglot")
        num = settings.tasks_per_alphabet if is_alphabet else settings.tasks_per_domain
        every, counts = np.asarray(table.images), np.asarray(table.counts)
        classes = generator.permutation(len(counts))
        for part, half in enumerate(np.split(classes, [len(classes) // 2])):
            for _ in range(num):
                for row in generator.choice(half, WAY, replace=False):
                    columns = generator.choice(counts[row], SHOT, replace=False)
                    x.append(every[row, columns])
                names.append(name)
                is_reference.append(part == 0)
    images = np.asarray(x, np.float32).reshape(-1, WAY * SHOT, *x[0].shape[1:]) / 255
    labels = np.tile(np.repeat(np.arange(WAY, dtype=np.int32), SHOT), (len(images), 1))
    return Examples(images, labels), np.asarray(names), np.asarray(is_reference)


def _rank_within(names: np.ndarray, is_reference: np.ndarray) -> np.ndarray:
    """Place of each task among those of its name and half."""
    ranks = np.zeros(len(names), int)
    for name in np.unique(names):
        for part in (True, False):
            members = np.flatnonzero((names == name) & (is_reference == part))
            ranks[members] = np.arange(len(members))
    return ranks


def read_domains() -> dict[str, ClassTable]:
    """Images of 28 x 28 in grey, by domain, without Omniglot."""
    folder = pathlib.Path(os.environ["METAJAX_DATA_DIR"], "image_domains")
    names = {
        "Devanagari": "devanagari_46x300",
        "sign digits": "sign_digits",
        "clothing": "clothing_small",
        "CIFAR-10": "cifar10_test500",
    }
    tables = {}
    for name, file in names.items():
        with np.load(folder / f"{file}_32x32.npz") as arrays:
            grey = arrays["images"][:, 2:30, 2:30].mean(axis=-1).round()
            tables[name] = from_arrays(grey.astype(np.uint8), arrays["labels"])
    return tables | {"MNIST": READERS["mnist"]()}


def read_alphabets(count: int) -> dict[str, ClassTable]:
    """Tables of single alphabets of Omniglot that the probe does not see."""
    table = omniglot("meta_test", protocol="lake", rotations=1)
    assert table.class_names is not None
    alphabets = [name.split("/")[0] for name in table.class_names]
    return {
        f"Omniglot {alphabet.replace('_', ' ')}": table.take(
            [row for row, name in enumerate(alphabets) if name == alphabet]
        )
        for alphabet in list(dict.fromkeys(alphabets))[:count]
    }


def train_probe(settings: Settings, probe: Model) -> tuple[PyTree, PyTree]:
    """Parameters of the probe before and after training, with frozen statistics."""
    table = omniglot("meta_train", protocol="lake")
    tasks = few_shot(table, way=20, shot=1, num_queries=5)
    learner = prototypical(probe)
    key = jax.random.key(settings.seed)
    random = learner.init(key, tasks(key))
    schedule = optax.cosine_decay_schedule(1e-3, settings.probe_steps)
    result = train(
        learner,
        tasks,
        optax.adam(schedule),
        steps=settings.probe_steps,
        tasks_per_step=1,
        seed=settings.seed,
        log_every=max(1, settings.probe_steps // 10),
        run_dir=f"runs/task-map-probe-seed{settings.seed}",
        checkpoint_every=100,
        progress=False,
    )
    print(result.history[-1], flush=True)
    first, last = (
        calibrate(probe, params, tasks, key) for params in (random, result.meta_params)
    )
    return first, last


def image_distances(
    settings: Settings,
    probe: Model,
    random: PyTree,
    trained: PyTree,
    supports: Examples,
) -> dict[str, np.ndarray]:
    """Distances `[T, T]` by the name of a representation."""
    pixels = supports.x.reshape(len(supports.y), -1)
    means = np.asarray(_mean_embeddings(probe, trained, supports.x))
    distances = {}
    for name, params in (("Task2Vec", trained), ("Task2Vec, random probe", random)):
        vectors = _task_vectors(probe, params, supports, settings.strength)
        print(name, "residual of heads", float(vectors.residual.max()), flush=True)
        distances[name] = np.asarray(_fisher_distances(vectors.fisher))
    distances["mean embedding"] = between(means, np.sqrt(np.sum(means.var(axis=0))))
    summary = np.stack([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
    return distances | {"pixels": between(summary, summary.std(axis=0))}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _task_vectors(
    probe: Model, params: PyTree, supports: Examples, strength: float
) -> TaskVector:
    # One task at a time, as all their gradients would not fit a small memory.
    def one(support: Examples) -> TaskVector:
        return task2vec(probe, params, support, way=WAY, strength=strength)

    return jax.lax.map(one, supports)


@jax.jit
def _fisher_distances(fisher: jax.Array) -> jax.Array:
    return jax.lax.map(lambda f: symmetric_distance(f[None], fisher), fisher)


@functools.partial(jax.jit, static_argnums=0)
def _mean_embeddings(probe: Model, params: PyTree, x: Any) -> jax.Array:
    return jax.lax.map(lambda x: jnp.mean(probe.apply(params, x), axis=0), x)


def between(features: np.ndarray, scale: Any, order: int = 2) -> np.ndarray:
    """Distances `[T, T]` of features `[T, F]` by scales, 0 for those to leave out."""
    scaled = features * np.where(scale > 0, 1 / np.where(scale > 0, scale, 1), 0)
    return np.linalg.norm(scaled[:, None] - scaled[None], ord=order, axis=-1)


# Tables.


def tables(settings: Settings) -> Iterator[Any]:
    """Rows of the result, and maps, for tables."""
    every = read_tables(settings.num_tables)
    names = np.asarray([table.name for table in every])
    num_classes = max(len(table.class_names) for table in every)
    learner = dataset2vec(num_classes=num_classes)
    # Two lists for each table, reference and tested samples, of the same shapes.
    samples = [draw_samples(settings, i, table) for i, table in enumerate(every)]
    labels = np.repeat(names, 2 * settings.samples_per_table)
    half = [True, False]
    is_reference = np.tile(np.repeat(half, settings.samples_per_table), len(every))
    designed = np.concatenate(
        [
            describe(table, drawn)
            for table, halves in zip(every, samples, strict=True)
            for drawn in halves
        ]
    )
    is_count = np.isin(META_FEATURES, COUNTS)
    only = np.isin(META_FEATURES, ("log_columns", "log_classes"))

    warm = recommend_trees.Settings(settings.seed, settings.tasks_per_table)
    measured = recommend_trees.measure(warm, every)
    found: dict[str, dict[str, float]] = {}
    chances, pairs = [], []
    learned: dict[str, np.ndarray] = {}
    folds = kernel_svm.deal(names, folds=settings.folds, seed=settings.seed)
    for fold, is_test in enumerate(folds):
        held_out = np.isin(labels, names[is_test])
        meta_params, first = learn(settings, learner, every, is_test, fold)
        features = {
            "Dataset2Vec": embed(learner, meta_params, every, samples),
            "Dataset2Vec, not trained": embed(learner, first, every, samples),
            "meta-features": designed,
            "meta-features without counts": designed[:, ~is_count],
            "columns and classes": designed[:, only],
        }
        places = Places(labels[held_out], is_reference[held_out])
        chances.append(1 / np.sum(is_test))
        distances = {}
        for name, values in features.items():
            scale = values[~held_out].std(axis=0)
            distances[name] = between(values[held_out], scale, order=1)
            found.setdefault(name, {}).update(places.neighbors(distances[name]))
        pairs.append(test_pairs(settings, learner, meta_params, every, is_test))
        own = [
            [recommend_trees.draw_supports(warm, table, number)]
            for number, table in enumerate(every)
        ]
        learned |= dict.fromkeys(
            np.unique(measured.groups[np.isin(measured.tables, names[is_test])]),
            embed(learner, meta_params, every, own),
        )
        if fold == 0:
            for name in ("meta-features", "Dataset2Vec"):
                yield TaskMap(
                    f"Samples of held-out tables by {name}",
                    task_places(distances[name], seed=settings.seed),
                    places.labels.tolist(),
                )
    for name, each in found.items():
        yield neighbors_row("table", name, each, float(np.mean(chances)))
    for key in ("accuracy", "nll"):
        values = np.asarray([fold[key] for fold in pairs])
        row = {"part": "pairs", "metric": key} | interval(values)
        print(row, flush=True)
        yield row
    yield from warm_start(settings, measured, learned)


def draw_samples(
    settings: Settings, number: int, table: Table
) -> list[list[np.ndarray]]:
    """Rows of reference samples, and of tested ones, from two halves of a table."""
    generator = np.random.default_rng([settings.seed, number, 1])
    halves = np.array_split(generator.permutation(len(table.y)), 2)

    def draw(half: np.ndarray) -> np.ndarray:
        most = min(ROWS[1], len(half))
        size = int(np.exp(generator.uniform(np.log(ROWS[0]), np.log(most))))
        return generator.choice(half, size, replace=False)

    return [[draw(half) for _ in range(settings.samples_per_table)] for half in halves]


def learn(
    settings: Settings,
    learner: Learner,
    every: list[Table],
    is_test: np.ndarray,
    fold: int,
) -> tuple[PyTree, PyTree]:
    """Meta-parameters of Dataset2Vec after training and before."""
    pairs = pairs_of(every, ~is_test)
    schedule = optax.cosine_decay_schedule(settings.outer_rate, settings.outer_steps)
    result = train(
        learner,
        pairs,
        optax.adam(schedule),
        steps=settings.outer_steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        log_every=max(1, settings.outer_steps // 10),
        run_dir=f"runs/task-map-fold{fold}-seed{settings.seed}",
        checkpoint_every=250,
        progress=False,
    )
    print(f"fold {fold}", result.history[-1], flush=True)
    key = jax.random.key(settings.seed)
    return result.meta_params, learner.init(key, pairs(key))


def pairs_of(every: list[Table], is_used: np.ndarray) -> TablePairs:
    """Pairs of some of the tables."""
    chosen = [table for table, used in zip(every, is_used, strict=True) if used]
    return table_pairs(chosen, rows=ROWS, max_columns=MAX_COLUMNS)


def test_pairs(
    settings: Settings,
    learner: Learner,
    meta_params: PyTree,
    every: list[Table],
    is_test: np.ndarray,
) -> dict[str, float]:
    """Metrics on pairs of held-out tables."""
    pairs = pairs_of(every, is_test)
    return evaluate(learner, meta_params, pairs, num_tasks=settings.num_pairs).mean


def embed(
    learner: Learner,
    meta_params: PyTree,
    every: list[Table],
    samples: list[list[list[np.ndarray]]],
) -> np.ndarray:
    """Embeddings `[samples of all tables, size]`."""
    return np.concatenate(
        [
            np.asarray(_embed(learner, meta_params, pack(table, drawn)))
            for table, lists in zip(every, samples, strict=True)
            for drawn in lists
        ]
    )


@functools.partial(jax.jit, static_argnums=0)
def _embed(learner: Learner, meta_params: PyTree, supports: Examples) -> jax.Array:
    return jax.lax.map(lambda s: learner.adapt(meta_params, s).embedding, supports)


def warm_start(
    settings: Settings,
    measured: recommend_trees.Measured,
    learned: dict[str, np.ndarray],
) -> Iterator[dict[str, Any]]:
    """Rows of the result: regret by each representation."""
    features: dict[str, Callable[[str], np.ndarray]] = {
        "meta-features": lambda group: measured.features,
        "Dataset2Vec": lambda group: learned[group],
        "both": lambda group: np.concatenate(
            [measured.features, learned[group]], axis=1
        ),
    }
    names = np.unique(measured.tables)
    means: dict[str, np.ndarray] = {}
    for name, features_for in features.items():
        regrets, _ = recommend_trees.all_curves(
            measured, settings.num_neighbors, features_for, ("portfolio",)
        )
        for method, key in (
            ("default", "default, portfolio"),
            ("random", "random"),
            (name, "warm start, portfolio"),
        ):
            curves = regrets[key]
            means[method] = np.stack(
                [curves[measured.tables == table].mean(axis=0) for table in names]
            )
    for trials in (1, 5):
        for method, curves in means.items():
            values = curves[:, trials - 1]
            row: dict[str, Any] = {"part": "warm start", "trials": trials}
            row |= {"features": method} | interval(values)
            if method in ("Dataset2Vec", "both"):
                lower = means["meta-features"][:, trials - 1] - values
                row["lower_than_meta_features_by"] = interval(lower) | signs(lower)
            print(row, flush=True)
            yield row


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    texts = {
        "domain": (
            "Six domains of images; reference tasks have other classes of the domain; "
            "± over domains:\n"
        ),
        "alphabet": "The same for alphabets of Omniglot; ± over alphabets:\n",
        "table": (
            f"Samples of {settings['folds']} folds of held-out PMLB tables, to be "
            "found among those of their fold; ± over tables:\n"
        ),
    }
    parts = [
        "Accuracy in percent with which the nearest reference task says where a task "
        "is from; what is compared is said in `benchmarks/task_map.py`.\n"
    ]
    for of, text in texts.items():
        found = [r for r in results if r.get("of") == of]
        rows = [[r["representation"], interval_cell(r, 1, 100)] for r in found]
        rows.append(["chance", f"{100 * found[0]['chance']:.1f}"])
        parts += [text, markdown(["representation", "accuracy"], rows)]
    pairs = {r["metric"]: r for r in results if r["part"] == "pairs"}
    parts += [
        "Dataset2Vec, asked whether two samples are of one held-out table, is right in "
        f"{interval_cell(pairs['accuracy'], 1, 100)} % of balanced pairs, at "
        f"{interval_cell(pairs['nll'], 3)} nats; ± over folds.\n",
        picture(path),
        "The warm start of decision trees (see above) by other features of tasks; "
        "normalised regret, ± over tables, differences paired:\n",
    ]
    rows = []
    for r in results:
        if r["part"] == "warm start":
            row = [r["trials"], r["features"], interval_cell(r, 3), ""]
            if "lower_than_meta_features_by" in r:
                lower = r["lower_than_meta_features_by"]
                row[-1] = f"{interval_cell(lower, 3)} ({signs_cell(lower)})"
            rows.append(row)
    header = ["trials", "features", "regret", "lower than by meta-features"]
    return "\n".join([*parts, markdown(header, rows)])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
