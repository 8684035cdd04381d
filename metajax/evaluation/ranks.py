"""Learners on several domains: a table of means, and ranks that know of ties.

Ranks are those of Meta-Dataset's leaderboard (E. Triantafillou et al., "Meta-Dataset: A
Dataset of Datasets for Learning to Learn from Few Examples", ICLR 2020,
https://arxiv.org/abs/1903.03096; https://github.com/google-research/meta-dataset). On
each domain the best learner is taken together with all that do not differ from it
significantly; they share the mean of the ranks that they would have without ties; and
the same again with the learners that are left. A learner is judged by its mean rank
over domains.

Differs from it: learners have answered the same tasks, so it is the 95 % interval of
their paired difference that must hold 0 for a tie, and not that of two independent
means. Neither corrects for the number of comparisons.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from metajax.evaluation.reports import (
    Report,
    check_same_bank,
    choose_metric,
    format_value,
    interval,
    plain,
)

__all__ = ["Ranking", "rank_learners"]


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Learners `L` on domains `D`. `print` shows it as a table, the best first.

    Attributes:
      metric: what is compared.
      learners: their names.
      domains: their names.
      mean: `[L, D]` over the tasks of a domain.
      half_width: `[L, D]` of the 95 % Student interval of that mean.
      rank: `[L, D]` from 1 for the best.
      protocols: of each learner, `"inductive"` or another of `Report.protocol`; several
        are joined by a comma.
    """

    metric: str
    learners: tuple[str, ...]
    domains: tuple[str, ...]
    mean: np.ndarray
    half_width: np.ndarray
    rank: np.ndarray
    protocols: tuple[str, ...]

    @property
    def average_rank(self) -> np.ndarray:
        """`[L]`, the mean rank over domains."""
        return np.mean(self.rank, axis=1)

    @property
    def order(self) -> np.ndarray:
        """`[L]`, learners by average rank, the best first."""
        return np.argsort(self.average_rank, kind="stable")

    def to_json(self) -> dict[str, Any]:
        """Converts to plain numbers for `json.dumps`; NaN is None."""
        return plain(
            {
                "metric": self.metric,
                "domains": list(self.domains),
                "learners": {
                    learner: {
                        "mean": self.mean[i],
                        "half_width_95": self.half_width[i],
                        "rank": self.rank[i],
                        "average_rank": float(self.average_rank[i]),
                        "protocol": self.protocols[i],
                    }
                    for i, learner in enumerate(self.learners)
                },
            }
        )

    def __str__(self) -> str:
        rows = [[self.metric, *self.domains, "average rank"]]
        for i in self.order:
            cells = [
                f"{format_value(self.metric, mean, width)} ({rank:g})"
                for mean, width, rank in zip(
                    self.mean[i], self.half_width[i], self.rank[i], strict=True
                )
            ]
            rows.append([self.learners[i], *cells, f"{self.average_rank[i]:.2f}"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        )


def rank_learners(
    reports: Mapping[str, Mapping[str, Report]],
    metric: str | None = None,
    *,
    check_tasks: bool = True,
) -> Ranking:
    """Compares learners on several domains.

    Args:
      reports: learner -> domain -> its report. On a domain all learners must have
        answered the same tasks.
      metric: which metric; None means `accuracy`, or the only one there is. The larger
        the better if its name contains "accuracy", else the smaller.
      check_tasks: whether to compare the numbers in the tasks. Turn it off only where
        the same tasks hold other numbers, as with embeddings of their images; number
        of tasks and seed of the bank are compared always.

    Returns:
      The `Ranking`; a mean that is NaN ranks last.

    Raises:
      ValueError: if there is no learner or domain, a learner lacks a domain that others
        have, a domain has fewer than 2 tasks, or reports are from different banks or
        lack the metric.
    """
    learners = tuple(reports)
    if not learners or not reports[learners[0]]:
        raise ValueError("`reports` must hold a learner with at least one domain.")
    domains = tuple(reports[learners[0]])
    for learner in learners:
        missing = set(domains) ^ set(reports[learner])
        if missing:
            raise ValueError(
                f"`reports` must have the same domains for all learners, but "
                f"{learners[0]!r} and {learner!r} do not both have "
                f"{', '.join(sorted(missing))}; evaluate them or leave them out."
            )
    every = [reports[learner][domain] for learner in learners for domain in domains]
    metric = choose_metric(every, metric)
    shape = (len(learners), len(domains))
    mean, half_width, rank = (np.zeros(shape) for _ in range(3))
    for column, domain in enumerate(domains):
        of_domain = [reports[learner][domain] for learner in learners]
        if of_domain[0].num_tasks < 2:
            raise ValueError(
                f"Ranks need at least 2 tasks of each domain, got 1 of {domain!r}."
            )
        for report in of_domain[1:]:
            check_same_bank(of_domain[0], report, numbers=check_tasks)
        values = np.stack([report.values[metric] for report in of_domain]).astype(float)
        mean[:, column], half_width[:, column] = interval(values.T)
        rank[:, column] = _ranks(values if "accuracy" in metric else -values)
    protocols = tuple(
        ", ".join(sorted({report.protocol for report in reports[learner].values()}))
        for learner in learners
    )
    return Ranking(metric, learners, domains, mean, half_width, rank, protocols)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks `[L]` by values `[L, tasks]`, the larger the better."""
    means = np.mean(values, axis=1)
    means = np.where(np.isnan(means), -np.inf, means)
    ranks = np.zeros(len(values))
    left = np.arange(len(values))
    taken = 0
    while left.size:
        best = left[np.argmax(means[left])]
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            difference, half_width = interval((values[left] - values[best]).T)
        is_tied = np.abs(difference) <= half_width
        # Learners without a finite mean are all alike, and a learner is its own tie.
        is_tied |= (means[left] == means[best]) & ~np.isfinite(means[best])
        is_tied |= left == best
        count = int(np.sum(is_tied))
        ranks[left[is_tied]] = taken + (count + 1) / 2
        taken += count
        left = left[~is_tied]
    return ranks
