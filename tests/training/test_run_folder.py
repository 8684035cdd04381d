import copy
import gc
import json
import math
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import endurance
from metajax.plots import plot_learning_curve
from metajax.training.run_folder import RunFolder, read_metrics, run_settings


def settings(rate=0.1, config=None, example=0.0, num_devices=1, **arguments):
    """Of a program that multiplies by `rate`."""
    state = {"w": jnp.zeros((2, 3))}
    programs = [jax.jit(lambda w: rate * w).lower(state["w"])]
    arguments = {"steps": 10, "seed": 0} | arguments
    examples = {"x": jnp.full(3, example), "key": jax.random.key(0)}
    return run_settings(arguments, config, state, programs, examples, num_devices)


def run_of(path, values):
    """A folder with one checkpoint, closed again."""
    folder = RunFolder(path, values)
    folder.save(10, TREES, {}, [])
    folder.close([], None)


TIMING = {"seconds": 0.5, "unix_time": 1000.0}


def train_record(step, loss=1.0):
    return {"kind": "train", "step": step, "loss": loss, "timing": TIMING}


def validation_record(step):
    metrics = {"accuracy": 0.5 + step / 100, "nll": None}
    half_width = {"accuracy": 0.1, "nll": None}
    record = {"kind": "validation", "step": step, **metrics}
    return record | {"half_width": half_width, "timing": TIMING}


TREES = {"meta_params": {"w": jnp.ones(3)}}


def test_settings_name_what_a_run_depends_on():
    values = settings(config={"learner": "maml"})
    assert values["train"] == {"steps": 10, "seed": 0}
    assert values["state"] == {"['w']": "float32[2, 3]"}
    assert values["versions"]["jax"] == jax.__version__
    assert values["device"]["platform"] == jax.devices()[0].platform
    assert values["program"] == settings(config={})["program"]
    assert values["program"] != settings(rate=0.2)["program"]
    assert values["program"] != settings(example=0.5)["program"]


def test_config_file_holds_the_settings(tmp_path):
    RunFolder(tmp_path / "a" / "b", settings())
    text = (tmp_path / "a" / "b" / "config.json").read_text()
    assert json.loads(text) == settings()


def test_config_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="`config` must hold finite numbers.*function"):
        RunFolder(tmp_path, settings(config={"loss": jnp.sum}))
    for value in (math.nan, math.inf):  # neither equals what would be read back
        with pytest.raises(ValueError, match="`config` must hold finite numbers"):
            RunFolder(tmp_path, settings(config={"threshold": value}))
    assert not list(tmp_path.iterdir())


def test_other_settings_are_listed(tmp_path):
    run_of(tmp_path, settings(config={"inner": {"steps": 1}, "way": 5}))
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="other settings") as error:
        RunFolder(
            tmp_path,
            settings(seed=1, config={"inner": {"steps": 3}, "way": 5, "shot": 2}),
        )
    text = str(error.value)
    assert "train.seed: 0 in the folder, 1 now" in text
    assert "config.inner.steps: 1 in the folder, 3 now" in text
    assert "config.shot: not set in the folder, 2 now" in text
    assert "way" not in text
    assert "another `run_dir`" in text
    assert (tmp_path / "config.json").read_bytes() == before


def test_steps_may_grow_but_not_below_those_taken(tmp_path):
    run_of(tmp_path, settings(steps=10))
    RunFolder(tmp_path, settings(steps=20))
    with pytest.raises(ValueError, match=r"taken 10 steps; `steps` must be.* got 9"):
        RunFolder(tmp_path, settings(steps=9))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 20


def test_many_differences_are_cut_short(tmp_path):
    run_of(tmp_path, settings(config={f"a{i}": i for i in range(14)}))
    with pytest.raises(ValueError, match=r"and 5 more\nUse another") as error:
        RunFolder(tmp_path, settings())
    assert str(error.value).count("\n  ") == 11  # with the last line


def test_before_the_first_checkpoint_settings_may_change(tmp_path):
    """As after a first call that failed."""
    RunFolder(tmp_path, settings(seed=0))
    RunFolder(tmp_path, settings(seed=1))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["seed"] == 1


def test_two_runs_in_one_folder_are_refused(tmp_path):
    folder = RunFolder(tmp_path, settings())
    (tmp_path / "checkpoints" / "half-written").mkdir()
    with pytest.raises(BlockingIOError, match="Another process trains in"):
        RunFolder(tmp_path, settings())
    folder.close([], None)
    RunFolder(tmp_path, settings()).close([], None)


def test_undescribed_change_is_noticed(tmp_path):
    run_of(tmp_path, settings(rate=0.1))
    with pytest.raises(ValueError, match=r"another program.*learning rate.*`program`"):
        RunFolder(tmp_path, settings(rate=0.2))
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["program"]
    path.write_text(json.dumps(values))
    RunFolder(tmp_path, settings(rate=0.2))


def test_other_versions_are_a_warning(tmp_path):
    old = copy.deepcopy(settings(rate=0.2))
    old["versions"]["jax"] = "0.0.1"
    run_of(tmp_path, old)
    with pytest.warns(UserWarning, match=r"(?s)other software.*versions.jax: 0.0.1 in"):
        RunFolder(tmp_path, settings(rate=0.1))


def test_another_number_of_devices_is_a_warning(tmp_path):
    run_of(tmp_path, settings(num_devices=2))
    with pytest.warns(UserWarning, match=r"device.used: 2 in the folder, 1 now"):
        RunFolder(tmp_path, settings())


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"train": {"seed": 3}}', None])
def test_settings_are_those_of_the_checkpoint_whatever_the_file_says(tmp_path, text):
    run_of(tmp_path, settings())
    path = tmp_path / "config.json"
    before = path.read_bytes()
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=r"train.seed: 0 in the folder, 1 now"):
        RunFolder(tmp_path, settings(seed=1))
    RunFolder(tmp_path, settings())
    assert path.read_bytes() == before


# When a read fails, Orbax leaves others of its reads unfinished.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_all_checkpoints_are_damaged_the_settings_stay(tmp_path):
    run_of(tmp_path, settings())
    (tmp_path / "checkpoints" / "10" / "record" / "metadata").unlink()
    RunFolder(tmp_path, settings(seed=1))
    assert json.loads((tmp_path / "config.json").read_text()) == settings()
    gc.collect()


def test_metrics_after_the_checkpoint_are_cut_off(tmp_path):
    folder = RunFolder(tmp_path, settings())
    assert folder.resume(TREES) == (None, [])
    records = [train_record(step, loss=1 / step) for step in (2, 4, 6)]
    folder.log(records[0])
    folder.log(records[1])
    folder.save(4, TREES, {"best_step": 0}, records[:2])
    folder.log(records[2])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')  # a kill cut it in two
    assert read_metrics(tmp_path) == records
    del folder  # a kill ends its lock, too

    (step, _, record), history = RunFolder(tmp_path, settings()).resume(TREES)
    assert (step, record["best_step"]) == (4, 0)
    assert history == read_metrics(tmp_path) == records[:2]


@pytest.mark.parametrize("kept", [0, 1, 60, 200, None])
def test_lost_metrics_come_back_from_the_checkpoint(tmp_path, kept):
    records = [train_record(step, loss=1 / step) for step in (1, 2, 3)]
    folder = RunFolder(tmp_path, settings())
    folder.resume(TREES)
    for record in records:
        folder.log(record)
    folder.save(3, TREES, {}, records)
    folder.close(records, None)
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes()
    path.unlink() if kept is None else path.write_bytes(before[:kept])
    _, history = RunFolder(tmp_path, settings()).resume(TREES)
    assert history == records
    assert path.read_bytes() == before


def test_metrics_without_a_checkpoint_start_again(tmp_path):
    folder = RunFolder(tmp_path, settings())
    folder.resume(TREES)
    folder.log(train_record(2))
    del folder  # a kill ends its lock, too
    assert RunFolder(tmp_path, settings()).resume(TREES) == (None, [])
    assert read_metrics(tmp_path) == []


def test_damaged_metrics(tmp_path):
    assert read_metrics(tmp_path) == []
    folder = RunFolder(tmp_path, settings())
    folder.resume(TREES)
    for step in (1, 2):
        folder.log(train_record(step, loss=0.25))
    path = tmp_path / "metrics.jsonl"
    good = path.read_bytes()
    where = good.index(b"0.25")
    damaged = [
        good.replace(b"0.25", b"0.75", 1),
        good.replace(b"crc32", b"crc33", 1),
        good.replace(b"\n", b" ", 1),
        good[:where] + b"\xff" + good[where + 1 :],
        b"[1]\n" + good,
        b'{"a"\n' + good,
    ]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"(?s)Line 1 of .* is not what was wri"):
            read_metrics(tmp_path)


def test_metrics_are_strict_json(tmp_path):
    folder = RunFolder(tmp_path, settings())
    folder.resume(TREES)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.log(train_record(1, loss=math.nan))


def events(run_dir):
    """The numbers that TensorBoard shows, (name, step) -> value."""
    return {(name, step): value for name, step, value in endurance.events(run_dir)}


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboardX")
    folder = RunFolder(tmp_path, settings())
    folder.resume(TREES)
    history = [train_record(2, 0.25), validation_record(2)]
    for record in history:
        folder.log(record)
    folder.close(history, None)
    expected = {("train/loss", 2): 0.25, ("validation/accuracy", 2): 0.52}
    assert events(tmp_path) == pytest.approx(expected)


def test_tensorboard_says_what_the_checkpoint_says(tmp_path):
    """Whatever was written after it, or lost before it."""
    pytest.importorskip("tensorboardX")
    history = [train_record(2, 0.25), validation_record(2)]
    folder = RunFolder(tmp_path, settings())
    folder.resume(TREES)
    folder.log(history[0])  # and not the other
    folder.save(2, TREES, {}, history)
    folder.log(train_record(4, 0.5))
    folder.close(history, None)
    for _ in range(2):
        folder = RunFolder(tmp_path, settings())
        folder.resume(TREES)
        folder.close(history, None)
    expected = {("train/loss", 2): 0.25, ("validation/accuracy", 2): 0.52}
    assert events(tmp_path) == pytest.approx(expected)


def test_what_is_for_the_eye_never_ends_a_run(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    import tensorboardX

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    folder = RunFolder(tmp_path, settings())
    folder.resume(TREES)
    monkeypatch.setattr(tensorboardX.SummaryWriter, "add_scalar", fail)
    with pytest.warns(UserWarning, match="tensorboard was not written .*No space left"):
        folder.log(train_record(2))
    monkeypatch.setattr("metajax.training.run_folder.plot_learning_curve", fail)
    with pytest.warns(UserWarning, match=r"learning_curve.png was not written .*No sp"):
        folder.close([train_record(2)], None)
    assert read_metrics(tmp_path) == [train_record(2)]
    RunFolder(tmp_path, settings())  # it is not locked any more


HISTORIES = {
    "empty": [],
    "one point": [train_record(1)],
    "without validation": [train_record(1), train_record(2)],
    "both": [validation_record(0), train_record(1), validation_record(1)],
    "all unknown": [train_record(1, None), train_record(2, None)],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_learning_curve(tmp_path, name):
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.png"
    plot_learning_curve(HISTORIES[name], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("half_width", "has_band"), [(0.1, True), (None, False), ("no validation", False)]
)
def test_a_legend_names_a_band_where_there_is_one(
    tmp_path, monkeypatch, half_width, has_band
):
    pytest.importorskip("matplotlib")
    history = [train_record(1), train_record(2)]
    if half_width != "no validation":
        record = {"kind": "validation", "loss": 0.5, "half_width": {"loss": half_width}}
        history += [record | {"step": step} for step in (1, 2)]
    figures = []
    monkeypatch.setattr(
        "metajax.plots.curves.save",
        lambda figure, *args, **kwargs: figures.append(figure),
    )
    plot_learning_curve(history, tmp_path / "curve.png")
    (axes,) = figures[0].axes
    title = axes.get_legend().get_title().get_text()
    drawn = [path for band in axes.collections for path in band.get_paths()]
    assert bool(drawn) == has_band
    assert ("band" in title) == has_band


def test_learning_curve_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[plots\]'"):
        plot_learning_curve([], tmp_path / "curve.png")


def test_optional_packages_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folder = RunFolder(tmp_path, settings())
    folder.resume(TREES)
    folder.log(train_record(1))
    folder.close([train_record(1)], None)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "checkpoints"}
