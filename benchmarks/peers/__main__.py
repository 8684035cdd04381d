"""The same work by metajax and by its peers, side by side.

    python -m benchmarks.peers
    python -m benchmarks.peers --items W1a W5 --peers learn2learn higher

Makes one environment for each peer under `runs/peers`, starts one process for each
contender of an item, checks that their losses before the first update agree, and then
asks all of them for steps in turn, round after round. Writes
`benchmarks/results/<name>-<group>.json` after every item and a plot of each group.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import tyro

from benchmarks import record
from benchmarks.peers.environments import RECIPES, make_environment
from benchmarks.peers.interleave import MOST_SECONDS, TOLERANCE, measure
from benchmarks.peers.items import PEERS, select_items, select_peers
from benchmarks.peers.report import draw, summarise, table
from benchmarks.peers.worker import THREADS


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    items: tuple[str, ...] = ()
    """Groups (W1a) or full names ("W1a 1-shot, 1 inner"); all by default."""
    peers: tuple[str, ...] = ()
    """All by default; metajax itself always takes part."""
    rounds: int = 5
    large_pages: bool = False
    """Whether all contenders get memory in pages of 2 MiB, where glibc and Linux can:
    a buffer above 32 MiB is new to the process in every step, and filling it with zeros
    in pages of 4 KiB takes time."""
    name: str = "peers"
    """What the names of result files begin with."""


def main(settings: Settings) -> None:
    """Makes the environments, measures, and writes what was measured."""
    items, peers = select_items(settings.items), select_peers(settings.peers)
    if settings.rounds < 1:
        raise ValueError(f"`--rounds` must be at least 1, got {settings.rounds}.")
    missing = install(peers)
    absent = dict.fromkeys(PEERS, "not chosen by --peers")
    absent = {peer: absent[peer] for peer in PEERS if peer not in peers} | missing
    description = dataclasses.asdict(settings) | {
        "threads": THREADS,
        "loss_tolerance": TOLERANCE,
        "most_seconds": MOST_SECONDS,
        "not_installed": missing,
        "environments": {peer: RECIPES[peer].pins for peer in peers},
    }
    for group in dict.fromkeys(item.group for item in items):
        name = f"{settings.name}-{group}"
        rows: list[dict[str, Any]] = []
        for item in (item for item in items if item.group == group):
            new = summarise(
                measure(item, absent, settings.rounds, large_pages=settings.large_pages)
            )
            print(table(new), flush=True)
            rows += new
            record.write_result(name, description, rows)
        draw(rows, record.RESULTS / f"{name}.png")


def install(
    peers: tuple[str, ...], make: Callable[..., str | None] = make_environment
) -> dict[str, str]:
    """Makes environments; gives the reason for each that cannot be had."""
    missing = {}
    for peer in peers:
        print(f"environment of {peer}", flush=True)
        reason = make(peer)
        if reason is not None:
            missing[peer] = f"not installed: {reason}"
            print(f"{peer} {missing[peer]}", flush=True)
    return missing


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
