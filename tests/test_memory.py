"""Sizes that no machine holds are refused before anything is made.

How much memory there is is faked; nothing here needs more than a few MiB.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import metajax
from metajax import checks, learners, models, tasks
from metajax.checks import LARGEST, check_fits, host_memory
from metajax.compute import devices
from metajax.evaluation import instance_accuracy
from metajax.tasks.buckets import fit_buckets
from metajax.training.whole_run import whole_run
from metajax.types import Examples

MIB = 2**20


@pytest.fixture
def little(monkeypatch):
    """A machine of 64 MiB."""
    monkeypatch.setattr(checks, "host_memory", lambda: 64 * MIB)


def sinusoids(**sizes):
    return tasks.sinusoid(**sizes)


def learner(size=8):
    model = models.mlp(1, hidden_sizes=(size,))
    squared = metajax.objectives.squared_error
    return learners.maml(model, optax.sgd(0.1), inner_steps=1, objective=squared)


def trained(**changes):
    arguments = {
        "learner": learner(),
        "tasks": sinusoids(),
        "optimizer": optax.sgd(0.1),
        "steps": 1,
        "tasks_per_step": 1,
        "progress": False,
    }
    return metajax.train(**arguments | changes)


def run(**changes):
    arguments = {"steps": 1, "tasks_per_step": 1} | changes
    given = arguments.pop("tasks", sinusoids())
    make = arguments.pop("make", lambda hyper: (learner(), optax.sgd(0.1)))
    return whole_run(make, given, **arguments)(jax.random.key(0))


def judged(**changes):
    given = changes.pop("tasks", sinusoids())
    params = learner().init(jax.random.key(0), sinusoids()(jax.random.key(0)))
    return metajax.evaluate(learner(), params, given, check_leakage=False, **changes)


def table(num=2):
    return tasks.synthetic_table(way=2, shot=num, num_queries=2)


def calibrated(num_tasks):
    model = models.mlp(2, normalization="calibrated")
    task = table()(jax.random.key(0))
    params = model.init(jax.random.key(0), task.support.x)
    return models.calibrate(
        model, params, table(), jax.random.key(0), num_tasks=num_tasks
    )


def streamed(num_tasks):
    mann = learners.mann(models.identity(), way=2, slots=4, width=4)
    params = mann.init(jax.random.key(0), table()(jax.random.key(0)))
    return instance_accuracy(mann, params, table(), num_tasks=num_tasks)


def resized(size):
    images = np.zeros((2, 4, 4, 1), np.uint8)
    return tasks.from_arrays(images, np.arange(2), size=size)


MANY = 2 * 10**9
# What is asked for, and what the error says of it.
TOO_LARGE = {
    "meta-parameters": (
        lambda: trained(learner=learner(10**8)),
        r"meta-parameters of `learner` would take 1.118 GiB, `params/\S+` of them "
        r"with shape \[100000000\], and there are 0.0625 GiB of memory; lower",
    ),
    "task": (
        lambda: trained(tasks=sinusoids(shot=10**8)),
        r"A task of `tasks` would take .*, `support/\w` of them with shape "
        r"\[100000000, 1\].*such as `way` or `shot`",
    ),
    "batch": (
        lambda: trained(tasks_per_step=10**6),
        r"`tasks_per_step` = 1000000 tasks would take .*; lower `tasks_per_step`, or a",
    ),
    "keys of a batch": (
        lambda: trained(tasks_per_step=MANY),
        r"Keys for `tasks_per_step` = 2000000000 would take 59.6 GiB, and there are",
    ),
    "validation": (
        lambda: trained(validation=sinusoids(), num_validation_tasks=MANY),
        "Keys for `num_validation_tasks` = 2000000000 would take 59.6 GiB",
    ),
    "explain": (
        lambda: metajax.explain(learner(), sinusoids(), tasks_per_step=MANY),
        "Keys for `tasks_per_step` = 2000000000",
    ),
    "whole run": (
        lambda: run(make=lambda hyper: (learner(10**8), optax.sgd(0.1))),
        "The meta-parameters of `learner` would take",
    ),
    "tasks of a whole run": (
        lambda: run(tasks=sinusoids(shot=10**8)),
        "A task of `tasks` would take",
    ),
    "batch of a whole run": (
        lambda: run(tasks_per_step=10**6),
        "`tasks_per_step` = 1000000 tasks would take",
    ),
    "steps of a whole run": (
        lambda: run(steps=MANY),
        "The metrics of `steps` = 2000000000 would take",
    ),
    "bank": (lambda: judged(num_tasks=MANY), "Keys for `num_tasks` = 2000000000"),
    "task of a bank": (
        lambda: judged(tasks=sinusoids(shot=10**8)),
        "A task of `tasks` would take",
    ),
    "block of a bank": (
        lambda: judged(num_tasks=10**6, tasks_per_block=10**6),
        "`tasks_per_block` = 1000000 tasks would take",
    ),
    "calibrate": (lambda: calibrated(MANY), "Keys for `num_tasks` = 2000000000"),
    "streams": (lambda: streamed(MANY), "Keys for `num_tasks` = 2000000000"),
    "buckets": (
        lambda: fit_buckets(table(), 2, jax.random.key(0), num_tasks=10**5),
        "Pairs of `num_tasks` = 100000 would take 74.51 GiB",
    ),
    "images": (
        lambda: resized((10**6, 10**6)),
        r"images of `size` = \(1000000, 1000000\) would take .*; lower `size`",
    ),
    "columns": (
        lambda: tasks.standard_task(
            Examples(jnp.ones((3, 2)), jnp.arange(3.0)),
            Examples(jnp.ones((3, 2)), jnp.arange(3.0)),
            num_columns=10**9,
        ),
        "Rows of `num_columns` = 1000000000 would take",
    ),
    "molecules": (
        lambda: tasks.from_molecules(["CCO", "CCN"], [[0], [1]], size=8 * 10**8),
        "Fingerprints of `size` = 800000000 would take 0.1863 GiB",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_does_not_fit_is_not_made(name, little):
    make, message = TOO_LARGE[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_tables_of_too_many_columns(little):
    rows = {"a": [1, 2, 3, 4], "y": ["u", "v", "u", "v"]}
    one = tasks.from_table(rows, target="y")
    with pytest.raises(ValueError, match="Tables of `num_columns` = 1000000000 would"):
        tasks.table_tasks(one, way=2, shot=1, num_queries=1, num_columns=10**9)


def test_a_folder_of_images_that_are_resized(little, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match=r"2 images of `size` = \(6000, 6000\)"):
        tasks.from_folder(tmp_path, size=(6000, 6000))


def test_what_a_program_makes_is_told_of_before_it_runs(little):
    """A memory is no meta-parameter, and an inner loop no argument."""
    mann = learners.mann(models.identity(), way=2, slots=10**6, width=40)
    with pytest.raises(MemoryError, match="A step needs .* MiB, and the device has 64"):
        trained(learner=mann, tasks=table())


def test_what_fits_is_made(little):
    trained()
    run()
    judged(num_tasks=3)


@pytest.mark.parametrize("known", [1000, None])
def test_the_limit(known, monkeypatch):
    monkeypatch.setattr(checks, "host_memory", lambda: known)
    arrays = {"a": jax.ShapeDtypeStruct((250,), "float32")}
    check_fits("They", arrays, "go")  # just fits
    arrays["b"] = jax.ShapeDtypeStruct((), "int8")
    if known is None:
        check_fits("They", arrays, "go")
    with pytest.raises(ValueError, match=r"They would take .*`a` of them with"):
        check_fits("They", arrays, "go", limit=1000)
    check_fits("They", arrays, "go", limit=1001)


def test_the_machine_tells():
    """In bytes, not pages; on CPU the device has what the machine has."""
    memory = host_memory()
    assert memory is None or 2**28 < memory < 2**50
    if jax.default_backend() == "cpu":
        assert devices.memory_limit() == memory


def test_counts_end_where_indices_do():
    model = models.mlp(2)
    for make, name in (
        (lambda: learners.mann(models.identity(), way=2, slots=10**10), "slots"),
        (lambda: learners.maml(model, optax.sgd(0.1), inner_steps=10**12), "inner_st"),
        (lambda: learners.ridge(models.identity(), way=10**12), "way"),
        (lambda: models.mlp(2, hidden_sizes=(LARGEST + 1,)), r"hidden_sizes\[0\]"),
        (lambda: trained(tasks_per_step=10**10), "tasks_per_step"),
        (lambda: judged(num_tasks=10**10), "num_tasks"),
        (lambda: tasks.glyphs(way=10**10, shot=1, num_queries=1), "way"),
    ):
        with pytest.raises(ValueError, match=f"`{name}.*` must be .*at most {LARGEST}"):
            make()
    models.mlp(2, hidden_sizes=(LARGEST,))
