"""Learners of an embedding and a head, on the same Omniglot tasks.

    python -m benchmarks.embeddings
    python -m benchmarks.embeddings --learners ridge svm

Each is trained by itself, with the same Conv-4 (Relation Networks with two poolings
and maps), the same tasks, optimizer and number of steps, on 20-way 1-shot tasks of the
Vinyals split with quarter turns as classes, and tested on the same tasks as
Prototypical Networks: `better_by` is the mean difference over tasks with the half-width
of its 95 % interval. Statistics of normalisation are frozen after training, so all but
label propagation are inductive. `graph` has one way only: it is trained and tested on
5-way tasks. `baseline` learns all classes at once, on as many images a step.

Schedules are short: a comparison of learners under one budget, not with their papers.
Test embeddings are computed once for each trained model. `benchmarks.readers` has the
learners of `metajax.learners.memory`.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
import tyro

from benchmarks.calibrated import calibrated
from benchmarks.intervals import interval
from benchmarks.pages import Named, beside_reference
from benchmarks.record import kept, training_settings, write_result
from metajax.checks import check_choice
from metajax.evaluation.bank import evaluate
from metajax.evaluation.reports import Report
from metajax.learners.metric.baseline import baseline
from metajax.learners.metric.feat import feat
from metajax.learners.metric.matching import matching
from metajax.learners.metric.prototypical import prototypical
from metajax.learners.metric.relation import relation
from metajax.learners.representation.graph import graph
from metajax.learners.representation.label_propagation import label_propagation
from metajax.learners.solver.logistic import logistic
from metajax.learners.solver.ridge import ridge
from metajax.learners.solver.svm import svm
from metajax.models.networks import Pooling, conv4, identity
from metajax.tasks.images.embedded import embed_table, without_embedding
from metajax.tasks.images.few_shot import few_shot, whole_classes
from metajax.tasks.images.omniglot import omniglot
from metajax.training.trainer import train
from metajax.types import Learner, Model

TITLE, FILES = "Embeddings with heads", "embeddings"
"""Of its part of the page of results, and the results that it shows."""

NAME, REFERENCE = "embeddings", "prototypical"
PROTOCOLS = ((5, 1), (5, 5), (20, 1), (20, 5))
MAKERS: dict[str, Callable[[Model, int], Learner]] = {
    REFERENCE: lambda model, way: prototypical(model, way=way),
    "matching": lambda model, way: matching(
        model, way=way, similarity="squared_euclidean"
    ),
    "matching, cosine": lambda model, way: matching(model, way=way),
    "matching, cosine without temperature": lambda model, way: matching(
        model, way=way, scale=1.0, learn_scale=False
    ),
    "matching, full context": lambda model, way: matching(
        model, way=way, full_context=True
    ),
    "relation": lambda model, way: relation(model, way=way),
    "feat": lambda model, way: feat(model, way=way),
    "ridge": lambda model, way: ridge(model, way=way),
    "ridge, strength not learned": lambda model, way: ridge(
        model, way=way, learn_strength=False
    ),
    "ridge, strength and scale 1": lambda model, way: ridge(
        model, way=way, strength=1.0, scale=1.0
    ),
    "logistic": lambda model, way: logistic(model, way=way),
    "svm": lambda model, way: svm(model, way=way),
    "label_propagation": lambda model, way: label_propagation(model, way=way),
    "graph": lambda model, way: graph(model, way=way),
    "baseline": lambda model, way: baseline(model, num_classes=4112, way=way),
    "baseline, cosine": lambda model, way: baseline(
        model, num_classes=4112, way=way, head="cosine"
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all learners share."""

    learners: tuple[str, ...] = tuple(MAKERS)
    seed: int = 0
    outer_steps: int = 1500
    outer_rate: float = 1e-3
    """At the start of a cosine."""
    way: int = 20
    num_queries: int = 5
    num_test_tasks: int = 1000


def main(settings: Settings) -> None:
    """Trains, tests, compares and writes the result."""
    for name in settings.learners:
        check_choice(MAKERS, learner=name)
    names = [REFERENCE, *(n for n in settings.learners if n != REFERENCE)]
    rows: list[dict[str, Any]] = []
    reference: dict[tuple[int, int], Report] = {}
    for name in names:
        for protocol, report in one_learner(name, settings).items():
            row: dict[str, Any] = {
                "learner": name,
                "way": protocol[0],
                "shot": protocol[1],
                "protocol": report.protocol,
                "mean": report.mean["accuracy"],
                "half_width": report.half_width["accuracy"],
                "nll": report.mean["nll"],
            }
            if name == REFERENCE:
                reference[protocol] = report
            else:
                # `compare` would see other numbers in the tasks: other embeddings.
                values, others = (
                    r.values["accuracy"] for r in (report, reference[protocol])
                )
                row["better_by"] = interval(values - others)
            print(row, flush=True)
            rows.append(row)
        jax.clear_caches()
    write_result(NAME, dataclasses.asdict(settings), rows)


def one_learner(name: str, settings: Settings) -> dict[tuple[int, int], Report]:
    """Reports of one learner by way and shot; those of a finished run are read again.

    Two processes with different learners may share the folder.
    """
    folder = pathlib.Path(f"runs/{NAME}-seed{settings.seed}") / name.replace(" ", "-")
    return kept(
        folder / "reports.pickle",
        training_settings(settings, "learners"),
        lambda: train_and_test(name, settings, folder),
    )


def train_and_test(
    name: str, settings: Settings, folder: pathlib.Path
) -> dict[tuple[int, int], Report]:
    """Trains one learner in a folder and tests it."""
    is_baseline = name.startswith("baseline")
    has_one_way = name == "graph"
    way = 5 if has_one_way else settings.way
    pooling: Pooling = "maps" if name == "relation" else "max"
    model = conv4(pooling=pooling, normalization="calibrated")
    table = omniglot("meta_train")
    tasks: Any = few_shot(table, way=way, shot=1, num_queries=settings.num_queries)
    num_images = settings.way * (1 + settings.num_queries)
    if is_baseline:
        tasks = whole_classes(table, batch_size=num_images)
    learner = MAKERS[name](model, way)
    result = train(
        learner,
        tasks,
        optax.adam(
            optax.cosine_decay_schedule(settings.outer_rate, settings.outer_steps)
        ),
        steps=settings.outer_steps,
        tasks_per_step=settings.way // way,
        seed=settings.seed,
        log_every=100,
        checkpoint_every=250,
        run_dir=folder,
        config=training_settings(settings, "learners", learner=name),
    )
    meta_params = calibrated(model, result.meta_params, tasks, settings.seed)
    params = getattr(meta_params, "embedding", meta_params)
    test_table = omniglot("meta_test")
    if name != "relation":  # whose images are maps
        test_table = embed_table(model, params, test_table)
        model, meta_params = identity(), without_embedding(meta_params)
    reports = {}
    for test_way, shot in PROTOCOLS:
        if has_one_way and test_way != way:
            continue
        learner = MAKERS[name](model, test_way)
        test = few_shot(test_table, way=test_way, shot=shot, num_queries=15)
        num_tasks = settings.num_test_tasks
        reports[test_way, shot] = evaluate(
            learner, meta_params, test, num_tasks=num_tasks
        )
    return reports


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(_, record)] = records
    settings = record["settings"]
    text = (
        f"Omniglot, {settings['num_test_tasks']:,} tasks with 15 queries, after "
        f"{settings['outer_steps']:,} steps of one {settings['way']}-way 1-shot task "
        f"with {settings['num_queries']} queries, one seed; in brackets, how much "
        "better than `prototypical` on the same tasks. One short budget for all, see "
        "`benchmarks/embeddings.py`.\n\n"
    )
    return text + beside_reference(record["results"])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
