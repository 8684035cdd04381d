"""Writes `benchmarks/SPEED.md` from the committed results of speed.

    python -m benchmarks.speed           # rewrite it
    python -m benchmarks.speed --check   # fail if that would change it

Sources are the JSON files of `benchmarks.peers` and `benchmarks.engine`.
"""

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.pages import rewrite_or_check
from benchmarks.record import RESULTS

PAGE = pathlib.Path(__file__).parent / "SPEED.md"
GROUPS = {
    "W0": "What networks are made of",
    "W1a": "Second-order MAML, Conv-4 with strides of 2",
    "W1b": "Second-order MAML, Conv-4 with max-pooling",
    "W2": "Prototypical Networks, Conv-4 with max-pooling",
    "W3": "Second-order MAML on sinusoids, two hidden layers of 40",
    "W4": "Gradient modes against inner steps, as in W1a with 1 shot",
    "W5": "Sampling tasks of 5 classes from 1,200 classes in memory",
}
# What the arithmetic for many accelerators assumes of each.
ACCELERATORS, RATE, LINK, HOP = 256, 20e12, 50e9, 10e-6
Row = dict[str, Any]


def main() -> None:
    """Rewrites or checks the page."""
    rewrite_or_check(PAGE, page(RESULTS), "benchmarks.speed", __doc__)


def page(results: pathlib.Path) -> str:
    """The page as Markdown."""
    parts = [
        "# Speed\n",
        "This page is written by `python -m benchmarks.speed` from the JSON files in "
        "`benchmarks/results`; each names the command, the revision and the machine. "
        "Contenders of an item take turns on the same data, from the same weights, "
        "with two threads each; times are medians over rounds, ratios medians of the "
        "ratios of each round, and the spread is the least and the greatest. Losses "
        "before the first update agree to 0.1 %. Items have 32 tasks and 15 queries a "
        "class unless they say otherwise.\n",
    ]
    groups = {group: _records(results, group) for group in GROUPS}
    # A group's first record is the one with all contenders that could be had.
    firsts = [records[0]["results"] for records in groups.values() if records]
    if rows := [row for first in firsts for row in first]:
        parts += ["## In short\n", _summary(rows)]
    for group, records in groups.items():
        if records:
            parts.append(f"## {group}: {GROUPS[group]}\n")
        for record in records:
            parts += [_origin(record), _peers(record["results"])]
        if (results / f"peers-{group}.png").exists():
            parts.append(f"![Times of {group}](results/peers-{group}.png)\n")
    for part, (title, text) in ENGINE.items():
        path = results / f"engine-{part}.json"
        if path.exists():
            record = json.loads(path.read_text())
            parts += [f"## {title}\n", _origin(record), text(record["results"])]
    return "\n".join(parts)


def _records(results: pathlib.Path, group: str) -> list[Row]:
    found = results.glob(f"peers*-{group}.json")
    paths = sorted(found, key=lambda path: (len(path.name), path.name))
    return [json.loads(path.read_text()) for path in paths]


def _summary(rows: list[Row]) -> str:
    """How many times as fast as the others metajax was, item by item."""
    ours = [row for row in rows if row["contender"] == "metajax" and "median" in row]
    lines = [
        [
            row["item"],
            _number(1e3 * row["median"]),
            *(_times(row[key]) for key in ("to_reference", "to_fastest")),
            row["fastest"] or "",
        ]
        for row in ours
    ]
    heads = ["item", "metajax, ms a step", "times as fast as learn2learn"]
    return _table([*heads, "as the fastest of the others", "which is"], lines)


def _times(values: Sequence[float]) -> str:
    return _number(1 / values[0]) if values else ""


def _origin(record: Row) -> str:
    return (
        f"`{record['command']}`, {record['settings']['rounds']} rounds, revision "
        f"{record['revision']}, {record['device']}, JAX {record['versions']['jax']}.\n"
    )


def _peers(rows: list[Row]) -> str:
    lines = []
    for item in dict.fromkeys(row["item"] for row in rows):
        for row in (row for row in rows if row["item"] == item):
            name = f"{item}: {row['contender']}"
            if "median" not in row:
                lines.append([name, row.get("problem", "not measured")])
                continue
            ratios = (row["to_reference"], row["to_fastest"])
            lines.append(
                [
                    name,
                    _number(1e3 * row["median"]),
                    f"{_number(1e3 * row['least'])} to "
                    f"{_number(1e3 * row['greatest'])}",
                    *(_number(values[0] if values else None) for values in ratios),
                    _number(row.get("compile_seconds")),
                    _number(row.get("first_step_seconds")),
                    _number(row.get("peak_rss_mib")),
                    _number(row.get("temporary_mib")),
                ]
            )
    heads = [
        *("item: contender", "ms a step", "spread", "time / learn2learn's"),
        *("time / the fastest peer's", "compile s", "first step after s"),
        *("peak MiB", "temporary MiB"),
    ]
    return _table(heads, lines)


def _start(rows: list[Row]) -> str:
    text = (
        "Seconds from the start of a process to the end of its first step of W1a, "
        "1-shot: Python, imports, tracing, compilation and the step.\n\n"
    )
    heads = ("inner steps", "persistent compilation cache", "seconds", "spread")
    return text + _table(
        heads,
        [
            [
                str(row["inner_steps"]),
                "filled" if row["cache"] else "none",
                _number(row["median"]),
                _spread(row["seconds"]),
            ]
            for row in rows
        ],
    )


def _peak(rows: list[Row]) -> str:
    text = (
        "Operations of a step for each second of it, as a share of the rate of "
        "products of 2048 x 2048 matrices, measured in turn on the same two cores. "
        "Operations are counted from the traced program, recomputed ones included. "
        "The last columns say how JAX's profiler splits the time of a step's "
        "instructions: convolutions and matrix products themselves; what else belongs "
        "to convolutions, patches of images above all; normalisation; and pooling, "
        "activations, losses and the optimizer. What is fused goes by the last thing "
        "that it does.\n\n"
    )
    heads = ["item", "ms a step", "GFLOP", "matrix products, GFLOP/s", "share"]
    uses = list(rows[0]["uses"])
    return text + _table(
        [*heads, "spread", *(f"{use}, %" for use in uses)],
        [
            [
                row["item"],
                _number(1e3 * row["seconds"]),
                _number(row["flops"] / 1e9),
                _number(row["matrix_products_per_second"] / 1e9),
                _number(row["median"]),
                _spread(row["shares"]),
                *(f"{100 * row['uses'][use]:.0f}" for use in uses),
            ]
            for row in rows
        ],
    )


def _runs(rows: list[Row]) -> str:
    text = (
        "Whole runs of 1,000 steps on W3's sinusoids with one inner step, from the "
        "first task to the last step in one program, `vmap` over seeds.\n\n"
    )
    heads = ("runs", "seconds", "spread", "time / one run's")
    return text + _table(
        heads,
        [
            [
                str(row["runs"]),
                _number(row["median"]),
                _spread(row["seconds"]),
                _number(row["to_one"]),
            ]
            for row in rows
        ],
    )


def _precision(rows: list[Row]) -> str:
    text = (
        "MAML on Omniglot, 5-way 1-shot, after 1,000 steps of 16 tasks with one query "
        "a class, one seed; accuracy in percent on the same 600 test tasks with 15 "
        "queries a class, with 95 % intervals over tasks. The difference is taken task "
        "by task. Computed on CPU, where half precision saves no time.\n\n"
    )
    return text + _table(
        ("precision", "accuracy"),
        [
            [
                row["precision"],
                f"{100 * row['mean']:.2f} ± {100 * row['half_width_95']:.2f}",
            ]
            for row in rows
        ],
    )


def _scaling(rows: list[Row]) -> str:
    heads = [
        *("devices", "all-reduces a step", "bytes reduced", "GFLOP a device"),
        *("efficiency", "temporary MiB a device", "difference of the loss"),
    ]
    text = (
        "The program of W1a, 1-shot, 1 inner step, on simulated CPU devices. "
        "Efficiency is what one device does in all, over what these do together. "
        "Simulated devices share two cores, so that their time says nothing. The loss "
        "is that after three updates; Adam's first ones are as large as its rate "
        "however small a gradient is, and so enlarge the rounding of sums.\n\n"
    )
    return (
        text
        + _table(
            heads,
            [
                [
                    str(row["devices"]),
                    str(row["all_reduces"]),
                    f"{row['bytes_reduced']:,}",
                    _number(row["flops"] / 1e9),
                    f"{row['efficiency']:.3f}",
                    _number(row["temporary_bytes"] / 2**20),
                    f"{row['loss_difference']:.1g}",
                ]
                for row in rows
            ],
        )
        + "\n"
        + _many(rows)
    )


def _many(rows: list[Row]) -> str:
    """The arithmetic for many accelerators; nothing here is measured but the counts."""
    flops = rows[0]["flops"] / 32
    size = rows[-1]["bytes_reduced"]
    if size == 0:  # of one device only
        return ""
    hops = 2 * math.log2(ACCELERATORS)
    wire = 2 * size * (1 - 1 / ACCELERATORS) / LINK
    wait = hops * HOP
    lines = []
    for tasks in (1, 4, 16, 64):
        compute = tasks * flops / RATE
        lines.append(
            [
                str(tasks),
                f"{tasks * ACCELERATORS:,}",
                f"{1e6 * compute:.0f}",
                f"{1e6 * (wire + wait):.0f}",
                f"{compute / (compute + wire + wait):.2f}",
            ]
        )
    heads = ("tasks a device", "tasks a step", "compute, us", "all-reduce, us")
    return (
        f"**{ACCELERATORS} accelerators, by arithmetic.** Suppose that each sustains "
        f"{RATE / 1e12:.0f} TFLOP/s on this work, sends {LINK / 1e9:.0f} GB/s, and "
        f"waits {1e6 * HOP:.0f} us for each of the {hops:.0f} hops of a reduction tree "
        f"up and down. A task takes {flops / 1e9:.2f} GFLOP, the one all-reduce moves "
        f"{size:,} bytes in and out of every device, which takes {1e6 * wire:.0f} us, "
        f"and its hops {1e6 * wait:.0f} us. Nothing else is sent: tasks are drawn on "
        "the device, and every device updates its own copy of the parameters.\n\n"
        + _table((*heads, "efficiency"), lines)
        + "\nIt breaks first where a device has too few tasks to hide the latency of "
        "the hops, not by bandwidth: for that the parameters would have to be "
        f"{wait / wire:.0f} times as many. What an optimizer gains from thousands of "
        "tasks a step is another question, which no arithmetic answers.\n"
    )


ENGINE: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "start": ("The first step", _start),
    "peak": ("Share of the machine's peak", _peak),
    "runs": ("Many runs at once", _runs),
    "precision": ("Half precision", _precision),
    "scaling": ("Many devices", _scaling),
}


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads)]
    rows += [[*line, *[""] * (len(heads) - len(line))] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{_number(min(values))} to {_number(max(values))}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
