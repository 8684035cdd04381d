"""Wrong arguments: valid ones are known, and each kind of fault is recognised."""

import inspect
import subprocess
import sys

import jax.numpy as jnp
import pytest
from of_benchmarks.outcome import read_result

from benchmarks import results_page, valid_arguments, wrong_arguments
from benchmarks.wrong_arguments import Settings, attempted, of_error, trials

HANDFUL = (
    "descriptions.fit_warm_start",
    "filters.only",
    "masks.masked_mean",
    "models.with_precision",
    "objectives.cross_entropy",
    "optimizers.sgd_hd",
    "tasks.from_table",
)


def test_all_that_is_public_has_valid_arguments():
    """A new function needs its arguments in `benchmarks/valid_arguments.py`."""
    for name in valid_arguments.public():
        valid_arguments.makers_of(name)


def test_what_is_not_known_is_told(monkeypatch):
    """Or a new function would not be tried."""

    def new(thing):
        del thing

    monkeypatch.setattr(valid_arguments, "public", lambda: {"tasks.new": new})
    with pytest.raises(LookupError, match=r"`tasks.new` has no valid thing"):
        valid_arguments.makers_of("tasks.new")


@pytest.mark.parametrize("name", HANDFUL)
def test_valid_arguments_work(name):
    """Those of the others are called before their wrong ones."""
    arguments = valid_arguments.arguments_of(name)
    result = valid_arguments.use(name, valid_arguments.called(name, arguments))
    assert not wrong_arguments.nan_in(result)


def test_trials_are_even_and_of_all_arguments():
    found = trials(Settings(calls=2000))
    counts = {}
    for name, of_function in found.items():
        for _, argument, _ in of_function:
            counts[name, argument] = counts.get((name, argument), 0) + 1
    assert sum(counts.values()) == 2000
    assert max(counts.values()) - min(counts.values()) == 1
    for name, function in valid_arguments.public().items():
        for argument in inspect.signature(function).parameters:
            assert (name, argument) in counts
    assert found == trials(Settings(calls=2000))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("`way` must be at least 1, got 0."), "refused"),
        (TypeError("`way[0]` is no integer."), "refused"),
        (ValueError("The ways of `away` are many."), "unnamed"),
        (AttributeError("'int' object has no attribute 'way'"), "unnamed"),
        (MemoryError(), "memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), "memory"),
        (FileNotFoundError("no file there/is"), "refused"),
        (KeyboardInterrupt(), "unnamed"),
    ],
)
def test_an_error_must_name_the_argument(error, outcome):
    assert of_error(error, "way", "there/is") == outcome


@pytest.mark.parametrize(
    ("function", "outcome"),
    [
        (lambda size: jnp.sqrt(jnp.float32(size)), "silent nan"),
        (lambda size: 1 / size, "works"),
        (lambda size: [][size], "unnamed"),
    ],
)
def test_a_planted_fault_is_recognised(function, outcome, monkeypatch):
    monkeypatch.setattr(valid_arguments, "public", lambda: {"tasks.new": function})
    monkeypatch.setitem(valid_arguments.OF, "tasks.new", {"size": lambda: 1.0})
    assert attempted(("tasks.new", "size", "-1"), has_nan=False)[0] == outcome


def test_campaign(tmp_path, monkeypatch):
    """In processes of their own, of which one dies and one hangs."""
    program = (
        "import os, time, pathlib\n"
        "from benchmarks import record, valid_arguments as valid, wrong_arguments\n"
        "functions = {\n"
        "    'new.dies': lambda size: size == 1 or os._exit(3),\n"
        "    'new.hangs': lambda size: size == 1 or time.sleep(60),\n"
        "}\n"
        "valid.public = lambda: functions\n"
        "valid.OF = {name: {'size': lambda: 1} for name in functions}\n"
        "wrong_arguments.VALUES = {'0': lambda _: 0}\n"
        "if __name__ == '__main__':\n"
        "    record.RESULTS = pathlib.Path('results')\n"
        "    wrong_arguments.main(wrong_arguments.Settings(calls=2, limit_s=1))\n"
    )
    (tmp_path / "planted.py").write_text(program)
    root = inspect.getfile(valid_arguments).removesuffix(
        "benchmarks/valid_arguments.py"
    )
    monkeypatch.setenv("PYTHONPATH", root)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    subprocess.run([sys.executable, "planted.py"], check=True, cwd=tmp_path)
    (row,) = read_result(tmp_path)["results"]
    assert row["died"] == row["hang"] == 1
    assert "| new | " in results_page.page(tmp_path / "results")


CALLS = {
    "metajax.compare": "a b",
    "metajax.across_seeds": "reports metric",
    "metajax.evaluate": "learner meta_params tasks steps_curve buckets judge mesh",
    "metajax.explain": "learner tasks",
    "metajax.leakage": "learner task",
    "metajax.train": "tasks_per_block outer_gradient run_dir progress mesh",
    "metajax.whole_run": "make tasks validation outer_gradient",
    "descriptions.recommend": "warm_start exclude",
    "descriptions.regret_curve": "order scores",
    "descriptions.symmetric_distance": "first second",
    "descriptions.task2vec": "model examples",
    "distributions.joint_log_likelihood": "outputs y",
    "distributions.kl_divergence": "p q",
    "evaluation.Report": "values fingerprint calibration",
    "evaluation.bank_task": "tasks seed",
    "evaluation.prequential": "learner examples",
    "filters.partition": "predicate",
    "learners.attentive_np": "latent min_scale",
    "learners.baseline": "way fine_tune",
    "learners.center_embeddings": "model meta_params tasks",
    "learners.feat": "dropout",
    "learners.kernel_svm": "relevance learn",
    "learners.mm_net": "near",
    "learners.snail": "keys values",
    "masks.masked_mean": "values mask",
    "objectives.accuracy": "logits labels",
    "objectives.query_loss": "adapt predict objective",
    "objectives.squared_error": "outputs targets",
    "optimizers.learned": "make",
    "outer_gradients.compare_gradients": "candidates tasks reference",
    "plots.plot_learning_curves": "path histories levels metric",
    "plots.plot_task_maps": "path maps columns",
    "plots.plot_tasks": "path tasks answers queries_per_class",
    "tasks.bucketed": "learner",
    "tasks.few_shot": "table dtype",
    "tasks.from_arrays": "kind layout",
    "tasks.from_folder": "path channels rotations",
    "tasks.from_molecules": "smiles assays canonical",
    "tasks.gaussian_process": "length_scale noise x_range",
    "tasks.join_classes": "tables",
    "tasks.molecule_tasks": "assays",
    "tasks.sinusoid": "amplitude phase",
    "tasks.split_classes": "table fractions names",
    "tasks.table_tasks": "tables",
}
"""Arguments of which wrong ones were not told by their names before."""


@pytest.mark.parametrize("function", CALLS)
def test_wrong_arguments_are_named(function, monkeypatch):
    """Without the use of what is built, which costs a compilation."""
    monkeypatch.setattr(valid_arguments, "use", lambda name, value: value)
    for argument in CALLS[function].split():
        for value in ("object()", "array of words", "jax float32 0.5"):
            found = attempted((function, argument, value), has_nan=False)
            allowed = ("refused",) if value == "object()" else ("refused", "works")
            assert found[0] in allowed, (argument, value, found)
