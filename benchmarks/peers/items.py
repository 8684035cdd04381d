"""The work: what is measured, on which data, from which weights, and who takes part.

Only NumPy is needed here, because every peer's environment imports this module.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "CONTENDERS",
    "ITEMS",
    "PEERS",
    "Contender",
    "Item",
    "data_of",
    "images_of",
    "parts_of",
    "select_items",
    "select_peers",
    "weights_of",
]

PEERS = ("learn2learn", "higher", "torchopt", "torch.func", "jax-meta", "naive")
FEATURES, IMAGE, HIDDEN = 64, 28, 40
PRODUCT = 2048


class Contender(NamedTuple):
    """Who does the work.

    Attributes:
      peer: whose environment it needs; None is the one this program runs in.
      worker: the module `benchmarks.peers.worker_<worker>`.
      variant: which of the ways to do it the worker takes.
    """

    peer: str | None
    worker: str
    variant: str = ""


GRADIENTS = ("reverse", "remat", "mixed", "first_order")
CONTENDERS = {
    "metajax": Contender(None, "metajax"),
    "metajax, 100 steps a dispatch": Contender(None, "metajax", "dispatch"),
    **{f"metajax, {g}": Contender(None, "metajax", g) for g in GRADIENTS},
    "numpy": Contender(None, "numpy"),
    "learn2learn": Contender("learn2learn", "torch", "learn2learn"),
    "learn2learn, first order": Contender("learn2learn", "torch", "first_order"),
    "higher": Contender("higher", "torch", "higher"),
    "torchopt": Contender("torchopt", "torch", "torchopt"),
    "torch.func": Contender("torch.func", "torch", "func"),
    "jax-meta": Contender("jax-meta", "jax", "jax-meta"),
    "naive vmap": Contender("naive", "jax", "vmap"),
    "naive scan": Contender("naive", "jax", "scan"),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """One piece of work; a step of it is an outer step, or `tasks` sampled tasks.

    Attributes:
      group: as in W1a.
      name: what else tells it apart.
      kind: `"maml"`, `"prototypical"`, `"sinusoid"`, `"sampling"`, or a part that all
        networks are made of, `"product"` or `"convolution"`.
      contenders: who takes part, in the order of the rounds.
      absent: who does not although it could, and why.
    """

    group: str
    name: str
    kind: str
    contenders: tuple[str, ...]
    absent: tuple[tuple[str, str], ...] = ()
    tasks: int = 32
    way: int = 5
    shot: int = 1
    num_queries: int = 15
    inner_steps: int = 0
    inner_rate: float = 0.4
    pooling: str = "stride"

    def __str__(self) -> str:
        return f"{self.group} {self.name}"


OURS = ("metajax",)
TORCH = ("learn2learn", "higher", "torchopt", "torch.func")
NAIVE = ("naive vmap", "naive scan")
SLOW = ("jax-meta", *NAIVE)
TOO_MUCH = "all tasks at once need more than 6 GiB"


def _w0(kind: str, name: str) -> Item:
    return Item(
        group="W0",
        name=name,
        kind=kind,
        contenders=(*OURS, "torch.func"),
        tasks=2,
    )


def _w1(group: str, pooling: str, shot: int, steps: int) -> Item:
    contenders, absent = OURS + TORCH + SLOW, {}
    if (shot, steps) != (1, 1):
        absent = dict.fromkeys(SLOW, "too slow; see the 1-shot, 1-step item")
    if pooling == "max":
        absent["naive vmap"] = f"{TOO_MUCH}, beside jax-meta's 6"
        if shot * steps > 5:
            absent["torch.func"] = TOO_MUCH
    return Item(
        group=group,
        name=f"{shot}-shot, {steps} inner",
        kind="maml",
        contenders=tuple(name for name in contenders if name not in absent),
        absent=tuple(absent.items()),
        shot=shot,
        inner_steps=steps,
        # At 0.4 pooled networks run away, and rounding grows to 1 % of the loss within
        # 5 steps: even float32 and float64 disagree. The rate does not change the work.
        inner_rate=0.4 if pooling == "stride" else 0.1,
        pooling=pooling,
    )


def _w2(way: int, shot: int, queries: int, tasks: int) -> Item:
    contenders = (*OURS, "learn2learn", "torch.func", *NAIVE)
    absent = {}
    if way * tasks > 100:
        absent = dict.fromkeys(("torch.func", "naive vmap"), TOO_MUCH)
        absent["naive scan"] = "too slow; see the item of one task"
    return Item(
        group="W2",
        name=f"{way}-way {shot}-shot, {tasks} tasks",
        kind="prototypical",
        contenders=tuple(name for name in contenders if name not in absent),
        absent=tuple(absent.items()),
        tasks=tasks,
        way=way,
        shot=shot,
        num_queries=queries,
        pooling="max",
    )


def _w3(steps: int) -> Item:
    return Item(
        group="W3",
        name=f"{steps} inner",
        kind="sinusoid",
        contenders=(*OURS, "metajax, 100 steps a dispatch", *TORCH, *NAIVE),
        tasks=25,
        way=1,
        shot=10,
        num_queries=10,
        inner_steps=steps,
        inner_rate=0.01,
    )


def _w4(steps: int) -> Item:
    learn2learn = ("learn2learn", "learn2learn, first order")
    return Item(
        group="W4",
        name=f"{steps} inner",
        kind="maml",
        contenders=(*(f"metajax, {gradient}" for gradient in GRADIENTS), *learn2learn),
        inner_steps=steps,
    )


def _w5(queries: int) -> Item:
    return Item(
        group="W5",
        name=f"{5 + queries} images a class",
        kind="sampling",
        contenders=(*OURS, "metajax, 100 steps a dispatch", "numpy", "learn2learn"),
        shot=5,
        num_queries=queries,
    )


SHOTS_AND_STEPS = ((1, 1), (1, 5), (5, 1), (5, 5))
ITEMS = (
    _w0("product", f"products of {PRODUCT} x {PRODUCT} matrices, 34.4 GFLOP"),
    _w0("convolution", "convolution of 64 channels, with gradients, 6.5 GFLOP"),
    *(_w1("W1a", "stride", *sizes) for sizes in SHOTS_AND_STEPS),
    *(_w1("W1b", "max", *sizes) for sizes in SHOTS_AND_STEPS),
    *(_w2(5, 5, 15, tasks) for tasks in (1, 16)),
    *(_w2(60, 1, 5, tasks) for tasks in (1, 16)),
    *(_w3(steps) for steps in (1, 10)),
    *(_w4(steps) for steps in (1, 5, 10, 20, 50)),
    *(_w5(queries) for queries in (15, 1)),
)


def select_items(names: Sequence[str]) -> tuple[Item, ...]:
    """The items of these groups or full names; all for none.

    Raises:
      ValueError: if a name is neither.
    """
    allowed = dict.fromkeys([i.group for i in ITEMS] + [str(i) for i in ITEMS])
    _check_names("--items", names, list(allowed))
    return tuple(i for i in ITEMS if not names or {i.group, str(i)} & set(names))


def select_peers(names: Sequence[str]) -> tuple[str, ...]:
    """These peers in their usual order; all for none.

    Raises:
      ValueError: if there is no such peer.
    """
    _check_names("--peers", names, PEERS)
    return tuple(peer for peer in PEERS if not names or peer in names)


def _check_names(option: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    for name in names:
        if name not in allowed:
            listed = ", ".join(repr(other) for other in allowed)
            raise ValueError(f"`{option}` must be among {listed}; got {name!r}.")


def data_of(item: Item, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tasks: `support_x` `[B, N * K, ...]`, `support_y`, `query_x`, `query_y`.

    Images `[28, 28, 1]` are noise around a pattern for each class, so that there is
    something to learn and losses stay far from the edge of float32.
    """
    rng = np.random.default_rng(seed)
    data = {}
    if item.kind == "sinusoid":
        amplitude = rng.uniform(0.1, 5.0, (item.tasks, 1, 1))
        phase = rng.uniform(0.0, np.pi, (item.tasks, 1, 1))
        for part, count in (("support", item.shot), ("query", item.num_queries)):
            x = rng.uniform(-5.0, 5.0, (item.tasks, count, 1))
            data[f"{part}_x"] = x.astype(np.float32)
            data[f"{part}_y"] = (amplitude * np.sin(x - phase)).astype(np.float32)
        return data
    shape = (IMAGE, IMAGE, 1)
    patterns = rng.standard_normal((item.tasks, item.way, 1, *shape), np.float32)
    for part, count in (("support", item.shot), ("query", item.num_queries)):
        noise = rng.standard_normal(
            (item.tasks, item.way, count, *shape), dtype=np.float32
        )
        images = (patterns + noise).reshape(item.tasks, item.way * count, *shape)
        data[f"{part}_x"] = images
        labels = np.repeat(np.arange(item.way, dtype=np.int32), count)
        data[f"{part}_y"] = np.tile(labels, (item.tasks, 1))
    return data


def weights_of(item: Item, seed: int = 1) -> dict[str, np.ndarray]:
    """Initial weights: `conv0` `[3, 3, C, F]` to `conv3` or `dense0`, ..., and `head`.

    Kernels `[..., inputs, outputs]` are uniform and of the usual size; biases are 0 and
    the normalisation's scales 1, and not listed.
    """
    rng = np.random.default_rng(seed)

    def uniform(bound: float, *shape: int) -> np.ndarray:
        return rng.uniform(-bound, bound, shape).astype(np.float32)

    if item.kind == "sinusoid":
        sizes = {"dense0": (1, HIDDEN), "dense1": (HIDDEN, HIDDEN), "head": (HIDDEN, 1)}
        return {k: uniform(v[0] ** -0.5, *v) for k, v in sizes.items()}
    weights = {}
    for index in range(4):
        inputs = 1 if index == 0 else FEATURES
        weights[f"conv{index}"] = uniform(
            (6 / (9 * (inputs + FEATURES))) ** 0.5, 3, 3, inputs, FEATURES
        )
    if item.kind == "maml":
        weights["head"] = uniform(FEATURES**-0.5, FEATURES, item.way)
    return weights


def parts_of(item: Item, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """What a product or a convolution is of: one array of each task, one of all.

    Images `[B, 75, 14, 14, F]` and a kernel `[3, 3, F, F]`, as in the second layer of
    W2; or matrices `[B, n, n]` and `[n, n]`.
    """
    rng = np.random.default_rng(seed)
    shapes = {
        "product": ((PRODUCT, PRODUCT), (PRODUCT, PRODUCT)),
        "convolution": ((75, 14, 14, FEATURES), (3, 3, FEATURES, FEATURES)),
    }
    own, shared = shapes[item.kind]
    return (
        rng.standard_normal((item.tasks, *own), np.float32),
        rng.standard_normal(shared, np.float32),
    )


def images_of(seed: int = 2) -> np.ndarray:
    """What sampling draws from: uint8 `[1200 classes, 20, 28, 28, 1]`."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (1200, 20, IMAGE, IMAGE, 1), dtype=np.uint8)
