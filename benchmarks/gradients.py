"""Estimators of the outer gradient beside the exact one.

    python -m benchmarks.gradients

Two cases, each after a short training: MAML on sinusoids with ten inner steps (and the
implicit one, with a proximal term and 30 steps, whose exact gradient is its own), where
some 1,700 parameters are learned; and the rate and momentum of SGD on random quadratics
over 20 steps, where two are.
"""

import dataclasses
from typing import Literal

import optax
import tyro

from benchmarks.pages import Named, markdown, picture
from benchmarks.record import RESULTS, write_result
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.inner.unroll import GradientMode
from metajax.learners.gradient.imaml import imaml
from metajax.learners.gradient.maml import maml
from metajax.learners.optimizer.optimizer_learner import optimizer_learner
from metajax.models.networks import mlp
from metajax.objectives import squared_error
from metajax.plots import plot_gradients
from metajax.tasks.functions.quadratic import linear, quadratic, row_loss
from metajax.tasks.functions.sinusoid import sinusoid
from metajax.training.gradient_bias import Candidate, candidates, compare_gradients
from metajax.training.trainer import train
from metajax.types import Learner, TaskDistribution

TITLE, FILES = "Estimators of the outer gradient", "gradients"
"""Of its part of the page of results, and the results that it shows."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the comparison is made of."""

    seed: int = 0
    outer_steps: int = 1000
    num_tasks: int = 25
    repeats: int = 20
    num_pairs: int = 16
    """Antithetic pairs a task of evolution strategies."""


def main(settings: Settings) -> None:
    """Compares, draws and writes the result."""
    rows = []
    for name, case in (("sinusoid", sinusoid_case), ("quadratic", quadratic_case)):
        learner, found, tasks = case(settings)
        result = train(
            learner,
            tasks,
            optax.adam(1e-3),
            steps=settings.outer_steps,
            tasks_per_step=settings.num_tasks,
            seed=settings.seed,
            steps_per_dispatch=100,
            mesh=None,
            progress=False,
        )
        comparison = compare_gradients(
            found,
            result.meta_params,
            tasks,
            num_tasks=settings.num_tasks,
            repeats=settings.repeats,
            seed=settings.seed,
        )
        print(f"{name}: {comparison}", flush=True)
        plot_gradients(RESULTS / f"gradients-{name}.png", comparison)
        rows.append({"case": name} | comparison.to_json())
    write_result("gradients", dataclasses.asdict(settings), rows)


INNER_RATE = 0.003  # with 0.01, the paper's for one step, ten diverge

Case = tuple[Learner, dict[str, Candidate], TaskDistribution]


def sinusoid_case(settings: Settings) -> Case:
    """MAML, and implicit MAML beside its own problem solved by unrolling."""

    def make(gradient: GradientMode) -> Learner:
        inner = optax.sgd(INNER_RATE)
        return maml(
            mlp(1), inner, inner_steps=10, objective=squared_error, gradient=gradient
        )

    def proximal(gradient: GradientMode | Literal["implicit"]) -> Candidate:
        return Candidate(
            imaml(
                mlp(1),
                optax.sgd(INNER_RATE),
                inner_steps=30,
                strength=30.0,
                cg_iterations=10,
                max_residual=0.1,
                objective=squared_error,
                gradient=gradient,
            )
        )

    found = candidates(make, num_tasks=settings.num_tasks, num_pairs=settings.num_pairs)
    found |= {"implicit": proximal("implicit"), "proximal, exact": proximal("remat")}
    return make("remat"), found, sinusoid()


def quadratic_case(settings: Settings) -> Case:
    """Two hyper-parameters of SGD."""

    def make(gradient: GradientMode) -> Learner:
        inner = learned(
            optax.sgd,
            learning_rate=HyperParameter(0.005, domain="positive"),
            momentum=HyperParameter(0.5, domain="unit"),
        )
        return optimizer_learner(
            linear(), inner, inner_steps=20, objective=row_loss, gradient=gradient
        )

    found = candidates(
        make, num_tasks=settings.num_tasks, piece=5, num_pairs=settings.num_pairs
    )
    return make("remat"), found, quadratic()


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(path, record)] = records
    parts = []
    for case in record["results"]:
        parts.append(
            f"Case `{case['case']}` of `benchmarks/gradients.py`, "
            f"{case['num_tasks']} tasks a step, {case['repeats']} estimates; ± over "
            "estimates:\n"
        )
        rows = [
            [
                r["name"],
                f"{r['cosine']:.3f} ± {r['cosine_half_width']:.3f}",
                f"{r['cosine_of_mean']:.3f}",
                f"{r['norm']:.3g}",
                f"{1000 * r['seconds']:.3g}",
                f"{r['memory'] / 2**20:.3g}",
            ]
            for r in case["rows"]
        ]
        header = ["estimator", "cosine", "of the mean", "norm", "ms a step", "MiB"]
        parts.append(markdown(header, rows))
        parts.append(picture(path.with_stem(f"gradients-{case['case']}")))
    return "\n".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
