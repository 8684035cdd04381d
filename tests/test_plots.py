import sys

import numpy as np
import pytest
from PIL import Image

from metajax.plots import plot_learning_curves, plot_tasks
from metajax.types import Examples, Task

RIGHT, WRONG = (0, 130, 95), (213, 94, 0)


def pixels(path, color) -> int:
    """How many pixels have very nearly this colour."""
    with Image.open(path) as file:
        image = np.asarray(file.convert("RGB")).astype(int)
    return int(np.sum(np.all(np.abs(image - np.array(color)) < 12, axis=-1)))


def make_task(channels: int = 1, way: int = 3) -> Task:
    rng = np.random.default_rng(0)

    def examples(num: int) -> Examples:
        labels = np.repeat(np.arange(way), num)
        grey = rng.random((way * num, 8, 8, 1))
        return Examples(np.repeat(grey, channels, axis=-1), labels)

    return Task(examples(2), examples(4))


@pytest.mark.parametrize("channels", [1, 3])
def test_tasks_mark_right_and_wrong_answers(channels, tmp_path):
    tasks = [make_task(channels), make_task(channels)]
    truth = np.stack([task.query.y for task in tasks])
    path = tmp_path / "tasks.png"
    plot_tasks(path, tasks, {"a": truth})
    assert pixels(path, RIGHT) > 20
    assert pixels(path, WRONG) == 0
    plot_tasks(path, tasks, {"a": (truth + 1) % 3})
    assert pixels(path, RIGHT) == 0
    assert pixels(path, WRONG) > 20


def test_tasks_have_a_row_for_each_learner_and_a_column_for_each_query(tmp_path):
    task = make_task()
    answers = task.query.y[None]
    sizes = []
    for names, queries in (("a", 1), ("ab", 1), ("a", 3)):
        path = tmp_path / "tasks.png"
        plot_tasks(
            path, [task], dict.fromkeys(names, answers), queries_per_class=queries
        )
        with Image.open(path) as file:
            sizes.append(file.size)
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] > sizes[0][1]
    assert sizes[2][0] > sizes[0][0]


def test_learning_curves_show_validations(tmp_path):
    def record(step: int, **values: object) -> dict:
        return {"step": step, "half_width": {"accuracy": 0.1}} | values

    history = [
        record(0, kind="validation", accuracy=0.2),
        record(1, kind="train", loss=2.0),
        record(2, kind="validation", accuracy=0.8),
    ]
    path = tmp_path / "curves.png"
    blue, grey = (31, 119, 180), (89, 89, 89)
    plot_learning_curves(path, {"a": history}, {})
    assert pixels(path, blue) > 100
    without = pixels(path, grey)
    plot_learning_curves(path, {"a": history}, {"b": 0.5})
    assert pixels(path, grey) > without + 100


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[plots\]'"):
        plot_tasks(tmp_path / "x.png", [], {})
    with pytest.raises(ImportError, match=r"pip install 'metajax\[plots\]'"):
        plot_learning_curves(tmp_path / "x.png", {}, {})
