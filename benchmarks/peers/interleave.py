"""One live process for each contender of an item, asked for steps in turn."""

import contextlib
import json
import math
import os
import subprocess
import tempfile
import threading
import time
from typing import Any

from benchmarks.peers.environments import ROOT, python_of
from benchmarks.peers.items import CONTENDERS, Item
from benchmarks.peers.worker import THREADS

__all__ = [
    "MOST_SECONDS",
    "TOLERANCE",
    "Process",
    "WorkerError",
    "check_losses",
    "measure",
]

TOLERANCE = 1e-3  # of the losses at step 0, relative
ROUND_SECONDS = 0.5  # what a contender does in its turn takes about as long, or a step
MOST_SECONDS = 100.0  # a contender that has spent so much on an item sits out
ANSWER_SECONDS = 900.0  # of silence, and a worker is given up


class WorkerError(RuntimeError):
    """A worker died or gave no answer; the message says why."""


class Process:
    """A contender in its own process and environment; see `benchmarks.peers.worker`."""

    def __init__(
        self,
        name: str,
        *,
        worker: str = "benchmarks.peers.worker",
        large_pages: bool = False,
    ) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(THREADS))
        environment = os.environ | threads
        environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        if large_pages:
            environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        # A compilation out of a cache would not be the one that is timed.
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        peer = CONTENDERS[name].peer if name in CONTENDERS else name
        command = [python_of(peer), "-m", worker]
        self._process = subprocess.Popen(
            [*command, name],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
          WorkerError: if there is none.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        timer = threading.Timer(ANSWER_SECONDS, self._process.kill)
        timer.start()
        try:
            stdin.write(json.dumps({"do": do} | arguments) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise WorkerError(f"failed to {do}: {self._last_words()}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        with self._log, contextlib.suppress(BrokenPipeError), self._process:
            self._process.kill()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f"exit code {code}; {lines[-1] if lines else 'nothing said'}"


def measure(
    item: Item, absent: dict[str, str], rounds: int, *, large_pages: bool = False
) -> list[dict[str, Any]]:
    """Measures one item.

    Args:
      item: the work.
      absent: peers that take no part, and why.
      rounds: how often everyone has a turn.
      large_pages: whether all get memory in pages of 2 MiB, where glibc and Linux can.

    Returns:
      A row for each contender: `item`, `contender`, `tasks`, and either `problem`, or
      `seconds` of a step in each round (None where it sat out), `first_step_seconds`
      since the start of its process, `loss` before the first update, `peak_rss_mib`,
      and its own facts.
    """
    rows = {name: _row(item, name) for name in item.contenders}
    live: dict[str, Process] = {}
    try:
        for name, row in rows.items():
            reason = absent.get(CONTENDERS[name].peer or "")
            if reason is not None:
                row["problem"] = reason
                continue
            print(f"{item}: {name}", flush=True)
            began = time.perf_counter()
            live[name] = Process(name, large_pages=large_pages)
            row |= _ask(live[name], row, "prepare", item=str(item))
            first = _ask(live[name], row, "step", count=1)
            row["first_step_seconds"] = time.perf_counter() - began
            row["loss"] = first.get("loss")
            row["seconds_spent"] = first.get("seconds")
        check_losses(list(rows.values()))
        counts = {
            name: _warm_up(live[name], row)
            for name, row in rows.items()
            if "problem" not in row
        }
        for _ in range(rounds):
            for name, count in counts.items():
                _take_turn(live[name], rows[name], count)
        for name in counts:
            rows[name] |= _ask(live[name], rows[name], "report")
    finally:
        for process in live.values():
            process.close()
    others = [_row(item, name) | {"problem": why} for name, why in item.absent]
    return list(rows.values()) + others


def check_losses(rows: list[dict[str, Any]]) -> None:
    """Notes a problem in rows whose loss is not finite or not that of the first."""
    measured = [row for row in rows if row.get("loss") is not None]
    for row in measured:
        loss, reference = row["loss"], measured[0]["loss"]
        if not math.isfinite(loss):
            row["problem"] = f"its loss is {loss}"
            row["loss"] = None  # JSON has no such number
        elif not abs(loss - reference) <= TOLERANCE * abs(reference):
            row["problem"] = (
                f"its loss is {loss:.6g} but that of {measured[0]['contender']} "
                f"{reference:.6g}"
            )


def _row(item: Item, name: str) -> dict[str, Any]:
    row = {"group": item.group, "item": str(item), "contender": name}
    return row | {"tasks": item.tasks, "seconds": []}


def _ask(
    process: Process, row: dict[str, Any], do: str, **arguments: Any
) -> dict[str, Any]:
    """The answer; nothing, and a problem in the row, if there is a problem."""
    if "problem" in row:
        return {}
    try:
        return process.ask(do, **arguments)
    except WorkerError as error:
        row["problem"] = str(error)
        return {}


def _warm_up(process: Process, row: dict[str, Any]) -> int:
    """Takes two steps (none if they are slow); gives the number of steps of a turn."""
    for _ in range(2):
        if row["seconds_spent"] < MOST_SECONDS / 10:
            latest = _ask(process, row, "step", count=1).get("seconds", 0.0)
            row["seconds_spent"] += latest
        else:
            latest = row["seconds_spent"]
    return min(max(1, int(ROUND_SECONDS / max(latest, 1e-9))), 1000)


def _take_turn(process: Process, row: dict[str, Any], count: int) -> None:
    if row["seconds"] and row["seconds_spent"] > MOST_SECONDS:
        row["seconds"].append(None)
        return
    seconds = _ask(process, row, "step", count=count).get("seconds")
    row["seconds"].append(None if seconds is None else seconds / count)
    row["seconds_spent"] += seconds or 0.0
