"""Pages that are made from results: one command rewrites them, or checks them."""

import argparse
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "Named",
    "Record",
    "beside_reference",
    "interval_cell",
    "markdown",
    "picture",
    "rewrite_or_check",
    "signs_cell",
]

Record = dict[str, Any]
Named = Sequence[tuple[pathlib.Path, Record]]
"""Results with the files that they are from."""


def rewrite_or_check(path: pathlib.Path, text: str, module: str, doc: str) -> None:
    """Writes a page; with `--check` on the command line, fails if that would change it.

    Args:
      path: of the page.
      text: what the results give.
      module: that is run, for the message.
      doc: help of the command.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--check", action="store_true", help="change nothing")
    if not parser.parse_args().check:
        path.write_text(text)
    elif not path.exists() or text != path.read_text():
        sys.exit(f"{path.name} is not what the results give; run python -m {module}")


def interval_cell(numbers: Record, digits: int, unit: float = 1.0) -> str:
    """A mean with its half-width, in units of 1 / `unit`."""
    if numbers["mean"] is None:
        return "not finite"
    mean, width = unit * numbers["mean"], unit * numbers["half_width"]
    if abs(mean) >= 1000:
        return f"{mean:.1e} ± {width:.1e}"
    return f"{mean:.{digits}f} ± {width:.{digits}f}"


def signs_cell(found: Record) -> str:
    """How often one was better than the other, and the p-value of the sign test."""
    return f"{found['better']} to {found['worse']}, p = {found['sign_test_p']:.1g}"


def picture(path: pathlib.Path) -> str:
    """The picture that lies beside a result, or nothing."""
    picture = path.with_suffix(".png")
    if not picture.exists():
        return ""
    return f"![{picture.stem}](results/{picture.name})\n"


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def beside_reference(results: list[Record]) -> str:
    """Accuracy by learner and protocol, with the paired difference in brackets."""
    protocols = list(dict.fromkeys((r["way"], r["shot"]) for r in results))
    rows = []
    for name in dict.fromkeys(r["learner"] for r in results):
        of_learner = {(r["way"], r["shot"]): r for r in results if r["learner"] == name}
        first = next(iter(of_learner.values()))
        steps = f", {first['outer_steps']:,} steps" if "outer_steps" in first else ""
        row = [name + steps, first["protocol"]]
        for protocol in protocols:
            r = of_learner.get(protocol)
            row.append("" if r is None else interval_cell(r, 2, 100))
            if r is not None and "better_by" in r:
                row[-1] += f" ({interval_cell(r['better_by'], 2, 100)})"
        rows.append(row)
    header = ["learner", "protocol", *(f"{w}-way {s}-shot" for w, s in protocols)]
    return markdown(header, rows)
