"""The house: which folder may import which, and that no name hides a module."""

import ast
import importlib
import pathlib
import pkgutil

import metajax

ROOT = pathlib.Path(metajax.__file__).parent
GROUND = {"types", "checks", "version"}
COMMON = GROUND | {"masks", "filters", "objectives", "distributions"}
LEARNS = COMMON | {"compute", "models", "inner", "builders"}

# Folder, or file in the root -> what it may import besides itself.
MAY_IMPORT = {
    "types": set(),
    "checks": {"types"},
    "version": set(),
    "masks": {"types", "checks"},
    "filters": {"types", "checks"},
    "distributions": {"types", "checks"},
    "objectives": {"types", "checks", "masks"},
    "compute": {"types", "checks"},
    "models": COMMON,
    "inner": COMMON | {"compute"},
    "builders": COMMON | {"models", "inner"},
    "learners": COMMON | {"models", "inner", "builders"},
    "plots": {"types", "checks", "builders"},
    "tasks": COMMON | {"compute", "models"},
    "descriptions": COMMON | {"models", "builders"},
    "evaluation": COMMON | {"compute", "builders", "tasks"},
    "training": COMMON | {"compute", "inner", "tasks", "evaluation", "plots"},
    # Namespaces, and what stands above all.
    "optimizers": {"inner"},
    "outer_gradients": {"training"},
    "command_line": LEARNS | {"learners", "tasks", "evaluation", "training", "plots"},
    "__main__": {"command_line"},
    "__init__": None,  # anything
}
# Files that import more than their folder should, and why.
ONLY_THESE = {
    ("tasks", "models"): {"functions/quadratic.py", "images/embedded.py"},
    ("evaluation", "builders"): {"streams.py"},
    ("plots", "builders"): {"trees.py"},
}


def places(path: pathlib.Path) -> tuple[str, str]:
    """Folder (or root file), and the file within it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0], path.relative_to(ROOT / parts[0] if len(parts) > 1 else ROOT)


def imports(path: pathlib.Path) -> set[str]:
    """The modules of metajax that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "metajax":
            found |= {f"metajax.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "metajax"}


FILES = sorted(ROOT.rglob("*.py"))


def test_imports_run_one_way():
    wrong, used = [], set()
    for path in FILES:
        folder, file = places(path)
        allowed = MAY_IMPORT[folder]
        if allowed is None:
            continue
        for name in imports(path):
            target = name.split(".")[1]
            if target == folder:
                continue
            used.add((folder, target))
            only = ONLY_THESE.get((folder, target))
            if target not in allowed or (only and file.as_posix() not in only):
                wrong.append(f"{folder}/{file} imports {name}")
    assert not wrong, wrong
    # What is allowed and unused is no arrow of this house.
    table = {(a, b) for a, targets in MAY_IMPORT.items() for b in targets or ()}
    unused = {
        pair for pair in table - used if pair[0] not in ("command_line", "models")
    }
    assert {pair for pair in unused if pair[1] not in COMMON} == set()


def test_no_learner_imports_another():
    learners = ROOT / "learners"
    wrong = [
        f"{path.name} imports {name}"
        for path in learners.rglob("*/*.py")
        for name in imports(path)
        if name.startswith("metajax.learners")
    ]
    assert not wrong


def test_every_folder_says_what_it_holds():
    for path in ROOT.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text()))
        assert text is not None, path
        assert 4 <= len(text.splitlines()) <= 14, path


def test_no_name_hides_a_module():
    modules = {m.name for m in pkgutil.walk_packages(metajax.__path__, "metajax.")}
    for package in {name.rpartition(".")[0] for name in modules}:
        for name, value in vars(importlib.import_module(package)).items():
            full = f"{package}.{name}"
            if full in modules:
                assert value is importlib.import_module(full), full


def test_the_root_is_small():
    files = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert len(files) <= 12
