"""Learning curves, and how estimators of the outer gradient compare."""

import os
from typing import Any, Protocol

import numpy as np

from metajax.checks import check_instances, check_lists, check_mappings, check_paths
from metajax.plots.figures import figure_class, save

__all__ = ["plot_gradients", "plot_learning_curve", "plot_learning_curves"]


class Compared(Protocol):
    """What `plot_gradients` draws: what `compare_gradients` found.

    Training draws its own curves, so that pictures cannot import it.
    """

    @property
    def rows(self) -> Any:
        """One for each estimator."""

    @property
    def num_tasks(self) -> int:
        """Tasks of a step."""

    @property
    def repeats(self) -> int:
        """Estimates of each."""


BAND = "band: 95 % interval of the mean over tasks"


def _band(axes: Any, line: Any, widths: np.ndarray) -> bool:
    """Draws an interval around a line, and says whether there is one to see."""
    steps, values = line.get_data()
    # Where one task was judged there is no interval: NaN, which draws nothing.
    axes.fill_between(
        steps,
        values - widths,
        values + widths,
        color=line.get_color(),
        alpha=0.25,
        linewidth=0,
    )
    return bool(np.any(widths > 0))


def plot_learning_curve(
    history: list[dict[str, Any]],
    path: str | os.PathLike[str],
    monitor: str | None = None,
) -> None:
    """Draws loss and monitored metric over outer steps, for training and validation.

    Args:
      history: records as `metajax.training.run_folder.read_metrics` gives
        them.
      path: the PNG file to write.
      monitor: the validation metric to draw beside the loss, with a band for its 95 %
        interval.

    Raises:
      ImportError: matplotlib is not installed.
    """
    if monitor is not None:
        check_instances(str, "give the name of a metric", monitor=monitor)
    check_lists(history=history)
    check_paths(path=path)
    measured = {name for r in history if r["kind"] == "validation" for name in r}
    # The learner's loss has the name of what it measures in a validation.
    loss = next((name for name in ("loss", "nll", "mse") if name in measured), "loss")
    panels = [{"train": "loss", "validation": loss}]
    if monitor is None and "accuracy" in measured:
        monitor = "accuracy"
    if monitor not in (None, loss):
        panels.append({"train": monitor, "validation": monitor})

    figure = figure_class()(figsize=(5.5 * len(panels), 3.8), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for names, axes in zip(panels, all_axes, strict=True):
        has_band = False
        for kind, name in names.items():
            points = [r for r in history if r["kind"] == kind]
            points = [r for r in points if r.get(name) is not None]
            steps = np.array([r["step"] for r in points])
            values = np.array([r[name] for r in points])
            if not points:
                continue
            label = kind if name in (monitor, "loss") else f"{kind} ({name})"
            (line,) = axes.plot(steps, values, label=label, linewidth=1.2)
            if kind == "validation":
                line.set(marker="o", markersize=3)
                widths = np.array([r["half_width"][name] for r in points], float)
                has_band = _band(axes, line, widths)
        axes.set_xlabel("outer step")
        axes.set_ylabel(names["train"])
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(title=BAND if has_band else None)
    save(figure, path, dpi=120)


def plot_learning_curves(
    path: str | os.PathLike[str],
    histories: dict[str, list[dict[str, Any]]],
    levels: dict[str, float],
    *,
    metric: str = "accuracy",
) -> None:
    """Draws a validation metric over the outer steps of several runs.

    Args:
      path: the PNG file to write.
      histories: name -> records as `metajax.training.run_folder.read_metrics` gives
        them.
      levels: name -> value of what does not train, drawn as a dashed line.
      metric: the metric.

    Raises:
      ImportError: matplotlib is not installed.
    """
    check_instances(str, "give the name of a metric", metric=metric)
    check_mappings(histories=histories, levels=levels)
    check_paths(path=path)
    for name, history in histories.items():
        check_lists(**{f"histories[{name!r}]": history})
        if any(metric not in r for r in history if r["kind"] == "validation"):
            raise ValueError(f"`metric` is not measured in {name!r}, got {metric!r}.")
    figure = figure_class()(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    has_band = False
    for name, history in histories.items():
        points = [r for r in history if r["kind"] == "validation"]
        steps = np.array([r["step"] for r in points])
        values = np.array([r[metric] for r in points], float)
        widths = np.array([r["half_width"][metric] for r in points], float)
        (line,) = axes.plot(steps, values, marker="o", markersize=3.5, label=name)
        has_band |= _band(axes, line, widths)
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
        title=BAND if has_band else None,
    )
    save(figure, path, dpi=130)


def plot_gradients(path: str | os.PathLike[str], comparison: Compared) -> None:
    """Draws how estimators of the outer gradient compare: a panel for each measure.

    Args:
      path: the PNG file to write.
      comparison: what `metajax.outer_gradients.compare_gradients` found.

    Raises:
      ImportError: matplotlib is not installed.
    """
    if not hasattr(comparison, "rows"):
        raise ValueError(
            "`comparison` must be what `compare_gradients` of "
            f"`metajax.outer_gradients` found, got {comparison!r}."
        )
    check_paths(path=path)
    rows = comparison.rows
    height = 1.3 + 0.3 * len(rows)
    figure = figure_class()(figsize=(11, height), layout="constrained")
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
    save(figure, path, dpi=130)
