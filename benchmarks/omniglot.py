"""MAML and Prototypical Networks on Omniglot, and what they make of other images.

    python -m benchmarks.omniglot maml
    python -m benchmarks.omniglot maml --shot 5 --num-queries 5
    python -m benchmarks.omniglot fomaml
    python -m benchmarks.omniglot maml-mlp
    python -m benchmarks.omniglot prototypical
    python -m benchmarks.omniglot prototypical --source glyphs

Trains on the meta-train characters of the Vinyals split (rotations by quarter turns are
classes of their own) or on drawn glyphs, keeps the parameters of the best validation,
and tests them on the meta-test characters, on Devanagari characters and on MNIST. The
test tasks have 15 queries per class, and for MAML also as many as shots, as its paper's
have: with batch statistics of the queries that is another, easier question.

MAML: Finn et al., ICML 2017: Conv-4 with strides, transductive batch statistics, one
inner step of 0.4 in training and 3 in testing, 32 tasks a step, as many queries as
shots; `fomaml` is the same to first order, and `maml-mlp` the same with the paper's
network without convolutions (256, 128, 64 and 64 units). Prototypical Networks: Snell
et al., NeurIPS 2017: Conv-4 with max-pooling, 60-way tasks with 5 queries per class,
statistics frozen after training. Different from both: the outer rate decays along a
cosine, because the default schedule is shorter than theirs (`--steps 60000` is MAML's,
with a rate of 1e-3).
"""

import dataclasses
import gzip
import os
import pathlib
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
import optax
import tyro

from benchmarks.record import write_result
from metajax.evaluation import evaluate
from metajax.learners.gradient.maml import maml
from metajax.learners.metric.prototypical import prototypical
from metajax.models.networks import conv4, mlp
from metajax.models.normalization import calibrate
from metajax.tasks.class_table import ClassTable, few_shot
from metajax.tasks.glyphs import glyphs
from metajax.tasks.loaders import from_arrays
from metajax.tasks.omniglot import omniglot
from metajax.trainer import train
from metajax.types import Learner, Model, TaskDistribution


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of; `way`, `shot` and `num_queries` are those of training."""

    source: Literal["omniglot", "glyphs"] = "omniglot"
    seed: int = 0
    way: int = 5
    shot: int = 1
    num_queries: int = 1
    steps: int = 12_000
    tasks_per_step: int = 32
    outer_rate: float = 3e-3
    """At the start of the cosine."""
    num_test_tasks: int = 600

    @property
    def learner(self) -> str:
        """Name of the learner, and of the network if it has several."""
        return NAMES[type(self)]


@dataclasses.dataclass(frozen=True)
class Maml(Settings):
    """MAML; the paper's number of queries is that of shots."""


@dataclasses.dataclass(frozen=True)
class Fomaml(Maml):
    """First-order MAML."""


@dataclasses.dataclass(frozen=True)
class MamlMLP(Maml):
    """MAML with the paper's network without convolutions."""


@dataclasses.dataclass(frozen=True)
class Prototypical(Settings):
    """Prototypical Networks; one model is tested at every way and shot."""

    way: int = 60
    num_queries: int = 5
    tasks_per_step: int = 1
    outer_rate: float = 1e-3


NAMES: dict[type[Settings], str] = {
    Maml: "maml",
    Fomaml: "fomaml",
    MamlMLP: "maml-mlp",
    Prototypical: "prototypical",
}


def main(settings: Settings) -> None:
    """Trains, tests and writes the result."""
    model, learner = make_learner(settings)
    tasks = make_tasks(
        settings, "meta_train", way=settings.way, num_queries=settings.num_queries
    )
    validation = make_tasks(settings, "meta_valid", way=5, num_queries=15)
    description = {"learner": settings.learner} | dataclasses.asdict(settings)
    name = (
        f"{settings.source}-{settings.learner}-{settings.way}w{settings.shot}s"
        f"-seed{settings.seed}"
    )
    result = train(
        learner,
        tasks,
        optax.adam(optax.cosine_decay_schedule(settings.outer_rate, settings.steps)),
        steps=settings.steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        validation=validation,
        validate_every=500,
        log_every=100,
        checkpoint_every=250,
        run_dir=f"runs/{name}",
        config={k: v for k, v in description.items() if k != "num_test_tasks"},
    )
    params = result.best_params
    if model.normalization == "calibrated":
        params = calibrate(model, params, tasks, jax.random.key(settings.seed))
    rows = []
    for images, table in test_tables().items():
        for way, shot, queries in test_protocols(settings, images):
            test = few_shot(table, way=way, shot=shot, num_queries=queries)
            num_tasks = settings.num_test_tasks * 15 // queries
            report = evaluate(learner, params, test, num_tasks=num_tasks)
            name_of_test = f"{images} {way}-way {shot}-shot, {queries} queries"
            print(f"{name_of_test}: {report}", flush=True)
            row = {"images": images, "way": way, "shot": shot, "num_queries": queries}
            rows.append(row | report.to_json())
    description |= {
        "best_step": result.best_step,
        "normalization": model.normalization,
        "training_loss": result.history[-1].get("loss"),
    }
    write_result(name, description, rows)


def make_tasks(
    settings: Settings, split: str, *, way: int, num_queries: int
) -> TaskDistribution:
    """Tasks of the source that the run learns from."""
    if settings.source == "glyphs":
        return glyphs(way=way, shot=settings.shot, num_queries=num_queries, split=split)
    table = omniglot(split)
    return few_shot(table, way=way, shot=settings.shot, num_queries=num_queries)


def make_learner(settings: Settings) -> tuple[Model, Learner]:
    """The model and learner of a run."""
    if settings.learner == "prototypical":
        model = conv4(normalization="calibrated")
        return model, prototypical(model)
    if settings.learner == "maml-mlp":
        hidden = (256, 128, 64, 64)
        model = mlp(settings.way, hidden=hidden, normalization="batch")
    else:
        model = conv4(settings.way, pooling="stride", normalization="batch")
    gradient = "first_order" if settings.learner == "fomaml" else "remat"
    inner = optax.sgd(0.4)
    return model, maml(model, inner, steps=1, eval_steps=3, gradient=gradient)


def test_protocols(settings: Settings, images: str) -> list[tuple[int, int, int]]:
    """Ways, shots and queries to test: MAML's head and shot are those of training."""
    if isinstance(settings, Maml):
        way, shot = settings.way, settings.shot
        return [(way, shot, 15), (way, shot, shot)]
    protocols = [(5, 1, 15), (5, 5, 15)]
    return protocols + [(20, 1, 15), (20, 5, 15)] * (images == "omniglot")


def test_tables() -> dict[str, ClassTable]:
    """The images that models are tested on, by name."""
    folder = pathlib.Path(os.environ["METAJAX_DATA_DIR"]) / "image_domains"
    with np.load(folder / "devanagari_46x300_32x32.npz") as arrays:
        # The outermost 2 of 32 pixels are empty margin, so a crop gives 28 x 28.
        devanagari = from_arrays(arrays["images"][:, 2:30, 2:30], arrays["labels"])
    with gzip.open(folder / "mnist_test/t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / "mnist_test/t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return {
        "omniglot": omniglot("meta_test"),
        "devanagari": devanagari,
        "mnist": from_arrays(images, labels.astype(np.int32)),
    }


if __name__ == "__main__":
    kinds: dict[str, Callable[..., Settings]] = {n: kind for kind, n in NAMES.items()}
    main(tyro.extras.subcommand_cli_from_dict(kinds, description=__doc__))
