"""Networks that learn as they read, on the same embeddings of Omniglot.

    python -m benchmarks.readers
    python -m benchmarks.readers --learners snail in_context

Prototypical Networks are trained first, on 20-way 1-shot tasks of the Vinyals split
with quarter turns as classes. Their Conv-4 is then frozen and every image embedded
once; each learner of `metajax.learners.memory` is trained by itself on these
embeddings, scaled to a mean square of 1, on 5-way tasks of 1 to 5 shots, and tested on
the same tasks as Prototypical Networks: `better_by` is the mean difference over tasks
with the half-width of its 95 % interval. So what is compared is how support sets are
read, after `STEPS` steps each. `cnaps` needs a network to modulate and has one hidden
layer on the embeddings.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from benchmarks.calibrated import calibrated
from benchmarks.pages import Named, beside_reference
from benchmarks.record import training_settings, write_result
from metajax.checks import check_choice
from metajax.evaluation.bank import evaluate
from metajax.evaluation.reports import Report, compare
from metajax.learners.memory.class_np import class_np
from metajax.learners.memory.cnaps import cnaps
from metajax.learners.memory.in_context import in_context
from metajax.learners.memory.meta_net import meta_net
from metajax.learners.memory.mm_net import mm_net
from metajax.learners.memory.snail import snail
from metajax.learners.metric.prototypical import prototypical
from metajax.models.networks import conv4, identity, mlp
from metajax.tasks.images.class_table import ClassTable, class_table
from metajax.tasks.images.embedded import embed_table
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.omniglot import omniglot
from metajax.training.trainer import train
from metajax.types import Learner, PyTree

TITLE, FILES = "Networks that learn as they read", "readers"
"""Of its part of the page of results, and the results that it shows."""

NAME, REFERENCE = "readers", "prototypical"
WAY, SHOTS = 5, (1, 5)
MAKERS: dict[str, Callable[[], Learner]] = {
    "mm_net": lambda: mm_net(identity(), way=WAY),
    "class_np": lambda: class_np(identity(), way=WAY),
    "cnaps": lambda: cnaps(mlp(64, hidden_sizes=(64,), normalization="layer"), way=WAY),
    "in_context": lambda: in_context(identity(), way=WAY, context=25),
    "snail": lambda: snail(
        identity(), way=WAY, context=25, filters=32, keys=(32,) * 3, values=(32,) * 3
    ),
    "meta_net": lambda: meta_net(identity(), way=WAY),
}
# Steps that take a core half a minute to six: their work differs a hundredfold.
STEPS = {
    "mm_net": 10_000,
    "class_np": 20_000,
    "cnaps": 10_000,
    "in_context": 10_000,
    "snail": 2_000,
    "meta_net": 500,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all learners share."""

    learners: tuple[str, ...] = tuple(MAKERS)
    seed: int = 0
    embedding_way: int = 20
    embedding_steps: int = 1500
    tasks_per_step: int = 8
    """On embeddings."""
    outer_rate: float = 1e-3
    """At the start of a cosine, for the embedding too."""
    num_queries: int = 5
    num_test_tasks: int = 1000


def main(settings: Settings) -> None:
    """Trains, tests, compares and writes the result."""
    for name in settings.learners:
        check_choice(MAKERS, learner=name)
    training, test = embedded(settings)
    tasks = few_shot(training, way=WAY, shot=SHOTS, num_queries=settings.num_queries)
    reference = judge(prototypical(identity(), way=WAY), {}, test, settings)
    rows: list[dict[str, Any]] = [
        row(REFERENCE, shot, report) for shot, report in reference.items()
    ]
    for name in settings.learners:
        learner = MAKERS[name]()
        meta_params = fit(
            name, learner, tasks, settings, STEPS[name], settings.tasks_per_step
        )
        for shot, report in judge(learner, meta_params, test, settings).items():
            found = compare(report, reference[shot], "accuracy")
            better = {"mean": found.difference, "half_width": found.half_width}
            steps = {"outer_steps": STEPS[name], "better_by": better}
            rows.append(row(name, shot, report) | steps)
            print(rows[-1], flush=True)
        jax.clear_caches()
        write_result(NAME, dataclasses.asdict(settings), rows)


def embedded(settings: Settings) -> tuple[ClassTable, ClassTable]:
    """Embeddings of the images of training and of the test."""
    model = conv4(normalization="calibrated")
    tables = [omniglot(part) for part in ("meta_train", "meta_test")]
    tasks = few_shot(
        tables[0], way=settings.embedding_way, shot=1, num_queries=settings.num_queries
    )
    learner = prototypical(model, way=settings.embedding_way)
    params = fit(REFERENCE, learner, tasks, settings, settings.embedding_steps, 1)
    params = calibrated(model, params, tasks, settings.seed)
    first, second = (embed_table(model, params, table) for table in tables)
    scale = jnp.sqrt(jnp.mean(jnp.square(first.images)))

    def scaled(table: ClassTable) -> ClassTable:
        return class_table(table.images / scale, table.counts)

    return scaled(first), scaled(second)


def fit(
    name: str,
    learner: Learner,
    tasks: Any,
    settings: Settings,
    steps: int,
    tasks_per_step: int,
) -> PyTree:
    """One training, which goes on where it was stopped."""
    schedule = optax.cosine_decay_schedule(settings.outer_rate, steps)
    outcome = train(
        learner,
        tasks,
        optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule)),
        steps=steps,
        tasks_per_step=tasks_per_step,
        seed=settings.seed,
        log_every=100,
        checkpoint_every=500,
        run_dir=f"runs/{NAME}-seed{settings.seed}/{name}",
        config=training_settings(settings, "learners", "num_test_tasks", steps=steps),
    )
    return outcome.meta_params


def judge(
    learner: Learner, meta_params: PyTree, table: ClassTable, settings: Settings
) -> dict[int, Report]:
    """Reports by shot."""
    return {
        shot: evaluate(
            learner,
            meta_params,
            few_shot(table, way=WAY, shot=shot, num_queries=15),
            num_tasks=settings.num_test_tasks,
        )
        for shot in SHOTS
    }


def row(name: str, shot: int, report: Report) -> dict[str, Any]:
    """What is written of a report."""
    return {
        "learner": name,
        "way": WAY,
        "shot": shot,
        "protocol": report.protocol,
        "mean": report.mean["accuracy"],
        "half_width": report.half_width["accuracy"],
        "nll": report.mean["nll"],
    }


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(_, record)] = records
    settings = record["settings"]
    text = (
        "Omniglot's images as embeddings of Prototypical Networks "
        f"({settings['embedding_steps']:,} steps of a "
        f"{settings['embedding_way']}-way 1-shot task), {settings['num_test_tasks']:,} "
        f"tasks with 15 queries. A step has {settings['tasks_per_step']} 5-way tasks "
        f"of 1 to 5 shots with {settings['num_queries']} queries; one seed. In "
        "brackets, how much better than `prototypical` on the same tasks. See "
        "`benchmarks/readers.py`.\n\n"
    )
    return text + beside_reference(record["results"])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
