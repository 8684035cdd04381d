"""The public face: what is exported, and that importing it stays light."""

import ast
import importlib
import inspect
import json
import pathlib
import subprocess
import sys

import metajax

SNAPSHOT = pathlib.Path(__file__).parent / "public_names.json"
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


NAMESPACES = (
    *("builders", "descriptions", "distributions", "evaluation", "filters", "inner"),
    *("learners", "masks", "models", "objectives", "optimizers", "outer_gradients"),
    *("plots", "tasks"),
)


def public_names() -> dict[str, list[str]]:
    """Namespace -> the names that it exports, folders and modules left out."""
    found = {}
    for name in ("metajax", *(f"metajax.{n}" for n in NAMESPACES)):
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None)
        if names is None:
            tree = ast.parse(pathlib.Path(module.__file__).read_text())
            names = [
                alias.asname
                for node in tree.body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
                if alias.asname and not inspect.ismodule(getattr(module, alias.asname))
            ]
        found[name] = sorted(names)
    return found


def test_public_names_are_those_of_the_snapshot():
    """After a wanted change: `python tests/test_package.py`, and look at the diff."""
    assert public_names() == json.loads(SNAPSHOT.read_text())


def test_the_root_has_the_contract_and_the_verbs():
    assert len(public_names()["metajax"]) <= 20


def test_everything_public_is_documented():
    for namespace, names in public_names().items():
        module = importlib.import_module(namespace)
        for name in names:
            value = getattr(module, name)
            if callable(value):
                assert value.__doc__, f"{namespace}.{name}"


def test_a_name_has_one_place():
    seen = {}
    for namespace, names in public_names().items():
        for name in names:
            assert name not in seen, f"{name}: {seen.get(name)} and {namespace}"
            seen[name] = namespace


def test_types_are_shipped():
    assert (pathlib.Path(metajax.__file__).parent / "py.typed").exists()


def test_import_takes_no_heavy_optional_dependency():
    code = (
        "import sys, metajax, metajax.command_line.cli\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(public_names(), indent=1) + "\n")
