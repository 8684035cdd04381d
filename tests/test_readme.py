"""The README: its code runs as it stands, and its table is what the results give."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_code_runs_as_it_stands(capsys, key):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert "accuracy" in capsys.readouterr().out
    assert namespace["logits"].shape == (25, 5)
    # The learner of the README honours the contract.
    model = namespace["metajax"].models.mlp(4, hidden_sizes=(8,))
    learner = namespace["nearest_mean"](model, 3)
    task = namespace["my_tasks"](key)
    params = learner.init(key, task)
    loss, metrics = learner.loss(params, task)
    assert loss > 0
    assert 0 <= metrics["accuracy"] <= 1


def test_example_is_short():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 15


def test_tables_are_made_from_docstrings_and_results():
    command = [sys.executable, "-m", "benchmarks.readme", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
