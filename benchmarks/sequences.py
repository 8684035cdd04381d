"""Generated LSTMs on next-value prediction, against what they are made of.

    python -m benchmarks.sequences

A protocol of our own, without published numbers: `metajax.tasks.functions.sequences`,
noisy sinusoids whose amplitude, frequency and offset a task's sequences share. All
learners have the same LSTM, trained by Adam with a cosine schedule on the same number
of tasks (with the same seeds, the same tasks), and inner rates that are learned, one
for each array of parameters; they are judged on the same test tasks. `difference` is
the mean over tasks of the mean squared error of the generator less that of another; a
row without a seed is over the means of the seeds.

* `generator`: `lstm_generator`, with inner steps after the generation;
* `generator, 0 steps`: the hypernetwork alone;
* `maml`: the inner steps alone;
* `joint`: neither, one LSTM for all tasks, which tells them apart by what it reads;
* `scratch`: the same LSTM from random weights, trained on each support set by Adam. Its
  rate and number of steps are the best of a few on tasks that are not the test tasks;
* `known task`: the best that can be done, by who knows the task but for the phases: the
  mean over their posterior. On as many tasks of its own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks.intervals import interval
from benchmarks.pages import Named, interval_cell, markdown
from benchmarks.record import write_result
from metajax.evaluation.bank import VALIDATION_SEED, evaluate
from metajax.evaluation.reports import Report, across_seeds, compare
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.learners.gradient.maml import maml
from metajax.learners.optimizer.lstm_generator import lstm_generator
from metajax.models.recurrent import lstm
from metajax.objectives import squared_error
from metajax.tasks.functions.sequences import SequenceSinusoid, sequence_sinusoid
from metajax.training.trainer import train
from metajax.types import Array, Learner

TITLE, FILES = "Sequences: an LSTM that generates an LSTM", "sequences"
"""Of its part of the page of results, and the results that it shows."""

REFERENCE = "generator"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of."""

    num_seeds: int = 3
    """Trained models of each kind, at least 2."""
    shot: int = 5
    num_queries: int = 5
    length: int = 12
    noise: float = 0.1
    hidden: int = 32
    """Size of the LSTM that predicts."""
    encoder_hidden: int = 64
    """Size of the LSTM that reads the support set."""
    inner_steps: int = 3
    inner_rate: float = 0.1
    """Of all arrays, before it is learned."""
    outer_rate: float = 3e-3
    outer_steps: int = 1500
    tasks_per_step: int = 16
    scratch_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    scratch_steps: tuple[int, ...] = (50, 200)
    num_test_tasks: int = 1000


def main(settings: Settings) -> None:
    """Trains, tests, compares and writes the result."""
    if settings.num_seeds < 2:
        raise ValueError(f"`num_seeds` must be at least 2, got {settings.num_seeds}.")
    tasks = sequence_sinusoid(
        shot=settings.shot,
        num_queries=settings.num_queries,
        length=settings.length,
        noise=settings.noise,
    )
    reports = {
        name: [
            train_and_test(learner, tasks, settings, seed)
            for seed in range(settings.num_seeds)
        ]
        for name, learner in learners(settings).items()
    }
    reports["scratch"], chosen = from_scratch(tasks, settings)
    rows = summary(reports) + [known_task(tasks, settings.num_test_tasks)]
    for row in rows:
        print(row)
    write_result("sequences", dataclasses.asdict(settings) | chosen, rows)


def learners(settings: Settings) -> dict[str, Learner]:
    """What is trained, by name."""
    model = lstm(1, hidden_sizes=(settings.hidden,))
    rate = HyperParameter(settings.inner_rate, per="leaf")
    inner = learned(optax.sgd, learning_rate=rate)
    make_maml: Callable[..., Learner] = functools.partial(
        maml, model, inner, objective=squared_error
    )
    make_generator: Callable[..., Learner] = functools.partial(
        lstm_generator,
        model,
        inner,
        hidden_sizes=(settings.encoder_hidden,),
        num_outputs=1,
    )
    return {
        REFERENCE: make_generator(inner_steps=settings.inner_steps),
        "generator, 0 steps": make_generator(inner_steps=0),
        "maml": make_maml(inner_steps=settings.inner_steps),
        "joint": make_maml(inner_steps=0),
    }


def train_and_test(
    learner: Learner, tasks: SequenceSinusoid, settings: Settings, seed: int
) -> Report:
    """One trained model on the test tasks."""
    rate = optax.cosine_decay_schedule(settings.outer_rate, settings.outer_steps)
    result = train(
        learner,
        tasks,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        steps=settings.outer_steps,
        tasks_per_step=settings.tasks_per_step,
        seed=seed,
        steps_per_dispatch=100,
        log_every=500,
        progress=False,
    )
    return evaluate(
        learner, result.meta_params, tasks, num_tasks=settings.num_test_tasks
    )


def from_scratch(
    tasks: SequenceSinusoid, settings: Settings
) -> tuple[list[Report], dict[str, Any]]:
    """Adam on each support set from random weights; and the rate and steps chosen."""

    def judge(rate: float, steps: int, start: int, **bank: Any) -> Report:
        learner = maml(
            lstm(1, hidden_sizes=(settings.hidden,)),
            optax.adam(rate),
            inner_steps=steps,
            objective=squared_error,
            gradient="first_order",
        )
        key = jax.random.key(start)
        meta_params = learner.init(key, tasks(key))
        return evaluate(learner, meta_params, tasks, **bank)

    choices = [
        (rate, steps)
        for rate in settings.scratch_rates
        for steps in settings.scratch_steps
    ]
    errors = [
        judge(*choice, 0, num_tasks=100, seed=VALIDATION_SEED).mean["mse"]
        for choice in choices
    ]
    rate, steps = choices[errors.index(min(errors))]
    reports = [
        judge(rate, steps, seed, num_tasks=settings.num_test_tasks)
        for seed in range(settings.num_seeds)
    ]
    return reports, {"scratch_rate": rate, "scratch_num_steps": steps}


def known_task(tasks: SequenceSinusoid, num_tasks: int) -> dict[str, Any]:
    """The error of the posterior mean, one sequence for each task."""
    ranges = (tasks.amplitude, tasks.frequency, tasks.offset, (0.0, 2 * math.pi))
    grid = jnp.linspace(0, 2 * math.pi, 1000, endpoint=False)
    times = jnp.arange(tasks.length + 1)

    def error(key: Array) -> Array:
        *keys, key_noise = jax.random.split(key, 5)
        amplitude, frequency, offset, phase = (
            jax.random.uniform(key, (), minval=low, maxval=high)
            for key, (low, high) in zip(keys, ranges, strict=True)
        )

        def curve(phase: Array) -> Array:
            return offset + amplitude * jnp.sin(frequency * times + phase)

        values = curve(phase) + tasks.noise * jax.random.normal(key_noise, times.shape)
        curves = jax.vmap(curve)(grid)
        misfits = jnp.square((values[None] - curves) / max(tasks.noise, 0.01)) / 2
        posterior = jax.nn.softmax(-jnp.cumsum(misfits, axis=1)[:, :-1], axis=0)
        expected = jnp.sum(posterior * curves[:, 1:], axis=0)
        return jnp.mean(jnp.square(values[1:] - expected))

    keys = jax.random.split(jax.random.key(0), num_tasks)
    return {
        "learner": "known task",
        "metric": "mse",
        **interval(np.asarray(jax.jit(jax.vmap(error))(keys))),
        "num_tasks": num_tasks,
    }


def summary(reports: dict[str, list[Report]]) -> list[dict[str, Any]]:
    """The rows of the result."""
    rows: list[dict[str, Any]] = []
    for name, of_seeds in reports.items():
        spread = across_seeds(of_seeds)
        rows.append(
            {
                "learner": name,
                "metric": "mse",
                "mean": spread.mean,
                "half_width": spread.half_width,
                "minimum": spread.minimum,
                "maximum": spread.maximum,
            }
        )
        for seed, report in enumerate(of_seeds):
            row: dict[str, Any] = {
                "learner": name,
                "seed": seed,
                "metric": "mse",
                "mean": report.mean["mse"],
                "half_width": report.half_width["mse"],
                "num_tasks": report.num_tasks,
            }
            if name != REFERENCE:
                pair = compare(reports[REFERENCE][seed], report)
                row |= {
                    "difference": pair.difference,
                    "difference_half_width": pair.half_width,
                    "p_value": pair.p_value,
                }
            rows.append(row)
    return rows


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(_, record)] = records
    settings, results = record["settings"], record["results"]
    rows = []
    for r in results:
        if "seed" in r:
            continue
        differences = [
            f"{one['difference']:.4f} ± {one['difference_half_width']:.4f}"
            for one in results
            if one["learner"] == r["learner"] and "difference" in one
        ]
        rows.append([r["learner"], interval_cell(r, 4), ", ".join(differences)])
    text = (
        "Mean squared error of the next value of noisy sinusoids, with "
        f"{settings['shot']} support sequences of {settings['length']} values, "
        f"{settings['num_test_tasks']} test tasks and {settings['num_seeds']} seeds; ± "
        "over seeds (`known task`: over tasks). Differences are paired, one for each "
        "seed, and negative where the generator is better.\n\n"
    )
    return text + markdown(["learner", "error", "generator less this"], rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
