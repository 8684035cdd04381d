"""Pictures of tasks: their images with predictions, and maps of many tasks.

The places on a map need scikit-learn, of the extra `sklearn`.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from metajax.checks import (
    as_numbers,
    check_choice,
    check_instances,
    check_integers,
    check_lists,
    check_mappings,
    check_paths,
    check_seed,
)
from metajax.plots.figures import figure_class, save
from metajax.types import Task

__all__ = [
    "LAYOUTS",
    "TaskMap",
    "plot_task_maps",
    "plot_tasks",
    "task_places",
]

Layout = Literal["tsne", "pca"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_RIGHT, _WRONG = "#00825f", "#d55e00"  # also apart for the colour-blind


def plot_tasks(
    path: str | os.PathLike[str],
    tasks: Sequence[Task],
    answers: dict[str, Any],
    *,
    queries_per_class: int = 2,
) -> None:
    """Draws image classification tasks, and what some learners answer.

    On the left the first support example of every class, named A, B, C. On the right
    the first queries of every class: above them the true class, below them each
    learner's answer, and whether it is right.

    Args:
      path: the PNG file to write.
      tasks: tasks of images `[n, H, W, C]` without masks and with labels in [0, N), as
        many classes in all of them.
      answers: name of a learner -> integer `[tasks, n]`, the labels that it gives to
        the queries.
      queries_per_class: how many of them to show.

    Raises:
      ImportError: matplotlib is not installed.
    """
    check_paths(path=path)
    check_lists(tasks=tasks)
    for number, task in enumerate(tasks):
        check_instances(Task, "give tasks", **{f"tasks[{number}]": task})
    check_mappings(answers=answers)
    check_integers(1, queries_per_class=queries_per_class)
    make_figure = figure_class()
    tasks = [jax.tree.map(np.asarray, task) for task in tasks]
    way = 1 + max(int(task.support.y.max()) for task in tasks)
    letters = [chr(ord("A") + label) for label in range(way)]

    # A layout in inches, from the upper left corner.
    size, margin, header, line = 0.8, 0.2, 0.28, 0.3
    name_width = 0.2 + 0.085 * max(map(len, answers))
    first_query = margin + way * size + name_width
    width = first_query + way * queries_per_class * size + margin
    band = header + size + line * len(answers) + 0.3
    height = band * len(tasks) + 0.35
    figure = make_figure(figsize=(width, height), facecolor="white")

    def write(x: float, y: float, text: str, **style: Any) -> None:
        style = {"ha": "center", "va": "center", "fontsize": 10} | style
        figure.text(x / width, 1 - y / height, text, **style)

    def show(x: float, y: float, image: np.ndarray) -> None:
        box = (x / width, 1 - (y + size) / height, size / width, size / height)
        axes = figure.add_axes(box, xticks=[], yticks=[])
        axes.spines[:].set_color("0.8")
        if image.shape[-1] == 1:  # dark ink on white
            axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
        else:
            axes.imshow(image)

    write(margin + way * size / 2, 0.2, "support set", fontsize=11)
    write((first_query + width - margin) / 2, 0.2, "queries, and answers", fontsize=11)
    for number, task in enumerate(tasks):
        top = 0.35 + band * number
        below = top + header + size
        for label in range(way):
            x = margin + label * size
            write(x + size / 2, top + header / 2, letters[label], weight="bold")
            show(x, top + header, task.support.x[task.support.y == label][0])
        for row, name in enumerate(answers):
            style = {"ha": "right", "fontsize": 9, "color": "0.3"}
            write(first_query - 0.12, below + line * (row + 0.6), name, **style)
        chosen = np.concatenate(
            [np.flatnonzero(task.query.y == c)[:queries_per_class] for c in range(way)]
        )
        for column, index in enumerate(chosen):
            x, truth = first_query + column * size, int(task.query.y[index])
            write(x + size / 2, top + header / 2, letters[truth], color="0.5")
            show(x, top + header, task.query.x[index])
            for row, labels in enumerate(answers.values()):
                answer = int(labels[number][index])
                is_right = answer == truth
                write(
                    x + size / 2,
                    below + line * (row + 0.6),
                    f"{letters[answer]} {'✓' if is_right else '✗'}",
                    color=_RIGHT if is_right else _WRONG,
                    weight="normal" if is_right else "bold",
                )
    save(figure, path, dpi=130)


class TaskMap(NamedTuple):
    """A panel of `plot_task_maps`.

    Attributes:
      title: above it.
      places: `[T, 2]`, of tasks, as `task_places` gives them.
      labels: T names, of the domain or table that each task is from.
    """

    title: str
    places: np.ndarray
    labels: Sequence[str]


def task_places(
    distances: Any, *, layout: Layout = "tsne", seed: int = 0
) -> np.ndarray:
    """Places on a plane for tasks with known distances.

    Args:
      distances: `[T, T]`, symmetric, of at least 4 tasks, for instance of
        `metajax.descriptions.task2vec.symmetric_distance`.
      layout: `"tsne"` (L. van der Maaten, G. Hinton, JMLR 2008) keeps neighbours
        together, and says little of what is far; `"pca"`, the two main axes (classical
        scaling), keeps large distances.
      seed: of the first.

    Returns:
      `[T, 2]`.

    Raises:
      ValueError: if the name is unknown, or distances are not as said.
      ImportError: scikit-learn is not installed.
    """
    check_seed(seed)
    check_choice(LAYOUTS, layout=layout)
    distances = np.atleast_1d(as_numbers(distances=distances))
    num = len(distances)
    if distances.shape != (num, num) or num < 4:
        raise ValueError(
            "`distances` must be [T, T] for at least 4 tasks, got "
            f"{list(distances.shape)}."
        )
    if not np.isfinite(distances).all():
        raise ValueError("`distances` must be finite, and some are not.")
    if not np.allclose(distances, distances.T, rtol=1e-3, atol=1e-5):
        raise ValueError(
            "`distances` must be symmetric; take the mean with the transpose."
        )
    # To the last bit, and without the small negative numbers of rounding.
    distances = np.maximum((distances + distances.T) / 2, 0)
    np.fill_diagonal(distances, 0)
    main = _main_axes(distances)
    if layout == "pca":
        return main
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            "scikit-learn is not installed: pip install 'metajax[sklearn]'."
        ) from error
    # Where it starts, so that the seed matters little.
    start = 1e-4 * main / max(float(main[:, 0].std()), 1e-12)
    return TSNE(
        metric="precomputed",
        perplexity=min(30.0, (num - 1) / 3),
        init=start,
        random_state=seed,
    ).fit_transform(distances)


def _main_axes(distances: np.ndarray) -> np.ndarray:
    """Classical scaling: places `[T, 2]` whose distances are near those given."""
    products = -(distances**2) / 2
    products -= products.mean(axis=0)
    products -= products.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(products)
    return vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0))


def plot_task_maps(
    path: str | os.PathLike[str], maps: Sequence[TaskMap], *, columns: int = 2
) -> None:
    """Draws maps of tasks: a point for each, coloured by where it is from.

    Args:
      path: the PNG file to write.
      maps: one for each panel. Axes are not drawn, as places have no units.
      columns: panels in a row.

    Raises:
      ValueError: if there is no map, or one has not a label for each task.
      ImportError: matplotlib is not installed.
    """
    check_paths(path=path)
    check_lists(maps=maps)
    check_integers(1, columns=columns)
    make_figure = figure_class()
    if not len(maps):
        raise ValueError("There is no map to draw; give at least one.")
    for number, panel in enumerate(maps):
        check_instances(TaskMap, "give `TaskMap`s", **{f"maps[{number}]": panel})
        check_lists(places=panel.places, labels=panel.labels)
    for title, places, labels in maps:
        if len(places) != len(labels):
            raise ValueError(
                f"Map {title!r} has {len(places)} places and {len(labels)} labels; "
                "each task needs one of both."
            )
    rows = -(-len(maps) // columns)
    figure = make_figure(figsize=(7.5 * columns, 5.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    for axes, (title, places, labels) in zip(panels, maps, strict=False):
        places, names = np.asarray(places), np.asarray(labels)
        for number, name in enumerate(dict.fromkeys(labels)):
            axes.scatter(
                *places[names == name].T,
                s=26,
                # Ten colours; further names have other markers too.
                color=f"C{number % 10}",
                marker="osD^v"[number // 10 % 5],
                edgecolors="white",
                linewidths=0.4,
                label=name,
            )
        axes.set_title(title, fontsize=11)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("0.8")
        axes.set_aspect("equal", "datalim")
        axes.legend(
            loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False
        )
    save(figure, path, dpi=110)
