"""Writes the README's two tables: learners from docstrings, results from JSON files.

    python -m benchmarks.readme           # rewrite README.md between its markers
    python -m benchmarks.readme --check   # fail if that would change it

A learner's row is what its module and constructor say: the name and the paper in the
first lines, and when to choose it. Of the results it shows those that stand beside
published ones; `benchmarks.results_page` has all.
"""

import pathlib

from benchmarks.pages import rewrite_or_check
from benchmarks.table import table
from metajax import learners
from metajax.command_line.cards import choose_it, link, title
from metajax.command_line.catalogue import is_learner

README = pathlib.Path(__file__).parent.parent / "README.md"


def main() -> None:
    """Rewrites or checks the README."""
    text = README.read_text()
    for name, part in (
        ("learners", learners_table()),
        ("results", table(only_published=True)),
    ):
        begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n{part}{end}{after}"
    rewrite_or_check(README, text, "benchmarks.readme", __doc__)


def learners_table() -> str:
    """All learners as Markdown, in the order of their families."""
    rows = ["| learner | constructor | choose it |", "|---|---|---|"]
    for name, constructor in vars(learners).items():
        if not is_learner(constructor):
            continue
        method, found = title(constructor).split(":")[0].rstrip("."), link(constructor)
        cell = f"[{method}]({found})" if found else method
        rows.append(f"| {cell} | `{name}` | {choose_it(constructor)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
