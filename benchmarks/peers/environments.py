"""One virtual environment for each peer, from the package registry, versions pinned.

An environment is kept and used again as long as its recipe is the same. Whatever goes
wrong is handed back as a reason, so that a peer that cannot be installed is reported.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
from typing import NamedTuple

__all__ = ["EASYFSL", "FOLDER", "RECIPES", "Recipe", "make_environment", "python_of"]

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "runs" / "peers"

# First, and exactly this: later packages must not replace it by an accelerator's build.
TORCH = (("numpy==2.4.6", "torch==2.13.0"),)
JAX = (("numpy==2.4.6", "jax==0.10.2", "jaxlib==0.10.2", "optax==0.2.8"),)


class Recipe(NamedTuple):
    """How an environment is made.

    Attributes:
      installs: arguments of one `pip install` after the other.
      check: what must run in the environment.
      rebuilds: a pinned source distribution whose generated C is too old for this
        Python; it is generated again.
    """

    installs: tuple[tuple[str, ...], ...]
    check: str
    rebuilds: str | None = None

    @property
    def pins(self) -> list[str]:
        """Everything that is installed by name, with its version."""
        pins = [word for words in self.installs for word in words if "==" in word]
        return pins + ([self.rebuilds] if self.rebuilds else [])


RECIPES = {
    "learn2learn": Recipe(
        (
            *TORCH,
            ("setuptools==80.9.0", "wheel==0.45.1", "cython==3.2.4"),
            ("scipy==1.17.1", "requests==2.32.5", "tqdm==4.67.1", "pillow==12.0.0"),
            ("cloudpickle==3.1.2", "gym-notices==0.1.0"),
            # Imported by learn2learn, but they ask for more than what is needed here.
            ("--no-deps", "torchvision==0.28.0", "gym==0.26.2"),
        ),
        "from benchmarks.peers.worker_torch import import_learn2learn as f; f()",
        rebuilds="learn2learn==0.2.0",
    ),
    "higher": Recipe((*TORCH, ("--no-deps", "higher==0.2.1")), "import higher"),
    "torchopt": Recipe(
        (
            *TORCH,
            ("optree==0.20.0", "graphviz==0.21"),
            ("--no-deps", "torchopt==0.7.3"),
        ),
        "import torchopt",
    ),
    "torch.func": Recipe(TORCH, "import torch.func"),
    "jax-meta": Recipe(
        (
            *JAX,
            ("dm-haiku==0.0.17", "tqdm==4.67.1", "setuptools==80.9.0"),
            ("--no-deps", "--no-build-isolation", "jax-meta==1.0.3"),
        ),
        "import haiku, jax_meta.metalearners",
    ),
    "naive": Recipe(JAX, "import jax, optax"),
}

# Of `benchmarks.beside_easyfsl`.
EASYFSL = Recipe(
    (
        *TORCH,
        ("--no-deps", "torchvision==0.28.0", "easyfsl==1.5.0"),
        ("pandas==3.0.2", "pillow==12.0.0", "tqdm==4.67.1", "matplotlib==3.10.8"),
    ),
    "from benchmarks.peers.worker_easyfsl import methods as f; f()",
)


def python_of(peer: str | None) -> str:
    """The interpreter of a peer's environment, or this one for None."""
    if peer is None:
        return sys.executable
    name = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    return str(FOLDER / peer / name)


def make_environment(peer: str, recipe: Recipe | None = None) -> str | None:
    """Makes the environment of a peer, unless it is there already.

    Args:
      peer: its name.
      recipe: of one that takes no part in `benchmarks.peers`.

    Returns:
      None, or the reason why it cannot be had.
    """
    recipe = RECIPES[peer] if recipe is None else recipe
    folder, python = FOLDER / peer, python_of(peer)
    mark = folder / "recipe.json"
    text = json.dumps([sys.version, *recipe])
    if mark.exists() and mark.read_text() == text:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run(sys.executable, "-m", "venv", str(folder))
        for arguments in recipe.installs:
            _run(python, "-m", "pip", "install", *arguments)
        if recipe.rebuilds is not None:
            _rebuild(recipe.rebuilds, python, folder / "source")
        _run(python, "-c", recipe.check)
    except subprocess.CalledProcessError as error:
        return _reason(error)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    mark.write_text(text)
    return None


def _run(*command: str, cwd: pathlib.Path = ROOT) -> None:
    subprocess.run(
        command,
        cwd=cwd,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )


def _rebuild(requirement: str, python: str, source: pathlib.Path) -> None:
    """Builds a source distribution with its Cython translated anew."""
    options = ("--no-deps", "--no-build-isolation", "--no-binary", ":all:")
    _run(python, "-m", "pip", "download", *options, "-d", str(source), requirement)
    (archive,) = source.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(source, filter="data")
    (project,) = source.glob("*/setup.py")
    shutil.rmtree(project.parent / ".eggs", ignore_errors=True)
    for path in project.parent.rglob("*.pyx"):
        path.with_suffix(".c").unlink(missing_ok=True)
    _run(python, "setup.py", "build_ext", "bdist_wheel", cwd=project.parent)
    (wheel,) = project.parent.glob("dist/*.whl")
    _run(python, "-m", "pip", "install", "--no-deps", str(wheel))


def _reason(error: subprocess.CalledProcessError) -> str:
    """The last line that says error, or the last one."""
    lines = [line.strip() for line in error.output.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines or [""]
    what = " ".join(map(str, error.cmd[1:]))
    return f"`{what}` failed: {telling[-1]}"
