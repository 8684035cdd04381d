"""What an evaluation found, and how findings are compared: NumPy on the host.

A `Report` keeps the values of all tasks. Means come with the half-width of a 95 %
Student interval over tasks. `across_seeds` gives the spread over training seeds, which
is another thing: tasks differ within one trained model, seeds between models. `compare`
pairs two learners task by task, for which both must have seen the same bank.

Calibration is the expected calibration error of C. Guo, G. Pleiss, Y. Sun, K. Q.
Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
https://arxiv.org/abs/1706.04599, over all queries of all tasks together.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metajax.checks import check_instances, check_lists, check_mappings

__all__ = [
    "Calibration",
    "Comparison",
    "Interval",
    "Report",
    "Spread",
    "across_seeds",
    "check_same_bank",
    "choose_metric",
    "compare",
    "format_value",
    "interval",
    "plain",
    "reliability",
]


class Interval(NamedTuple):
    """A mean and how well it is known.

    Attributes:
      mean: over tasks (or seeds); NaN or infinite if any value is.
      half_width: of the 95 % Student interval, `t(0.975, n - 1) s / sqrt(n)`; NaN where
        a single value gives no spread.
    """

    mean: np.ndarray
    half_width: np.ndarray


class Calibration(NamedTuple):
    """A reliability diagram: queries sorted into bins by the confidence in the answer.

    Bin `b` of `bins` holds confidences in `(b / bins, (b + 1) / bins]`.

    Attributes:
      error: expected calibration error, a fraction: the mean over queries of
        `|accuracy - confidence|` of their bin. NaN if any prediction is.
      num_queries: `[bins]` queries in each bin.
      confidence: `[bins]` mean largest class probability; NaN in an empty bin.
      accuracy: `[bins]` fraction of right answers; NaN in an empty bin.
    """

    error: float
    num_queries: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """The result of one learner on one bank of tasks.

    Attributes:
      values: metric -> `[num_tasks]`; NaN in every metric of a task with a NaN
        prediction.
      protocol: `"inductive"` or `"transductive"`, as measured; `"unknown"` if the
        predictions of the first task are NaN, `"unchecked"` if no check was asked for.
      seed: of the bank.
      fingerprint: `[num_tasks, 2]` sums over the numbers in each task, by which
        `compare` notices reports from different banks.
      calibration: of integer labels under the default metrics, else None.
      step_values: metric -> `[num_tasks, steps + 1]`; None if no curve was asked for.
    """

    values: dict[str, np.ndarray]
    protocol: str
    seed: int
    fingerprint: np.ndarray
    calibration: Calibration | None = None
    step_values: dict[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        """Refuses what is no table of values."""
        check_mappings(values=self.values)
        if not self.values:
            raise ValueError("`values` must hold at least one metric, got none.")
        check_lists(fingerprint=self.fingerprint)
        if self.calibration is not None:
            check_instances(
                Calibration, "`reliability` gives one", calibration=self.calibration
            )
        if self.step_values is not None:
            check_mappings(step_values=self.step_values)

    @property
    def num_tasks(self) -> int:
        """Tasks in the bank."""
        return len(self.fingerprint)

    @property
    def is_finite(self) -> np.ndarray:
        """Bool `[num_tasks]`, False where any metric is NaN or infinite."""
        return np.all([np.isfinite(v) for v in self.values.values()], axis=0)

    @property
    def num_non_finite(self) -> int:
        """Tasks with a NaN or infinite metric. None of them is left out of a mean."""
        return int(np.sum(~self.is_finite))

    @property
    def mean(self) -> dict[str, float]:
        """Metric -> mean over all tasks; NaN or infinite if that of any task is."""
        return {name: float(interval(v).mean) for name, v in self.values.items()}

    @property
    def half_width(self) -> dict[str, float]:
        """Metric -> 95 % half-width over tasks, by Student's t."""
        return {name: float(interval(v).half_width) for name, v in self.values.items()}

    @property
    def median(self) -> dict[str, float]:
        """Metric -> median over the finite tasks, NaN if there are none."""
        chosen = self.is_finite
        return {
            name: float(np.median(v[chosen])) if np.any(chosen) else math.nan
            for name, v in self.values.items()
        }

    @property
    def curve(self) -> dict[str, Interval]:
        """Metric -> mean and half-width `[steps + 1]` over tasks after each inner step.

        Raises:
          ValueError: if the evaluation made no curve.
        """
        if self.step_values is None:
            raise ValueError(
                "This report has no curve over inner steps; call `evaluate` with "
                "`steps_curve=True`."
            )
        return {name: interval(v) for name, v in self.step_values.items()}

    def to_json(self, *, per_task: bool = False) -> dict[str, Any]:
        """Converts the report to plain numbers, for `json.dumps`.

        Args:
          per_task: whether to add the values of all tasks.

        Returns:
          A dict in which NaN and infinity are None, as JSON has neither; see
          `non_finite_tasks` for whether that happened.
        """
        mean, half_width, median = self.mean, self.half_width, self.median
        result: dict[str, Any] = {
            "metrics": {
                name: {
                    "mean": mean[name],
                    "half_width_95": half_width[name],
                    "median_of_finite": median[name],
                }
                for name in self.values
            },
            "num_tasks": self.num_tasks,
            "non_finite_tasks": self.num_non_finite,
            "protocol": self.protocol,
            "seed": self.seed,
            "fingerprint": np.mean(self.fingerprint, axis=0),
        }
        if self.calibration is not None:
            result["calibration"] = self.calibration._asdict()
        if self.step_values is not None:
            result["curve"] = {
                name: {"mean": c.mean, "half_width_95": c.half_width}
                for name, c in self.curve.items()
            }
        if per_task:
            result["values"] = self.values
        return plain(result)

    def __str__(self) -> str:
        mean, half_width, median = self.mean, self.half_width, self.median
        names = sorted(self.values, key=lambda name: name != "accuracy")
        lines = [f"{n} {format_value(n, mean[n], half_width[n])}" for n in names]
        lines[0] += f" ({self.num_tasks} tasks, {self.protocol})"
        if self.calibration is not None:
            lines.append(
                f"calibration error {100 * self.calibration.error:.2f} % "
                f"({len(self.calibration.num_queries)} bins)"
            )
        if self.num_non_finite:
            medians = ", ".join(f"{n} {format_value(n, median[n])}" for n in names)
            lines.append(
                f"{self.num_non_finite} of {self.num_tasks} tasks not finite; "
                f"median of the others: {medians}"
            )
        return "\n".join(lines)


class Comparison(NamedTuple):
    """Learner a minus learner b, task by task.

    Attributes:
      metric: what was compared.
      difference: mean of `a - b` over tasks.
      half_width: of the 95 % Student interval of that mean.
      share_higher: fraction of tasks in which the value of a is the higher one, which
        is the better one for accuracy and the worse one for losses.
      share_lower: fraction in which it is the lower one; the rest are ties (or NaN).
      p_value: two-sided paired t-test of no difference; below 0.05 exactly when the
        interval leaves out 0.
      num_tasks: tasks compared.
      protocols: of a and b.
    """

    metric: str
    difference: float
    half_width: float
    share_higher: float
    share_lower: float
    p_value: float
    num_tasks: int
    protocols: tuple[str, str]

    def __str__(self) -> str:
        difference = format_value(self.metric, self.difference, self.half_width)
        return (
            f"{self.metric} a - b: {difference} ({self.num_tasks} paired tasks, "
            f"a higher in {self.share_higher:.1%}, lower in {self.share_lower:.1%}; "
            f"p = {self.p_value:.2g}; a {self.protocols[0]}, b {self.protocols[1]})"
        )


class Spread(NamedTuple):
    """The means of several training runs of one method.

    Attributes:
      metric: what was averaged.
      mean: over training seeds of the mean over tasks.
      half_width: of the 95 % Student interval over training seeds, NaN for one seed.
      minimum: the lowest mean of a seed.
      maximum: the highest.
      num_seeds: training seeds.
    """

    metric: str
    mean: float
    half_width: float
    minimum: float
    maximum: float
    num_seeds: int

    def __str__(self) -> str:
        mean = format_value(self.metric, self.mean, self.half_width)
        low, high = (format_value(self.metric, v) for v in (self.minimum, self.maximum))
        return (
            f"{self.metric} {mean} over {self.num_seeds} training seeds "
            f"({low} to {high})"
        )


def compare(a: Report, b: Report, metric: str | None = None) -> Comparison:
    """Compares two learners on identical tasks.

    The difference within a task varies less than the tasks do, so this tells learners
    apart whose own intervals overlap.

    Args:
      a: report of one learner.
      b: report of the other, from the same bank.
      metric: which metric; None means `accuracy`, or the only one there is.

    Returns:
      The `Comparison` of a with b.

    Raises:
      ValueError: if the reports are from different banks or lack the metric.
    """
    check_instances(Report, "`metajax.evaluate` gives one", a=a, b=b)
    metric = choose_metric([a, b], metric)
    check_same_bank(a, b)
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, and shows
        difference = a.values[metric].astype(float) - b.values[metric].astype(float)
    mean, half_width = interval(difference)
    return Comparison(
        metric=metric,
        difference=float(mean),
        half_width=float(half_width),
        share_higher=float(np.mean(difference > 0)),
        share_lower=float(np.mean(difference < 0)),
        p_value=_t_test(difference),
        num_tasks=a.num_tasks,
        protocols=(a.protocol, b.protocol),
    )


def across_seeds(reports: Sequence[Report], metric: str | None = None) -> Spread:
    """Gives mean and spread over training seeds: a report per trained model, one bank.

    Args:
      reports: of one method trained with different seeds; at least 1.
      metric: which metric; None means `accuracy`, or the only one there is.

    Returns:
      The `Spread` of the means of the reports.

    Raises:
      ValueError: if there are no reports, they are from different banks, or one lacks
        the metric.
    """
    check_lists(reports=reports)
    for place, report in enumerate(reports):
        check_instances(
            Report, "`metajax.evaluate` gives one", **{f"reports[{place}]": report}
        )
    if not len(reports):
        raise ValueError("`reports` must hold at least 1 report, got none.")
    metric = choose_metric(reports, metric)
    for report in reports[1:]:
        check_same_bank(reports[0], report)
    means = np.array([report.mean[metric] for report in reports])
    mean, half_width = interval(means)
    return Spread(
        metric=metric,
        mean=float(mean),
        half_width=float(half_width),
        minimum=float(np.min(means)),
        maximum=float(np.max(means)),
        num_seeds=len(means),
    )


def interval(values: np.ndarray) -> Interval:
    """Computes the mean over axis 0 with its 95 % Student half-width, in float64."""
    from scipy.special import stdtrit  # slow to import; jax itself depends on scipy

    values = np.asarray(values, np.float64)
    count = len(values)
    with np.errstate(invalid="ignore"):  # NaN from infinite values shows
        mean = np.mean(values, axis=0)
        if count == 1:
            return Interval(mean, np.full_like(mean, np.nan))
        error = np.std(values, axis=0, ddof=1) / math.sqrt(count)
    return Interval(mean, stdtrit(count - 1, 0.975) * error)


def reliability(
    num_queries: np.ndarray, confidence: np.ndarray, num_right: np.ndarray
) -> Calibration:
    """Computes the calibration from sums over the queries of each bin.

    Args:
      num_queries: `[bins]` number of queries.
      confidence: `[bins]` sum of their largest class probability.
      num_right: `[bins]` number of right answers.

    Returns:
      The `Calibration`; its error is NaN if there are no queries.
    """
    with np.errstate(invalid="ignore"):  # 0 / 0 in empty bins
        error = np.sum(np.abs(num_right - confidence)) / np.sum(num_queries)
        return Calibration(
            error=float(error),
            num_queries=num_queries,
            confidence=confidence / num_queries,
            accuracy=num_right / num_queries,
        )


def _t_test(difference: np.ndarray) -> float:
    """Two-sided p-value of a mean of zero; 1 if all differences are 0."""
    from scipy.special import stdtr

    count = len(difference)
    if count == 1:
        return math.nan
    if not np.any(difference):
        return 1.0
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant difference: p = 0
        error = np.std(difference, ddof=1) / math.sqrt(count)
        return float(2 * stdtr(count - 1, -np.abs(np.mean(difference) / error)))


def choose_metric(reports: Sequence[Report], metric: str | None) -> str:
    """Chooses the metric, or for None `accuracy` or the only one that all reports have.

    Raises:
      ValueError: if a report lacks it.
    """
    names = sorted(set.intersection(*(set(report.values) for report in reports)))
    if metric is None:
        if "accuracy" in names:
            return "accuracy"
        if len(names) == 1:
            return names[0]
    if not isinstance(metric, str) or metric not in names:
        raise ValueError(
            f"`metric` must be one that all reports have, {names}, got {metric!r}."
        )
    return metric


def check_same_bank(a: Report, b: Report, *, numbers: bool = True) -> None:
    """Raises a ValueError if two reports are of different tasks.

    Args:
      a: one report.
      b: the other.
      numbers: whether to compare the numbers in the tasks too, up to rounding, and not
        only the number of tasks and the seed of the bank.
    """
    for name in ("num_tasks", "seed"):
        if getattr(a, name) != getattr(b, name):
            raise ValueError(
                f"The reports are from different banks: `{name}` is {getattr(a, name)} "
                f"in one and {getattr(b, name)} in the other. Evaluate both learners "
                f"with the same `{name}`."
            )
    if not numbers:
        return
    # Programs compiled for different learners, or other hardware, may round the same
    # task differently in its last bits.
    scale = np.abs(a.fingerprint[:, 1:]) + np.abs(b.fingerprint[:, 1:])
    is_same = np.abs(a.fingerprint - b.fingerprint) <= 1e-5 * scale
    if not np.all(is_same):
        num_other = np.sum(~np.all(is_same, axis=1))
        raise ValueError(
            "The reports are from different banks: seed and number of tasks agree, but "
            f"{num_other} of {a.num_tasks} tasks do not hold the same numbers. "
            "Evaluate both learners on the same task distribution."
        )


def format_value(name: str, value: float, half_width: float | None = None) -> str:
    """Writes accuracy in percent, other metrics in a few significant digits."""
    is_share = name == "accuracy"
    text = f"{100 * value:.2f} %" if is_share else f"{value:.4g}"
    if half_width is None:
        return text
    if math.isnan(half_width):
        return f"{text} ± no interval"
    return (
        f"{text} ± {100 * half_width:.2f}" if is_share else f"{text} ± {half_width:.2g}"
    )


def plain(value: Any) -> Any:
    """Writes nested dicts and arrays as lists and numbers, NaN and infinity as None."""
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, np.ndarray | list):
        return [plain(v) for v in np.asarray(value).tolist()]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
