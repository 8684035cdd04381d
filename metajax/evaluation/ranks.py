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

Whether learners differ over domains at all, and which, is tested on these ranks by the
tests of M. Friedman and of P. Nemenyi, as J. Demsar, "Statistical Comparisons of
Classifiers over Multiple Data Sets", JMLR 2006, describes them (section 3.2.2): with L
learners, D domains and average ranks R_i,

    chi^2 = 12 D / (L (L + 1)) (sum of R_i^2 - L (L + 1)^2 / 4)
    F     = (D - 1) chi^2 / (D (L - 1) - chi^2),   Iman and Davenport's
    CD    = q sqrt(L (L + 1) / (6 D)),   q of the Studentized range, divided by sqrt(2)

chi^2 is divided by 1 - sum of (t^3 - t) / (D (L^3 - L)) over ties of t learners, which
Demsar leaves out. A domain is one observation, however many tasks it has.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from metajax.checks import as_numbers, check_mappings, is_number
from metajax.evaluation.reports import (
    Report,
    check_same_bank,
    choose_metric,
    format_value,
    interval,
    plain,
)

__all__ = [
    "Friedman",
    "Nemenyi",
    "Ranking",
    "friedman_test",
    "nemenyi_test",
    "rank_learners",
]


class Friedman(NamedTuple):
    """Whether learners differ over domains.

    Attributes:
      statistic: chi^2 of Friedman, corrected for ties; 0 where all tie everywhere.
      p_value: of it, by the chi^2 distribution with L - 1 degrees of freedom, which is
        rough for few domains.
      f_statistic: F of Iman and Davenport, which is less conservative; infinity where
        all domains agree without ties.
      f_p_value: of it, by the F distribution with L - 1 and (L - 1) (D - 1) degrees of
        freedom.
    """

    statistic: float
    p_value: float
    f_statistic: float
    f_p_value: float


class Nemenyi(NamedTuple):
    """Which learners differ over domains.

    Attributes:
      critical_difference: average ranks that are further apart than this differ
        significantly, all pairs taken together.
      p_values: `[L, L]` of each pair, corrected for the number of pairs; 1 on the
        diagonal.
    """

    critical_difference: float
    p_values: np.ndarray


LEAST_LEARNERS = 3  # of two, the paired comparison of every domain says more


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """Learners `L` on domains `D`. `print` shows it as a table, the best first.

    Below the table stand the tests of Friedman and Nemenyi, if there are at least 3
    learners and 2 domains.

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
        lines = [
            "  ".join(
                cell.ljust(width) for cell, width in zip(row, widths, strict=True)
            )
            for row in rows
        ]
        if min(self.rank.shape) >= 2 and len(self.rank) >= LEAST_LEARNERS:
            lines.append(
                f"Friedman test: p = {friedman_test(self.rank).f_p_value:.2g}; Nemenyi "
                "test: average ranks differ that are more than "
                f"{nemenyi_test(self.rank).critical_difference:.2f} apart (5 %)."
            )
        return "\n".join(lines)


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
    check_mappings(reports=reports)
    for name, of_learner in reports.items():
        check_mappings(**{f"reports[{name!r}]": of_learner})
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


def friedman_test(ranks: np.ndarray) -> Friedman:
    """Tests whether learners differ over domains, by their ranks.

    Args:
      ranks: `[L, D]` of at least 3 learners on at least 2 domains, 1 for the best, as
        `Ranking.rank`; those that tie share the mean of their ranks.

    Raises:
      ValueError: if there are too few, or a domain's ranks are none.

    Example:
      >>> from metajax.evaluation import friedman_test
      >>> ranks = np.array([[1, 1, 1, 2], [2, 2, 3, 1], [3, 3, 2, 3]])
      >>> print(f"{friedman_test(ranks).statistic:.2f}")
      4.50
    """
    from scipy.special import chdtrc, fdtrc  # slow to import; jax depends on scipy

    ranks = _checked_ranks(ranks)
    learners, domains = ranks.shape
    average = np.mean(ranks, axis=1)
    spread = np.sum(np.square(average)) - learners * (learners + 1) ** 2 / 4
    statistic = 12 * domains / (learners * (learners + 1)) * spread
    ties = 0.0
    for column in ranks.T:
        _, counts = np.unique(column, return_counts=True)
        ties += np.sum(counts.astype(float) ** 3 - counts)
    correction = 1 - ties / (domains * (learners**3 - learners))
    # No domain tells two learners apart where all tie on all: 0 / 0 is no evidence.
    statistic = max(statistic / correction, 0.0) if correction > 1e-12 else 0.0
    freedom = learners - 1
    left = domains * freedom - statistic
    f_statistic = (domains - 1) * statistic / left if left > 1e-9 else np.inf
    return Friedman(
        float(statistic),
        float(chdtrc(freedom, statistic)),
        float(f_statistic),
        float(fdtrc(freedom, freedom * (domains - 1), f_statistic)),
    )


def nemenyi_test(ranks: np.ndarray, *, level: float = 0.05) -> Nemenyi:
    """Tests which learners differ over domains, once `friedman_test` says that some do.

    Args:
      ranks: as for `friedman_test`.
      level: of significance for all pairs together, in (0, 1).

    Raises:
      ValueError: if `level` is out of range, there are too few learners or domains, or
        a domain's ranks are none.

    Example:
      >>> from metajax.evaluation import nemenyi_test
      >>> ranks = np.array([[1, 1, 1, 2], [2, 2, 3, 1], [3, 3, 2, 3]])
      >>> print(f"{nemenyi_test(ranks).critical_difference:.2f}")
      1.66
    """
    from scipy.stats import studentized_range  # slow to import; jax depends on scipy

    if not is_number(level) or not 0 < level < 1:
        raise ValueError(f"`level` must be above 0 and below 1, got {level!r}.")
    ranks = _checked_ranks(ranks)
    learners, domains = ranks.shape
    average = np.mean(ranks, axis=1)
    unit = np.sqrt(learners * (learners + 1) / (12 * domains))
    apart = np.abs(average[:, None] - average[None, :])
    quantile = studentized_range.isf(level, learners, np.inf)
    p_values = studentized_range.sf(apart / unit, learners, np.inf)
    return Nemenyi(float(quantile * unit), np.clip(p_values, 0, 1))


def _checked_ranks(ranks: np.ndarray) -> np.ndarray:
    """Ranks `[L, D]` in double precision, of enough learners and domains."""
    ranks = as_numbers(ranks=ranks)
    if ranks.ndim != 2 or len(ranks) < LEAST_LEARNERS or ranks.shape[1] < 2:
        raise ValueError(
            f"`ranks` must be `[L, D]` of at least {LEAST_LEARNERS} learners on at "
            f"least 2 domains, got shape {list(ranks.shape)}; of two learners, see "
            "`metajax.compare` on each domain."
        )
    learners = len(ranks)
    sums = np.sum(ranks, axis=0)
    is_rank = np.all((ranks >= 1) & (ranks <= learners), axis=0)
    is_rank &= np.abs(sums - learners * (learners + 1) / 2) < 1e-6
    if not np.all(is_rank):
        domain = int(np.argmin(is_rank))
        raise ValueError(
            f"`ranks` must be from 1 to {learners} on each domain and sum to "
            f"{learners * (learners + 1) // 2}, got {ranks[:, domain].tolist()} on "
            f"domain {domain}; those that tie share the mean of their ranks. Give "
            "`Ranking.rank`, and not measured values."
        )
    return ranks


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
