"""Hypergradient descent on logistic regression, from initial rates over four decades.

    python -m benchmarks.hypergradient
    python -m benchmarks.hypergradient --epochs 156
    python -m benchmarks.hypergradient --no-standardize
    python -m benchmarks.hypergradient --data mnist

A. G. Baydin et al., ICLR 2018, in the protocol of their code: 10 epochs of shuffled
batches of 128, the last one smaller; decay of weights 1e-4, as part of the gradient;
momentum 0.9; hypergradient rates 1e-3, and 1e-7 for Adam; inputs standardised by the
mean and the deviation of all training pixels together; kernel and bias start uniform
within 1 / sqrt(inputs). They begin at a rate of 1e-3. Here it goes from two decades
below that to two above, because what the paper promises is that it matters little.

`optdigits` is the UCI table of 8 x 8 digits as PMLB has it, in the order of UCI: its
first 3823 rows are the original training set, which is trained on, and the other 1797
rows, by other writers, the original test set, which validates. 10 epochs of it are 300
steps, where 10 epochs of MNIST are 4690; `--epochs 156` makes it 4680. `mnist` trains
on the training set and validates on the test set, as the official code does; 1e-3 is
then to be compared with its results (`PUBLISHED`).

Seeds differ in the start and the order of batches, and are the same for all optimizers
and rates, so that a base and its hypergradient version are compared seed by seed.
"""

import dataclasses
import gzip
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks import record
from benchmarks.pages import Named, markdown, picture
from metajax.evaluation.reports import interval
from metajax.inner.hypergradient import adam_hd, sgd_hd, sgdn_hd
from metajax.tasks.images.loaders import from_tfds
from metajax.types import Array, PyTree

TITLE, FILES = "Hypergradient descent", "hypergradient-*"
"""Of its part of the page of results, and the results that it shows."""

BATCH_SIZE, WEIGHT_DECAY, MOMENTUM = 128, 1e-4, 0.9
FAMILIES = ("SGD", "SGDN", "Adam")
OPTDIGITS_TRAIN = 3823

# Validation losses on MNIST from 1e-3, one seed each: the last rows of the files of
# https://github.com/gbaydin/hypergradient-descent/tree/master/results/logreg, by the
# PyTorch code; the paper's own pictures are by an earlier one in Lua.
PUBLISHED = {
    "SGD": 0.3737,
    "SGD-HD": 0.2878,
    "SGDN": 0.2846,
    "SGDN-HD": 0.2719,
    "Adam": 0.2719,
    "Adam-HD": 0.2723,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of; the defaults are the protocol's."""

    data: Literal["optdigits", "mnist"] = "optdigits"
    epochs: int = 10
    rates: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    """Initial learning rates."""
    hyper_rate: float = 1e-3
    """Of SGD-HD and SGDN-HD."""
    adam_hyper_rate: float = 1e-7
    standardize: bool = True
    """Whether inputs have mean 0 and deviation 1, or else are in [0, 1]."""
    num_seeds: int = 5
    """At least 2, for the intervals."""


class Data(NamedTuple):
    """Rows to train and to validate on: inputs `[n, D]` and labels `[n]`."""

    x: Array
    y: Array
    x_valid: Array
    y_valid: Array


class Runs(NamedTuple):
    """What seeds differ in: parameters to start from, and batches `[steps, rows]`.

    With several seeds, all have a leading axis `[seeds]`.
    """

    params: PyTree
    rows: Array
    is_row: Array


class Losses(NamedTuple):
    """What one optimizer gave, each `[seeds, rates]`.

    Attributes:
      validation: mean negative log likelihood in nats after the last step.
      rate: the learning rate of the last step.
    """

    validation: np.ndarray
    rate: np.ndarray


def main(settings: Settings) -> None:
    """Trains with every optimizer, prints, writes the result and draws it."""
    if settings.num_seeds < 2 or settings.epochs < 1 or not settings.rates:
        raise ValueError(
            "`num_seeds` must be at least 2, `epochs` at least 1 and `rates` not "
            f"empty, got {settings.num_seeds}, {settings.epochs} and {settings.rates}."
        )
    data = load(settings)
    runs = prepare(data, settings)
    losses = {
        name: run(make, runs, data, settings)
        for name, make in optimizers(settings).items()
    }
    rows = [
        *rate_rows(losses, settings),
        *(robustness_row(name, losses) for name in losses),
    ]
    for row in rows:
        print(describe(row))
    description = dataclasses.asdict(settings) | {
        "optimizer_steps": runs.rows.shape[1],
        "num_training_rows": len(data.x),
        "num_validation_rows": len(data.x_valid),
        "batch_size": BATCH_SIZE,
        "weight_decay": WEIGHT_DECAY,
        "momentum": MOMENTUM,
    }
    name = name_of(settings)
    record.write_result(name, description, rows)
    draw(losses, settings, record.RESULTS / f"{name}.png")


def name_of(settings: Settings) -> str:
    """Of the data, and of every setting that is not the protocol's."""
    parts = ["hypergradient", settings.data]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name != "data" and value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            parts += [*field.name.split("_"), *(f"{v}".lower() for v in values)]
    return "-".join(parts)


def optimizers(settings: Settings) -> dict[str, Callable[[Any], Any]]:
    """Name -> optimizer of an initial rate, each base before its version."""
    beta, adam_beta = settings.hyper_rate, settings.adam_hyper_rate
    return {
        "SGD": optax.sgd,
        "SGD-HD": lambda rate: sgd_hd(rate, hyper_rate=beta),
        "SGDN": lambda rate: optax.sgd(rate, MOMENTUM, nesterov=True),
        "SGDN-HD": lambda rate: sgdn_hd(rate, hyper_rate=beta, momentum=MOMENTUM),
        "Adam": optax.adam,
        "Adam-HD": lambda rate: adam_hd(rate, hyper_rate=adam_beta),
    }


def prepare(data: Data, settings: Settings) -> Runs:
    """Draws the start and all batches of every seed."""
    num_rows, size = data.x.shape
    bound = 1 / math.sqrt(size)

    def draw(key: Array) -> Runs:
        key_kernel, key_bias, key_order = jax.random.split(key, 3)
        params = {
            "kernel": jax.random.uniform(key_kernel, (size, 10), minval=-1) * bound,
            "bias": jax.random.uniform(key_bias, (10,), minval=-1) * bound,
        }
        keys = jax.random.split(key_order, settings.epochs)
        rows, is_row = jax.vmap(batches, (0, None))(keys, num_rows)
        return Runs(
            params, rows.reshape(-1, BATCH_SIZE), is_row.reshape(-1, BATCH_SIZE)
        )

    keys = jax.random.split(jax.random.key(0), settings.num_seeds)
    return jax.jit(jax.vmap(draw))(keys)


def batches(key: Array, num_rows: int) -> tuple[Array, Array]:
    """The batches of one epoch, in a random order; the key is consumed.

    Returns:
      Row numbers, and whether there is such a row, both `[batches, BATCH_SIZE]`: what
      the last batch has too little is filled up with a row that does not count.
    """
    padding = -num_rows % BATCH_SIZE
    order = jnp.pad(jax.random.permutation(key, num_rows), (0, padding))
    is_row = jnp.arange(len(order)) < num_rows
    return order.reshape(-1, BATCH_SIZE), is_row.reshape(-1, BATCH_SIZE)


def run(
    make: Callable[[Any], Any], runs: Runs, data: Data, settings: Settings
) -> Losses:
    """Trains from every seed and rate at once, in one compiled scan."""

    def train(runs: Runs, rate: Array, data: Data) -> tuple[Array, Array]:
        optimizer = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), make(rate))

        def step(carry: tuple, batch: tuple[Array, Array]) -> tuple[tuple, None]:
            params, state = carry
            rows, is_row = batch
            gradient = jax.grad(loss)(params, data.x[rows], data.y[rows], is_row)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = runs.params, optimizer.init(runs.params)
        (params, state), _ = jax.lax.scan(step, carry, (runs.rows, runs.is_row))
        is_row = jnp.ones(len(data.x_valid), bool)
        last_rate = optax.tree.get(state, "learning_rate", rate)
        return loss(params, data.x_valid, data.y_valid, is_row), last_rate

    # Rates are the inner axis: all of a seed read the same batches.
    every = jax.jit(jax.vmap(jax.vmap(train, (None, 0, None)), (0, None, None)))
    return Losses(
        *jax.tree.map(np.asarray, every(runs, jnp.array(settings.rates), data))
    )


def loss(params: PyTree, x: Array, y: Array, is_row: Array) -> Array:
    """Mean negative log likelihood over the rows that are real."""
    logits = x @ params["kernel"] + params["bias"][None, :]
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.sum(losses, where=is_row) / jnp.sum(is_row)


def rate_rows(losses: dict[str, Losses], settings: Settings) -> list[dict[str, Any]]:
    """One row for each optimizer and initial rate.

    Versions with hypergradients have their gain, base minus version, and whether the
    initial rate is too small: below the one that is best for the base.
    """
    rows = []
    for name, of in losses.items():
        base = losses[name.removesuffix("-HD")].validation
        best_rate = settings.rates[int(np.argmin(np.mean(base, axis=0)))]
        for at, initial_rate in enumerate(settings.rates):
            validation = of.validation[:, at]
            row: dict[str, Any] = {"optimizer": name, "initial_rate": initial_rate}
            row |= _mean("validation_loss", validation)
            row |= _mean("final_rate", of.rate[:, at])
            row["validation_losses"] = [float(value) for value in validation]
            if name.endswith("-HD"):
                row |= _mean("gain", base[:, at] - validation)
                row["too_small"] = initial_rate < best_rate
            if settings.data == "mnist" and initial_rate == 1e-3:
                row["published"] = PUBLISHED[name]
            rows.append(row)
    return rows


def robustness_row(name: str, losses: dict[str, Losses]) -> dict[str, Any]:
    """The range of the validation loss over the initial rates, within each seed."""
    return {"optimizer": name} | _mean(
        "range_over_rates", np.ptp(losses[name].validation, axis=1)
    )


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    mean, half_width = interval(values)
    return {name: float(mean), f"{name}_half_width": float(half_width)}


def describe(row: dict[str, Any]) -> str:
    """One line of print."""

    def measured(name: str) -> str:
        return f"{row[name]:.4g} ± {row[f'{name}_half_width']:.2g}"

    text = f"{row['optimizer']:8}"
    if "range_over_rates" in row:
        return f"{text} range over initial rates {measured('range_over_rates')} nats"
    text += f"from {row['initial_rate']:<7g} loss {measured('validation_loss')} nats, "
    text += f"final rate {measured('final_rate')}"
    if "gain" in row:
        text += f", gain over its base {measured('gain')}"
        text += " (rate too small)" * row["too_small"]
    return text + (f", published {row['published']}" if "published" in row else "")


def load(settings: Settings) -> Data:
    """The data set, its pixels scaled by what the training rows have."""
    read = {"optdigits": read_optdigits, "mnist": read_mnist}[settings.data]
    x, y, x_valid, y_valid = read()
    if settings.standardize:
        mean, deviation = np.mean(x), np.std(x)
        x, x_valid = (x - mean) / deviation, (x_valid - mean) / deviation
    return Data(*map(jnp.asarray, (x, y, x_valid, y_valid)))


def read_optdigits() -> tuple[np.ndarray, ...]:
    """Inputs in [0, 1] and labels of the two original parts of the table."""
    folder = pathlib.Path(os.environ["METAJAX_DATA_DIR"]) / "tabular/classification"
    with gzip.open(folder / "optdigits.tsv.gz", "rt") as file:
        if not file.readline().endswith("target\n"):
            raise ValueError("The last column of optdigits.tsv.gz must be `target`.")
        table = np.loadtxt(file)
    x, y = table[:, :-1].astype(np.float32) / 16, table[:, -1].astype(np.int32)
    at = OPTDIGITS_TRAIN
    return x[:at], y[:at], x[at:], y[at:]


def read_mnist() -> tuple[np.ndarray, ...]:
    """Inputs in [0, 1] and labels of the training and the test set, through TFDS."""
    parts: list[np.ndarray] = []
    for split in ("train", "test"):
        table = from_tfds("mnist", split)
        images, counts = np.asarray(table.images), np.asarray(table.counts)
        x = np.concatenate(
            [of_class[:n] for of_class, n in zip(images, counts, strict=True)]
        )
        y = np.repeat(np.array(table.class_names, np.int32), counts)
        parts += [x.reshape(len(x), -1).astype(np.float32) / 255, y]
    return tuple(parts)


def draw(losses: dict[str, Losses], settings: Settings, path: pathlib.Path) -> None:
    """Draws the validation loss over the initial rate: a base dashed, its HD solid."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, of in losses.items():
        family, is_adapted = name.removesuffix("-HD"), name.endswith("-HD")
        mean, half_width = interval(of.validation)
        axes.errorbar(
            settings.rates,
            mean,
            yerr=half_width,
            color=("#0072b2", "#d55e00", "#00825f")[FAMILIES.index(family)],
            linestyle="-" if is_adapted else "--",
            marker="o" if is_adapted else "s",
            markerfacecolor=None if is_adapted else "white",
            capsize=3,
            label=name,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="initial learning rate",
        ylabel="final validation loss (nats)",
        title=f"logistic regression on {settings.data}, {settings.epochs} epochs",
    )
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        loc="outside right center",
        frameon=False,
        title=f"mean of {settings.num_seeds} seeds,\n95 % interval",
    )
    figure.savefig(path, dpi=130)


def section(records: Named) -> str:
    """Its part of the page of results."""
    parts = [
        "Validation loss in nats of a logistic regression after training from several "
        "initial rates, mean over seeds; ± over seeds, and for the gain over paired "
        "seeds.\n"
    ]
    for path, result in records:
        settings, results = result["settings"], result["results"]
        parts.append(
            f"{settings['data']}, {settings['epochs']} epochs "
            f"({settings['optimizer_steps']:,} steps), {settings['num_seeds']} seeds:\n"
        )
        losses = {
            (r["optimizer"], r["initial_rate"]): r
            for r in results
            if "validation_loss" in r
        }
        ranges = {r["optimizer"]: r for r in results if "range_over_rates" in r}
        rows = []
        for name, over in ranges.items():
            row = [name]
            for rate in settings["rates"]:
                found = losses[name, rate]
                row.append(f"{found['validation_loss']:.3f}")
                if "gain" in found:
                    gain, width = found["gain"], found["gain_half_width"]
                    row[-1] += f" (gain {gain:.3f} ± {width:.3f})"
            width = over["range_over_rates_half_width"]
            rows.append([*row, f"{over['range_over_rates']:.3f} ± {width:.3f}"])
        rates = [f"{rate:g}" for rate in settings["rates"]]
        parts.append(markdown(["from", *rates, "range"], rows))
        parts.append(picture(path))
    return "\n".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
