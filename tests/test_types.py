"""The contract as types: mypy accepts what honours it and rejects what does not."""

import pathlib

import pytest
from mypy import api

ROOT = pathlib.Path(__file__).parent.parent
START = """
from metajax.types import Array, Learner, Model, OuterGradient, PyTree, Stream, Task
from typing import Any

NOTHING: Any = None

def init(key: Array, task: Task) -> PyTree: ...
def adapt(meta_params: PyTree, support: PyTree, *, key: Array | None = None): ...
def predict(
    adapted: PyTree,
    inputs: PyTree,
    *,
    mask: Array | None = None,
    key: Array | None = None,
) -> PyTree: ...
def loss(
    meta_params: PyTree, task: Task, *, key: Array | None = None
) -> tuple[Array, dict[str, Array]]: ...
"""
RIGHT = {
    "learner": "Learner(init, adapt, predict, loss)",
    "model": "Model(lambda key, x: {}, lambda p, x, *, mask=None, key=None: x)",
    "stream": "Stream(lambda params: (), lambda adapted, x, y: (adapted, x))",
}
WRONG = {
    "predict without mask": (
        "def bad(adapted: PyTree, inputs: PyTree, *, key: Array | None = None): ...\n"
        "Learner(init, adapt, bad, loss)",
        'expected "Predict"',
    ),
    "adapt without key": (
        "def bad(meta_params: PyTree, support: PyTree) -> PyTree: ...\n"
        "Learner(init, bad, predict, loss)",
        'expected "Adapt"',
    ),
    "loss without metrics": (
        "def bad(params: PyTree, task: Task, *, key: Array | None) -> Array: ...\n"
        "Learner(init, adapt, predict, bad)",
        'expected "Loss"',
    ),
    "init the other way round": (
        "def bad(task: Task, key: Array) -> PyTree: ...\n"
        "Learner(bad, adapt, predict, loss)",
        'expected "Init"',
    ),
    "apply without key": (
        "def bad(params: PyTree, x: PyTree, *, mask: Array | None = None): ...\n"
        "Model(lambda key, x: {}, bad)",
        'expected "Apply"',
    ),
    "gradient without state": (
        "def bad(loss, params, tasks, keys): ...\n"
        "OuterGradient(lambda key, params, task: (), bad)",
        'Argument 2 to "OuterGradient"',
    ),
}


def checked(tmp_path, sources):
    """What mypy says of each source, by its name."""
    paths = {}
    for name, source in sources.items():
        paths[name] = tmp_path / f"{name.replace(' ', '_')}.py"
        text = f"{START}\n{source}\n".replace(": ...", ": return NOTHING")
        paths[name].write_text(text)
    config = ["--config-file", str(ROOT / "pyproject.toml")]
    out, err, _ = api.run([*config, *map(str, paths.values())])
    assert not err
    return {
        name: [line for line in out.splitlines() if path.name in line]
        for name, path in paths.items()
    }


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    sources = RIGHT | {name: source for name, (source, _) in WRONG.items()}
    return checked(tmp_path_factory.mktemp("types"), sources)


@pytest.mark.parametrize("name", RIGHT)
def test_what_honours_the_contract_is_accepted(said, name):
    assert said[name] == []


@pytest.mark.parametrize("name", WRONG)
def test_what_breaks_it_is_rejected(said, name):
    [line] = [line for line in said[name] if ": error:" in line]
    assert "[arg-type]" in line
    assert WRONG[name][1] in line
