"""What the engine promises beside speed against peers.

    python -m benchmarks.engine
    python -m benchmarks.engine --parts start

The work is W1a of `benchmarks.peers`: MAML on 32 tasks of 5 classes, 1 shot and 15
queries, Conv-4 with strides, second order; and whole runs on sinusoids. Every figure
comes from a process of its own. Writes `benchmarks/results/engine-<part>.json`.

* `start`: seconds from the start of the process to the end of the first step, without
  and with a persistent compilation cache.
* `peak`: the rate of steps of W1a, W1b and W2 as a share of the rate of large matrix
  products, measured in turn, and what a step does with its time, by JAX's profiler.
* `runs`: the time of 1 and of 32 whole runs under `vmap`.
* `precision`: accuracy in float32 and in bfloat16 on the same Omniglot tasks, after a
  short training in each; needs `METAJAX_DATA_DIR` or the data set's cache.
* `scaling`: what the program does on 1, 2, 4 and 8 simulated devices: its all-reduces,
  and operations and memory on each device. Not its time, which simulation cannot show.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.extend.core import Jaxpr
from jax.sharding import PartitionSpec

from benchmarks import record
from benchmarks.peers.items import Item, select_items
from benchmarks.peers.worker import THREADS
from benchmarks.peers.worker_metajax import training_program
from metajax.compute.cores import use_cores
from metajax.compute.devices import TASK_AXIS, spread, task_mesh
from metajax.compute.program_costs import planned_memory, work
from metajax.evaluation.bank import evaluate
from metajax.evaluation.reports import Report, compare
from metajax.learners.gradient.maml import maml
from metajax.models.networks import conv4, mlp
from metajax.models.precision import Precision
from metajax.objectives import squared_error
from metajax.tasks.functions.sinusoid import sinusoid
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.omniglot import omniglot
from metajax.training.trainer import train
from metajax.training.whole_run import whole_run
from metajax.types import Array, Learner, PyTree

INNER_STEPS = (1, 5)
PEAK_ITEMS = ("W1a", "W1b 1-shot, 1 inner", "W2")
# Where the profiler puts an instruction of a program: by the first pattern that the
# name of what it was compiled from has. A fused one goes by the last thing it does.
USES = {
    "products": re.compile(r"/(conv_general_dilated|dot_general)$"),
    "patches": re.compile(r"/Conv_\d"),
    "normalisation": re.compile(r"/Normalize_\d"),
    "other": re.compile(""),
}
SIMULATED = (1, 2, 4, 8)
RUNS = (1, 32)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    parts: tuple[str, ...] = ("start", "peak", "runs", "precision", "scaling")
    rounds: int = 5
    """How often; the median counts."""


def main(settings: Settings) -> None:
    """Measures, prints and writes one part after the other."""
    measure = {
        "start": start,
        "peak": peak,
        "runs": runs,
        "precision": precision,
        "scaling": scaling,
    }
    for part in settings.parts:
        if part not in measure:
            allowed = ", ".join(measure)
            raise ValueError(f"`--parts` must be among {allowed}; got {part!r}.")
    for part in settings.parts:
        rows = measure[part](settings.rounds)
        for row in rows:
            print(*(f"{name} {value}" for name, value in row.items()), sep="  ")
        description = {"parts": [part], "rounds": settings.rounds, "threads": THREADS}
        record.write_result(f"engine-{part}", description, rows)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def item_of(inner_steps: int) -> Item:
    """The work of a step."""
    return select_items((f"W1a 1-shot, {inner_steps} inner",))[0]


def start(rounds: int) -> list[dict[str, Any]]:
    """Seconds to the first step, cold and from the cache."""
    rows = []
    for inner_steps in INNER_STEPS:
        with tempfile.TemporaryDirectory() as folder:
            for cache in (None, folder):
                if cache:
                    apart(first_step, inner_steps, cache)  # fills it
                times = [timed_start(inner_steps, cache) for _ in range(rounds)]
                rows.append(
                    {
                        "inner_steps": inner_steps,
                        "cache": bool(cache),
                        "seconds": times,
                        "median": statistics.median(times),
                    }
                )
    return rows


def timed_start(inner_steps: int, cache: str | None) -> float:
    """How long a process takes that does nothing but the first step."""
    begin = time.perf_counter()
    apart(first_step, inner_steps, cache)
    return time.perf_counter() - begin


def first_step(inner_steps: int, cache: str | None) -> None:
    """Builds the program and takes one step."""
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    one_step(inner_steps, THREADS)()


def one_step(inner_steps: int, devices: int) -> Callable[[], float]:
    """A function that takes an outer step of W1a."""
    return steps_of(item_of(inner_steps), devices)


def steps_of(item: Item, devices: int) -> Callable[[], float]:
    """A function that takes an outer step of an item."""
    use_cores(devices)
    jitted, state, tasks, key = training_program(item, "", 1)
    taken = 0

    def step() -> float:
        nonlocal state, taken
        state, metrics = jitted(state, tasks, key, np.int32(taken), np.int32(1))
        taken += 1
        return float(metrics["loss"][0])

    return step


def peak(rounds: int) -> list[dict[str, Any]]:
    """The rate of a step beside that of matrix products."""
    return [apart(peak_of, item, rounds) for item in select_items(PEAK_ITEMS)]


def peak_of(item: Item, rounds: int) -> dict[str, Any]:
    """Alternates both on the same cores."""
    step = steps_of(item, THREADS)
    jitted, *arguments = training_program(item, "", 1)
    zero = np.int32(0)
    devices = len(arguments[1].support.x.sharding.device_set)
    flops = devices * work(on_device(jitted, *arguments, zero, zero)).flops
    program = jitted.lower(*arguments, zero, zero).compile()
    size = 2048
    matrices = jnp.ones((THREADS, size, size))
    matrices = spread(matrices, task_mesh("auto", THREADS), PartitionSpec(TASK_AXIS))
    product = jax.jit(jax.vmap(jnp.dot))

    def multiply() -> None:
        product(matrices, matrices).block_until_ready()

    shares, rates, times = [], [], []
    for take in (step, multiply):
        take()
    for _ in range(rounds):
        seconds = [clock(step, 3), clock(multiply, 3)]
        rates.append(2 * THREADS * size**3 / seconds[1])
        shares.append(flops / seconds[0] / rates[-1])
        times.append(seconds[0])
    return {
        "item": str(item),
        "seconds": statistics.median(times),
        "flops": flops,
        "matrix_products_per_second": statistics.median(rates),
        "shares": shares,
        "median": statistics.median(shares),
        "uses": uses_of(program.as_text() or "", step),
    }


def uses_of(program: str, step: Callable[[], object]) -> dict[str, float]:
    """What a step does with its time, as shares of the time of all instructions."""
    named = re.compile(r'^ *(?:ROOT )?%?(\S+) = .*? (\S+)\(.*op_name="([^"]*)"', re.M)
    names = {
        instruction: name
        for instruction, kind, name in named.findall(program)
        if kind not in ("while", "call", "conditional")  # what is in them counts
    }
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    times = dict.fromkeys(USES, 0.0)
    for plane in profile.planes:
        for event in (event for line in plane.lines for event in line.events):
            if event.name in names:
                name = names[event.name]
                use = next(use for use in USES if USES[use].search(name))
                times[use] += event.duration_ns
    return {use: spent / sum(times.values()) for use, spent in times.items()}


def clock(function: Callable[[], object], count: int) -> float:
    """Seconds for each of `count` calls."""
    begin = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - begin) / count


def runs(rounds: int) -> list[dict[str, Any]]:
    """Whole runs side by side."""
    return apart(time_runs, rounds)


def time_runs(rounds: int) -> list[dict[str, Any]]:
    """1,000 steps of 25 sinusoids, one inner step, each run with its own seed."""

    def make(hyper: PyTree) -> tuple[Learner, optax.GradientTransformation]:
        del hyper
        learner = maml(mlp(1), optax.sgd(0.01), inner_steps=1, objective=squared_error)
        return learner, optax.adam(1e-3)

    run = jax.jit(jax.vmap(whole_run(make, sinusoid(), steps=1000, tasks_per_step=25)))
    keys = [jax.vmap(jax.random.key)(jnp.arange(count)) for count in RUNS]

    def take(own: Array) -> None:
        jax.block_until_ready(run(own))

    calls = [functools.partial(take, own) for own in keys]
    for call in calls:
        call()
    seconds = np.array([[clock(call, 1) for call in calls] for _ in range(rounds)])
    return [
        {
            "runs": count,
            "seconds": times.tolist(),
            "median": statistics.median(times),
            "to_one": statistics.median(times / seconds[:, 0]),
        }
        for count, times in zip(RUNS, seconds.T, strict=True)
    ]


def precision(rounds: int) -> list[dict[str, Any]]:
    """Accuracy in both precisions, and the difference task by task."""
    del rounds
    full, half = (apart(train_in, kind) for kind in ("float32", "bfloat16"))
    difference = compare(half, full)
    return [
        {"precision": "float32"} | full.to_json()["metrics"]["accuracy"],
        {"precision": "bfloat16"} | half.to_json()["metrics"]["accuracy"],
        {
            "precision": "bfloat16 - float32",
            "mean": difference.difference,
            "half_width_95": difference.half_width,
        },
    ]


def train_in(precision: Precision) -> Report:
    """MAML on Omniglot, 5 classes, 1 shot: 1,000 steps of 16 tasks, 600 test tasks."""
    use_cores(THREADS)
    model = conv4(5, pooling="stride", precision=precision)
    learner = maml(model, optax.sgd(0.4), inner_steps=1, eval_inner_steps=3)
    tasks, test = (
        few_shot(omniglot(split), way=5, shot=1, num_queries=queries)
        for split, queries in (("meta_train", 1), ("meta_test", 15))
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 1000))
    result = train(learner, tasks, optimizer, steps=1000, tasks_per_step=16, seed=0)
    return evaluate(learner, result.best_params, test, num_tasks=600)


def scaling(rounds: int) -> list[dict[str, Any]]:
    """The program on several simulated devices."""
    del rounds
    rows = [apart(program_on, count) for count in SIMULATED]
    for row in rows:
        row["loss_difference"] = abs(row["loss"] - rows[0]["loss"])
        row["efficiency"] = rows[0]["flops"] / row["devices"] / row["flops"]
    return rows


def program_on(devices: int) -> dict[str, Any]:
    """What is in the program of one device, and the loss after three steps."""
    step = one_step(1, devices)
    losses = [step() for _ in range(4)]
    jitted, *arguments = training_program(item_of(1), "", 1)
    zero = np.int32(0)
    program = jitted.lower(*arguments, zero, zero).compile()
    reduced = re.findall(r"= f32\[(\d+)\]\S* all-reduce\(", program.as_text() or "")
    return {
        "devices": devices,
        "all_reduces": len(reduced),
        "bytes_reduced": 4 * sum(map(int, reduced)),
        "flops": work(on_device(jitted, *arguments, zero, zero)).flops,
        "temporary_bytes": planned_memory(program)[1],
        "loss": losses[-1],
    }


def on_device(jitted: jax.stages.Wrapped, *arguments: Any) -> Jaxpr:
    """The traced program of one device."""
    jaxpr = jitted.trace(*arguments).jaxpr.jaxpr
    for equation in jaxpr.eqns:
        if equation.primitive.name == "shard_map":
            return equation.params["jaxpr"]
    return jaxpr


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
