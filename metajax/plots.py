"""Pictures: tasks with predictions, learning curves, gradients, trees, maps of tasks.

They need matplotlib, which the extra `plots` installs, and the places on a map
scikit-learn, of the extra `sklearn`.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from metajax.builders.decision_tree import DecisionTree
from metajax.checks import check_choice
from metajax.training.gradient_bias import GradientComparison
from metajax.training.run_folder import Record
from metajax.types import Task

__all__ = [
    "LAYOUTS",
    "TaskMap",
    "plot_gradients",
    "plot_learning_curves",
    "plot_task_maps",
    "plot_tasks",
    "plot_tree",
    "task_places",
]

LAYOUTS = ("tsne", "pca")

_RIGHT, _WRONG = "#00825f", "#d55e00"  # also apart for the colour-blind
# Those of Okabe and Ito, likewise; more classes take them in turn.
_CLASSES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")


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
    figure_class = _figure_class()
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
    figure = figure_class(figsize=(width, height), facecolor="white")

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
    figure.savefig(path, format="png", dpi=130)


def plot_learning_curves(
    path: str | os.PathLike[str],
    histories: dict[str, list[Record]],
    levels: dict[str, float],
    *,
    metric: str = "accuracy",
) -> None:
    """Draws a validation metric over the outer steps of several runs.

    Args:
      path: the PNG file to write.
      histories: name -> records as `metajax.training.run_folder.read_metrics` gives them.
      levels: name -> value of what does not train, drawn as a dashed line.
      metric: the metric.

    Raises:
      ImportError: matplotlib is not installed.
    """
    figure = _figure_class()(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, history in histories.items():
        points = [r for r in history if r["kind"] == "validation"]
        steps = np.array([r["step"] for r in points])
        values = np.array([r[metric] for r in points], float)
        widths = np.array([r["half_width"][metric] for r in points], float)
        (line,) = axes.plot(steps, values, marker="o", markersize=3.5, label=name)
        axes.fill_between(
            steps,
            values - widths,
            values + widths,
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    for number, (name, level) in enumerate(levels.items()):
        axes.axhline(level, color="0.35", linestyle=("--", ":")[number % 2], label=name)
    axes.set_xlabel("outer step")
    axes.set_ylabel(f"validation {metric}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        loc="outside lower center",
        ncols=2,
        frameon=False,
        title="band: 95 % interval over tasks",
    )
    figure.savefig(path, format="png", dpi=130)


def plot_gradients(
    path: str | os.PathLike[str], comparison: GradientComparison
) -> None:
    """Draws how estimators of the outer gradient compare: a panel for each measure.

    Args:
      path: the PNG file to write.
      comparison: what `metajax.compare_gradients` found.

    Raises:
      ImportError: matplotlib is not installed.
    """
    rows = comparison.rows
    height = 1.3 + 0.3 * len(rows)
    figure = _figure_class()(figsize=(11, height), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    places = np.arange(len(rows))
    cosines = np.array([row.cosine for row in rows])
    means = np.array([row.cosine_of_mean for row in rows])
    widths = np.array([row.cosine_half_width for row in rows])
    panels[0].errorbar(cosines, places, xerr=widths, fmt="o", label="one estimate")
    panels[0].plot(means, places, "x", color="#d55e00", zorder=3, label="mean of all")
    panels[0].set_xlim(min(-0.05, 1.1 * float((cosines - widths).min())), 1.05)
    panels[0].legend(loc="best", fontsize=8, frameon=False)
    measures = {
        "norm, as a fraction": [row.norm for row in rows],
        "milliseconds a step": [1000 * row.seconds for row in rows],
        "MiB planned a step": [row.memory / 2**20 for row in rows],
    }
    for axes, values in zip(panels[1:], measures.values(), strict=True):
        axes.plot(values, places, "o")
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")  # their labels would overlap
        shown = [value for value in values if 0 < value < np.inf]
        axes.set_xlim(min(shown) / 2, 2 * max(shown))
    titles = ["cosine with the exact gradient", *measures]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_xlabel(title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(places, [row.name for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle(
        f"{comparison.num_tasks} tasks a step, {comparison.repeats} estimates; "
        "band: 95 % interval over estimates",
        fontsize=10,
    )
    figure.savefig(path, format="png", dpi=130)


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


def task_places(distances: Any, *, layout: str = "tsne", seed: int = 0) -> np.ndarray:
    """Places on a plane for tasks with known distances.

    Args:
      distances: `[T, T]`, symmetric, of at least 4 tasks, for instance of
        `metajax.task2vec.symmetric_distance`.
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
    check_choice(LAYOUTS, layout=layout)
    distances = np.asarray(distances, float)
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
    figure_class = _figure_class()
    if not maps:
        raise ValueError("There is no map to draw; give at least one.")
    for title, places, labels in maps:
        if len(places) != len(labels):
            raise ValueError(
                f"Map {title!r} has {len(places)} places and {len(labels)} labels; "
                "each task needs one of both."
            )
    rows = -(-len(maps) // columns)
    figure = figure_class(figsize=(7.5 * columns, 5.2 * rows), layout="constrained")
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
    figure.savefig(path, format="png", dpi=110)


def plot_tree(
    path: str | os.PathLike[str],
    tree: DecisionTree,
    *,
    column_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Draws a decision tree: a question at each split, the classes in each leaf.

    The width of a line is the share of the support rows that take it. A leaf is a bar
    of the probabilities of the classes, with the name of the likeliest.

    Args:
      path: the PNG file to write.
      tree: what `metajax.harden` made, in the units that it should show.
      column_names: as for `DecisionTree.text`.
      class_names: likewise.

    Raises:
      ValueError: as `DecisionTree.text`.
      ImportError: matplotlib is not installed.
    """
    column_name, class_name = tree.namers(column_names, class_names)
    tree = tree.on_host()
    num_classes = tree.probabilities.shape[1]
    colors = [_CLASSES[label % len(_CLASSES)] for label in range(num_classes)]

    places: dict[int, tuple[float, int]] = {}
    leaves: list[int] = []

    def arrange(node: int, level: int) -> float:
        """Where a node stands: leaves side by side, a split amid its two children."""
        if node < len(tree.column) and tree.is_split[node]:
            x = sum(arrange(2 * node + side, level + 1) for side in (1, 2)) / 2
        else:
            x = float(len(leaves))
            leaves.append(node)
        places[node] = x, level
        return x

    arrange(0, 0)
    depth = max(level for _, level in places.values())
    figure = _figure_class()(
        figsize=(max(3.4, 1.75 * len(leaves) + 0.4), 1.15 * depth + 1.7),
        facecolor="white",
        layout="constrained",
    )
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-0.6, len(leaves) - 0.4)
    axes.set_ylim(-depth - 0.62, 0.4)
    for node, (x, level) in places.items():
        if node not in leaves:
            for child, answer in ((2 * node + 1, "yes"), (2 * node + 2, "no")):
                to_x, to_level = places[child]
                share = float(tree.mass[child]) / max(float(tree.mass[0]), 1.0)
                axes.plot(
                    (x, to_x),
                    (-level, -to_level),
                    color="0.7",
                    linewidth=0.8 + 7 * share,
                    solid_capstyle="round",
                    zorder=1,
                )
                axes.text(
                    (x + to_x) / 2,
                    -(level + to_level) / 2,
                    answer,
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="0.25",
                    bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"},
                    zorder=2,
                )
            axes.text(
                x,
                -level,
                f"{column_name(int(tree.column[node]))}\n≤ {tree.threshold[node]:.4g}",
                ha="center",
                va="center",
                fontsize=10,
                bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": "0.35"},
                zorder=3,
            )
            continue
        start, shares = x - 0.4, tree.probabilities[node]
        for label, share in enumerate(shares):
            axes.barh(
                -level,
                0.8 * share,
                left=start,
                height=0.22,
                color=colors[label],
                edgecolor="white",
                linewidth=0.6,
                zorder=3,
            )
            start += 0.8 * share
        best, mass = int(np.argmax(shares)), tree.mass[node]
        axes.text(
            x,
            -level - 0.18,
            f"{class_name(best)}: {100 * shares[best]:.0f} %\n"
            f"{mass:.4g} row{'' if mass == 1 else 's'}",
            ha="center",
            va="top",
            fontsize=9,
            color="0.15",
        )
    handles = [
        axes.barh(0, 0, color=color, label=class_name(label))
        for label, color in enumerate(colors)
        if tree.probabilities[0, label] > 0
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    figure.savefig(path, format="png", dpi=130)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matplotlib is not installed: pip install 'metajax[plots]'."
        ) from error
    return Figure
