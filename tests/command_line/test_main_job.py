import dataclasses
import functools
import sys

import chex
import numpy as np
import pytest

from metajax.command_line import cli, configuration, main_job
from metajax.command_line.cli import main
from metajax.command_line.forms import FORMS
from metajax.command_line.main_job import Sizes
from metajax.evaluation.bank import evaluate
from metajax.tasks.images.class_table import class_table
from metajax.tasks.images.few_shot import few_shot

TINY = Sizes(
    features=8,
    prototypical_steps=2,
    maml_steps=2,
    scratch_steps=2,
    num_validation_tasks=2,
    num_test_tasks=6,
)
METHODS = [
    "Prototypical Networks",
    "MAML",
    "same network from scratch",
    "nearest centroid on pixels",
]


@pytest.fixture
def cheap(monkeypatch):
    """Other tasks and another network, as drawing and convolving compile slowly."""
    images = np.random.default_rng(0).integers(0, 256, (24, 20, 6, 6, 1), np.uint8)
    table = class_table(images)

    def build_tasks(values, split):
        del split
        return few_shot(
            table, way=values.way, shot=values.shot, num_queries=values.num_queries
        )

    def conv4(*, features, pooling, normalization):
        del pooling
        return FORMS["model"]["mlp"](
            hidden_sizes=(features,), normalization=normalization
        )

    monkeypatch.setattr(configuration, "build_tasks", build_tasks)
    monkeypatch.setattr(main_job, "build_tasks", build_tasks)
    monkeypatch.setitem(FORMS["model"], "conv4", conv4)


def test_main_job_twice(cheap, tmp_path, monkeypatch, capsys):
    tested = []

    def evaluate_and_remember(learner, meta_params, tasks, **options):
        tested.append((meta_params, evaluate(learner, meta_params, tasks, **options)))
        return tested[-1][1]

    monkeypatch.setattr(main_job, "evaluate", evaluate_and_remember)
    monkeypatch.setenv("COLUMNS", "120")
    folder = tmp_path / "main"
    reports = main_job.main_job(folder, sizes=TINY)
    lines = capsys.readouterr().out.splitlines()
    assert list(reports) == METHODS
    for name, report in reports.items():
        assert report.num_tasks == 6
        assert report.protocol == "inductive"
        accuracy = f"{100 * report.mean['accuracy']:.1f} ± "
        assert any(line.startswith(f"  {name} ") and accuracy in line for line in lines)
    assert any(line.startswith("MAML - Prototypical Networks: ") for line in lines)
    for name in ("tasks.png", "learning_curves.png", "maml/config.json"):
        assert (folder / name).exists()

    # Again: the same parameters are tested, nothing is trained, and it says so.
    def evaluate_again(learner, meta_params, tasks, **options):
        expected, report = tested.pop(0)
        chex.assert_trees_all_equal(meta_params, expected)
        return report

    metrics = (folder / "maml" / "metrics.jsonl").read_text()
    monkeypatch.setattr(main_job, "evaluate", evaluate_again)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(
        "metajax.training.run_folder.plot_learning_curve", lambda *args: None
    )
    main_job.main_job(folder, sizes=TINY)
    out = capsys.readouterr().out
    assert not tested
    assert f"MAML: using what {folder}/maml holds; delete it to train anew." in out
    assert "No pictures: matplotlib is not installed: pip install" in out
    assert (folder / "maml" / "metrics.jsonl").read_text() == metrics

    other = dataclasses.replace(TINY, features=16)
    with pytest.raises(ValueError, match=r"hidden(?s:.*)\nOr delete .*prototypical\."):
        main_job.main_job(folder, sizes=other)


def test_no_command_runs_it(monkeypatch, tmp_path, capsys):
    called = []
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    monkeypatch.setattr(main_job, "main_job", functools.partial(called.append, 1))
    assert main([]) == 0
    assert called == [1]
    assert cli.os.environ["XLA_FLAGS"].endswith(" --xla_dump_to=x")
