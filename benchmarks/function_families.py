"""ARML on regression tasks of six families: H. Yao et al., ICLR 2020, section 5.2.

    python -m benchmarks.function_families

The paper's protocol, `metajax.tasks.functions.regression_families`: 10 points, 5 inner
steps of rate 0.001 in training and in the test, an MLP of 40 and 40 units, 25 tasks a
step, Adam 1e-3. Differs in the outer loop: fewer steps than the 70,000 of the paper's
code, and so a rate that falls to 0 over the second half of them, and gradients
shortened to a norm of 10. All learners have the same network, see the same tasks in
training and are judged on the same test tasks, as many of each family. Errors hold the
noise on the queries, which is 0.09 of them.

* `maml`, and with learned rates: Meta-SGD, a rate for each parameter, but learned by
  its logarithm, as rates of either sign diverge here within ten outer steps;
* `arml` as it is here by default, and with one layer of propagation, as in the paper;
* `cavia`: 5 numbers adapt, at a rate of its own.

The published errors are those of figure 2 in the paper, with the half-width over tasks.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import optax
import tyro

from benchmarks.intervals import interval
from benchmarks.pages import Named, interval_cell, markdown, picture
from benchmarks.record import RESULTS, training_settings, write_result
from metajax.evaluation.bank import bank_task, evaluate
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.learners.gradient.cavia import cavia
from metajax.learners.gradient.maml import maml
from metajax.learners.representation.arml import arml
from metajax.models.networks import mlp
from metajax.objectives import squared_error
from metajax.tasks.functions.regression_families import FAMILIES, regression_families
from metajax.training.trainer import train
from metajax.types import Learner, PyTree

TITLE, FILES = "Functions of six families", "function-families"
"""Of its part of the page of results, and the results that it shows."""

REFERENCE = "maml"
PUBLISHED = {
    "maml": (2.292, 0.163),
    "maml, learned rates": (2.908, 0.229),
    "arml, 1 layer": (0.438, 0.029),
}
NAME = "function-families"
SHOWN = 1  # the task of each family in the picture
TICKS = (0.1, 0.2, 0.5, 1, 2)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of; the defaults are the paper's but for `outer_steps`."""

    num_seeds: int = 3
    """Trained models of each kind, at least 2."""
    shot: int = 10
    num_queries: int = 10
    inner_steps: int = 5
    inner_rate: float = 0.001
    cavia_rate: float = 0.1
    outer_rate: float = 1e-3
    clip_norm: float = 10.0
    outer_steps: int = 15_000
    tasks_per_step: int = 25
    num_test_tasks: int = 500
    """Of each family."""


def main(settings: Settings) -> None:
    """Trains, tests, compares and writes the result."""
    if settings.num_seeds < 2:
        raise ValueError(f"`num_seeds` must be at least 2, got {settings.num_seeds}.")
    errors: dict[str, np.ndarray] = {}
    trained: dict[str, tuple[Learner, PyTree]] = {}
    for name, learner in learners(settings).items():
        found = [
            fit(name, learner, settings, seed) for seed in range(settings.num_seeds)
        ]
        errors[name] = np.stack([judge(learner, p, settings) for p in found])
        trained[name] = learner, found[0]
        print(name, errors[name].mean(axis=(0, 2)), errors[name].mean())
    rows = summary(errors)
    write_result(NAME, dataclasses.asdict(settings), rows)
    draw(rows, {n: trained[n] for n in (REFERENCE, "arml")}, settings)


def learners(settings: Settings) -> dict[str, Learner]:
    """What is trained, by name."""
    model, rate = mlp(1), settings.inner_rate
    rates = HyperParameter(rate, per="parameter", domain="positive")
    common: dict[str, Any] = {
        "inner_steps": settings.inner_steps,
        "objective": squared_error,
    }
    of_one = common | {"num_outputs": 1}
    return {
        REFERENCE: maml(model, optax.sgd(rate), **common),
        "arml": arml(model, optax.sgd(rate), **of_one),
        "cavia": cavia(model, optax.sgd(settings.cavia_rate), **common),
        f"{REFERENCE}, learned rates": maml(
            model, learned(optax.sgd, learning_rate=rates), **common
        ),
        "arml, 1 layer": arml(model, optax.sgd(rate), layers=1, **of_one),
    }


def fit(name: str, learner: Learner, settings: Settings, seed: int) -> PyTree:
    """The meta-parameters of one run, which goes on where it was stopped."""
    half = settings.outer_steps // 2
    rate = optax.linear_schedule(
        settings.outer_rate, 0.0, settings.outer_steps - half, transition_begin=half
    )
    result = train(
        learner,
        regression_families(shot=settings.shot, num_queries=settings.num_queries),
        optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(rate)),
        steps=settings.outer_steps,
        tasks_per_step=settings.tasks_per_step,
        seed=seed,
        steps_per_dispatch=500,
        log_every=5000,
        checkpoint_every=5000,
        run_dir=f"runs/{NAME}/{name.replace(', ', '-').replace(' ', '-')}-{seed}",
        config=training_settings(settings, "num_seeds", "num_test_tasks"),
        progress=False,
    )
    return result.meta_params


def judge(learner: Learner, meta_params: PyTree, settings: Settings) -> np.ndarray:
    """Squared errors `[6, num_test_tasks]` on the tasks of each family."""
    return np.stack(
        [
            evaluate(
                learner,
                meta_params,
                regression_families(
                    shot=settings.shot, num_queries=settings.num_queries, family=family
                ),
                num_tasks=settings.num_test_tasks,
            ).values["mse"]
            for family in FAMILIES
        ]
    )


def summary(errors: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The rows of the result, from errors `[seeds, 6, tasks]` of each learner.

    Intervals and differences are over tasks, of means over seeds.
    """
    rows = []
    for family in ("all", *FAMILIES):
        chosen = slice(None) if family == "all" else [FAMILIES.index(family)]
        of_family = {
            name: found[:, chosen].reshape(len(found), -1).astype(float)
            for name, found in errors.items()
        }
        reference = of_family[REFERENCE]
        for name, values in of_family.items():
            seeds = values.mean(axis=1)
            row: dict[str, Any] = {
                "learner": name,
                "family": family,
                "metric": "mse",
                **interval(values.mean(axis=0)),
                "median": float(np.median(values)),
                "seeds": seeds.tolist(),
                "num_tasks": values.shape[1],
            }
            if family == "all" and name in PUBLISHED:
                row["published"] = PUBLISHED[name]
            if name != REFERENCE:
                row["below_maml"] = {
                    **interval((reference - values).mean(axis=0)),
                    "share_of_tasks": float(np.mean(values < reference)),
                }
                row["of_maml"] = (seeds / reference.mean(axis=1)).tolist()
            rows.append(row)
    return rows


def draw(
    rows: list[dict[str, Any]],
    trained: dict[str, tuple[Learner, PyTree]],
    settings: Settings,
) -> None:
    """Errors of each family, and one task of each that is a curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.6), layout="constrained")
    panels = figure.subplot_mosaic(
        [["sinusoid", "line", "errors"], ["quadratic", "cubic", "errors"]],
        width_ratios=[1, 1, 1.3],
    )
    for family in FAMILIES[:4]:
        axes = panels[family]
        tasks = regression_families(shot=settings.shot, num_queries=300, family=family)
        support = bank_task(tasks, SHOWN).support
        # By the same key, and so of the same function.
        query = bank_task(dataclasses.replace(tasks, noise=0.0), SHOWN).query
        order = np.argsort(query.x[:, 0])
        axes.plot(query.x[order, 0], query.y[order, 0], "0.6", lw=4, label="function")
        axes.plot(support.x[:, 0], support.y[:, 0], "ko", ms=5, label="support set")
        for name, (learner, meta_params) in trained.items():
            adapted = jax.jit(learner.adapt)(meta_params, support)
            outputs = learner.predict(adapted, query.x)
            axes.plot(query.x[order, 0], outputs[order, 0], label=name)
        axes.set_title(family)
    panels["sinusoid"].legend(fontsize=8, frameon=False)
    axes = panels["errors"]
    names = list(dict.fromkeys(row["learner"] for row in rows))
    for number, name in enumerate(names):
        means = [
            r["mean"] for r in rows if r["learner"] == name and r["family"] != "all"
        ]
        places = np.arange(len(FAMILIES)) + (number - len(names) / 2 + 0.5) * 0.15
        axes.plot(means, places, "o", label=name)
    axes.set_yticks(range(len(FAMILIES)), FAMILIES)
    axes.invert_yaxis()
    axes.axvline(regression_families().noise ** 2, color="0.5", ls="--", label="noise")
    axes.set(xscale="log", xlabel="mean squared error, noise included")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.xaxis.set_minor_formatter("")  # their labels would overlap
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(pathlib.Path(RESULTS) / f"{NAME}.png", dpi=110)


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    names = list(dict.fromkeys(r["learner"] for r in results))
    rows = []
    for r in results:
        if r["family"] != "all":
            continue
        row = [r["learner"], interval_cell(r, 3), f"{r['median']:.3f}"]
        row.append(", ".join(f"{seed:.3f}" for seed in r["seeds"]))
        published = r.get("published")
        row.append("" if published is None else "{:.3f} ± {:.3f}".format(*published))
        if "of_maml" in r:
            row.append(f"{max(r['of_maml']):.2f}")
            row.append(interval_cell(r["below_maml"], 3))
        rows.append([*row, *[""] * (7 - len(row))])
    text = (
        f"Mean squared error after {settings['inner_steps']} inner steps on "
        f"{settings['shot']} points of a function of one of six families, "
        f"{settings['num_test_tasks']} test tasks of each, "
        f"{settings['outer_steps']:,} outer steps (the paper's code takes 70,000), "
        f"{settings['num_seeds']} seeds; errors hold 0.09 of noise. ± is over tasks, "
        "of means over seeds, and the difference is paired. Published: see "
        "`benchmarks/function_families.py`.\n\n"
    )
    header = ["learner", "error", "median", "seeds", "published"]
    header += ["largest share of MAML's", "below MAML by"]
    families = list(dict.fromkeys(r["family"] for r in results))
    means = {(r["learner"], r["family"]): f"{r['mean']:.3f}" for r in results}
    each = [[name, *(means[name, f] for f in families[1:])] for name in names]
    tables = [markdown(header, rows), markdown(["error", *families[1:]], each)]
    return text + "\n".join([*tables, picture(path)])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
