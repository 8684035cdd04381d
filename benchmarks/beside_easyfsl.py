"""metajax beside easyfsl on the same embeddings: whether they agree, and how fast.

    python -m benchmarks.beside_easyfsl

easyfsl 1.5 lives in an environment of its own (`runs/peers/easyfsl`) and in a process
of its own, and answers one task after the other, with one thread: its arrays are so
small that a second one makes it slower. In each round metajax answers all tasks in one
compiled call, and easyfsl the next ones of the same tasks, as many as `peer_tasks` or,
of methods that iterate, `slow_peer_tasks` say; the ratio of a round is that of seconds
for a task. Answers are compared on every task that easyfsl has answered, and once more
in double precision.
"""

import dataclasses
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.pages import Named, markdown
from benchmarks.peers.embeddings import few_shot_embeddings
from benchmarks.peers.environments import EASYFSL, make_environment
from benchmarks.peers.interleave import Process
from benchmarks.record import write_result
from metajax.learners.metric.bd_cspn import bd_cspn
from metajax.learners.metric.laplacian_shot import laplacian_shot
from metajax.learners.metric.pt_map import pt_map
from metajax.learners.metric.simple_shot import simple_shot
from metajax.learners.metric.tim import tim
from metajax.learners.metric.transductive_fine_tuning import transductive_fine_tuning
from metajax.models.adapters import from_functions
from metajax.types import Array, Examples, Learner, Task

NAME = "beside-easyfsl"
TITLE, FILES = "Beside easyfsl, on the same embeddings", NAME
"""Of its part of the page of results, and the results that it shows."""


def probabilities(answers: np.ndarray) -> np.ndarray:
    """Softmax of logits."""
    chances = np.exp(answers - answers.max(-1, keepdims=True))
    return chances / chances.sum(-1, keepdims=True)


CLOSED_FORM = ("simple_shot", "bd_cspn")
# What easyfsl gives, of what metajax gives.
LEARNERS: dict[str, tuple[Callable[..., Learner], Callable[[Any], np.ndarray]]] = {
    "simple_shot": (simple_shot, np.asarray),
    "bd_cspn": (bd_cspn, np.asarray),
    "laplacian_shot": (laplacian_shot, np.exp),
    "tim": (tim, probabilities),
    "transductive_fine_tuning": (transductive_fine_tuning, probabilities),
    "pt_map": (pt_map, np.exp),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    num_tasks: int = 10_000
    way: int = 5
    shot: int = 1
    num_queries: int = 15
    size: int = 64
    noise: float = 1.5
    rounds: int = 3
    peer_tasks: int = 2000
    slow_peer_tasks: int = 50
    double_tasks: int = 50
    block: int = 8
    seed: int = 0


def main(settings: Settings) -> None:
    """Makes the environment, measures every method and writes the result."""
    reason = make_environment("easyfsl", EASYFSL)
    if reason is not None:
        raise SystemExit(f"easyfsl cannot be had: {reason}")
    tasks = {
        name: getattr(settings, name)
        for name in (
            "num_tasks",
            "way",
            "shot",
            "num_queries",
            "size",
            "noise",
            "seed",
        )
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "answers.npy"
        peer = _peer()
        try:
            facts = peer.ask("prepare", tasks=tasks, double=False)
            rows = [
                measure(name, settings, tasks, functools.partial(_answers, peer, path))
                for name in LEARNERS
            ]
        finally:
            peer.close()
        peer = _peer()
        few = tasks | {"num_tasks": settings.double_tasks}
        try:
            peer.ask("prepare", tasks=few, double=True)
            for row in rows:
                _, theirs = _answers(
                    peer, path, row["learner"], 0, settings.double_tasks
                )
                row["double_error"] = double_error(row["learner"], few, theirs)
        finally:
            peer.close()
    for row in rows:
        print(row, flush=True)
    description = dataclasses.asdict(settings) | facts
    write_result(NAME, description, rows)


def measure(
    name: str,
    settings: Settings,
    tasks: dict[str, Any],
    ask: Callable[[str, int, int], tuple[float, np.ndarray]],
) -> dict[str, Any]:
    """Measures one method.

    Args:
      name: of the learner.
      settings: of the benchmark.
      tasks: arguments of `few_shot_embeddings`.
      ask: `(name, first, count) -> (seconds, answers)` of easyfsl.

    Returns:
      Seconds for a task by both in each round, their median ratio, the largest
      difference of answers and the fraction of predictions that agree.
    """
    # As easyfsl has its tensors before the clock starts.
    rows = [jnp.asarray(rows, jnp.float32) for rows in few_shot_embeddings(**tasks)]
    answer = answerer(name, tasks, settings.block).lower(*rows).compile()
    is_closed = name in CLOSED_FORM
    share = settings.peer_tasks if is_closed else settings.slow_peer_tasks
    share = min(share, settings.num_tasks // settings.rounds)
    own, peer, errors, agreeing = [], [], [], []
    ask(name, 0, 1)  # warms up
    for turn in range(settings.rounds):
        start = time.perf_counter()
        ours = np.asarray(answer(*rows))
        own.append((time.perf_counter() - start) / settings.num_tasks)
        seconds, theirs = ask(name, turn * share, share)
        peer.append(seconds / share)
        mine = ours[turn * share : (turn + 1) * share]
        errors.append(np.max(np.abs(LEARNERS[name][1](mine) - theirs)))
        agreeing.append(np.mean(mine.argmax(-1) == theirs.argmax(-1)))
    labels = np.repeat(np.arange(settings.way), settings.num_queries)
    ratios = [theirs / mine for mine, theirs in zip(own, peer, strict=True)]
    row = {
        "learner": name,
        "is_closed_form": is_closed,
        "peer_tasks": share * settings.rounds,
        "seconds": own,
        "easyfsl_seconds": peer,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_difference": float(max(errors)),
        "agreement": float(np.mean(agreeing)),
        "accuracy": float(np.mean(ours.argmax(-1) == labels[None])),
    }
    print(row, flush=True)
    jax.clear_caches()
    return row


def answerer(name: str, tasks: dict[str, Any], block: int) -> Any:
    """A compiled function from embeddings of all tasks to all answers."""
    model = from_functions(lambda key, x: {}, lambda params, x: x)
    learner = LEARNERS[name][0](model, way=tasks["way"])
    labels = jnp.repeat(jnp.arange(tasks["way"]), tasks["shot"])

    def one(rows: tuple[Array, Array]) -> Array:
        support = Examples(rows[0], labels)
        meta_params = learner.init(jax.random.key(0), Task(support, support))
        return learner.predict(learner.adapt(meta_params, support), rows[1])

    return jax.jit(
        lambda support, queries: jax.lax.map(one, (support, queries), batch_size=block)
    )


def double_error(name: str, tasks: dict[str, Any], theirs: np.ndarray) -> float:
    """The largest difference of answers in double precision."""
    with jax.enable_x64(new_val=True):
        ours = answerer(name, tasks, 10)(*few_shot_embeddings(**tasks))
        return float(np.max(np.abs(LEARNERS[name][1](np.asarray(ours)) - theirs)))


def _peer() -> Process:
    return Process("easyfsl", worker="benchmarks.peers.worker_easyfsl")


def _answers(
    peer: Process, path: pathlib.Path, name: str, first: int, count: int
) -> tuple[float, np.ndarray]:
    arguments = {"method": name, "first": first, "count": count, "path": str(path)}
    seconds = peer.ask("answer", **arguments)["seconds"]
    return seconds, np.load(path)


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(_, record)] = records
    settings, results = record["settings"], record["results"]
    versions = settings["versions"]
    rows = [
        [
            row["learner"],
            "closed form" if row["is_closed_form"] else "iterates",
            f"{1e6 * statistics.median(row['seconds']):,.0f}",
            f"{1e6 * statistics.median(row['easyfsl_seconds']):,.0f}",
            f"{row['ratio']:.0f} "
            f"({min(row['ratios']):.0f} to {max(row['ratios']):.0f})",
            f"{row['peer_tasks']:,}",
            f"{100 * row['agreement']:.3f} %",
            f"{row['double_error']:.0e}",
        ]
        for row in results
    ]
    text = (
        f"Microseconds to adapt to a {settings['way']}-way {settings['shot']}-shot "
        f"task of embeddings of {settings['size']} values and to answer "
        f"{settings['num_queries']} queries of each class, on {record['device']}: "
        f"metajax answers {settings['num_tasks']:,} tasks in one compiled call, "
        f"easyfsl {versions['easyfsl']} (torch {versions['torch']}) one after the "
        "other with one thread, as its arrays are too small for two, in turns. Medians "
        f"of {settings['rounds']} rounds; the ratio is the median of those of each "
        "round, with the least and the greatest. Predictions are compared in single "
        "precision on the tasks that easyfsl has answered, and the largest difference "
        f"of answers is that of {settings['double_tasks']} tasks in double "
        "precision.\n\n"
    )
    header = [
        "learner",
        "",
        "metajax",
        "easyfsl",
        "times as fast",
        "tasks compared",
        "predictions that agree",
        "difference",
    ]
    return text + markdown(header, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
