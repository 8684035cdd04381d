"""One contender in a process of its own: answers requests, one line of JSON each.

    python -m benchmarks.peers.worker CONTENDER

    {"do": "prepare", "item": NAME}   -> facts, such as compile_seconds and versions
    {"do": "step", "count": COUNT}    -> seconds of all, loss before the last update
    {"do": "report"}                  -> peak_rss_mib

It runs in the environment of a peer and imports nothing but that peer and NumPy.
"""

import importlib
import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers.items import CONTENDERS, ITEMS

THREADS = 2
Step = Callable[[int], float | None]


def main(name: str) -> None:
    """Serves requests until standard input ends."""
    # Libraries print; what they print must not reach the protocol.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _limit()
    step: Step | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            step, answer = prepare(name, request["item"])
        elif request["do"] == "step" and step is not None:
            start = time.perf_counter()
            loss = step(request["count"])
            answer = {"seconds": time.perf_counter() - start, "loss": loss}
        elif request["do"] == "report":
            answer = {"peak_rss_mib": peak_rss_mib()}
        else:
            raise ValueError(f"Cannot do {request!r}.")
        print(json.dumps(answer), file=answers)


def prepare(name: str, item_name: str) -> tuple[Step, dict[str, Any]]:
    """Builds `step`, which takes a number of steps, and facts about it."""
    contender = CONTENDERS[name]
    (item,) = (item for item in ITEMS if str(item) == item_name)
    module = importlib.import_module(f"benchmarks.peers.worker_{contender.worker}")
    return module.prepare(item, contender.variant)


def peak_rss_mib() -> float:
    """The most memory this process has held."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # `getrusage` may count what this process was forked from
        lines = dict(x.split(":", 1) for x in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _limit() -> None:
    """Two threads, and memory that leaves the machine alive."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_DATA, (int(0.6 * memory),) * 2)


if __name__ == "__main__":
    main(sys.argv[1])
