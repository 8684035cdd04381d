"""What each part of MAML++ does on Omniglot, one switch at a time.

    python -m benchmarks.ablation

A. Antoniou, H. Edwards, A. Storkey, "How to train your MAML", ICLR 2019,
https://arxiv.org/abs/1810.09502, table 1, which has 20-way tasks and 100 epochs. Here
5-way 1-shot tasks and a short schedule, with everything else as in
`benchmarks.omniglot maml-plus-plus`: how fast the parts learn, not where they end.
Every variant has the same training tasks and the same test tasks, so that differences
are paired; ± is over test tasks of one training seed.
"""

import dataclasses
from typing import Any

import jax
import tyro

from benchmarks import omniglot
from benchmarks.pages import Named, interval_cell, markdown
from benchmarks.record import write_result
from metajax.evaluation.bank import evaluate
from metajax.evaluation.reports import Report, compare
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.omniglot import omniglot as images
from metajax.training.trainer import train

TITLE, FILES = "Parts of MAML++", "ablation"
"""Of its part of the page of results, and the results that it shows."""

# What a variant changes. All parts are on in `all`, but for derivative-order annealing,
# which saves time where the others are for accuracy.
VARIANTS: dict[str, dict[str, Any]] = {
    "all": {},
    "shared rate, not learned per step": {"per_step_rates": False},
    "normalisation weights shared by steps": {"per_step_normalization": False},
    "loss of the last step only": {"multi_step_share": 0.0},
    "constant outer rate": {"cosine": False},
    "first order for the first 30 %": {"first_order_share": 0.3},
    "none (MAML)": {
        "per_step_rates": False,
        "per_step_normalization": False,
        "multi_step_share": 0.0,
        "cosine": False,
    },
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every variant shares."""

    seed: int = 0
    outer_steps: int = 1500
    tasks_per_step: int = 8
    num_queries: int = 5
    """Per class, of training tasks; test tasks have 15."""
    num_test_tasks: int = 600


def main(settings: Settings) -> None:
    """Trains, tests, compares and writes the result."""
    reports = {name: train_and_test(name, settings) for name in VARIANTS}
    rows = []
    for name, report in reports.items():
        row: dict[str, Any] = {
            "variant": name,
            "mean": report.mean["accuracy"],
            "half_width": report.half_width["accuracy"],
        }
        if name != "all":
            pair = compare(reports["all"], report, "accuracy")
            row["worse_by"] = {"mean": pair.difference, "half_width": pair.half_width}
        print(row)
        rows.append(row)
    write_result("ablation", dataclasses.asdict(settings), rows)


def train_and_test(name: str, settings: Settings) -> Report:
    """One variant after its training, on the test tasks."""
    variant = omniglot.MamlPlusPlus(
        seed=settings.seed,
        steps=settings.outer_steps,
        tasks_per_step=settings.tasks_per_step,
        num_queries=settings.num_queries,
        **VARIANTS[name],
    )
    learner = variant.build(variant.model())

    def tasks(split: str, num_queries: int) -> Any:
        return few_shot(images(split), way=5, shot=1, num_queries=num_queries)

    result = train(
        learner,
        tasks("meta_train", settings.num_queries),
        variant.optimizer(),
        steps=settings.outer_steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        log_every=100,
        checkpoint_every=250,
        run_dir=f"runs/ablation-seed{settings.seed}/{list(VARIANTS).index(name)}",
        config=dataclasses.asdict(variant),
    )
    report = evaluate(
        learner,
        result.meta_params,
        tasks("meta_test", 15),
        num_tasks=settings.num_test_tasks,
    )
    print(f"{name}: {report}", flush=True)
    jax.clear_caches()
    return report


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(_, record)] = records
    settings = record["settings"]
    rows = [
        [
            r["variant"],
            interval_cell(r, 2, 100),
            interval_cell(r["worse_by"], 2, 100) if "worse_by" in r else "",
        ]
        for r in record["results"]
    ]
    text = (
        f"Omniglot 5-way 1-shot with 15 queries, {settings['num_test_tasks']} tasks, "
        f"after {settings['outer_steps']:,} steps of {settings['tasks_per_step']} "
        "tasks, one seed; differences are paired.\n\n"
    )
    return text + markdown(["what is on", "accuracy", "worse than all by"], rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
