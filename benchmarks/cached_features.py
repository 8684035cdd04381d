"""Seconds for 10,000 few-shot tasks on embeddings that were computed once.

    python -m benchmarks.cached_features

Conv-4 with max-pooling at random weights (speed does not hang on them) embeds the
meta-test characters of Omniglot, quarter turns as classes; every learner then adapts to
10,000 tasks with 15 queries of each class and answers them, all in one compiled call.
`seconds` is the shortest of a few calls, after the first, which compiles; `embedding`
is the time to embed the whole table. Other work on the machine makes them longer.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import tyro

from benchmarks.pages import Named, markdown
from benchmarks.record import write_result
from metajax.evaluation.bank import evaluate
from metajax.learners.metric.feat import feat
from metajax.learners.metric.matching import matching
from metajax.learners.metric.prototypical import prototypical
from metajax.learners.representation.label_propagation import label_propagation
from metajax.learners.solver.logistic import logistic
from metajax.learners.solver.ridge import ridge
from metajax.learners.solver.svm import svm
from metajax.models.networks import conv4, identity
from metajax.tasks.images.embedded import embed_table
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.omniglot import omniglot

TITLE, FILES = "Tasks on embeddings computed once", "cached-features"
"""Of its part of the page of results, and the results that it shows."""

LEARNERS: dict[str, Callable[..., Any]] = {
    "prototypical": prototypical,
    "matching": matching,
    "feat": feat,
    "ridge": ridge,
    "logistic": logistic,
    "svm": svm,
    "label_propagation": label_propagation,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is timed."""

    num_tasks: int = 10_000
    way: int = 5
    shots: tuple[int, ...] = (1, 5)
    num_queries: int = 15
    repeats: int = 3
    seed: int = 0


def main(settings: Settings) -> None:
    """Embeds, times every learner and writes the result."""
    model = conv4(normalization="layer")
    table = omniglot("meta_test")
    key = jax.random.key(settings.seed)
    example = few_shot(table, way=1, shot=1, num_queries=1)(key).support.x
    params = model.init(key, example)
    embedded, seconds = timed(
        lambda: jax.block_until_ready(embed_table(model, params, table)),
        settings.repeats,
    )
    num_images = table.num_classes * table.images.shape[1]
    rows: list[dict[str, Any]] = [
        {"learner": "embedding", "images": num_images, "seconds": seconds}
    ]
    for shot in settings.shots:
        tasks = few_shot(
            embedded, way=settings.way, shot=shot, num_queries=settings.num_queries
        )
        for name, make in LEARNERS.items():
            learner = make(identity(), way=settings.way)
            meta_params = learner.init(key, tasks(key))
            judge = functools.partial(
                evaluate,
                learner,
                meta_params,
                tasks,
                num_tasks=settings.num_tasks,
                seed=settings.seed,
                check_leakage=False,
            )
            report, seconds = timed(judge, settings.repeats)
            assert report.num_tasks == settings.num_tasks
            rows.append({"learner": name, "shot": shot, "seconds": seconds})
            print(rows[-1], flush=True)
            jax.clear_caches()
    write_result("cached-features", dataclasses.asdict(settings), rows)


def timed(function: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """What it gives, and the shortest time of some calls after the first."""
    result, times = function(), []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return result, min(times)


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(_, record)] = records
    settings, results = record["settings"], record["results"]
    first, *of_learners = results
    shots = settings["shots"]
    rows = [
        [
            name,
            *(
                f"{r['seconds']:.1f}"
                for shot in shots
                for r in of_learners
                if (r["learner"], r["shot"]) == (name, shot)
            ),
        ]
        for name in dict.fromkeys(r["learner"] for r in of_learners)
    ]
    text = (
        f"Seconds to adapt to {settings['num_tasks']:,} {settings['way']}-way tasks "
        f"and to answer {settings['num_queries']} queries of each class, in one "
        f"compiled call, on {record['device']}. To embed the {first['images']:,} "
        f"images once took {first['seconds']:.1f} s.\n\n"
    )
    return text + markdown(["learner", *(f"{shot}-shot" for shot in shots)], rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
