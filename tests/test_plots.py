import sys

import numpy as np
import pytest
from PIL import Image

from metajax.builders.decision_tree import DecisionTree
from metajax.plots import (
    TaskMap,
    plot_learning_curves,
    plot_task_maps,
    plot_tasks,
    plot_tree,
    task_places,
)
from metajax.plots.tasks import LAYOUTS
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


def far_apart(num: int = 8) -> np.ndarray:
    """Distances of two clumps of as many tasks, in three dimensions."""
    points = np.random.default_rng(0).normal(size=(2 * num, 3))
    points[num:] += 20
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_places_keep_clumps_apart(layout):
    places = task_places(far_apart(), layout=layout)
    assert places.shape == (16, 2)
    between = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(between, np.inf)
    nearest = np.argmin(between, axis=1)
    np.testing.assert_array_equal(nearest < 8, np.arange(16) < 8)
    np.testing.assert_array_equal(places, task_places(far_apart(), layout=layout))


def test_main_axes_keep_distances_of_a_plane():
    points = np.random.default_rng(1).normal(size=(9, 2))
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    places = task_places(distances, layout="pca")
    between = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.testing.assert_allclose(between, distances, atol=1e-8)


def test_maps_have_a_colour_for_each_label(tmp_path):
    path = tmp_path / "maps.png"
    places = np.random.default_rng(2).normal(size=(12, 2))
    blue, orange = (31, 119, 180), (255, 127, 14)
    plot_task_maps(path, [TaskMap("one", places, ["a"] * 12)])
    assert pixels(path, blue) > 300
    assert pixels(path, orange) == 0
    before = pixels(path, blue)
    plot_task_maps(path, [TaskMap("two", places, ["a"] * 6 + ["b"] * 6)])
    assert 0 < pixels(path, blue) < before
    assert pixels(path, orange) > 100
    with Image.open(path) as file:
        one = file.size
    plot_task_maps(path, [TaskMap("x", places, ["a"] * 12)] * 3, columns=2)
    with Image.open(path) as file:
        assert file.size == (one[0], 2 * one[1])


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (np.zeros((5, 4)), r"must be \[T, T\] for at least 4 tasks, got \[5, 4\]"),
        (np.zeros((3, 3)), "for at least 4 tasks"),
        (np.full((4, 4), np.nan), "must be finite"),
        (np.triu(np.ones((4, 4))), "must be symmetric; take the mean"),
    ],
)
def test_bad_distances(distances, message):
    with pytest.raises(ValueError, match=message):
        task_places(distances)


def test_bad_maps(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="`layout` must be one of tsne, pca"):
        task_places(far_apart(), layout="mds")
    with pytest.raises(ValueError, match="no map to draw"):
        plot_task_maps(tmp_path / "x.png", [])
    with pytest.raises(ValueError, match="'x' has 2 places and 1 labels"):
        plot_task_maps(tmp_path / "x.png", [TaskMap("x", np.zeros((2, 2)), ["a"])])
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[sklearn\]'"):
        task_places(far_apart())


def test_tree_shows_the_classes_of_its_leaves(tmp_path):
    """Bars of both classes, a taller picture for a deeper tree, names that fit."""
    first, second = (0, 114, 178), (230, 159, 0)
    certain = np.asarray([[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]])
    tree = DecisionTree(
        np.asarray([0]),
        np.asarray([0.5]),
        np.asarray([True]),
        certain,
        np.asarray([4.0, 3.0, 1.0]),
    )
    path, sizes = tmp_path / "tree.png", []
    plot_tree(path, tree)
    of_first, of_second = pixels(path, first), pixels(path, second)
    plot_tree(path, tree._replace(probabilities=certain[[0, 1, 0]]))
    # What one bar loses the other has; the legend shows both in any case.
    assert pixels(path, first) < of_first - 500
    assert pixels(path, second) > of_second + 500
    for is_split in (True, False):
        plot_tree(path, tree._replace(is_split=np.asarray([is_split])))
        with Image.open(path) as file:
            sizes.append(file.size)
    assert sizes[0][1] > sizes[1][1]
    with pytest.raises(ValueError, match="2 classes that the tree knows, got 1"):
        plot_tree(path, tree, class_names=["one"])


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'metajax\[plots\]'"):
        plot_tasks(tmp_path / "x.png", [], {})
    with pytest.raises(ImportError, match=r"pip install 'metajax\[plots\]'"):
        plot_learning_curves(tmp_path / "x.png", {}, {})
