"""Gradient-based learners on sinusoids: C. Finn et al., ICML 2017, section 5.1.

    python -m benchmarks.sinusoid --seed 0
    python -m benchmarks.sinusoid --learner meta-sgd

K = 10, one inner step, 25 tasks a step, Adam 1e-3, 70,000 steps; tested on 2000 tasks
with 10 fresh points each, after 0 to 10 inner steps on the same support set. The inner
rate is 0.01 for MAML, first-order MAML, ANIL and the start of Meta-SGD's rates, and 1
for CAVIA, whose context has 5 numbers.

After several steps a rare task diverges and then is the mean by itself, so each row
also has the median over tasks, and the share of those with a squared error above 25,
the square of the largest amplitude.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
import optax
import tyro

from benchmarks.pages import Named, interval_cell, markdown
from benchmarks.record import write_result
from metajax.evaluation.bank import evaluate
from metajax.filters import everything, only
from metajax.inner.unroll import GradientMode
from metajax.learners.gradient.cavia import cavia
from metajax.learners.gradient.maml import maml
from metajax.learners.gradient.meta_sgd import meta_sgd
from metajax.models.networks import mlp
from metajax.objectives import squared_error
from metajax.tasks.functions.sinusoid import sinusoid
from metajax.training.trainer import train
from metajax.types import Learner

TITLE, FILES = "Sinusoids after one and ten inner steps", "sinusoid-*"
"""Of its part of the page of results, and the results that it shows."""

DIVERGED = 25.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of; the defaults are the paper's."""

    learner: Literal["maml", "fomaml", "anil", "meta-sgd", "cavia"] = "maml"
    seed: int = 0
    shot: int = 10
    steps: int = 70_000
    inner_rate: float | None = None
    """None takes the learner's own."""
    inner_steps: int = 1
    outer_rate: float = 1e-3
    tasks_per_step: int = 25
    num_test_tasks: int = 2000


def main(settings: Settings) -> None:
    """Trains, tests and writes the result."""
    if settings.inner_rate is None:
        rate = 1.0 if settings.learner == "cavia" else 0.01
        settings = dataclasses.replace(settings, inner_rate=rate)
    tasks = sinusoid(shot=settings.shot, num_queries=10)
    description = dataclasses.asdict(settings)
    name = f"sinusoid-{settings.learner}-k{settings.shot}-seed{settings.seed}"
    result = train(
        make_learner(settings),
        tasks,
        optax.adam(settings.outer_rate),
        steps=settings.steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        steps_per_dispatch=500,
        log_every=1000,
        checkpoint_every=10_000,
        run_dir=f"runs/{name}",
        config=description,
    )
    report = evaluate(
        make_learner(settings, eval_steps=10),
        result.meta_params,
        tasks,
        num_tasks=settings.num_test_tasks,
        steps_curve=True,
    )
    print(report)
    assert report.step_values is not None
    rows: list[dict[str, Any]] = []
    for steps, errors in enumerate(report.step_values["mse"].T):
        # In double precision, as the square of a diverged error overflows.
        errors = np.asarray(errors, float)
        spread = errors.std(ddof=1) if np.isfinite(errors).all() else np.inf
        numbers = {
            "mean": errors.mean(),
            "half_width": 1.96 * spread / np.sqrt(len(errors)),
            "median": np.median(np.nan_to_num(errors, nan=np.inf)),
            "diverged": np.mean(~(errors <= DIVERGED)),
        }
        row: dict[str, Any] = {"metric": "mse", "inner_steps": steps}
        for key, value in numbers.items():
            row[key] = float(value) if np.isfinite(value) else None
        rows.append(row | {"num_tasks": settings.num_test_tasks})
    for row in rows[:2] + rows[-1:]:
        print(row)
    write_result(name, description, rows)


def make_learner(settings: Settings, eval_steps: int | None = None) -> Learner:
    """The learner; `eval_steps` are those of `adapt`."""
    model, steps = mlp(1), settings.inner_steps
    common: dict[str, Any] = {
        "inner_steps": steps,
        "eval_inner_steps": eval_steps,
        "objective": squared_error,
    }
    assert settings.inner_rate is not None
    inner = optax.sgd(settings.inner_rate)
    if settings.learner == "cavia":
        return cavia(model, inner, **common)
    if settings.learner == "meta-sgd":
        return meta_sgd(model, rate=settings.inner_rate, **common)
    gradient: GradientMode = "first_order" if settings.learner == "fomaml" else "remat"
    adapts = only("head") if settings.learner == "anil" else everything
    return maml(model, inner, gradient=gradient, adapts=adapts, **common)


def section(records: Named) -> str:
    """Its part of the page of results."""
    rows = []
    for _, record in records:
        one, last = record["results"][1], record["results"][-1]
        if "median" not in last:
            continue
        settings = record["settings"]
        rows.append(
            [
                settings["learner"],
                settings["seed"],
                interval_cell(one, 3),
                f"{one['median']:.3f}",
                interval_cell(last, 3),
                f"{last['median']:.3f}",
                f"{100 * last['diverged']:.1f} %",
            ]
        )
    text = (
        "Trained for one inner step; 10 points, 2000 test tasks. A task has diverged "
        "if its squared error is above 25, the square of the largest amplitude; one "
        "such task may be the mean by itself.\n\n"
    )
    header = ["learner", "seed", "1 step", "median", "10 steps", "median", "diverged"]
    return text + markdown(header, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
