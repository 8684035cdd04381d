import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic import DIM, quadratic, same_bits, sample

from metajax.training import stops
from metajax.training.checkpoints import load_meta_params
from metajax.training.run_folder import read_metrics
from metajax.training.stops import NonFiniteError
from metajax.training.trainer import train
from metajax.types import Examples, Learner, OuterGradient, Task

NUM_TASKS = 4
LEARNER = quadratic(noise=0.1)
PARAMS_LIKE = {"theta": jnp.zeros(DIM)}


def short_run(learner=LEARNER, tasks=sample, optimizer=None, **changes):
    arguments = {
        "steps": 20,
        "tasks_per_step": NUM_TASKS,
        "num_validation_tasks": 8,
        "validate_every": 7,
        "log_every": 4,
        "checkpoint_every": 5,
        "progress": False,
    }
    optimizer = optax.adam(0.05) if optimizer is None else optimizer
    return train(learner, tasks, optimizer, **arguments | changes)


def untimed(history):
    return [{k: v for k, v in r.items() if k != "timing"} for r in history]


def steps_of(history, kind):
    return [record["step"] for record in history if record["kind"] == kind]


def test_training_lowers_the_loss_towards_its_known_minimum():
    # Best is theta = 0: then the loss is half of E|q - (1 - shrink) s|^2, and centres
    # are uniform in [-1, 1], of variance 1/3 in each of their coordinates.
    learner = quadratic(steps=1)
    start = learner._replace(init=lambda key, task: {"theta": jnp.full(DIM, 4.0)})
    result = short_run(start, steps=150, tasks_per_step=32, optimizer=optax.adam(0.1))
    np.testing.assert_allclose(result.meta_params["theta"], 0, atol=0.15)
    losses = [r["loss"] for r in result.history if r["kind"] == "train"]
    expected = 0.5 * DIM / 3 * (1 + 0.25**2)
    # Four steps of 32 tasks: the standard error of a record is about 0.03.
    assert losses[0] > 4 * expected
    assert abs(losses[-1] - expected) < 0.12


def test_history_does_not_depend_on_dispatch_length():
    runs = [
        short_run(steps_per_dispatch=n, validation=sample, steps=17) for n in (2, 3, 50)
    ]
    for run in runs[1:]:
        assert same_bits(runs[0].state, run.state)
        assert untimed(runs[0].history) == untimed(run.history)
    assert steps_of(runs[0].history, "train") == [4, 5, 7, 8, 10, 12, 14, 15, 16, 17]
    assert steps_of(runs[0].history, "validation") == [0, 7, 14, 17]


def test_same_seed_same_bits_and_other_seed_other():
    a, b, c = (short_run(seed=seed, steps=5) for seed in (1, 1, 2))
    assert same_bits(a.state, b.state)
    assert not same_bits(a.state, c.state)


def test_validation_tasks_are_the_same_every_time_and_for_every_seed():
    start = quadratic()._replace(init=lambda key, task: {"theta": jnp.ones(DIM)})
    runs = [
        short_run(start, steps=3, seed=seed, validation=sample, optimizer=optax.sgd(0))
        for seed in (0, 1)
    ]
    records = [
        {k: v for k, v in r.items() if k not in ("timing", "step")}
        for run in runs
        for r in run.history
        if r["kind"] == "validation"
    ]
    assert len(records) == 4
    assert all(record == records[0] for record in records)
    assert records[0]["half_width"]["mse"] > 0


def test_everything_is_compiled_once():
    traces = {"loss": 0, "predict": 0}

    def counted(name, function):
        def traced(*args, **kwargs):
            traces[name] += 1
            return function(*args, **kwargs)

        return traced

    learner = LEARNER._replace(
        loss=counted("loss", LEARNER.loss), predict=counted("predict", LEARNER.predict)
    )
    short_run(learner, steps=1, steps_per_dispatch=3, validation=sample)
    once = dict(traces)
    learner = learner._replace(init=lambda key, task: LEARNER.init(key, task))
    short_run(learner, steps=30, steps_per_dispatch=3, validation=sample)
    assert all(traces[name] <= 2 * once[name] for name in once)


def test_arrays_of_a_task_distribution_are_no_constants(tmp_path, monkeypatch):
    texts = []
    lower = jax.stages.Lowered.as_text
    monkeypatch.setattr(
        jax.stages.Lowered,
        "as_text",
        lambda self: texts.append(lower(self)) or texts[-1],
    )
    table = jax.random.uniform(jax.random.key(5), (1000, DIM))

    def draw(table, key):
        rows = jax.random.randint(key, (2, 1), 0, len(table))
        support, query = table[rows]
        return Task(
            Examples(jnp.zeros((1, 1)), support), Examples(jnp.zeros((1, 1)), query)
        )

    as_argument = jax.tree_util.Partial(draw, table)
    in_closure = lambda key: draw(table, key)  # noqa: E731
    for name, tasks in (("argument", as_argument), ("closure", in_closure)):
        short_run(tasks=tasks, steps=1, run_dir=tmp_path / name)
    # How a constant array looks in a program.
    assert ['dense<"0x' in text for text in texts] == [False, True]


class HostSample:
    """`sample`, by way of the host."""

    def __init__(self):
        self.steps = []

    def batches(self, step_keys, start, stop):
        for step in range(start, stop):
            self.steps.append(step)
            yield jax.tree.map(np.asarray, jax.vmap(sample)(step_keys(step)))


@pytest.mark.parametrize("steps_per_dispatch", [1, 3])
def test_host_tasks_equal_device_tasks(steps_per_dispatch):
    host = HostSample()
    a = short_run(tasks=host, steps=7, steps_per_dispatch=steps_per_dispatch)
    b = short_run(steps=7, steps_per_dispatch=steps_per_dispatch)
    np.testing.assert_allclose(
        a.meta_params["theta"], b.meta_params["theta"], rtol=1e-6
    )
    assert host.steps[-7:] == list(range(7))


def test_host_tasks_resume_at_their_step(tmp_path):
    host = HostSample()
    short_run(tasks=host, steps=5, run_dir=tmp_path)
    host.steps.clear()
    resumed = short_run(tasks=host, steps=10, run_dir=tmp_path)
    assert host.steps[-5:] == list(range(5, 10))
    assert same_bits(resumed.state, short_run(tasks=HostSample(), steps=10).state)


def test_best_is_kept_apart_from_last(tmp_path):
    # Gradient ascent: every step is worse than the one before.
    result = short_run(
        optimizer=optax.sgd(-0.2), validation=sample, run_dir=tmp_path, steps=9
    )
    assert result.best_step == 0
    assert not same_bits(result.best_params, result.meta_params)
    for which, params in (("best", result.best_params), ("last", result.meta_params)):
        assert same_bits(load_meta_params(tmp_path, PARAMS_LIKE, which=which), params)
    # Descent: the other way round.
    result = short_run(optimizer=optax.sgd(0.02), validation=sample, steps=9)
    assert result.best_step == 9
    assert same_bits(result.best_params, result.meta_params)


def test_without_validation_the_last_are_the_best(tmp_path):
    result = short_run(run_dir=tmp_path, steps=9)
    assert result.best_step == 9
    assert same_bits(result.best_params, result.meta_params)
    assert same_bits(load_meta_params(tmp_path, PARAMS_LIKE), result.meta_params)


def accuracy_learner():
    """Classifies by whether theta is above a threshold; higher theta is better."""

    def predict(adapted, inputs, *, mask=None, key=None):
        margin = jnp.broadcast_to(jnp.sum(adapted), (inputs.shape[0],)) - inputs[:, 0]
        return jnp.stack([-margin, margin], axis=1)

    def loss(meta_params, task, *, key=None):
        return -jnp.sum(meta_params["theta"]), {}

    def init(key, task):
        return {"theta": jnp.zeros(DIM)}

    adapt = lambda meta_params, support, *, key=None: meta_params["theta"]  # noqa: E731
    return Learner(init, adapt, predict, loss)


def threshold_tasks(key):
    x = jax.random.uniform(key, (10, 1))
    examples = Examples(x, jnp.ones(10, jnp.int32))
    return Task(examples, examples)


@pytest.mark.parametrize("monitor", [None, "accuracy", "nll"])
def test_higher_accuracy_and_lower_rest_are_better(monitor):
    result = short_run(
        accuracy_learner(),
        threshold_tasks,
        optax.sgd(0.02),
        steps=7,
        validation=threshold_tasks,
        monitor=monitor,
    )
    first, last = (r for r in result.history if r["kind"] == "validation")
    assert first["accuracy"] < last["accuracy"]
    assert first["nll"] > last["nll"]
    assert result.best_step == 7


def test_custom_estimator_keeps_its_state(tmp_path):
    """Random directions with antithetic differences, and a count of the calls."""

    def gradient(loss, meta_params, tasks, keys, state):
        count, key = state
        key, key_direction = jax.random.split(key)
        direction = jax.random.normal(key_direction, (DIM,))

        def mean_loss(sign):
            params = {"theta": meta_params["theta"] + sign * 0.1 * direction}
            losses = jax.vmap(lambda t, k: loss(params, t, key=k)[0])(tasks, keys)
            return jnp.mean(losses)

        plus, minus = mean_loss(1), mean_loss(-1)
        slope = (plus - minus) / 0.2
        return {"theta": slope * direction}, (plus + minus) / 2, {}, (count + 1, key)

    outer_gradient = OuterGradient(
        lambda key, meta_params, task: (jnp.int32(0), key), gradient
    )
    whole = short_run(outer_gradient=outer_gradient, steps=10)
    assert whole.state.gradient_state[0] == 10
    short_run(outer_gradient=outer_gradient, steps=5, run_dir=tmp_path)
    resumed = short_run(outer_gradient=outer_gradient, steps=10, run_dir=tmp_path)
    assert same_bits(whole.meta_params, resumed.meta_params)


def test_run_folder_is_complete(tmp_path):
    result = short_run(run_dir=tmp_path, validation=sample, config={"way": 5})
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= names
    assert json.loads((tmp_path / "config.json").read_text())["config"] == {"way": 5}
    assert read_metrics(tmp_path) == result.history
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"15", "20"}
    for module, name in (
        ("matplotlib", "learning_curve.png"),
        ("tensorboardX", "tensorboard"),
    ):
        if module in sys.modules:
            assert name in names


def test_finished_run_returns_at_once_and_goes_on_when_steps_grow(tmp_path):
    whole = short_run(steps=20, validation=sample)
    short_run(steps=10, validation=sample, run_dir=tmp_path)
    again = short_run(steps=10, validation=sample, run_dir=tmp_path)
    assert again.state.step == 10
    assert untimed(again.history) == untimed(read_metrics(tmp_path))
    longer = short_run(steps=20, validation=sample, run_dir=tmp_path)
    assert same_bits(longer.state, whole.state)
    # The validation that ended the first run is one more than in a single long one.
    assert set(steps_of(longer.history, "validation")) == {0, 7, 10, 14, 20}
    with pytest.raises(ValueError, match="has taken 20 steps"):
        short_run(steps=10, validation=sample, run_dir=tmp_path)


def test_display(tmp_path, capsys):
    ascent = {"optimizer": optax.sgd(-0.2), "validation": sample, "run_dir": tmp_path}
    short_run(steps=5, progress=True, **ascent)
    text = capsys.readouterr().out
    assert "compiling took" in text
    assert "step 5/5: " in text
    assert re.search(
        r"finished after 5 steps; .* validation, [0-9.]+, was after 0", text
    )
    short_run(steps=9, progress=True, **ascent)
    text = capsys.readouterr().out
    assert "going on from step 5" in text
    assert "step 9/9: " in text
    short_run(steps=2, progress=True)
    assert "finished after 2 steps\n" in capsys.readouterr().out


def test_best_survives_a_resume(tmp_path):
    ascent = {"optimizer": optax.sgd(-0.2), "validation": sample, "run_dir": tmp_path}
    first = short_run(steps=5, **ascent)
    resumed = short_run(steps=9, **ascent)
    assert (first.best_step, resumed.best_step) == (0, 0)
    assert same_bits(first.best_params, resumed.best_params)


def test_run_goes_back_past_a_damaged_checkpoint(tmp_path):
    whole = short_run(validation=sample, run_dir=tmp_path)
    lines = untimed(read_metrics(tmp_path))
    for path in (tmp_path / "checkpoints" / "20" / "meta_params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"(?s)/20 cannot be read.*Going back to step"):
        again = short_run(validation=sample, run_dir=tmp_path)
    assert same_bits(whole.state, again.state)
    assert untimed(read_metrics(tmp_path)) == lines


def test_other_settings_are_refused(tmp_path):
    short_run(steps=5, run_dir=tmp_path, config={"rate": 1})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"train.tasks_per_step: 4 in .*, 8 now"):
        short_run(steps=5, run_dir=tmp_path, config={"rate": 1}, tasks_per_step=8)
    with pytest.raises(ValueError, match=r"config.rate: 1 in .*, 2 now"):
        short_run(steps=5, run_dir=tmp_path, config={"rate": 2})
    init = lambda key, task: {"b": jnp.zeros(DIM)}  # noqa: E731
    loss = lambda p, task, *, key: (jnp.sum(p["b"]), {})  # noqa: E731
    learner = LEARNER._replace(init=init, loss=loss)
    with pytest.raises(ValueError, match=r"state..meta_params\['b'\]: not set in"):
        short_run(learner, steps=5, run_dir=tmp_path, config={"rate": 1})
    with pytest.raises(ValueError, match="another program"):
        short_run(
            optimizer=optax.adam(0.06), steps=5, run_dir=tmp_path, config={"rate": 1}
        )
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def nan_at(step):
    return optax.sgd(lambda count: jnp.where(count == step, jnp.nan, 0.1))


@pytest.mark.parametrize("steps_per_dispatch", [1, 8])
def test_non_finite_stops_and_saves_the_last_good_state(tmp_path, steps_per_dispatch):
    arguments = {"steps_per_dispatch": steps_per_dispatch, "validation": sample}
    with pytest.raises(NonFiniteError) as caught:
        short_run(optimizer=nan_at(11), run_dir=tmp_path, **arguments)
    error = caught.value
    assert isinstance(error, FloatingPointError)
    assert error.step == 11
    assert error.checkpoint == (tmp_path / "checkpoints" / "11").absolute()
    assert str(error.checkpoint) in str(error)
    assert "stopped in outer step 12" in str(error)
    assert "updated meta-parameters are not" in str(error)
    assert "Lower the outer learning rate" in str(error)
    good = short_run(optimizer=nan_at(99), steps=11, **arguments)
    params = load_meta_params(tmp_path, PARAMS_LIKE, which="last")
    assert same_bits(params, good.meta_params)
    assert read_metrics(tmp_path)[-1]["step"] == 11
    # The same call ends the same way, and adds nothing.
    lines = read_metrics(tmp_path)
    with pytest.raises(NonFiniteError, match="outer step 12"):
        short_run(optimizer=nan_at(11), run_dir=tmp_path, **arguments)
    assert read_metrics(tmp_path) == lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda theta: jnp.inf + jnp.sum(theta), "loss is inf.*inner or the outer"),
        (lambda theta: jnp.sqrt(jnp.sum(0 * theta)), "norm of the gradient.*eps_root"),
    ],
)
def test_non_finite_says_what(value, text):
    loss = lambda p, task, *, key: (value(p["theta"]), {})  # noqa: E731
    with pytest.raises(NonFiniteError, match=rf"{text}") as caught:
        short_run(LEARNER._replace(loss=loss))
    assert caught.value.step == 0
    assert caught.value.checkpoint is None
    assert "no `run_dir`" in str(caught.value)


def test_learner_may_hold_its_initial_parameters():
    pretrained = jnp.ones(DIM)
    learner = LEARNER._replace(init=lambda key, task: {"theta": pretrained})
    short_run(learner, steps=3, validation=sample)
    np.testing.assert_array_equal(pretrained, np.ones(DIM))


def nan_tasks(key):
    task = sample(key)
    return task._replace(query=task.query._replace(y=task.query.y * jnp.nan))


ERRORS = {
    "seed": (
        {"seed": 2**32},
        ValueError,
        "`seed` must be an integer from 0 to 4294967295, got 4294967296",
    ),
    "steps": ({"steps": 0}, ValueError, "`steps` must be an integer .* got 0"),
    "tasks": ({"tasks_per_step": -1}, ValueError, "`tasks_per_step` .* got -1"),
    "float": ({"steps": 10.0}, ValueError, r"`steps` must be an integer .* got 10\.0"),
    "every": ({"validate_every": 0}, ValueError, "`validate_every` .* got 0"),
    "log": ({"log_every": 0}, ValueError, "`log_every` .* got 0"),
    "save": ({"checkpoint_every": 0}, ValueError, "`checkpoint_every` .* got 0"),
    "bank": ({"num_validation_tasks": 0}, ValueError, "`num_validation_tasks`"),
    "dispatch": ({"steps_per_dispatch": 0}, ValueError, "`steps_per_dispatch`"),
    "block": (
        {"tasks_per_block": 3},
        ValueError,
        r"must divide the 4 tasks of a step .*, got 3; .* one of \[1, 2, 4\]",
    ),
    "zero block": ({"tasks_per_block": 0}, ValueError, "`tasks_per_block`.* got 0"),
    "block and estimator": (
        {"tasks_per_block": 1, "outer_gradient": OuterGradient(None, None)},
        ValueError,
        "belongs to the default gradient",
    ),
    "monitor": (
        {"validation": sample, "monitor": "f1"},
        ValueError,
        r"`monitor` must be a metric of the validation, \['mse'\], got 'f1'",
    ),
    "learner": ({"learner": "maml"}, TypeError, "must be a `metajax.Learner`, got str"),
    "optimizer": ({"optimizer": 0.1}, TypeError, "must be an Optax .* got float"),
    "no tasks": ({"tasks": 3}, TypeError, "`tasks` must be a function .* got int"),
    "validation": ({"validation": 3}, TypeError, "`validation` must be a .* got int"),
    "nan": ({"tasks": nan_tasks}, ValueError, "query.y` must be finite"),
    "config": (
        {"config": {"f": sample}},
        ValueError,
        "`config` must hold finite numbers",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name, tmp_path):
    changes, error, match = ERRORS[name]
    if name == "config":
        changes = changes | {"run_dir": tmp_path}
    with pytest.raises(error, match=match):
        short_run(**changes)


@pytest.mark.parametrize(
    ("spare", "remedy"),
    [(0.5, "`tasks_per_block=2` should fit, or try"), (0, "Not even one task at a")],
)
def test_what_cannot_fit_the_memory_is_not_run(spare, remedy, monkeypatch):
    planned, temporary = 3 * 2**20, 2 * 2**20
    monkeypatch.setattr(stops, "planned_memory", lambda program: (planned, temporary))
    limit = planned - temporary + int(spare * temporary)
    monkeypatch.setattr(stops.devices, "memory_limit", lambda: limit)
    with pytest.raises(MemoryError, match=f"needs 3 MiB, and .* has .* MiB. {remedy}"):
        short_run(LEARNER, steps=1)
    monkeypatch.setattr(stops.devices, "memory_limit", lambda: planned)
    short_run(LEARNER, steps=1)


def test_monitor_without_validation_is_an_error():
    with pytest.raises(ValueError, match="`monitor` needs `validation`"):
        short_run(monitor="accuracy")


KILLED_RUN = """
import sys
import optax
from quadratic import quadratic, sample
from metajax.training.trainer import train

train(
    quadratic(noise=0.1), sample, optax.adam(0.05), steps=int(sys.argv[2]),
    tasks_per_step=4, validation=sample, validate_every=70, num_validation_tasks=8,
    log_every=40, checkpoint_every=20, run_dir=sys.argv[1], progress=False,
)
"""


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bits(tmp_path):
    """SIGKILL at five random moments, wherever these fall in steps and saves."""
    steps = 4000  # a checkpoint every 20 steps: half of the time goes into saving

    def start(run_dir):
        environment = os.environ | {
            "PYTHONPATH": str(pathlib.Path(__file__).parents[1])
        }
        return subprocess.Popen(
            [sys.executable, "-c", KILLED_RUN, str(run_dir), str(steps)],
            env=environment,
        )

    def last_step(run_dir):
        return max(
            (
                int(p.name)
                for p in run_dir.glob("checkpoints/[0-9]*")
                if p.name.isdigit()
            ),
            default=0,
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    rng = random.Random(0)
    steps_at_kill = []
    for _ in range(5):
        process = start(killed)
        before = last_step(killed)
        while last_step(killed) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, "the run was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        steps_at_kill.append(last_step(killed))
    assert steps_at_kill == sorted(set(steps_at_kill))
    assert start(killed).wait() == 0

    for which in ("last", "best"):
        a, b = (
            load_meta_params(path, PARAMS_LIKE, which=which) for path in (whole, killed)
        )
        assert same_bits(a, b)
    assert untimed(read_metrics(killed)) == untimed(read_metrics(whole))
    assert {p.name for p in (killed / "checkpoints").iterdir()} == {
        str(steps - 20),
        str(steps),
    }


def few_numbers(table):
    """Tasks from a table that is an argument of the program, and no constant of it."""

    def draw(table, key):
        row = table[jax.random.randint(key, (1,), 0, len(table))]
        return Task(Examples(jnp.zeros((1, 1)), row), Examples(jnp.zeros((1, 1)), row))

    return jax.tree_util.Partial(draw, table)


def test_other_tasks_and_another_validation_are_refused(tmp_path):
    """Also where the program of a step stays the same."""
    one, other = few_numbers(jnp.ones((9, DIM))), few_numbers(jnp.zeros((9, DIM)))
    run = {"steps": 5, "run_dir": tmp_path}
    short_run(tasks=one, validation=one, **run)
    for tasks, validation in ((other, one), (one, other)):
        with pytest.raises(ValueError, match="another program"):
            short_run(tasks=tasks, validation=validation, **run)
    learner = LEARNER._replace(predict=lambda *args, **_: 2 * LEARNER.predict(*args))
    with pytest.raises(ValueError, match="another program"):
        short_run(learner, tasks=one, validation=one, **run)
    short_run(tasks=one, validation=one, **run)


def test_a_failed_first_call_does_not_block_its_folder(tmp_path):
    with pytest.raises(ValueError, match="`monitor`"):
        short_run(validation=sample, monitor="acc", run_dir=tmp_path)
    short_run(validation=sample, monitor="mse", run_dir=tmp_path)
