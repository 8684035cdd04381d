"""Pictures of decision trees."""

import os
from collections.abc import Sequence

import numpy as np

from metajax.builders.decision_tree import DecisionTree
from metajax.checks import check_instances, check_paths, check_words
from metajax.plots.figures import CLASS_COLORS, figure_class, save

__all__ = ["plot_tree"]


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
      tree: what `metajax.learners.harden` made, in the units that it should show.
      column_names: as for `DecisionTree.text`.
      class_names: likewise.

    Raises:
      ValueError: as `DecisionTree.text`.
      ImportError: matplotlib is not installed.
    """
    check_instances(DecisionTree, "`metajax.learners.harden` gives one", tree=tree)
    if column_names is not None:
        check_words(column_names=column_names)
    if class_names is not None:
        check_words(class_names=class_names)
    check_paths(path=path)
    column_name, class_name = tree.namers(column_names, class_names)
    tree = tree.on_host()
    num_classes = tree.probabilities.shape[1]
    colors = [CLASS_COLORS[label % len(CLASS_COLORS)] for label in range(num_classes)]

    places: dict[int, tuple[float, int]] = {}
    leaves: list[int] = []

    def arrange(node: int, level: int) -> float:
        """Places a node: leaves side by side, a split amid its two children."""
        if node < len(tree.column) and tree.is_split[node]:
            x = sum(arrange(2 * node + side, level + 1) for side in (1, 2)) / 2
        else:
            x = float(len(leaves))
            leaves.append(node)
        places[node] = x, level
        return x

    arrange(0, 0)
    depth = max(level for _, level in places.values())
    figure = figure_class()(
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
    save(figure, path, dpi=130)
