"""Writes `benchmarks/RESULTS.md` from the committed results of learning.

    python -m benchmarks.results_page           # rewrite it
    python -m benchmarks.results_page --check   # fail if that would change it

Each benchmark owns its part: the `TITLE`, the pattern of its `FILES`, and `section`,
which makes text of them. The README shows the part of the first table that has
published numbers beside it, see `benchmarks.readme`; speed has a page of its own, see
`benchmarks.speed`.
"""

import json
import pathlib

from benchmarks import (
    ablation,
    beside_easyfsl,
    cached_features,
    domains,
    embeddings,
    endurance,
    function_families,
    gradients,
    hypergradient,
    inner_optimizers,
    kernel_svm,
    memory_sequences,
    molecules,
    neural_processes,
    prior_fitted,
    quadratics,
    readers,
    recommend_trees,
    sequences,
    sinusoid,
    soft_trees,
    stream_cost,
    tables,
    task_map,
    wrong_arguments,
)
from benchmarks.pages import rewrite_or_check
from benchmarks.record import RESULTS
from benchmarks.table import table

PAGE = pathlib.Path(__file__).parent / "RESULTS.md"
PARTS = (
    sinusoid,
    hypergradient,
    inner_optimizers,
    quadratics,
    tables,
    recommend_trees,
    prior_fitted,
    task_map,
    embeddings,
    readers,
    memory_sequences,
    stream_cost,
    cached_features,
    beside_easyfsl,
    kernel_svm,
    function_families,
    neural_processes,
    soft_trees,
    ablation,
    sequences,
    domains,
    molecules,
    gradients,
    endurance,
    wrong_arguments,
)


def main() -> None:
    """Rewrites or checks the page."""
    rewrite_or_check(PAGE, page(RESULTS), "benchmarks.results_page", __doc__)


def page(results: pathlib.Path) -> str:
    """The page as Markdown."""
    parts = [
        "# Results\n",
        "This page is written by `python -m benchmarks.results_page` from the JSON "
        "files in `benchmarks/results`; each names the command, seed, versions, "
        "revision and machine behind its numbers. ± is the half-width of a 95 % "
        "interval, over test tasks unless said otherwise.\n",
        "## Few-shot classification and sinusoids\n",
        "Accuracy in percent, or mean squared error after one inner step.\n",
        table(results),
    ]
    for part in PARTS:
        records = [
            (path, json.loads(path.read_text()))
            for path in sorted(results.glob(f"{part.FILES}.json"))
        ]
        if records:
            parts += [f"## {part.TITLE}\n", part.section(records)]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
