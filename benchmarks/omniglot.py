"""Learners on Omniglot, and what they make of other images.

    python -m benchmarks.omniglot maml
    python -m benchmarks.omniglot maml --shot 5 --num-queries 5
    python -m benchmarks.omniglot maml --way 20 --inner-rate 0.1 --inner-steps 5
    python -m benchmarks.omniglot maml-plus-plus --no-per-step-rates
    python -m benchmarks.omniglot prototypical --source glyphs

and likewise `fomaml`, `maml-mlp`, `meta-sgd`, `reptile`, `imaml`, `cavia`, `meta-lstm`,
`matching`, `relation`.

Trains on the meta-train characters of the Vinyals split (rotations by quarter turns are
classes of their own) or on drawn glyphs, keeps the parameters of the best validation,
and tests them on the meta-test characters, on Devanagari characters and on MNIST. The
test tasks have 15 queries per class, and for learners with a head also as many as
shots, as MAML's paper has: with batch statistics of the queries that is another, easier
question.

MAML: Finn et al., ICML 2017: Conv-4 with strides, transductive batch statistics, one
inner step of 0.4 in training and 3 in testing, 32 tasks a step, as many queries as
shots; `fomaml` is the same to first order, and `maml-mlp` the same with the paper's
network without convolutions (256, 128, 64 and 64 units). The others with a head have
the same network and tasks, and what their classes below say. Prototypical Networks:
Snell et al., NeurIPS 2017: Conv-4 with max-pooling, 60-way tasks with 5 queries per
class, statistics frozen after training; `matching` and `relation` have the same tasks,
the latter Conv-4 with two poolings, which keeps maps. Different from the papers: the
outer rate decays along a cosine, because the default schedules are shorter than theirs
(MAML's are `--steps 60000` with a rate of 1e-3).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import optax
import tyro

from benchmarks.calibrated import calibrated
from benchmarks.images import read
from benchmarks.record import write_result
from metajax.evaluation.bank import evaluate
from metajax.inner.unroll import GradientMode
from metajax.learners.gradient.cavia import cavia
from metajax.learners.gradient.imaml import imaml
from metajax.learners.gradient.maml import maml
from metajax.learners.gradient.maml_plus_plus import maml_plus_plus
from metajax.learners.gradient.meta_sgd import meta_sgd
from metajax.learners.gradient.reptile import reptile
from metajax.learners.metric.matching import matching
from metajax.learners.metric.prototypical import prototypical
from metajax.learners.metric.relation import relation
from metajax.learners.optimizer.meta_lstm import meta_lstm
from metajax.models.networks import conv4, mlp
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.glyphs import Split, glyphs
from metajax.tasks.images.omniglot import omniglot
from metajax.training.trainer import train
from metajax.types import Learner, Model, TaskDistribution

TESTED_ON = ("omniglot", "devanagari", "mnist")


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
    """At the start of the schedule."""
    num_test_tasks: int = 600
    validate_every: int = 500
    """Outer steps between validations; the best of them is tested."""

    @property
    def learner(self) -> str:
        """Name of the learner, and of the network if it has several."""
        return NAMES[type(self)]

    @property
    def train_shot(self) -> int:
        """Shots of the training tasks."""
        return self.shot

    def model(self) -> Model:
        """The network."""
        return conv4(self.way, pooling="stride", normalization="batch")

    def build(self, model: Model) -> Learner:
        """The learner."""
        raise NotImplementedError

    def optimizer(self) -> optax.GradientTransformation:
        """Of the outer loop."""
        return optax.adam(optax.cosine_decay_schedule(self.outer_rate, self.steps))


@dataclasses.dataclass(frozen=True)
class Maml(Settings):
    """MAML; the paper's number of queries is that of shots."""

    inner_rate: float = 0.4
    inner_steps: int = 1
    eval_steps: int = 3

    def build(self, model: Model) -> Learner:
        """As the paper has it."""
        return self._maml(model, "remat")

    def _maml(self, model: Model, gradient: GradientMode) -> Learner:
        return maml(
            model,
            optax.sgd(self.inner_rate),
            inner_steps=self.inner_steps,
            eval_inner_steps=self.eval_steps,
            gradient=gradient,
        )


@dataclasses.dataclass(frozen=True)
class Fomaml(Maml):
    """First-order MAML."""

    def build(self, model: Model) -> Learner:
        """As MAML."""
        return self._maml(model, "first_order")


@dataclasses.dataclass(frozen=True)
class MamlMLP(Maml):
    """MAML with the paper's network without convolutions."""

    def model(self) -> Model:
        """Four hidden layers."""
        return mlp(self.way, hidden_sizes=(256, 128, 64, 64), normalization="batch")


@dataclasses.dataclass(frozen=True)
class MetaSGD(Settings):
    """Meta-SGD with one inner step, as in its paper."""

    inner_rate: float = 0.4

    def build(self, model: Model) -> Learner:
        """Rates that start equal."""
        return meta_sgd(model, rate=self.inner_rate)


@dataclasses.dataclass(frozen=True)
class MamlPlusPlus(Settings):
    """MAML++; its switches are arguments, for the ablation."""

    inner_rate: float = 0.1
    inner_steps: int = 5
    multi_step_share: float = 0.1
    """Share of the outer steps with the multi-step loss; 0.1 is the paper's."""
    first_order_share: float = 0.0
    """Share of the outer steps to first order; the paper: a third."""
    per_step_rates: bool = True
    per_step_normalization: bool = True
    cosine: bool = True

    def build(self, model: Model) -> Learner:
        """With the switches as they are set."""
        return maml_plus_plus(
            model,
            rate=self.inner_rate,
            inner_steps=self.inner_steps,
            multi_step_until=int(self.multi_step_share * self.steps),
            first_order_until=int(self.first_order_share * self.steps),
            per_step_rates=self.per_step_rates,
            per_step_normalization=self.per_step_normalization,
        )

    def optimizer(self) -> optax.GradientTransformation:
        """Without the cosine, a constant rate of a third: its mean is a half."""
        return super().optimizer() if self.cosine else optax.adam(self.outer_rate / 3)


@dataclasses.dataclass(frozen=True)
class Reptile(Settings):
    """Reptile as its paper has it for 5-way 1-shot tasks with transduction.

    Three inner steps of 25 examples in training, which are all of a task of 15 shots,
    and five steps in testing.
    """

    train_shot: int = 15
    tasks_per_step: int = 10
    outer_rate: float = 1.0
    inner_rate: float = 1e-3
    inner_steps: int = 3
    eval_steps: int = 5
    batch_size: int = 25
    keeps_state: bool = True

    def build(self, model: Model) -> Learner:
        """In testing, batches hold every support example equally often."""
        return reptile(
            model,
            optax.adam(self.inner_rate, b1=0.0),
            inner_steps=self.inner_steps,
            eval_inner_steps=self.eval_steps,
            keeps_state=self.keeps_state,
            batch_size=self.batch_size,
        )

    def optimizer(self) -> optax.GradientTransformation:
        """The paper's: plain steps whose rate falls linearly to 0."""
        return optax.sgd(optax.linear_schedule(self.outer_rate, 0.0, self.steps))


@dataclasses.dataclass(frozen=True)
class Imaml(Settings):
    """Implicit MAML.

    `strength` and `damping` together are lambda and the damping of the authors' code,
    which takes the inner steps without a pull, but for one after the last of them in
    training, and none in testing. Hence the weak one here.

    A task whose linear solve does not converge would be left out: with a strength of 2
    and batch statistics of five support examples there was one among the first 1,424,
    with this one none in 6,000 steps.
    """

    inner_rate: float = 0.1
    inner_steps: int = 16
    strength: float = 0.2
    damping: float = 23.8

    def build(self, model: Model) -> Learner:
        """16 inner steps and 5 of conjugate gradients, as the paper has it."""
        return imaml(
            model,
            optax.sgd(self.inner_rate),
            inner_steps=self.inner_steps,
            strength=self.strength,
            damping=self.damping,
            cg_iterations=5,
            skips_failed=True,
        )


@dataclasses.dataclass(frozen=True)
class Cavia(Settings):
    """CAVIA with 100 context parameters and two inner steps, as for miniImageNet."""

    inner_rate: float = 1.0
    inner_steps: int = 2

    def build(self, model: Model) -> Learner:
        """The head does not adapt: the context must move it."""
        inner = optax.sgd(self.inner_rate)
        return cavia(model, inner, context_size=100, inner_steps=self.inner_steps)


@dataclasses.dataclass(frozen=True)
class MetaLSTM(Settings):
    """Meta-LSTM; its paper has no result on Omniglot."""

    outer_rate: float = 1e-3
    inner_rate: float = 0.4
    inner_steps: int = 1

    def build(self, model: Model) -> Learner:
        """From gradient descent on."""
        return meta_lstm(model, inner_steps=self.inner_steps, rate=self.inner_rate)


@dataclasses.dataclass(frozen=True)
class Prototypical(Settings):
    """Prototypical Networks; one model is tested at every way and shot."""

    way: int = 60
    num_queries: int = 5
    tasks_per_step: int = 1
    outer_rate: float = 1e-3

    def model(self) -> Model:
        """With max-pooling, and without a head."""
        return conv4(normalization="calibrated")

    def build(self, model: Model) -> Learner:
        """As the paper has it."""
        return prototypical(model, way=self.way)


@dataclasses.dataclass(frozen=True)
class Matching(Prototypical):
    """Matching Networks by squared Euclidean distance, its scale learned."""

    def build(self, model: Model) -> Learner:
        """With one shot, the same loss as Prototypical Networks but for the scale."""
        return matching(model, way=self.way, similarity="squared_euclidean")


@dataclasses.dataclass(frozen=True)
class Relation(Prototypical):
    """Relation Networks; 20-way tasks, as work grows with the square of ways."""

    way: int = 20

    def model(self) -> Model:
        """With maps for the comparing network."""
        return conv4(pooling="maps", normalization="calibrated")

    def build(self, model: Model) -> Learner:
        """As the paper has it."""
        return relation(model, way=self.way)


NAMES: dict[type[Settings], str] = {
    Maml: "maml",
    Fomaml: "fomaml",
    MamlMLP: "maml-mlp",
    MetaSGD: "meta-sgd",
    MamlPlusPlus: "maml-plus-plus",
    Reptile: "reptile",
    Imaml: "imaml",
    Cavia: "cavia",
    MetaLSTM: "meta-lstm",
    Prototypical: "prototypical",
    Matching: "matching",
    Relation: "relation",
}


def main(settings: Settings) -> None:
    """Trains, tests and writes the result."""
    model = settings.model()
    learner = settings.build(model)
    tasks = make_tasks(
        settings,
        "meta_train",
        way=settings.way,
        shot=settings.train_shot,
        num_queries=settings.num_queries,
    )
    validation_way = 5 if isinstance(settings, Prototypical) else settings.way
    validation = make_tasks(
        settings, "meta_valid", way=validation_way, shot=settings.shot, num_queries=15
    )
    description = {"learner": settings.learner} | dataclasses.asdict(settings)
    name = result_name(settings)
    result = train(
        learner,
        tasks,
        settings.optimizer(),
        steps=settings.steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        validation=validation,
        validate_every=settings.validate_every,
        log_every=100,
        checkpoint_every=250,
        run_dir=f"runs/{name}",
        config={k: v for k, v in description.items() if k != "num_test_tasks"},
    )
    params = result.best_params
    if model.normalization == "calibrated":
        params = calibrated(model, params, tasks, settings.seed)

    @functools.cache
    def learner_of(way: int) -> Learner:
        same = way == settings.way
        return learner if same else dataclasses.replace(settings, way=way).build(model)

    rows = []
    for images, table in read(TESTED_ON).items():
        for way, shot, queries in test_protocols(settings, images):
            test = few_shot(table, way=way, shot=shot, num_queries=queries)
            num_tasks = settings.num_test_tasks * 15 // queries
            report = evaluate(learner_of(way), params, test, num_tasks=num_tasks)
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


def result_name(settings: Settings) -> str:
    """Name of the run and its result; it names every switch that is not as usual."""
    usual = type(settings)()
    own = {f.name for f in dataclasses.fields(settings)}
    own -= {f.name for f in dataclasses.fields(Settings)}
    changes = [
        f"-{name.replace('_', '-')}-{getattr(settings, name)}"
        for name in sorted(own)
        if getattr(settings, name) != getattr(usual, name)
    ]
    return (
        f"{settings.source}-{settings.learner}-{settings.way}w{settings.shot}s"
        f"{''.join(changes)}-seed{settings.seed}"
    )


def make_tasks(
    settings: Settings, split: Split, *, way: int, shot: int, num_queries: int
) -> TaskDistribution:
    """Tasks of the source that the run learns from."""
    if settings.source == "glyphs":
        return glyphs(way=way, shot=shot, num_queries=num_queries, split=split)
    return few_shot(omniglot(split), way=way, shot=shot, num_queries=num_queries)


def test_protocols(settings: Settings, images: str) -> list[tuple[int, int, int]]:
    """Ways, shots and queries to test; a head has the way and shot of its training."""
    if not isinstance(settings, Prototypical):
        way, shot = settings.way, settings.shot
        tests = [(way, shot, 15), (way, shot, shot)]
        return tests if way <= 10 or images == "omniglot" else []
    protocols = [(5, 1, 15), (5, 5, 15)]
    return protocols + [(20, 1, 15), (20, 5, 15)] * (images == "omniglot")


if __name__ == "__main__":
    kinds: dict[str, Callable[..., Settings]] = {n: kind for kind, n in NAMES.items()}
    main(tyro.extras.subcommand_cli_from_dict(kinds, description=__doc__))
