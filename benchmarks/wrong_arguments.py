"""What wrong arguments make of the public functions: they are tried by the thousand.

    python -m benchmarks.wrong_arguments

Every public function and class is called with valid arguments of which one is replaced
by a wrong value: another type, a number out of range, a function of other arguments, an
array of another shape. What is built is used once, as some mistakes show only there.
The calls are drawn with a seed and spread evenly over functions and their arguments,
and made in a process of its own, with a limit of memory and of time.

A call is `refused` if an error says which argument is wrong, and `works` if its result
is finite: many values are right after all, such as an integer of NumPy. Anything else
is a fault: an error that does not name the argument, NaN without an error, a call that
does not come to an end, a process that dies. Too large a size is counted for itself.

It goes on where it was stopped.
"""

import dataclasses
import inspect
import json
import multiprocessing
import os
import pathlib
import re
import resource
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks import valid_arguments as valid
from benchmarks.pages import Named, markdown
from benchmarks.record import kept, write_result

TITLE, FILES = "What wrong arguments make of the public functions", "wrong-arguments"
"""Of its part of the page of results, and the results that it shows."""

OUTCOMES = ("refused", "works", "memory", "unnamed", "silent nan", "hang", "died")
FAULTS = ("unnamed", "silent nan", "hang", "died")


@dataclasses.dataclass(frozen=True)
class Settings:
    """A campaign."""

    calls: int = 5000
    seed: int = 0
    limit_s: float = 60.0
    """Seconds that a call may take."""
    limit_gib: float = 6.0
    """Memory that a process may take."""
    only: str = ""
    """Of functions whose name has this in it; others are left out."""
    run_dir: pathlib.Path = pathlib.Path("runs/wrong-arguments")


# Wrong values, by what they are called in the findings.

Make = Callable[[Any], Any]
VALUES: dict[str, Make] = {
    "None": lambda _: None,
    "True": lambda _: True,
    "0": lambda _: 0,
    "1": lambda _: 1,
    "-1": lambda _: -1,
    "10**12": lambda _: 10**12,
    "1.5": lambda _: 1.5,
    "-0.5": lambda _: -0.5,
    "nan": lambda _: float("nan"),
    "inf": lambda _: float("inf"),
    "1j": lambda _: 1j,
    "'abc'": lambda _: "abc",
    "''": lambda _: "",
    "b'abc'": lambda _: b"abc",
    "a misspelt word": lambda right: f"{right}s" if isinstance(right, str) else "meam",
    "a path that is not there": lambda _: pathlib.Path("nowhere/at/all"),
    "()": lambda _: (),
    "[]": lambda _: [],
    "{}": lambda _: {},
    "(1, 2)": lambda _: (1, 2),
    "(2, 1)": lambda _: (2, 1),
    "[-1, 'a']": lambda _: [-1, "a"],
    "{'a': 1}": lambda _: {"a": 1},
    "a set": lambda _: {1, 2},
    "object()": lambda _: object(),
    "int": lambda _: int,
    "a function of nothing": lambda _: lambda: None,
    "a function of six": lambda _: lambda a, b, c, d, e, f: a,
    "a function that gives None": lambda _: lambda *_, **__: None,
    "numpy.int64(1)": lambda _: np.int64(1),
    "numpy.float32(0.5)": lambda _: np.float32(0.5),
    "jax int32 2": lambda _: jnp.int32(2),
    "jax float32 0.5": lambda _: jnp.float32(0.5),
    "array float32[3,5,7]": lambda _: jnp.ones((3, 5, 7)),
    "array float32[2] of nan": lambda _: jnp.full(2, jnp.nan),
    "array int32[4]": lambda _: jnp.arange(4) - 1,
    "array complex64[2,3]": lambda _: jnp.ones((2, 3), jnp.complex64),
    "array of words": lambda _: np.array(["a", "b"]),
    "an empty array": lambda _: jnp.zeros((0, 4)),
    "a model": lambda _: valid.model(),
    "a learner": lambda _: valid.learner(),
    "an optimizer": lambda _: optax.sgd(0.1),
    "tasks": lambda _: valid.blobs,
    "a task": lambda _: valid.task(),
    "the last few of it": lambda right: _part(right),
}


def _part(right: Any) -> Any:
    """All leaves without their first row, so that they go with nothing else."""
    return jax.tree.map(lambda a: a[1:] if jnp.ndim(a) else a, right)


Trial = tuple[str, str, str]
"""Function, argument, value."""


def trials(settings: Settings) -> dict[str, list[Trial]]:
    """All that are to be made, by function."""
    arguments = {
        name: list(inspect.signature(function).parameters)
        for name, function in valid.public().items()
        if settings.only in name
    }
    pairs = [(name, one) for name, several in arguments.items() for one in several]
    generator = np.random.default_rng(settings.seed)
    more = set(generator.permutation(len(pairs))[: settings.calls % len(pairs)])
    found: dict[str, list[Trial]] = {name: [] for name in arguments}
    for place, (name, argument) in enumerate(pairs):
        number = settings.calls // len(pairs) + (place in more)
        own = np.random.default_rng(
            (settings.seed, zlib.crc32(f"{name} {argument}".encode()))
        )
        default = inspect.signature(valid.public()[name]).parameters[argument].default
        wrong = [value for value in VALUES if value != repr(default)]
        chosen = own.permutation(wrong)[:number]
        found[name] += [(name, argument, str(value)) for value in chosen]
    return found


# One call, in the process of the worker.


class Wrong(Exception):
    """A valid call failed."""


def attempted(trial: Trial, *, has_nan: bool) -> tuple[str, str]:
    """The outcome of one call, and what was said.

    Args:
      trial: the call.
      has_nan: whether valid arguments give NaN, too.
    """
    name, argument, value = trial
    arguments = valid.arguments_of(name)
    replaced = VALUES[value](arguments[argument])
    try:
        result = valid.use(name, valid.called(name, arguments | {argument: replaced}))
        if nan_in(result) and not has_nan:
            is_known = valid.is_data(name, argument) and "nan" in value
            return ("works" if is_known else "silent nan"), ""
        return "works", ""
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        given = arguments[argument]
        also = given if argument in ("hyper", "others") else ()
        return of_error(error, argument, replaced, *also), said


def nan_in(result: Any) -> bool:
    """Whether a number of it is none; waits for it."""
    for leaf in jax.tree.leaves(result):
        if isinstance(leaf, float | np.ndarray | np.floating | jax.Array):
            values = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
            if values.dtype.kind in "fcV" and np.isnan(values.astype(complex)).any():
                return True
    return False


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


REFUSALS = (ValueError, TypeError, ImportError, OSError, AssertionError)


def of_error(error: BaseException, argument: str, value: Any, *also: str) -> str:
    """Whether an error says which argument is wrong, or that memory is missing.

    Args:
      error: what was raised.
      argument: the one that was wrong.
      value: what was given for it.
      *also: other names of it, of `**arguments` those that were given.
    """
    said = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
        return "memory"
    if not isinstance(error, REFUSALS) or type(error).__module__.startswith("jax"):
        return "unnamed"
    names = "|".join(map(re.escape, (argument, *also)))
    names_it = re.search(rf"(?<!\w)({names})(?!\w)", said)
    # Files are named by their paths.
    is_path = isinstance(value, str | pathlib.Path) and isinstance(error, OSError)
    is_path = is_path and bool(str(value)) and str(value) in said
    return "refused" if names_it or is_path else "unnamed"


def work(pipe: Connection, folder: str, limit_gib: float) -> None:
    """Makes calls as they are asked for, until there are no more."""
    limit = int(limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.chdir(folder)
    for stream in (1, 2):
        os.dup2(os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.simplefilter("ignore")
    last, has_nan = "", False
    while (trial := pipe.recv()) is not None:
        if trial[0] != last:
            jax.clear_caches()
            last = trial[0]
            try:
                has_nan = nan_in(
                    valid.use(last, valid.called(last, valid.arguments_of(last)))
                )
            except Exception as error:
                pipe.send(("not valid", f"{type(error).__name__}: {error}"))
                return
            pipe.send(("valid", ""))
        pipe.send(attempted(trial, has_nan=has_nan))


class Worker:
    """A process that makes calls; another takes its place when it is gone."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.process: Any = None
        self.function = ""

    def start(self) -> None:
        """Starts a process."""
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        scratch = (self.settings.run_dir / "scratch").resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        self.process = context.Process(
            target=work, args=(other, str(scratch), self.settings.limit_gib)
        )
        self.process.start()
        other.close()

    def stop(self) -> None:
        """Ends it."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process, self.function = None, ""

    def make(self, trial: Trial) -> tuple[str, str]:
        """Makes a call; gives its outcome and what was said."""
        if self.process is None:
            self.start()
        try:
            self.pipe.send(trial)
            if trial[0] != self.function:
                # A new process imports first, and each function gets valid arguments.
                outcome, said = self.pipe.recv()
                if outcome != "valid":
                    raise Wrong(f"The valid call of `{trial[0]}` failed: {said}")
                self.function = trial[0]
            if not self.pipe.poll(self.settings.limit_s):
                self.stop()
                return "hang", f"more than {self.settings.limit_s:.0f} s"
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.stop()
            return ("memory" if trial[2] == "10**12" else "died"), f"exit code {code}"


def found_of(settings: Settings) -> list[dict[str, str]]:
    """All calls with their outcomes."""
    every, found = trials(settings), []
    worker = Worker(settings)
    for name in every:  # which fails if one is unknown
        valid.makers_of(name)
    try:
        for name, of_function in every.items():

            def make(of_function: list[Trial] = of_function) -> list[dict[str, str]]:
                return [row_of(trial, *worker.make(trial)) for trial in of_function]

            place = settings.run_dir / f"{name}.pickle"
            rows = kept(place, (of_function, settings.limit_s), make)
            found += rows
            print(name, dict(Counter(row["outcome"] for row in rows)), flush=True)
    finally:
        worker.stop()
    return found


def row_of(trial: Trial, outcome: str, said: str) -> dict[str, str]:
    """A finding."""
    function, argument, value = trial
    return {
        "function": function,
        "argument": argument,
        "value": value,
        "outcome": outcome,
        "said": said.split("\n")[0][:300],
    }


def main(settings: Settings) -> None:
    """Makes the calls and writes the result."""
    # Compiling is what a call costs.
    flags = (
        "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    )
    os.environ.setdefault("XLA_FLAGS", flags)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    cache = jax.config.values["jax_compilation_cache_dir"]
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(cache).resolve())
    found = found_of(settings)
    lines = "".join(json.dumps(row) + "\n" for row in found)
    (settings.run_dir / "findings.jsonl").write_text(lines)
    counts = Counter((row["function"].split(".")[0], row["outcome"]) for row in found)
    rows = [
        {"namespace": namespace}
        | {outcome: counts[namespace, outcome] for outcome in OUTCOMES}
        for namespace in dict.fromkeys(row["function"].split(".")[0] for row in found)
    ]
    chosen = dataclasses.asdict(settings)
    del chosen["run_dir"]
    chosen |= {
        "functions": len({row["function"] for row in found}),
        "arguments": len({(row["function"], row["argument"]) for row in found}),
        "faults": [row for row in found if row["outcome"] in FAULTS],
    }
    print(Counter(row["outcome"] for row in found))
    write_result("wrong-arguments", chosen, rows)


def section(records: Named) -> str:
    """Its part of the page of results."""
    ((_, record),) = records
    settings, rows = record["settings"], record["results"]
    table = [[row["namespace"], *(f"{row[o]:,}" for o in OUTCOMES)] for row in rows]
    sums = [f"{sum(row[outcome] for row in rows):,}" for outcome in OUTCOMES]
    total = sum(row[outcome] for row in rows for outcome in OUTCOMES)
    return (
        f"{total:,} calls of all {settings['functions']} public functions and classes, "
        f"in which one of {settings['arguments']} arguments was replaced by a wrong "
        "value, drawn with a seed; what was built was used once. `refused`: an error "
        "names the argument; `works`: the value is right after all; `memory`: a size "
        "for which there is none. The others are faults: an error that does not name "
        "the argument, NaN without an error, more than "
        f"{settings['limit_s']:.0f} s, the end of the process.\n\n"
        + markdown(["namespace", *OUTCOMES], [*table, ["all", *sums]])
        + "\nSee `benchmarks/wrong_arguments.py`."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
