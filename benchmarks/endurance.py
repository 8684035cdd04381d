"""What damage and kills make of a run: they are done by the hundred, and counted.

    python -m benchmarks.endurance damage
    python -m benchmarks.endurance kills

`damage`: a run folder is copied, one of its files loses a bit, its end, or all of
itself, and the run goes on. `kills`: runs in processes of their own get SIGKILL,
SIGTERM or SIGINT, every second time while a checkpoint is written, until they reach
their end all the same. Then meta-parameters, history, events and the names of files
must be those of a run that nothing happened to.

Each goes on where it was stopped.
"""

import dataclasses
import json
import os
import pathlib
import select
import shutil
import signal
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tyro

from benchmarks.pages import Named, markdown
from benchmarks.record import kept, write_result
from metajax.learners.gradient.maml import maml
from metajax.learners.memory.mann import mann
from metajax.learners.metric.prototypical import prototypical
from metajax.models.networks import identity, mlp
from metajax.objectives import squared_error
from metajax.tasks.functions.sinusoid import sinusoid
from metajax.training.checkpoints import CheckpointError, Checkpoints, load_meta_params
from metajax.training.outer_gradients import pes
from metajax.training.run_folder import read_metrics
from metajax.training.trainer import TrainResult, train
from metajax.types import Array, Examples, Learner, Task, TaskDistribution

TITLE, FILES = "What damage and kills make of a run", "endurance-*"
"""Of its part of the page of results, and the results that it shows."""

EVERY = 4
"""Steps between two checkpoints."""
FAILED = 3
"""How a process ends that was not killed."""


@dataclasses.dataclass(frozen=True)
class Damage:
    """Files of a run folder are damaged."""

    trials: int = 1000
    seed: int = 0
    run_dir: pathlib.Path = pathlib.Path("runs/endurance-damage")


@dataclasses.dataclass(frozen=True)
class Kills:
    """Processes are killed."""

    kills: int = 200
    """Of each learner."""
    length: int = 100
    """Steps of a run."""
    seed: int = 0
    run_dir: pathlib.Path = pathlib.Path("runs/endurance-kills")


# The runs: small ones, with every kind of state.


def blobs(key: Array) -> Task:
    """Three classes of points around centres, with 2 examples and 3 queries each."""
    key_centers, key_noise = jax.random.split(key)
    centers = 2 * jax.random.normal(key_centers, (3, 1, 4))
    x = centers + 0.5 * jax.random.normal(key_noise, (3, 5, 4))
    y = jax.numpy.repeat(jax.numpy.arange(3)[:, None], 5, axis=1)

    def examples(rows: slice) -> Examples:
        return Examples(x[:, rows].reshape(-1, 4), y[:, rows].reshape(-1))

    return Task(examples(slice(2)), examples(slice(2, None)))


def regression(inner_steps: int = 1) -> Learner:
    """MAML on sinusoids."""
    network = mlp(1, hidden_sizes=(8,))
    optimizer = optax.sgd(0.01)
    return maml(network, optimizer, inner_steps=inner_steps, objective=squared_error)


def batch_statistics() -> Learner:
    """MAML with the statistics of batches."""
    network = mlp(3, hidden_sizes=(8,), normalization="batch")
    return maml(network, optax.sgd(0.1), inner_steps=1)


RUNS: dict[str, Callable[[], tuple[Learner, TaskDistribution, dict[str, Any]]]] = {
    "maml": lambda: (regression(), sinusoid(), {}),
    "maml, batch statistics": lambda: (batch_statistics(), blobs, {}),
    "mann, a stream": lambda: (
        mann(identity(), way=3, hidden_size=8, slots=5, width=4, heads=1),
        blobs,
        {},
    ),
    "maml by PES, which keeps inner loops": lambda: (
        regression(inner_steps=4),
        sinusoid(),
        {"outer_gradient": pes(regression(inner_steps=4), inner_steps=2, num_tasks=2)},
    ),
    "prototypical": lambda: (prototypical(mlp(5, hidden_sizes=(8,))), blobs, {}),
}


def run(name: str, run_dir: pathlib.Path, steps: int) -> TrainResult:
    """One run, to its end."""
    learner, tasks, more = RUNS[name]()
    return train(
        learner,
        tasks,
        optax.adam(1e-3),
        steps=steps,
        tasks_per_step=2,
        validation=tasks,
        validate_every=2 * EVERY,
        num_validation_tasks=4,
        checkpoint_every=EVERY,
        log_every=1,
        run_dir=run_dir,
        progress=False,
        **more,
    )


# What must be the same.


def bits(tree: Any) -> list[str]:
    """Of all leaves."""
    return [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(tree)]


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not depend on the clock."""
    return [{k: v for k, v in r.items() if k != "timing"} for r in history]


def events(run_dir: pathlib.Path) -> list[list[Any]]:
    """What TensorBoard shows; fails if there is more than one file."""
    from tensorboardX.proto.event_pb2 import Event

    [path] = (run_dir / "tensorboard").iterdir()
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):  # length (8 bytes), checksum (4), the event, checksum (4)
        size = int.from_bytes(data[place : place + 8], "little")
        event = Event.FromString(data[place + 12 : place + 12 + size])
        found += [[v.tag, event.step, v.simple_value] for v in event.summary.value]
        place += 16 + size
    return found


def names(run_dir: pathlib.Path) -> list[str]:
    """All files, but for those whose names are those of moments, and what was damaged.

    Orbax numbers its files of data by what it writes at once.
    """
    paths = (p.relative_to(run_dir) for p in run_dir.rglob("*") if p.is_file())
    return sorted(
        str(p) for p in paths if "tensorboard" not in p.parts and "d" not in p.parts
    )


def outcome(run_dir: pathlib.Path, result: TrainResult) -> dict[str, Any]:
    """All that two runs must have in common."""
    return {
        "meta-parameters": bits((result.state, result.best_params)),
        "history": untimed(result.history),
        "file of the history": untimed(read_metrics(run_dir)),
        "events": events(run_dir),
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is not the same."""
    return [name for name in expected if found[name] != expected[name]]


# Damage.


def damaged(path: pathlib.Path, how: str, generator: np.random.Generator) -> None:
    """One bit of a file, its end, or all of it goes."""
    data = bytearray(path.read_bytes())
    if how == "removal":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: generator.integers(len(data) + 1)])
    elif data:
        data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)


def damage_trial(
    settings: Damage, trial: int, trained: TrainResult, expected: dict[str, Any]
) -> list[str]:
    """The file, what is done to it, and what becomes of the run."""
    generator = np.random.default_rng((settings.seed, trial))
    folder = settings.run_dir / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(settings.run_dir / "half", folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[generator.integers(len(files))]
    how = str(generator.choice(["flip", "cut", "removal"]))
    damaged(path, how, generator)
    relative = path.relative_to(folder)
    kind = relative.parts[2 if relative.parts[0] == "checkpoints" else 0]
    try:
        found = load_meta_params(folder, trained.best_params)
    except (CheckpointError, FileNotFoundError):
        pass
    else:
        if bits(found) != bits(trained.best_params):
            return [kind, how, "other numbers by load_meta_params"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            result = run("maml", folder, 6 * EVERY)
        except (ValueError, OSError) as error:
            return [kind, how, f"refused: {type(error).__name__}"]
    wrong = differences(outcome(folder, result), expected)
    if wrong:
        return [kind, how, f"other {wrong[0]}"]
    went_back = any("cannot be read" in str(warning.message) for warning in said)
    return [kind, how, "gone back" if went_back else "without effect"]


def damage(settings: Damage) -> list[dict[str, Any]]:
    """Rows: where, what was done, what became of it, how often."""
    half, whole = settings.run_dir / "half", settings.run_dir / "whole"
    for folder in (half, whole):
        shutil.rmtree(folder, ignore_errors=True)
    trained = run("maml", half, 4 * EVERY)
    expected = outcome(whole, run("maml", whole, 6 * EVERY))

    found: list[list[str]] = []
    block = 50
    for begin in range(0, settings.trials, block):
        trials = range(begin, min(begin + block, settings.trials))

        def of_block(trials: range = trials) -> list[list[str]]:
            return [damage_trial(settings, i, trained, expected) for i in trials]

        place = settings.run_dir / f"trials-{begin}.pickle"
        found += kept(place, (settings.seed, len(trials)), of_block)
        print(begin, Counter(row[2] for row in found), flush=True)
    counts = Counter(map(tuple, found))
    return [
        {"where": where, "how": how, "outcome": what, "count": count}
        for (where, how, what), count in sorted(counts.items())
    ]


# Kills.


def child(name: str, run_dir: pathlib.Path, steps: int, pipe: int) -> None:
    """One life of a run; says when it saves, and when it is at its end."""
    # What a shell has put in the background would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    save = Checkpoints.save

    def reported(self: Checkpoints, *args: Any) -> pathlib.Path:
        os.write(pipe, b"s")
        began = time.monotonic()
        path = save(self, *args)
        os.write(pipe, b"%8.4f" % (time.monotonic() - began))
        return path

    Checkpoints.save = reported  # type: ignore[assignment, method-assign]
    status = FAILED
    try:
        run(name, run_dir, steps)
        status = 0
    except KeyboardInterrupt:
        status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Durations(NamedTuple):
    """Seconds that a save and a whole life took the last time."""

    saving: float = 0.1
    life: float = 4.0


def live(
    name: str,
    run_dir: pathlib.Path,
    steps: int,
    generator: np.random.Generator,
    durations: Durations,
) -> tuple[tuple[str, str] | None, Durations]:
    """One life of a run and its end.

    Returns:
      The signal and whether it came while a checkpoint was written, or None if it was
      not in time; and how long things take.
    """
    number = generator.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)
        child(name, run_dir, steps, write)
    os.close(write)
    began = time.monotonic()
    # In one of the first saves of this life, or at any time.
    saves = int(generator.integers(1, 4)) if generator.integers(2) else None
    deadline = None if saves else began + generator.uniform(0, durations.life)
    news = b""
    while deadline is None or time.monotonic() < deadline:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if select.select([read], [], [], left)[0]:
            byte = os.read(read, 1)
            if not byte:
                break  # it is at its end
            news += byte
            if byte == b"s" and news.count(b"s") == saves:
                deadline = time.monotonic() + generator.uniform(0, durations.saving)
    where = "within a save" if news[-1:] == b"s" else "outside of saves"
    os.kill(process, number)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    while byte := os.read(read, 4096):
        news += byte
    os.close(read)
    times = [float(part) for part in news.split(b"s") if len(part) == 8]
    if times:  # the first save of a life takes longer than those after it
        durations = durations._replace(saving=statistics.median(times))
    if code == 0:
        return None, durations._replace(life=time.monotonic() - began)
    # An interrupt may come out of a library as an error of another kind.
    if code == FAILED and number != signal.SIGINT:
        raise RuntimeError(f"A life of {name} failed by itself.")
    return (signal.Signals(number).name, where), durations


def killed(
    name: str, settings: Kills, expected: dict[str, Any], files: list[str]
) -> Iterator[dict[str, Any]]:
    """Runs that are killed until their end, until there were enough kills."""
    generator = np.random.default_rng(settings.seed)
    folder, durations, total, ends = settings.run_dir / "killed", Durations(), 0, 0
    while total < settings.kills:
        shutil.rmtree(folder, ignore_errors=True)
        counts: Counter[tuple[str, str]] = Counter()
        while True:
            end, durations = live(name, folder, settings.length, generator, durations)
            if end is None:
                break
            counts[end] += 1
        total, ends = total + sum(counts.values()), ends + 1
        found = in_process(name, folder, settings.length)
        wrong = differences(found, expected)
        if names(folder) != files:
            wrong.append(f"files {sorted(set(names(folder)) ^ set(files))}")
        print(name, ends, total, dict(counts), wrong, flush=True)
        for (how, where), count in counts.items():
            yield {"signal": how, "where": where, "count": count, "wrong": wrong}


def in_process(name: str, folder: pathlib.Path, steps: int) -> dict[str, Any]:
    """The outcome of a run that is at its end, found by another process.

    This one must not start JAX: a process with threads cannot be copied.
    """
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)
        try:
            found = outcome(folder, run(name, folder, steps))
            with os.fdopen(write, "w") as file:
                json.dump(found, file)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(process, 0)
    return json.loads(text)


def kills(settings: Kills) -> list[dict[str, Any]]:
    """Rows: learner, signal, when it came, what was wrong in the end, how often."""
    rows = []
    for name in RUNS:
        whole = settings.run_dir / "whole"

        def of_learner(name: str = name, whole: pathlib.Path = whole) -> list[Any]:
            shutil.rmtree(whole, ignore_errors=True)
            expected = in_process(name, whole, settings.length)
            return list(killed(name, settings, expected, names(whole)))

        chosen = (settings.kills, settings.length, settings.seed)
        place = settings.run_dir / f"{name.replace(' ', '-')}.pickle"
        counts: Counter[tuple[str, str, str]] = Counter()
        for row in kept(place, chosen, of_learner):
            key = (row["signal"], row["where"], ", ".join(row["wrong"]))
            counts[key] += row["count"]
        rows += [
            {"run": name, "signal": how, "where": where, "wrong": wrong, "count": n}
            for (how, where, wrong), n in sorted(counts.items())
        ]
    return rows


def main(settings: Damage | Kills) -> None:
    """Does and counts it, and writes the result."""
    # Also what compiles in no time: each run begins with a new process or program.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    is_damage = isinstance(settings, Damage)
    rows = damage(settings) if isinstance(settings, Damage) else kills(settings)
    chosen = dataclasses.asdict(settings)
    del chosen["run_dir"]
    write_result(f"endurance-{'damage' if is_damage else 'kills'}", chosen, rows)


def section(records: Named) -> str:
    """Its part of the page of results."""
    parts = []
    for path, record in records:
        rows = record["results"]
        if "damage" in path.name:
            outcomes = sorted({row["outcome"] for row in rows})
            table = []
            for where in dict.fromkeys(row["where"] for row in rows):
                of_file: Counter[str] = Counter()
                for row in rows:
                    if row["where"] == where:
                        of_file[row["outcome"]] += row["count"]
                table.append([where, *(str(of_file[what]) for what in outcomes)])
            total = sum(row["count"] for row in rows)
            parts.append(
                f"{total:,} times, one random file of a run folder lost a bit, its end "
                "or all of itself, and the run went on. What became of it, by what was "
                "damaged (a part of the latest or of the older checkpoint, or another "
                "file):\n\n" + markdown(["damaged", *outcomes], table)
            )
        else:
            table = []
            for name in dict.fromkeys(row["run"] for row in rows):
                of_learner = [row for row in rows if row["run"] == name]
                cells = [sum(row["count"] for row in of_learner)]
                cells += [
                    sum(
                        r["count"] for r in of_learner if r["where"] == "within a save"
                    ),
                    sum(r["count"] for r in of_learner if r["wrong"]),
                ]
                table.append([name, *map(str, cells)])
            header = ["run", "kills", "of these within a save", "of runs that differ"]
            parts.append(
                "Runs were killed by SIGKILL, SIGTERM and SIGINT at random moments, "
                "and went on, until their end. Meta-parameters, state, history, events "
                "and names of files were then compared with those of a run that was "
                "not killed:\n\n" + markdown(header, table)
            )
    return "\n\n".join(parts) + "\n\nSee `benchmarks/endurance.py`."


if __name__ == "__main__":
    main(tyro.cli(Damage | Kills, description=__doc__))
