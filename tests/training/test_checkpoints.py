import gc
import hashlib
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from quadratic import same_bits

from metajax.training.checkpoints import CheckpointError, Checkpoints, load_meta_params
from metajax.training.outer_loop import TrainState

# When a read fails, Orbax leaves others of its reads unfinished.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def finish_reads():
    yield
    gc.collect()


def make_trees(scale=1.0):
    params = {
        "w": scale * jnp.arange(6.0).reshape(2, 3),
        "half": jnp.full((2,), scale, jnp.bfloat16),
        "scalar": jnp.float32(scale),
        "large": jnp.sin(scale * jnp.arange(5000.0)),  # Orbax keeps it in its own file
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = TrainState(jnp.int32(scale), (), optimizer.init(params), ())
    return {"meta_params": params, "rest": state, "best_params": params}


def files_of(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder whose checkpoints are of steps 10 and 20."""
    run_dir = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(run_dir / "checkpoints")
    for step in (5, 10, 20):
        checkpoints.save(step, make_trees(step), {"best_value": step / 3})
    checkpoints.close()
    return run_dir


@pytest.fixture
def run_dir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_round_trip_keeps_structure_dtypes_and_bits(run_dir):
    checkpoints = Checkpoints(run_dir / "checkpoints")
    step, trees, record = checkpoints.restore_latest(make_trees(0))
    assert step == 20
    assert same_bits(trees, make_trees(20))
    assert isinstance(trees["rest"], TrainState)
    assert record == {"best_value": 20 / 3}


def test_random_keys_round_trip(tmp_path):
    rbg = jax.random.key(5, impl="rbg")
    trees = {"rest": (jax.random.key(3), jax.random.split(jax.random.key(4), 2), rbg)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, trees, {})
    for like in (jax.tree.map(jnp.zeros_like, trees), jax.eval_shape(lambda: trees)):
        _, restored, _ = checkpoints.restore_latest(like)
        assert jax.tree.map(lambda key: key.dtype, restored) == jax.tree.map(
            lambda key: key.dtype, trees
        )
        assert same_bits(
            jax.tree.map(jax.random.key_data, restored),
            jax.tree.map(jax.random.key_data, trees),
        )


def test_two_steps_are_kept(run_dir):
    assert Checkpoints(run_dir / "checkpoints").steps() == [10, 20]


def test_a_removal_that_was_broken_off_is_ended(run_dir):
    """The process ended while Orbax removed the oldest of three steps."""
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "10", folder / "5")
    shutil.rmtree(folder / "5" / "record")
    checkpoints = Checkpoints(folder)
    assert checkpoints.steps() == [10, 20]
    assert not (folder / "5").exists()


def test_saving_a_step_again_leaves_it_alone(run_dir):
    checkpoints = Checkpoints(run_dir / "checkpoints")
    assert checkpoints.save(20, make_trees(99), {}) == checkpoints.path(20)
    assert same_bits(checkpoints.restore_latest(make_trees(0))[1], make_trees(20))


def test_empty_folder_has_none(tmp_path):
    assert Checkpoints(tmp_path / "new").restore_latest(make_trees(0)) is None


def test_half_written_step_is_cleared_away(run_dir):
    folder = run_dir / "checkpoints"
    half = folder / "25.orbax-checkpoint-tmp"
    shutil.copytree(folder / "20", half)
    (half / "_CHECKPOINT_METADATA").unlink()
    checkpoints = Checkpoints(folder)
    assert checkpoints.restore_latest(make_trees(0))[0] == 20
    checkpoints.save(30, make_trees(30), {})
    assert not half.exists()
    assert checkpoints.steps() == [20, 30]


def test_reading_leaves_alone_what_another_process_writes(run_dir):
    half = run_dir / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(run_dir / "checkpoints" / "20", half)
    load_meta_params(run_dir, make_trees()["meta_params"])
    assert half.exists()


def damage(path: pathlib.Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif data:
        data[len(data) * 3 // 5] ^= 4
        path.write_bytes(data)


@pytest.mark.filterwarnings("ignore:The checkpoint")
@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_damage_to_any_file_never_gives_wrong_numbers(saved, tmp_path, how):
    """Either nothing of the file mattered, or the run goes back to the step before."""
    went_back = set()
    for index, name in enumerate(files_of(saved / "checkpoints" / "20")):
        folder = tmp_path / str(index)
        shutil.copytree(saved / "checkpoints", folder)
        damage(folder / "20" / name, how)
        step, trees, _ = Checkpoints(folder).restore_latest(make_trees(0))
        assert same_bits(trees, make_trees(step)), name
        if step == 10:
            went_back.add(name.parts[0])
            assert files_of(folder / "damaged-20")
    assert {"meta_params", "rest", "best_params", "record"} <= went_back


@pytest.mark.filterwarnings("ignore:The checkpoint")
def test_every_flipped_bit_of_arrays_is_noticed(saved, tmp_path):
    """Orbax takes most of them for other numbers."""
    files = [n for n in files_of(saved / "checkpoints" / "20") if "d" in n.parts]
    wrong = 0
    for index, name in enumerate(files * 2):
        folder = tmp_path / str(index)
        shutil.copytree(saved / "checkpoints", folder)
        path = folder / "20" / name
        data = bytearray(path.read_bytes())
        data[np.random.default_rng(index).integers(len(data))] ^= 1
        path.write_bytes(data)
        step, trees, _ = Checkpoints(folder).restore_latest(make_trees(0))
        assert same_bits(trees, make_trees(step)), name
        wrong += step == 10
    assert wrong


@pytest.mark.filterwarnings("ignore:The checkpoint")
@pytest.mark.parametrize("old", [b"best_value", b"6.66", b'"hash"', b"hashes"])
def test_changed_record_goes_back(run_dir, old):
    folder = run_dir / "checkpoints"
    path = folder / "20" / "record" / "metadata"
    changed = path.read_bytes().replace(old, bytes([old[0] ^ 1]) + old[1:])
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest_record() == {"best_value": 10 / 3}
    assert checkpoints.restore_latest(make_trees(0))[0] == 10


@pytest.mark.parametrize("item", ["meta_params", "rest", "best_params", "record"])
def test_missing_item_goes_back_with_a_warning(run_dir, item):
    folder = run_dir / "checkpoints"
    shutil.rmtree(folder / "20" / item)
    checkpoints = Checkpoints(folder)
    with pytest.warns(
        UserWarning, match=r"(?s)/20 cannot be read.*damaged-20.*step 10"
    ):
        step, trees, _ = checkpoints.restore_latest(make_trees(0))
    assert step == 10
    assert same_bits(trees, make_trees(10))
    # The steps are taken again, and saved under the same names.
    checkpoints.save(20, make_trees(20), {})
    assert checkpoints.restore_latest(make_trees(0))[0] == 20


@pytest.mark.filterwarnings("ignore:The checkpoint")
def test_all_damaged_is_an_error_that_loses_nothing(run_dir):
    folder = run_dir / "checkpoints"
    for step in ("10", "20"):
        shutil.rmtree(folder / step / "rest")
    for _ in range(2):  # not even if the run is started again
        with pytest.raises(CheckpointError, match=r"None of the checkpoints"):
            Checkpoints(folder).restore_latest(make_trees(0))
    assert {p.name for p in folder.iterdir()} == {"damaged-10", "damaged-20"}


@pytest.mark.parametrize("which", ["best", "last"])
def test_load_meta_params(run_dir, which):
    shapes = jax.eval_shape(lambda: make_trees()["meta_params"])
    params = load_meta_params(run_dir, shapes, which=which)
    assert same_bits(params, make_trees(20)["meta_params"])


def test_load_meta_params_notices_other_numbers(run_dir):
    like = make_trees()["meta_params"]
    path = run_dir / "checkpoints" / "20" / "record" / "metadata"
    digest = b"0" * 64  # as if the array had changed
    content = json.loads(path.read_bytes())["content"]
    content["hashes"]["best_params"]["['w']"] = digest.decode()
    text = json.dumps(content, sort_keys=True).encode()
    path.write_text(
        json.dumps({"content": content, "hash": hashlib.sha256(text).hexdigest()})
    )
    load_meta_params(run_dir, like, which="last")
    with pytest.raises(CheckpointError, match=r"best_params.*\['w'\] is not what was"):
        load_meta_params(run_dir, like)


def test_load_meta_params_errors(run_dir, tmp_path):
    like = make_trees()["meta_params"]
    with pytest.raises(ValueError, match='must be "best" or "last", got \'first\''):
        load_meta_params(run_dir, like, which="first")
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*elsewhere"):
        load_meta_params(tmp_path / "elsewhere", like)
    with pytest.raises(
        CheckpointError, match=r"(?s)/20 cannot be read.*of another learner"
    ):
        load_meta_params(run_dir, like | {"w": jnp.zeros((5, 5))})
    with pytest.raises(
        CheckpointError, match=r"(?s)/20 cannot be read.*of another learner"
    ):
        load_meta_params(run_dir, {"other": np.zeros(3)})


def interrupted(*args, **kwargs):
    """As Orbax does when Ctrl-C arrives while it reads or writes."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise ValueError("Encountered error while reading array") from error


def test_an_interrupt_is_no_damage(run_dir, monkeypatch):
    """An interrupt within Orbax comes out as one, and no checkpoint is put aside."""
    checkpoints = Checkpoints(run_dir / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "restore", interrupted)
        for read in (
            lambda: checkpoints.restore_latest(make_trees(0)),
            checkpoints.latest_record,
            lambda: load_meta_params(run_dir, make_trees(0)["meta_params"]),
        ):
            with pytest.raises(KeyboardInterrupt):
                read()
        patch.setattr(ocp.CheckpointManager, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(30, make_trees(30), {})
    assert checkpoints.steps() == [10, 20]
    assert checkpoints.restore_latest(make_trees(0))[0] == 20
