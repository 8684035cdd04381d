"""MAML on sinusoids: C. Finn et al., ICML 2017, section 5.1.

    python -m benchmarks.sinusoid --seed 0

K = 10, one inner step of 0.01, 25 tasks a step, Adam 1e-3, 70,000 steps; tested on 2000
tasks with 10 fresh points each, after 0 to 10 inner steps on the same support set.
"""

import dataclasses

import optax
import tyro

from benchmarks.record import write_result
from metajax.evaluation import evaluate
from metajax.learners.gradient.maml import maml
from metajax.models.networks import mlp
from metajax.objectives import squared_error
from metajax.tasks.sinusoid import sinusoid
from metajax.trainer import train


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of; the defaults are the paper's."""

    seed: int = 0
    shot: int = 10
    steps: int = 70_000
    inner_rate: float = 0.01
    inner_steps: int = 1
    outer_rate: float = 1e-3
    tasks_per_step: int = 25
    num_test_tasks: int = 2000


def main(settings: Settings) -> None:
    """Trains, tests and writes the result."""
    model = mlp(1)
    inner_optimizer = optax.sgd(settings.inner_rate)
    tasks = sinusoid(shot=settings.shot, num_queries=10)
    learner = maml(
        model, inner_optimizer, steps=settings.inner_steps, objective=squared_error
    )
    description = dataclasses.asdict(settings)
    result = train(
        learner,
        tasks,
        optax.adam(settings.outer_rate),
        steps=settings.steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        steps_per_dispatch=500,
        log_every=1000,
        checkpoint_every=10_000,
        run_dir=f"runs/sinusoid-k{settings.shot}-seed{settings.seed}",
        config=description,
    )
    judged = maml(
        model,
        inner_optimizer,
        steps=settings.inner_steps,
        eval_steps=10,
        objective=squared_error,
    )
    report = evaluate(
        judged,
        result.meta_params,
        sinusoid(shot=settings.shot, num_queries=10),
        num_tasks=settings.num_test_tasks,
        steps_curve=True,
    )
    print(report)
    curve = report.curve["mse"]
    rows = [
        {
            "metric": "mse",
            "inner_steps": steps,
            "mean": float(curve.mean[steps]),
            "half_width": float(curve.half_width[steps]),
            "num_tasks": settings.num_test_tasks,
        }
        for steps in range(11)
    ]
    name = f"sinusoid-maml-k{settings.shot}-seed{settings.seed}"
    write_result(name, description, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
