"""What a training run leaves on disk.

    checkpoints/         see `metajax.training.checkpoints`
    config.json          every setting, the versions, and the device
    metrics.jsonl        the history, one JSON object a line
    learning_curve.png   loss and monitored metric over steps (needs matplotlib)
    tensorboard/         the same numbers as events (needs tensorboardX)

Checkpoints hold settings and history too. The other files are for people and programs
that read them: when a run goes on, they are written anew from its checkpoint, whatever
a kill or a full disk has made of them.

Runs with the same settings on the same machine write the same `metrics.jsonl`, however
often they were killed and resumed, but for what stands under the key `timing`.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import time
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.plots import plot_learning_curve
from metajax.training.checkpoints import Checkpoints
from metajax.types import PyTree
from metajax.version import __version__

__all__ = ["RunFolder", "read_metrics", "run_settings"]

Record = dict[str, Any]

_SECONDS_BETWEEN_PICTURES = 30.0
_MOST_DIFFERENCES = 10


class RunFolder:
    """The folder of one run.

    Args:
      path: the folder; made if it is not there.
      settings: from `run_settings`. If there is a checkpoint in the folder, then its
        `train` (but for `steps`), `config` and `state` must be the same. A change of
        `versions` or `device` is a warning; without one, `program` must be the same
        too, unless it was deleted from `config.json`.

    Raises:
      ValueError: the folder holds a run with other settings, or one that has taken more
        steps, or the settings cannot be written as JSON.
      BlockingIOError: another process trains in the folder.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Record) -> None:
        self.path = pathlib.Path(path)
        try:
            text = json.dumps(settings, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`config` must hold finite numbers, strings, lists and dicts only, to "
                f"be written as JSON: {error}. Describe other objects by their names, "
                "and what is not finite as a string."
            ) from error
        self._settings: Record = json.loads(text)
        # Of several processes, the first one writes; checkpoints are written together.
        self._writes = jax.process_index() == 0
        self._unlock = self._lock() if self._writes else lambda: None
        try:
            self._checkpoints = Checkpoints(self.path / "checkpoints")
            # Before the first checkpoint there is nothing to go on with.
            latest = self._checkpoints.latest_record()
            if latest is not None:
                _check_same_settings(self.path, latest["settings"], self._settings)
            taken = max(self._checkpoints.steps(), default=0)
            if taken > settings["train"]["steps"]:
                raise ValueError(
                    f"The run in {path} has taken {taken} steps; `steps` must be at "
                    f"least that, got {settings['train']['steps']}."
                )
            # Where all checkpoints are damaged, what the file says may still be needed.
            if self._writes and (latest or not self._checkpoints.has_any()):
                _write_atomically(self.path / "config.json", f"{text}\n".encode())
        except BaseException:
            self._unlock()
            raise
        self._metrics_path = self.path / "metrics.jsonl"
        self._last_picture = time.monotonic()
        self._tensorboard: Any = None

    def resume(
        self, like: dict[str, PyTree]
    ) -> tuple[tuple[int, dict[str, PyTree], Record] | None, list[Record]]:
        """Goes back to the latest checkpoint that is intact, see `Checkpoints`.

        What was logged after it is cut off, as these steps will be taken again.

        Returns:
          The checkpoint, or None if there is none yet; and the history up to it.

        Raises:
          CheckpointError: all checkpoints are damaged.
        """
        try:
            checkpoint = self._checkpoints.restore_latest(like)
        except BaseException:
            self._unlock()
            raise
        history = [] if checkpoint is None else checkpoint[2]["history"]
        if self._writes:
            lines = "".join(map(_line, history))
            _write_atomically(self._metrics_path, lines.encode())
            self._rewrite_events(history)
        return checkpoint, history

    def save(
        self,
        step: int,
        trees: dict[str, PyTree],
        record: Record,
        history: Sequence[Record],
    ) -> pathlib.Path:
        """Writes a checkpoint, see `Checkpoints.save`."""
        values = record | {"settings": self._settings, "history": list(history)}
        return self._checkpoints.save(step, trees, values)

    def log(self, record: Record) -> None:
        """Appends one line to the metrics: numbers, with `kind` and `step`."""
        if not self._writes:
            return
        with open(self._metrics_path, "a", encoding="utf-8") as file:
            file.write(_line(record))
        self._add_events([record])

    def draw(self, history: list[Record], monitor: str | None) -> None:
        """Draws the learning curve, unless that was done less than 30 s ago."""
        if time.monotonic() - self._last_picture > _SECONDS_BETWEEN_PICTURES:
            self._draw(history, monitor)

    def close(self, history: list[Record], monitor: str | None) -> None:
        """Draws the learning curve and ends what is open."""
        try:
            self._draw(history, monitor)
            if self._tensorboard is not None:
                with _for_the_eye("tensorboard"):
                    self._tensorboard.close()
            self._checkpoints.close()
        finally:
            self._unlock()

    def _lock(self) -> Callable[[], Any]:
        """Keeps other processes out of the folder, until what it returns is called.

        Without effect where the system has no such locks.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            return lambda: None
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        unlock = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            unlock()
            raise BlockingIOError(
                f"Another process trains in {self.path}; wait for it, stop it, or use "
                "another `run_dir`."
            ) from error
        except OSError:  # a file system without locks
            unlock()
        return unlock

    def _draw(self, history: list[Record], monitor: str | None) -> None:
        if self._writes and importlib.util.find_spec("matplotlib"):
            with _for_the_eye("learning_curve.png"):
                plot_learning_curve(history, self.path / "learning_curve.png", monitor)
        self._last_picture = time.monotonic()

    def _rewrite_events(self, history: list[Record]) -> None:
        """Begins a file of events with those of `history`, in place of older files."""
        if not importlib.util.find_spec("tensorboardX"):
            return
        import tensorboardX

        folder = self.path / "tensorboard"
        with _for_the_eye("tensorboard"):
            old = list(folder.glob("events.out.tfevents.*"))
            # A program that shows the old ones forgets their events from step 0 on. The
            # name is new, even if the last file is younger than a second.
            self._tensorboard = tensorboardX.SummaryWriter(
                str(folder), purge_step=0, filename_suffix=f".{time.time_ns()}"
            )
            self._add_events(history)
            for path in old:
                path.unlink()

    def _add_events(self, records: list[Record]) -> None:
        if self._tensorboard is None:
            return
        with _for_the_eye("tensorboard"):
            for record in records:
                for name, value in record.items():
                    if isinstance(value, float):
                        self._tensorboard.add_scalar(
                            f"{record['kind']}/{name}",
                            value,
                            record["step"],
                            walltime=record["timing"]["unix_time"],
                        )


@contextlib.contextmanager
def _for_the_eye(name: str) -> Iterator[None]:
    """Warns of what goes wrong with a file that is no result, and goes on."""
    try:
        yield
    except Exception as error:
        warnings.warn(
            f"{name} was not written ({type(error).__name__}: {error}). Checkpoints "
            "and metrics.jsonl are not affected.",
            stacklevel=3,
        )


def run_settings(
    arguments: Record,
    config: Record | None,
    state: PyTree,
    programs: Sequence[jax.stages.Lowered],
    examples: PyTree,
    num_devices: int,
) -> Record:
    """Collects all that a run depends on, for `RunFolder`.

    Args:
      arguments: of the trainer.
      config: what its caller says of learner, tasks and optimizer.
      state: of the training; shapes and dtypes are noted.
      programs: of the steps and of a validation, noted as a hash: they know every
        constant, and so notice a changed learning rate that `config` says nothing of.
      examples: first tasks, which go into the hash too, as images are no constants.
      num_devices: that a step takes.
    """
    device = jax.devices()[0]
    program = hashlib.sha256()
    for lowered in programs:
        program.update(lowered.as_text().encode())
    for leaf in jax.tree.leaves(examples):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        program.update(np.ascontiguousarray(leaf).tobytes())
    packages = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
    return {
        "train": arguments,
        "config": config or {},
        "state": {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        },
        "program": program.hexdigest(),
        "versions": {
            "metajax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "used": num_devices,
        },
    }


def read_metrics(run_dir: str | os.PathLike[str]) -> list[Record]:
    """Reads the history of a run, oldest first; empty if it has none.

    Each record has a `kind` and the `step` it was made at, the number of outer steps
    taken. `"train"`: `loss`, `gradient_norm` and the learner's metrics, means over the
    steps since the record before. `"validation"`: means over the validation tasks, and
    `half_width`, a dict of their 95 % half-widths. A number that is not finite is None.

    Each line ends with a checksum, `crc32`, of what is before it. A last line that a
    kill cut in two is left out.

    Raises:
      ValueError: another line is not what was written.
    """
    path = pathlib.Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            del record["crc32"]
            if _line(record).encode() != line + b"\n":
                raise ValueError("its checksum is another")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Line {number} of {path} is not what was written "
                f"({type(error).__name__}: {error}). The next call of `train` with "
                "this `run_dir` writes the file anew from the latest checkpoint."
            ) from error
        records.append(record)
    return records


def _line(record: Record) -> str:
    text = json.dumps(record, allow_nan=False)
    return json.dumps(record | {"crc32": zlib.crc32(text.encode())}) + "\n"


def _check_same_settings(
    run_dir: pathlib.Path, old_settings: Record, settings: Record
) -> None:
    """Raises if a run in `run_dir` with `old_settings` is not one with `settings`."""
    # Another learner has other parameters, too; its name says it all.
    differences = _differences(old_settings, settings, ("train", "config"))
    differences = differences or _differences(old_settings, settings, ("state",))
    if differences:
        shown, more = differences[:_MOST_DIFFERENCES], differences[_MOST_DIFFERENCES:]
        raise ValueError(
            f"{run_dir} holds a run with other settings:\n  "
            + "\n  ".join(shown)
            + (f"\n  and {len(more)} more" if more else "")
            + "\nUse another `run_dir` for a new run, or the same settings to continue "
            "this one (only `steps` may grow)."
        )
    differences = _differences(old_settings, settings, ("versions", "device"))
    if differences:
        warnings.warn(
            f"The run in {run_dir} goes on with other software or another device, "
            "so its result will not be that of an uninterrupted run bit for bit:\n  "
            + "\n  ".join(differences),
            stacklevel=4,
        )
    elif old_settings["program"] != settings["program"] and not _is_program_deleted(
        run_dir / "config.json"
    ):
        raise ValueError(
            f"{run_dir} holds a run of another program: its settings are the same, "
            "but learner, tasks or optimizer are not (a learning rate, a layer, a "
            "schedule that depends on `steps`). Use another `run_dir` for a new run, "
            "or bring back what was changed. To go on all the same, delete `program` "
            "from config.json."
        )


def _is_program_deleted(path: pathlib.Path) -> bool:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "train" in values and "program" not in values


def _differences(old: Record, new: Record, sections: tuple[str, ...]) -> list[str]:
    old, new = _flatten(old), _flatten(new)
    missing = "not set"
    return [
        f"{name}: {old.get(name, missing)} in the folder, {new.get(name, missing)} now"
        for name in sorted(old.keys() | new.keys())
        if name.split(".")[0] in sections
        and name != "train.steps"
        and old.get(name, missing) != new.get(name, missing)
    ]


def _flatten(tree: Any, prefix: str = "") -> Record:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {
        name: value
        for key, child in tree.items()
        for name, value in _flatten(child, f"{prefix}.{key}" if prefix else key).items()
    }


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.tmp")


def _write_atomically(path: pathlib.Path, data: bytes) -> None:
    temporary = _temporary(path)
    temporary.write_bytes(data)
    os.replace(temporary, path)
