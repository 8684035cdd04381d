"""What a long support set costs learners that read it, in one compiled call.

    python -m benchmarks.stream_cost

Support sets of 10 to 1,000 rows of 64 numbers in 5 classes, at parameters that were
drawn and not trained: seconds to adapt, and to answer 100 queries afterwards, each the
median of several calls after compilation. Learners have their default sizes, but a
context or memory for all rows where they have one; `snail` remembers 64, and
`prototypical` is there to compare with. Compilation is reported too.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.pages import Named, markdown, picture
from benchmarks.record import RESULTS, write_result
from metajax.checks import check_choice
from metajax.learners.memory.class_np import class_np
from metajax.learners.memory.cnaps import cnaps
from metajax.learners.memory.in_context import in_context
from metajax.learners.memory.lstm_learner import lstm_learner
from metajax.learners.memory.mann import mann
from metajax.learners.memory.meta_net import meta_net
from metajax.learners.memory.mm_net import mm_net
from metajax.learners.memory.sgdstore import sgdstore
from metajax.learners.memory.snail import snail
from metajax.learners.metric.prototypical import prototypical
from metajax.models.networks import identity, mlp
from metajax.types import Examples, Learner, Task

TITLE, FILES = "The cost of a long support set", "stream-cost"
"""Of its part of the page of results, and the results that it shows."""

NAME, WAY, COLUMNS, NUM_QUERIES = "stream-cost", 5, 64, 100
MAKERS: dict[str, Callable[[int], Learner]] = {
    "prototypical": lambda num: prototypical(identity(), way=WAY),
    "lstm": lambda num: lstm_learner(identity(), way=WAY),
    "mann": lambda num: mann(identity(), way=WAY),
    "sgdstore": lambda num: sgdstore(identity(), way=WAY),
    "in_context": lambda num: in_context(identity(), way=WAY, context=num),
    "in_context, whole": lambda num: in_context(identity(), way=WAY, context=None),
    "snail": lambda num: snail(identity(), way=WAY, context=64),
    "mm_net": lambda num: mm_net(identity(), way=WAY, slots=num, near=2.0),
    "meta_net": lambda num: meta_net(identity(), way=WAY),
    "cnaps": lambda num: cnaps(mlp(64, normalization="layer"), way=WAY),
    "class_np": lambda num: class_np(identity(), way=WAY),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is timed."""

    learners: tuple[str, ...] = tuple(MAKERS)
    lengths: tuple[int, ...] = (10, 30, 100, 300, 1000)
    repeats: int = 5
    seed: int = 0


def main(settings: Settings) -> None:
    """Times, draws and writes the result."""
    for name in settings.learners:
        check_choice(MAKERS, learner=name)
    rows = []
    for name in settings.learners:
        for length in settings.lengths:
            row = {"learner": name, "length": length} | measure(name, length, settings)
            print(row, flush=True)
            rows.append(row)
        jax.clear_caches()
    draw(rows)
    write_result(NAME, dataclasses.asdict(settings), rows)


def measure(name: str, length: int, settings: Settings) -> dict[str, float]:
    """Seconds to adapt and to answer."""
    learner = MAKERS[name](length)
    key_x, key_y, key_query, key_init = jax.random.split(
        jax.random.key(settings.seed), 4
    )
    x = jax.random.normal(key_x, (length, COLUMNS))
    support = Examples(x, jax.random.randint(key_y, (length,), 0, WAY))
    queries = jax.random.normal(key_query, (NUM_QUERIES, COLUMNS))
    meta_params = learner.init(key_init, Task(support, support))
    start = time.perf_counter()
    adapt = jax.jit(learner.adapt).lower(meta_params, support).compile()
    compiled = time.perf_counter() - start
    adapted = adapt(meta_params, support)
    predict = jax.jit(learner.predict).lower(adapted, queries).compile()
    return {
        "compile_s": compiled,
        "adapt_s": seconds(lambda: adapt(meta_params, support), settings.repeats),
        "answer_s": seconds(lambda: predict(adapted, queries), settings.repeats),
    }


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call that was made once before."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def draw(rows: list[dict[str, Any]]) -> None:
    """Time against length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    titles = {"adapt_s": "to adapt", "answer_s": f"to answer {NUM_QUERIES} queries"}
    for axes, (what, title) in zip(panels, titles.items(), strict=True):
        for number, name in enumerate(dict.fromkeys(r["learner"] for r in rows)):
            chosen = [row for row in rows if row["learner"] == name]
            lengths = [row["length"] for row in chosen]
            milliseconds = [1e3 * row[what] for row in chosen]
            line = "o-" if number < 10 else "o--"  # there are ten colours
            axes.plot(lengths, milliseconds, line, ms=3, label=name)
        axes.set(xscale="log", yscale="log", title=title)
        axes.set(xlabel="examples in the support set", ylabel="milliseconds")
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(pathlib.Path(RESULTS) / f"{NAME}.png", dpi=110)


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    lengths = settings["lengths"]
    rows = []
    for name in dict.fromkeys(r["learner"] for r in results):
        of_learner = [r for r in results if r["learner"] == name]
        row = [name, *(f"{1e3 * r['adapt_s']:.2f}" for r in of_learner)]
        row.append(f"{1e3 * of_learner[-1]['answer_s']:.2f}")
        rows.append([*row, f"{of_learner[-1]['compile_s']:.1f}"])
    text = (
        "Milliseconds to adapt to a support set in one compiled call, those to answer "
        f"100 queries after {lengths[-1]:,} examples, and seconds to compile for that "
        f"many, on {record['device']}. See `benchmarks/stream_cost.py`.\n\n"
    )
    header = ["learner", *(f"{length:,}" for length in lengths), "answer", "compile"]
    return text + "\n".join([markdown(header, rows), picture(path)])


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
