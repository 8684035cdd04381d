"""Learners trained on two domains and tested on six, with ranks.

    python -m benchmarks.domains
    python -m benchmarks.domains --learners ridge svm

Each is trained by itself on tasks of variable way and shot (Meta-Dataset's protocol
with 5 to 20 classes, at most 100 support images and 5 queries a class), half of them of
the meta-train characters of Omniglot (Vinyals split) and half of glyphs, both with
quarter turns as classes. `maml` has a head and takes 3 tasks of 5 classes instead of
one; `baseline` classifies all classes of both at once, on as many images a step, and
then takes nearest centroids.

All have the same small Conv-4 (Relation Networks with two poolings and maps),
optimizer and number of steps. Normalisation: statistics of training that are frozen
afterwards; learners that adapt the network (`maml`, `proto_maml`) take those of the
support set. So all are inductive. Schedules are short: this is a comparison under one
small budget and not with papers.

They are tested on the meta-test characters of Omniglot and on five domains that they
have not seen, 5-way 1-shot and 5-shot with 15 queries, and by Meta-Dataset's protocol
(5 to 50 classes, at most 500 support images, 10 queries; `maml` cannot take part). All
answer the same tasks, which is what the intervals of differences behind the ranks are
made of. Of every class of a domain the first 500 images are used.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import tyro

from benchmarks.calibrated import calibrated
from benchmarks.images import READERS, at_most, read
from benchmarks.pages import Named, markdown, picture
from benchmarks.record import RESULTS, kept, training_settings, write_result
from metajax.checks import check_choice
from metajax.evaluation.bank import evaluate
from metajax.evaluation.ranks import rank_learners
from metajax.evaluation.reports import Report
from metajax.learners.gradient.maml import maml
from metajax.learners.gradient.proto_maml import proto_maml
from metajax.learners.metric.baseline import baseline
from metajax.learners.metric.feat import feat
from metajax.learners.metric.matching import matching
from metajax.learners.metric.prototypical import prototypical
from metajax.learners.metric.relation import relation
from metajax.learners.solver.ridge import ridge
from metajax.learners.solver.svm import svm
from metajax.models.networks import conv4, identity
from metajax.tasks.buckets import Bucket, bucketed, fit_buckets
from metajax.tasks.images.class_table import ClassTable, class_table, join_classes
from metajax.tasks.images.embedded import embed_table, without_embedding
from metajax.tasks.images.few_shot import few_shot, whole_classes
from metajax.tasks.images.glyphs import glyphs
from metajax.tasks.images.omniglot import omniglot
from metajax.tasks.images.variable_tasks import meta_dataset_tasks
from metajax.tasks.mixtures import mixture
from metajax.training.trainer import train
from metajax.types import Learner, Model, PyTree

TITLE, FILES = "Several domains, variable way and shot", "domains"
"""Of its part of the page of results, and the results that it shows."""

MAKERS: dict[str, Callable[[Model, int, int], Learner]] = {
    "prototypical": lambda model, way, classes: prototypical(model, way=way),
    "matching": lambda model, way, classes: matching(model, way=way),
    "relation": lambda model, way, classes: relation(model, way=way, features=32),
    "feat": lambda model, way, classes: feat(model, way=way),
    "ridge": lambda model, way, classes: ridge(model, way=way),
    "svm": lambda model, way, classes: svm(model, way=way, iterations=100),
    "proto_maml": lambda model, way, classes: proto_maml(
        model, optax.sgd(0.01), inner_steps=3, way=way, gradient="first_order"
    ),
    "maml": lambda model, way, classes: maml(
        model, optax.sgd(0.1), inner_steps=3, eval_inner_steps=5, gradient="first_order"
    ),
    "baseline": lambda model, way, classes: baseline(
        model, num_classes=classes, way=way, head="centroid"
    ),
}
ADAPT_THE_NETWORK = ("maml", "proto_maml")
PROTOCOLS = ("5-way 1-shot", "5-way 5-shot", "variable")
MOST = 500


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all learners share."""

    learners: tuple[str, ...] = tuple(MAKERS)
    domains: tuple[str, ...] = tuple(READERS)
    seed: int = 0
    outer_steps: int = 1500
    outer_rate: float = 1e-3
    """At the start of a cosine."""
    features: int = 32
    way: int = 20
    num_glyphs: int = 1024
    """Classes of glyphs, before quarter turns."""
    num_test_tasks: int = 400
    num_variable_tasks: int = 200


def main(settings: Settings) -> None:
    """Trains, tests, ranks and writes the result."""
    for name in settings.learners:
        check_choice(MAKERS, learner=name)
    tables = {n: at_most(t, MOST) for n, t in read(settings.domains).items()}
    tables |= {"omniglot": omniglot("meta_test")} if "omniglot" in tables else {}
    sources = [omniglot("meta_train"), glyph_table(settings)]
    reports: dict[str, dict[str, dict[str, Report]]] = {p: {} for p in PROTOCOLS}
    for name in settings.learners:
        for protocol, of_domains in one_learner(
            name, settings, sources, tables
        ).items():
            reports[protocol][name] = of_domains
        jax.clear_caches()
    rows = []
    for protocol, of_learners in reports.items():
        # Embeddings in place of images are other numbers; `cached` has checked that
        # the tasks are the same.
        ranking = rank_learners(of_learners, check_tasks=False)
        print(f"{protocol}\n{ranking}\n", flush=True)
        rows.append({"protocol": protocol} | ranking.to_json())
    draw(rows, RESULTS / "domains.png")
    write_result("domains", dataclasses.asdict(settings), rows)


def one_learner(
    name: str,
    settings: Settings,
    sources: list[ClassTable],
    tables: dict[str, ClassTable],
) -> dict[str, dict[str, Report]]:
    """Reports by protocol and domain; those of a finished run are read again."""
    folder = pathlib.Path(f"runs/domains-seed{settings.seed}/{name}")

    def train_and_test() -> dict[str, dict[str, Report]]:
        model, meta_params = trained(name, settings, sources, folder)
        return tested(name, model, meta_params, settings, sources, tables)

    asked = training_settings(settings, "learners")
    return kept(folder / "reports.pickle", asked, train_and_test)


def trained(
    name: str, settings: Settings, sources: list[ClassTable], folder: pathlib.Path
) -> tuple[Model, PyTree]:
    """The model and meta-parameters of one learner."""
    has_head = name == "maml"
    model = conv4(
        5 if has_head else None,
        features=settings.features,
        pooling="maps" if name == "relation" else "max",
        normalization="support" if name in ADAPT_THE_NETWORK else "calibrated",
    )
    way = 5 if has_head else settings.way
    kinds = [
        meta_dataset_tasks(
            table, way=(5, way), max_support=25 if has_head else 100, num_queries=5
        )
        for table in sources
    ]
    tasks: Any = mixture(kinds)
    num_classes = sum(table.num_classes for table in sources)
    learner = MAKERS[name](model, way, num_classes)
    buckets: tuple[Bucket, ...] = ()
    if name == "baseline":
        tasks = whole_classes(join_classes(sources), batch_size=6 * way)
    else:
        buckets = fit_buckets(tasks, 2, jax.random.key(0))
    schedule = optax.cosine_decay_schedule(settings.outer_rate, settings.outer_steps)
    result = train(
        bucketed(learner, buckets) if buckets else learner,
        tasks,
        optax.adam(schedule),
        steps=settings.outer_steps,
        tasks_per_step=3 if has_head else 1,
        tasks_per_block=1,
        seed=settings.seed,
        log_every=100,
        checkpoint_every=250,
        run_dir=folder,
        config=dataclasses.asdict(settings) | {"learner": name, "learners": None},
    )
    meta_params = result.meta_params
    if model.normalization == "calibrated":
        meta_params = calibrated(model, meta_params, tasks, settings.seed)
    return model, meta_params


def tested(
    name: str,
    model: Model,
    meta_params: PyTree,
    settings: Settings,
    sources: list[ClassTable],
    tables: dict[str, ClassTable],
) -> dict[str, dict[str, Report]]:
    """Reports by protocol and domain."""
    num_classes = sum(table.num_classes for table in sources)
    keeps_images = name == "relation" or name in ADAPT_THE_NETWORK
    params = getattr(meta_params, "embedding", meta_params)
    head_params = meta_params if keeps_images else without_embedding(meta_params)
    # One learner for all tasks of one way, so that programs are shared.
    learner_of = functools.cache(
        lambda way: MAKERS[name](
            model if keeps_images else identity(), way, num_classes
        )
    )
    buckets_of: dict[tuple[int, int], tuple[Bucket, ...]] = {}
    reports: dict[str, dict[str, Report]] = {p: {} for p in PROTOCOLS}
    for domain, table in tables.items():
        held = table if keeps_images else cached(model, params, table)
        for protocol in PROTOCOLS:
            if protocol == "variable":
                if name == "maml":
                    continue
                tasks: Any = meta_dataset_tasks(held)
                way, num = tasks.way[1], settings.num_variable_tasks
                shape = (way, tasks.support_rows)
                if shape not in buckets_of:  # those of the first domain serve others
                    buckets_of[shape] = fit_buckets(tasks, 3, jax.random.key(0))
                buckets = buckets_of[shape]
            else:
                shot = int(protocol[6])
                tasks = few_shot(held, way=5, shot=shot, num_queries=15)
                way, num = 5, settings.num_test_tasks
                buckets = ()
            report = evaluate(
                learner_of(way),
                head_params,
                tasks,
                num_tasks=num,
                buckets=buckets,
                check_leakage=protocol == PROTOCOLS[0],
            )
            print(f"{name}, {domain}, {protocol}: {report}", flush=True)
            reports[protocol][domain] = report
        # Measured once for each domain; the rest follows.
        for protocol in PROTOCOLS[1:]:
            if domain in reports[protocol]:
                reports[protocol][domain] = dataclasses.replace(
                    reports[protocol][domain],
                    protocol=reports[PROTOCOLS[0]][domain].protocol,
                )
    return {p: found for p, found in reports.items() if found}


def cached(model: Model, params: PyTree, table: ClassTable) -> ClassTable:
    """Embeddings of a table; its tasks have the same indices as those of the images."""
    features = embed_table(model, params, table)
    keys = jax.random.split(jax.random.key(1), 20)
    drawn = [
        jax.jit(lambda tasks, keys: jax.vmap(tasks.indices)(keys))(
            meta_dataset_tasks(kind), keys
        )
        for kind in (table, features)
    ]
    jax.tree.map(np.testing.assert_array_equal, *drawn)
    return features


def glyph_table(settings: Settings) -> ClassTable:
    """A table of drawn characters, 20 of each as in Omniglot, with quarter turns."""
    together = 32
    tasks = glyphs(way=together, shot=20, num_queries=1)
    keys = jax.random.split(jax.random.key(1), -(-settings.num_glyphs // together))
    images = jax.lax.map(lambda key: tasks(key).support.x, keys)
    images = np.round(255 * np.asarray(images)).astype(np.uint8)
    images = images.reshape(-1, 20, *images.shape[2:])[: settings.num_glyphs]
    return class_table(images, rotations=4)


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Accuracies with their intervals, one panel for each protocol."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1,
        len(rows),
        figsize=(4.2 * len(rows), 1 + 1.25 * len(rows[0]["domains"])),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    names = list(rows[0]["learners"])
    colours, markers = plt.get_cmap("tab10"), "osD^vP*Xh"
    for panel, row in zip(axes[0], rows, strict=True):
        for number, name in enumerate(names):
            if name not in row["learners"]:
                continue
            found = row["learners"][name]
            shift = 0.7 * (number / max(len(names) - 1, 1) - 0.5)
            panel.errorbar(
                100 * np.array(found["mean"]),
                np.arange(len(row["domains"])) + shift,
                xerr=100 * np.array(found["half_width_95"]),
                fmt=markers[number % len(markers)],
                color=colours(number % 10),
                markersize=4.5,
                elinewidth=1,
                label=name,
            )
        for line in np.arange(len(row["domains"]) - 1) + 0.5:
            panel.axhline(line, color="0.85", linewidth=0.8)
        panel.set(title=row["protocol"], xlabel="accuracy, %")
        panel.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(rows[0]["domains"])), rows[0]["domains"])
    axes[0, 0].invert_yaxis()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    parts = [
        "Accuracy in percent, and the rank in brackets, of learners that were trained "
        f"on Omniglot and glyphs for {settings['outer_steps']:,} steps; all other "
        "domains are new to them. Ranks as on Meta-Dataset's leaderboard: those "
        "whose paired difference from the best has a 95 % interval that holds 0 share "
        "a rank, and so on with the rest. All learners are inductive and answered the "
        f"same tasks: {settings['num_test_tasks']} of each domain, "
        f"{settings['num_variable_tasks']} with variable way and shot.\n"
    ]
    for row in results:
        parts.append(f"{row['protocol'][0].upper()}{row['protocol'][1:]}:\n")
        learners = row["learners"]
        rows = [
            [
                name,
                *(
                    f"{100 * mean:.1f} ± {100 * width:.1f} ({rank:g})"
                    for mean, width, rank in zip(
                        found["mean"],
                        found["half_width_95"],
                        found["rank"],
                        strict=True,
                    )
                ),
                f"{found['average_rank']:.2f}",
            ]
            for name, found in sorted(
                learners.items(), key=lambda item: item[1]["average_rank"]
            )
        ]
        parts.append(markdown(["learner", *row["domains"], "average rank"], rows))
    parts.append(picture(path))
    return "\n".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
