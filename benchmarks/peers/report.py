"""What was measured, as numbers, a table and a plot."""

import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["draw", "ratio", "summarise", "table"]

REFERENCE = "learn2learn"
Row = dict[str, Any]


def ratio(
    seconds: Sequence[float | None], others: Sequence[float | None]
) -> list[float]:
    """Median, least and greatest of the ratios in rounds that both took part in.

    Empty if there is no such round. Neighbours in time share what else the machine
    does, so that their ratio says more than that of two medians.
    """
    ratios = [a / b for a, b in zip(seconds, others, strict=False) if a and b]
    return [statistics.median(ratios), min(ratios), max(ratios)] if ratios else []


def summarise(rows: list[Row]) -> list[Row]:
    """Adds to the rows of one item what their rounds amount to.

    `median`, `least` and `greatest` of `seconds`; `to_reference`, the `ratio` to
    learn2learn; `to_fastest`, that to the fastest contender that is not metajax, whose
    name is `fastest`.
    """
    rows = [dict(row) for row in rows]
    for row in rows:
        seconds = [s for s in row["seconds"] if s is not None]
        if seconds and "problem" not in row:
            row["median"] = statistics.median(seconds)
            row["least"], row["greatest"] = min(seconds), max(seconds)
    measured = {row["contender"]: row for row in rows if "median" in row}
    peers = [n for n in measured if not n.startswith("metajax")]
    fastest = min(peers, key=lambda name: measured[name]["median"], default=None)
    for row in measured.values():
        row["fastest"] = fastest
        for key, other in (("to_reference", REFERENCE), ("to_fastest", fastest)):
            others = measured.get(other or "", {"seconds": []})["seconds"]
            row[key] = ratio(row["seconds"], others)
    return rows


def table(rows: list[Row]) -> str:
    """The rows of one item as text; a row without a measurement says why."""
    fastest = next((row["fastest"] for row in rows if row.get("fastest")), "no peer")
    ratios = {"to_reference": f"/ {REFERENCE}", "to_fastest": f"/ {fastest} (fastest)"}
    facts = {
        "compile_seconds": "compile s",
        "first_step_seconds": "first step s",
        "peak_rss_mib": "peak MiB",
        "temporary_mib": "temp MiB",
        "loss": "loss",
    }
    heads = [rows[0]["item"], "ms a step", "spread", "tasks/s"]
    lines = [[*heads, *ratios.values(), *facts.values()]]
    for row in rows:
        if "median" not in row:
            lines.append([row["contender"], row.get("problem", "not measured")])
            continue
        lines.append(
            [
                row["contender"],
                _number(1e3 * row["median"]),
                f"{_number(1e3 * row['least'])} to {_number(1e3 * row['greatest'])}",
                f"{row['tasks'] / row['median']:.0f}",
                *(_number(row[key][0] if row[key] else None) for key in ratios),
                *(_number(row.get(key)) for key in facts),
            ]
        )
    full = [line for line in lines if len(line) == len(lines[0])]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    widths[0] = max(len(line[0]) for line in lines)
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=False)).rstrip()
        for line in lines
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Draws times relative to learn2learn, one line of points for each item.

    Writes nothing where learn2learn was not measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [row for row in rows if row.get("to_reference")]
    if not drawn:
        return
    items = list(dict.fromkeys(row["item"] for row in drawn))
    figure = Figure((9, 1.5 + 0.35 * len(items)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row["contender"] for row in drawn))
    for index, name in enumerate(names):
        own = [row for row in drawn if row["contender"] == name]
        values = [row["to_reference"] for row in own]
        axes.errorbar(
            [middle for middle, _, _ in values],
            [items.index(row["item"]) for row in own],
            xerr=[
                [middle - low for middle, low, _ in values],
                [high - middle for middle, _, high in values],
            ],
            fmt="oDsv^<>PX*"[index % 10],
            label=name,
        )
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel=f"time / time of {REFERENCE} (less is faster)")
    axes.set_yticks(range(len(items)), items)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=150)
