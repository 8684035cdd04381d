"""Checkpoints of a training run, written and read through Orbax.

A run keeps its two latest steps, `<folder>/<step>/`, each a complete and consistent
whole: some named pytrees of arrays and a small JSON record. Orbax writes a step into a
temporary folder and renames it when it is complete, so a kill at any moment leaves
whole steps only. The record has a hash of every array and one of itself, as Orbax takes
most flipped bits for other numbers. A step that is damaged later (a full disk, a copy
that broke off) is put aside, and the run goes back to the step before it: training then
repeats the lost steps bit for bit. Orbax is imported where it is used, as that takes a
while.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_paths
from metajax.types import Array, PyTree

__all__ = ["CheckpointError", "Checkpoints", "load_meta_params"]

_NUM_TO_KEEP = 2


class CheckpointError(ValueError):
    """A run's checkpoints are there, but cannot be read."""


class Checkpoints:
    """The checkpoints of one run: a folder with one folder for each step kept.

    Only one process may have it open, as what seems half-written is cleared away; use
    `load_meta_params` to look at a run that is under way.

    Args:
      folder: made if it is not there.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        import orbax.checkpoint as ocp

        self.folder = pathlib.Path(folder).absolute()
        for step in self.steps()[:-_NUM_TO_KEEP]:  # whose removal was broken off
            shutil.rmtree(self.path(step))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(_NUM_TO_KEEP),
            cleanup_tmp_directories=True,
            # The trainer donates its state to the next step, so the save must be done.
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Lists the steps that are complete, in ascending order."""
        return _steps(self.folder)

    def path(self, step: int) -> pathlib.Path:
        """Tells where the checkpoint of `step` lies."""
        return self.folder / str(step)

    def save(
        self, step: int, trees: dict[str, PyTree], record: dict[str, Any]
    ) -> pathlib.Path:
        """Writes a step, unless it is there already, then drops the oldest one.

        Args:
          step: the number of steps taken, at least those of the latest checkpoint.
          trees: name to pytree of arrays.
          record: JSON values that belong to them.

        Returns:
          The folder of the step.
        """
        import orbax.checkpoint as ocp

        trees = _numbers(trees)
        # In a list, as Orbax refuses a tree that is a single array.
        items = {name: ocp.args.StandardSave([tree]) for name, tree in trees.items()}
        hashes = {name: _hashes(tree) for name, tree in trees.items()}
        content = {"record": record, "hashes": hashes}
        items["record"] = ocp.args.JsonSave(
            {"content": content, "hash": _hash_of_json(content)}
        )
        with _interrupts_come_out():
            self._manager.save(step, args=ocp.args.Composite(**items))
        return self.path(step)

    def latest_record(self) -> dict[str, Any] | None:
        """Reads the record of the latest step that has an intact one; None without."""
        for step in reversed(self.steps()):
            try:
                return _restore(self.path(step), {})[1]
            except Exception:
                continue  # `restore_latest` says so, and puts it aside
        return None

    def restore_latest(
        self, like: dict[str, PyTree]
    ) -> tuple[int, dict[str, PyTree], dict[str, Any]] | None:
        """Reads the latest step that is intact.

        A damaged one is renamed to `damaged-<step>`, with a warning.

        Args:
          like: name to pytree of arrays or `jax.ShapeDtypeStruct`: the structure,
            shapes and dtypes to restore.

        Returns:
          The step, the trees and the record; None if the folder holds no step.

        Raises:
          CheckpointError: there are steps, and all of them are damaged.
        """
        cause = None
        for step in reversed(self.steps()):
            try:
                return step, *_restore(self.path(step), like)
            except Exception as error:
                # Whatever Orbax stumbled over, going back loses time and nothing else.
                cause = error
                self._put_aside(step, error)
        if not self.has_any():
            return None
        raise CheckpointError(
            f"None of the checkpoints in {self.folder} can be read; they are now named "
            "damaged-<step>. Bring back an intact copy of one of them, named by its "
            "step, or start again in another `run_dir`."
        ) from cause

    def has_any(self) -> bool:
        """Says whether there is a step, be it a damaged one that was put aside."""
        return bool(self.steps()) or any(self.folder.glob("damaged-*"))

    def close(self) -> None:
        """Ends the threads that Orbax keeps."""
        self._manager.close()

    def _put_aside(self, step: int, error: Exception) -> None:
        aside = self.folder / f"damaged-{step}"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self.path(step), aside)
        self._manager.reload()
        rest = self.steps()
        warnings.warn(
            f"The checkpoint {self.path(step)} cannot be read and was renamed to "
            f"{aside.name}: {_summary(error)} "
            + (f"Going back to step {rest[-1]}." if rest else "No older one is left."),
            stacklevel=3,
        )


def load_meta_params(
    run_dir: str | os.PathLike[str], like: PyTree, *, which: str = "best"
) -> PyTree:
    """Reads trained meta-parameters from a run folder.

    Args:
      run_dir: a folder that `metajax.train` wrote.
      like: the structure to read, arrays or `jax.ShapeDtypeStruct`; what
        `jax.eval_shape(learner.init, key, task)` gives.
      which: `"best"` by validation (the last, if the run had none), or `"last"`.

    Raises:
      ValueError: `which` is neither.
      FileNotFoundError: the folder holds no checkpoint.
      CheckpointError: the latest checkpoint cannot be read, or does not fit `like`.
    """
    check_paths(run_dir=run_dir)
    if which not in ("best", "last"):
        raise ValueError(f'`which` must be "best" or "last", got {which!r}.')
    folder = pathlib.Path(run_dir).absolute() / "checkpoints"
    steps = _steps(folder)
    if not steps:
        raise FileNotFoundError(
            f"There is no checkpoint in {folder}; pass the `run_dir` of a training run "
            f"that has reached its first checkpoint."
        )
    name = "meta_params" if which == "last" else "best_params"
    path = folder / str(steps[-1])
    try:
        return _restore(path, {name: like})[0][name]
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {_summary(error)} It is damaged "
            f"or of another learner or model than `like`. Steps {steps} are there."
        ) from error


def _steps(folder: pathlib.Path) -> list[int]:
    # Orbax gives a step its name of digits when it is complete.
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if path.name.isdigit())


def _restore(
    path: pathlib.Path, like: dict[str, PyTree]
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    import orbax.checkpoint as ocp

    items = {
        name: ocp.args.StandardRestore(jax.tree.map(_abstract, [_numbers(tree)]))
        for name, tree in like.items()
    }
    items["record"] = ocp.args.JsonRestore()
    with (
        _interrupts_come_out(),
        ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
    ):
        restored = checkpointer.restore(path, args=ocp.args.Composite(**items))
    content = restored["record"]["content"]
    if _hash_of_json(content) != restored["record"]["hash"]:
        raise ValueError("Its record is not what was written.")
    for name in like:
        written = content["hashes"][name]
        for leaf, found in _hashes(restored[name][0]).items():
            if written.get(leaf) != found:
                raise ValueError(f"{name}{leaf} is not what was written.")
    trees = {
        name: jax.tree.map(_as_keys, tree, restored[name][0])
        for name, tree in like.items()
    }
    return trees, content["record"]


@contextlib.contextmanager
def _interrupts_come_out() -> Iterator[None]:
    """Raises what Ctrl-C raises where Orbax makes an error of another kind of it.

    An intact checkpoint would be taken for a damaged one.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            cause = cause.__cause__ or cause.__context__
        raise


def _is_key(leaf: Array | jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(tree: PyTree) -> PyTree:
    """`tree` with the numbers of its random keys: not every Orbax can read keys."""

    def of_leaf(leaf: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        if not _is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.eval_shape(jax.random.key_data, leaf)
        return jax.random.key_data(leaf)

    return jax.tree.map(of_leaf, tree)


def _as_keys(like: Array | jax.ShapeDtypeStruct, leaf: Array) -> Array:
    """Undoes `_numbers`."""
    if not _is_key(like):
        return leaf
    impl = jax.random.key_impl(jnp.empty(0, like.dtype))
    return jax.random.wrap_key_data(leaf, impl=impl)


def _hashes(tree: PyTree) -> dict[str, str]:
    """A hash of each leaf, by its place in the tree."""
    return {
        jax.tree_util.keystr(path): _hash(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _hash(leaf: Array) -> str:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    values = np.ascontiguousarray(leaf)
    found = hashlib.sha256(f"{values.dtype}{values.shape}".encode())
    found.update(values.tobytes())
    return found.hexdigest()


def _hash_of_json(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _abstract(leaf: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # Without a sharding Orbax asks for the devices that the run was made on.
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _summary(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"
