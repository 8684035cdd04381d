"""Results as JSON: what was measured, by which command, on what."""

import dataclasses
import json
import os
import pathlib
import pickle
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import flax
import jax
import optax

from metajax.version import __version__

__all__ = ["RESULTS", "kept", "training_settings", "write_result"]

# Programs are compiled once for all runs in this folder, unless told otherwise.
if jax.config.values["jax_compilation_cache_dir"] is None:
    jax.config.update("jax_compilation_cache_dir", "runs/compiled")

Result = TypeVar("Result")
RESULTS = pathlib.Path(__file__).parent / "results"


def write_result(name: str, settings: dict[str, Any], results: list[dict]) -> None:
    """Writes `benchmarks/results/<name>.json` atomically.

    Args:
      name: of the file.
      settings: everything that was chosen, seed included.
      results: one dict for each measured number.
    """
    record = {
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "revision": REVISION,
        "device": f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)",
        "versions": {
            "python": platform.python_version(),
            "metajax": __version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
        },
        "settings": settings,
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    print(f"wrote {path}")


def kept(path: pathlib.Path, settings: Any, make: Callable[[], Result]) -> Result:
    """What `make` gives, from a file if it was made before for the same settings.

    Args:
      path: of the file, in a run folder.
      settings: everything that the result depends on.
      make: takes long; its result can be pickled.
    """
    if path.exists():
        found, result = pickle.loads(path.read_bytes())
        if found == settings:
            return result
    result = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(pickle.dumps((settings, result)))
    temporary.replace(path)
    return result


def training_settings(settings: Any, *without: str, **more: Any) -> dict[str, Any]:
    """What a training depends on, for its run folder, as a dict.

    Args:
      settings: a dataclass.
      *without: names of fields that only the test depends on: a run may go on although
        they changed.
      **more: what is not among the settings.
    """
    every = dataclasses.asdict(settings)
    for name in without:
        del every[name]
    return every | more


def _module() -> str:
    specification = sys.modules["__main__"].__spec__
    if specification is None:
        return pathlib.Path(sys.argv[0]).name
    return specification.name.removesuffix(".__main__")


def _revision() -> str:
    """The commit of the code, with a plus sign if files were changed after it."""
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "..", ":!results")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


REVISION = _revision()  # when the code is loaded, not when a long run ends
