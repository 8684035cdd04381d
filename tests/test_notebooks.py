"""Notebooks: paired with their text, free of outputs, and running from end to end."""

import pathlib

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
# Picture counts are those of the cells that end in `plt.show()`.
NOTEBOOKS = {"quickstart": 5, "write_your_own_learner": 3}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_all_notebooks_are_tested():
    for suffix in ("ipynb", "py"):
        assert {path.stem for path in FOLDER.glob(f"*.{suffix}")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_and_text_are_a_pair(name):
    notebook, text = read(name), jupytext.read(FOLDER / f"{name}.py")
    remedy = f"run `jupytext --sync notebooks/{name}.py` and commit both files"
    assert cells(notebook) == cells(text), remedy
    for half in (notebook, text):
        assert half.metadata["jupytext"]["formats"] == "ipynb,py:percent"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_outputs_are_committed(name):
    for cell in read(name).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_first_cell_installs_where_metajax_is_missing(name):
    first = read(name).cells[0]
    assert first.cell_type == "code"
    condition, command = first.source.split("\n    %pip install ")
    assert "find_spec(name) is None" in condition
    assert command == '-q "metajax[plots]"'


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_end_to_end(name, tmp_path, monkeypatch):
    monkeypatch.setenv("METAJAX_FAST", "1")
    notebook = read(name)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,  # seconds for one cell, on a machine that does much else
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # raises the error of the cell that fails
    outputs = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == NOTEBOOKS[name]
    assert "Installing" not in str(outputs)
    assert not list(tmp_path.iterdir())  # nothing is left behind
