"""What a run has found so far, and where that is written."""

import math
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.evaluation.reports import Report
from metajax.training.outer_loop import TrainState
from metajax.training.progress import Progress
from metajax.training.run_folder import Record, RunFolder
from metajax.types import PyTree

__all__ = ["Best", "Journal", "monitored"]


class Best(NamedTuple):
    """The best validation so far; `params` and `value` are None before it."""

    params: PyTree
    step: int
    value: float | None


class Journal:
    """The history and the best meta-parameters of one run, in memory and in its folder.

    Args:
      folder: of the run; None writes nothing.
      validate: `meta_params -> Report`; None if there is no validation.
      monitor: the metric that decides which meta-parameters are best, see `train`.

    Attributes:
      history: records as `metajax.training.run_folder.read_metrics` describes them.
      best: the best validation so far.
    """

    def __init__(
        self,
        folder: RunFolder | None,
        validate: Callable[[PyTree], Report] | None,
        monitor: str | None,
    ) -> None:
        self._folder = folder
        self._validate = validate
        self._monitor = monitor
        self.history: list[Record] = []
        self.best = Best(None, 0, None)

    def resume(self, state: TrainState) -> tuple[int, TrainState]:
        """Goes back to the latest checkpoint: its step and state, or 0 and `state`."""
        if self._folder is None:
            return 0, state
        resumed, self.history = self._folder.resume(_trees(state, self.best))
        if resumed is None:
            return 0, state
        step, trees, record = resumed
        best_step, best_value = record["best_step"], record["best_value"]
        self.best = Best(trees["best_params"], best_step, best_value)
        return step, trees["rest"]._replace(meta_params=trees["meta_params"])

    def log_steps(
        self, metrics: dict[str, np.ndarray], taken: int, step: int, seconds: float
    ) -> None:
        """Records the first `taken` of the steps that `metrics` are of."""
        self._log(_train_record(metrics, taken, step, seconds))

    def validate(self, state: TrainState, step: int, show: Progress) -> None:
        """Judges the meta-parameters, records it, and keeps them if they are best."""
        if self._validate is None:
            return
        began = time.monotonic()
        with show.pause("validating"):
            report = self._validate(state.meta_params)
        self._log(_validation_record(report, step, time.monotonic() - began))
        name = monitored(report, self._monitor)
        value = report.mean[name]
        show.validated(name, value, report.half_width[name])
        if _is_better(name, value, self.best.value):
            # A copy, as the next step takes the memory of the state.
            self.best = Best(jax.tree.map(jnp.copy, state.meta_params), step, value)

    def save(self, state: TrainState, step: int) -> pathlib.Path | None:
        """Writes a checkpoint, and where; None if there is no folder."""
        if self._folder is None:
            return None
        self._folder.draw(self.history, self._monitor)
        record = {"best_step": self.best.step, "best_value": self.best.value}
        trees = _trees(state, self.best)
        return self._folder.save(step, trees, record, self.history)

    def close(self) -> None:
        """Ends what is open."""
        if self._folder is not None:
            self._folder.close(self.history, self._monitor)

    def _log(self, record: Record) -> None:
        self.history.append(record)
        if self._folder is not None:
            self._folder.log(record)


def _train_record(
    metrics: dict[str, np.ndarray], taken: int, step: int, seconds: float
) -> Record:
    return {
        "kind": "train",
        "step": step,
        **{k: _or_none(np.mean(v[:taken], dtype=float)) for k, v in metrics.items()},
        "timing": _timing(seconds) | {"steps_per_second": taken / seconds},
    }


def _validation_record(report: Report, step: int, seconds: float) -> Record:
    return {
        "kind": "validation",
        "step": step,
        **{name: _or_none(value) for name, value in report.mean.items()},
        "half_width": {k: _or_none(v) for k, v in report.half_width.items()},
        "timing": _timing(seconds),
    }


def _timing(seconds: float) -> Record:
    return {"seconds": seconds, "unix_time": time.time()}


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None  # JSON has no NaN


def monitored(report: Report, monitor: str | None) -> str:
    """Names the metric that decides which meta-parameters are best, see `train`.

    Raises:
      ValueError: if `monitor` is not among the metrics of the report.
    """
    names = list(report.mean)
    if monitor is None:
        return next((n for n in ("accuracy", "nll") if n in names), names[0])
    if monitor not in names:
        raise ValueError(
            f"`monitor` must be a metric of the validation, {names}, got {monitor!r}."
        )
    return monitor


def _is_better(name: str, value: float, best: float | None) -> bool:
    if best is None:
        return math.isfinite(value)
    is_gain = "accuracy" in name or "return" in name
    return value > best if is_gain else value < best


def _trees(state: TrainState, best: Best) -> dict[str, PyTree]:
    """What a checkpoint holds; meta-parameters can be read without the rest."""
    return {
        "meta_params": state.meta_params,
        "rest": state._replace(meta_params=()),
        "best_params": state.meta_params if best.value is None else best.params,
    }
