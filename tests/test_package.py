"""The public face: what is exported, and that importing it stays light."""

import subprocess
import sys

import metajax

HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "matplotlib",
    "PIL",
    "rdkit",
    "sklearn",
    "orbax.checkpoint",
    "flax.nnx",
)


def test_exports_are_sorted_and_exist():
    assert metajax.__all__ == sorted(metajax.__all__)
    assert all(hasattr(metajax, name) for name in metajax.__all__)


def test_everything_public_is_documented():
    for name in metajax.__all__:
        if name != "__version__":
            assert getattr(metajax, name).__doc__, name


def test_import_takes_no_heavy_optional_dependency():
    code = (
        "import sys, metajax, metajax.command_line.cli\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
