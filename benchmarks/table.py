"""The table of results that the README and the page of results show.

Each line is one protocol. "Ours" is the mean over tasks with the half-width of its 95 %
interval; with several training seeds it is the mean over seeds, the mean half-width,
and the range of the seeds in brackets.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.record import RESULTS

# What others report of training and testing on the same images:
# (learner, images, way, shot, queries) -> text with its kind.
PUBLISHED = {
    ("maml", "sinusoid", 0, 10, 10): "0.33 (own runs before this project)",
    ("fomaml", "sinusoid", 0, 10, 10): "0.50 (own runs before this project)",
    ("anil", "sinusoid", 0, 10, 10): "0.99 (own runs before this project)",
    ("meta-sgd", "sinusoid", 0, 10, 10): "0.23 to 0.26 (own runs before this project)",
    ("cavia", "sinusoid", 0, 10, 10): "0.18 to 0.19 (own runs before this project)",
    ("maml", "omniglot", 5, 1, 1): "98.7 paper, 98.4 and 99.1 reproductions",
    ("maml", "omniglot", 5, 5, 5): "99.9 paper, 99.4 reproduction",
    ("fomaml", "omniglot", 5, 1, 1): "98.3 Reptile's paper",
    ("meta-sgd", "omniglot", 5, 1, 1): "99.5 paper",
    ("maml", "omniglot", 20, 1, 1): "95.8 paper, 91.0 reproduction",
    ("maml-plus-plus", "omniglot", 5, 1, 1): "99.5 paper",
    ("maml-plus-plus", "omniglot", 20, 1, 1): "97.7 paper",
    ("imaml", "omniglot", 5, 1, 1): "99.5 paper",
    ("reptile", "omniglot", 5, 1, 1): "97.7 paper",
    ("maml-mlp", "omniglot", 5, 1, 1): "89.7 paper, 88.9 reproduction",
    ("maml-mlp", "omniglot", 5, 5, 5): "97.5 paper",
    ("prototypical", "omniglot", 5, 1, 15): "98.8 paper, 98.2 reproduction",
    ("prototypical", "omniglot", 5, 5, 15): "99.7 paper, 99.4 reproduction",
    ("prototypical", "omniglot", 20, 1, 15): "96.0 paper, 95.8 reproduction",
    ("prototypical", "omniglot", 20, 5, 15): "98.9 paper, 98.6 reproduction",
    ("matching", "omniglot", 5, 1, 15): "98.1 paper, 98.3 reproduction",
    ("matching", "omniglot", 5, 5, 15): "98.9 paper, 99.8 reproduction",
    ("matching", "omniglot", 20, 1, 15): "93.8 paper, 92.8 reproduction",
    ("matching", "omniglot", 20, 5, 15): "98.5 paper, 98.2 reproduction",
    ("relation", "omniglot", 5, 1, 15): "99.6 paper, 98.0 reproduction",
    ("relation", "omniglot", 5, 5, 15): "99.8 paper, 99.3 reproduction",
}


class Protocol(NamedTuple):
    """What makes results comparable: only training seeds may differ."""

    learner: str
    source: str
    images: str
    way: int
    shot: int
    queries: int
    setting: str


class Line(NamedTuple):
    """One protocol, and everything that was measured of it."""

    protocol: Protocol
    results: list[dict[str, Any]]


def table(folder: pathlib.Path = RESULTS, *, only_published: bool = False) -> str:
    """The table as Markdown.

    Args:
      folder: of the JSON files.
      only_published: whether to leave out what has no published number beside it.
    """
    rows = [
        "| trained on | tested on | task | learner | ours | others | setting |",
        "|---|---|---|---|---|---|---|",
    ]
    for of, results in sorted(_lines(folder), key=_order):
        if only_published and not _published(of):
            continue
        cells = [
            of.source,
            of.images,
            f"{of.way}-way {of.shot}-shot" if of.way else f"{of.shot}-shot",
            of.learner,
            _measured(results),
            _published(of),
            of.setting,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _lines(folder: pathlib.Path) -> Iterator[Line]:
    """Results grouped by protocol and setting; seeds share a line."""
    groups: dict[Protocol, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        settings = record["settings"]
        if "steps" not in settings:  # of speed, not of learning
            continue
        for result in record["results"]:
            key = _protocol(settings, result)
            if key is not None:
                groups.setdefault(key, []).append(result)
    for protocol, results in groups.items():
        yield Line(protocol, results)


def _protocol(settings: dict[str, Any], result: dict[str, Any]) -> Protocol | None:
    steps = f"{settings['steps']:,} steps"
    if "source" not in settings:  # sinusoids: the paper's row is after one inner step
        if result["inner_steps"] != 1:
            return None
        setting = f"mean squared error after 1 inner step; {steps}, the paper's"
        learner, shot = settings.get("learner", "maml"), settings["shot"]
        return Protocol(learner, "sinusoid", "sinusoid", 0, shot, 10, setting)
    shot = settings.get("train_shot", settings["shot"])
    trained = f"{settings['way']}-way {shot}-shot"
    trained += f", {_plural(settings['num_queries'], 'query', 'queries')}"
    trained += f", {_plural(settings['tasks_per_step'], 'task', 'tasks')} a step"
    length = steps if steps == _paper_steps(settings) else f"{steps} (shorter)"
    queries = result.get("num_queries", 15)
    tested = f"{result['protocol']}, {_plural(queries, 'query', 'queries')}"
    setting = f"{tested}; trained {trained}, {length}"
    return Protocol(
        settings["learner"],
        settings["source"],
        result["images"],
        result["way"],
        result["shot"],
        queries,
        setting,
    )


def _published(of: Protocol) -> str:
    if of.source != of.images:
        return ""
    protocol = (of.learner, of.images, of.way, of.shot, of.queries)
    return PUBLISHED.get(protocol, "")


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _paper_steps(settings: dict[str, Any]) -> str:
    steps = {"prototypical": "", "reptile": "100,000 steps", "imaml": "20,000 steps"}
    return steps.get(settings["learner"], "60,000 steps")


def _measured(results: list[dict[str, Any]]) -> str:
    if "metric" in results[0]:
        means = [result["mean"] for result in results]
        widths = [result["half_width"] for result in results]
        digits, unit = 3, 1.0
    else:
        scores = [result["metrics"]["accuracy"] for result in results]
        means = [score["mean"] for score in scores]
        widths = [score["half_width_95"] for score in scores]
        digits, unit = 2, 100.0
    count = len(means)
    mean, width = (unit * sum(values) / count for values in (means, widths))
    text = f"**{mean:.{digits}f}** ± {width:.{digits}f}"
    if count == 1:
        return f"{text}, 1 seed"
    low, high = unit * min(means), unit * max(means)
    return f"{text}, {count} seeds [{low:.{digits}f}, {high:.{digits}f}]"


def _order(line: Line) -> tuple:
    sources = ("sinusoid", "omniglot", "glyphs")
    images = ("sinusoid", "omniglot", "devanagari", "mnist")
    of = line.protocol
    return (
        sources.index(of.source),
        images.index(of.images),
        of.learner,
        of.way,
        of.shot,
        of.setting,
    )
