"""Neural processes against the exact posterior, and images completed by them.

    python -m benchmarks.neural_processes

Curves: tasks of `metajax.tasks.gaussian_process`, one input, RBF kernel of length scale
  0.6
and scale 1, noise 0.1, 1 to 10 context points and 50 targets in (-2, 2). What can be
known is known there: the log likelihood of a target under its exact marginal posterior
is, in expectation, the most that any of the four learners can have, as they answer each
target by itself (`latent_np` as a mixture over its samples of z). `gap` is by how much
the learner is below it, on the same test tasks, in nats a point. All learners are
trained by Adam on the same tasks, with a rate that falls to 0 over the second half and
gradients shortened to a norm of 1. Sizes are below those of the papers, for one core.

Images: Omniglot's characters in 28 x 28, those of meta_train for training; completed
are characters of meta_test, and digits of MNIST, which neither learner ever saw. Log
likelihoods are of pixels in [0, 1] under normal distributions of a scale of at least
0.1, so at most 1.38 nats.

Training resumes where it was stopped. `METAJAX_DATA_DIR` names the folder of images;
without it, give `--image-steps 0`.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks.images import READERS
from benchmarks.intervals import interval
from benchmarks.pages import Named, interval_cell, markdown, picture
from benchmarks.record import RESULTS, training_settings, write_result
from metajax.distributions import Gaussian, moments
from metajax.evaluation.bank import bank_task, evaluate
from metajax.evaluation.reports import Report, compare
from metajax.learners.memory.attentive_np import attentive_np
from metajax.learners.memory.conditional_np import conditional_np
from metajax.learners.memory.latent_np import latent_np
from metajax.learners.memory.transformer_np import transformer_np
from metajax.tasks.functions.gaussian_process import (
    GaussianProcess,
    exact_posterior,
    gaussian_process,
)
from metajax.tasks.functions.image_completion import image_completion
from metajax.tasks.images.class_table import ClassTable
from metajax.tasks.images.omniglot import omniglot
from metajax.training.trainer import train
from metajax.types import Array, Examples, Learner, PyTree, Task, TaskDistribution

TITLE, FILES = "Neural processes", "neural-processes"
"""Of its part of the page of results, and the results that it shows."""

NAME = "neural-processes"
EXACT = "exact posterior"
SHOWN_POINTS = (2, 5, 10)
SHOWN_IMAGE = 3  # its place in the bank of each image set


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of."""

    seed: int = 0
    length_scale: float = 0.6
    scale: float = 1.0
    noise: float = 0.1
    shot: tuple[int, int] = (1, 10)
    num_queries: int = 50
    min_scale: float = 0.01
    """Below the noise, so that it does not bind."""
    size: int = 128
    """Of the layers of the first three, the papers'."""
    num_samples: int = 64
    """Of z, for the predictions of `latent_np`."""
    transformer_size: int = 64
    transformer_layers: int = 3
    outer_steps: int = 30_000
    """Of each learner on curves."""
    tasks_per_step: int = 16
    outer_rate: float = 1e-3
    clip_norm: float = 1.0
    num_test_tasks: int = 2000
    image_steps: int = 10_000
    """Of each of the two learners on images; 0 leaves images out."""
    image_tasks_per_step: int = 8
    image_shot: tuple[int, int] = (1, 200)
    image_queries: int = 100
    """Pixels asked for in training; in the test, all 784."""
    image_min_scale: float = 0.1
    shown_pixels: tuple[int, ...] = (10, 40, 100, 200)
    num_test_images: int = 400


Trained = dict[str, tuple[Learner, PyTree]]


def main(settings: Settings) -> None:
    """Trains, tests, compares, draws and writes the result."""
    tasks = curves(settings)
    trained = {
        name: (learner, fit(name, learner, tasks, settings.outer_steps, settings))
        for name, learner in learners(settings).items()
    }
    rows = judge(trained, tasks, settings)
    images: dict[str, ClassTable] = {}
    completed: Trained = {}
    if settings.image_steps > 0:
        images = {"omniglot": omniglot("meta_test"), "mnist": READERS["mnist"]()}
        completed = fit_images(settings)
        rows += judge_images(completed, images, settings)
    for row in rows:
        print(row)
    write_result(NAME, dataclasses.asdict(settings), rows)
    draw_curves(trained, tasks)
    if images:
        draw_images(completed, images, settings)


def curves(settings: Settings) -> GaussianProcess:
    """The tasks of curves."""
    return gaussian_process(
        length_scale=settings.length_scale,
        scale=settings.scale,
        noise=settings.noise,
        shot=settings.shot,
        num_queries=settings.num_queries,
    )


def learners(settings: Settings) -> dict[str, Learner]:
    """What is trained on curves, by name."""
    common: dict[str, Any] = {
        "code_size": settings.size,
        "min_scale": settings.min_scale,
    }
    transformer = transformer_np(
        token_size=settings.transformer_size,
        layers=settings.transformer_layers,
        min_scale=settings.min_scale,
    )
    return {
        "conditional_np": conditional_np(**common),
        "latent_np": latent_np(**common, num_samples=settings.num_samples),
        "attentive_np": attentive_np(**common),
        "transformer_np": transformer,
    }


def image_learners(settings: Settings) -> dict[str, Learner]:
    """What is trained on images, by name."""
    common: dict[str, Any] = {
        "code_size": settings.size,
        "min_scale": settings.image_min_scale,
    }
    return {
        "conditional_np": conditional_np(**common),
        "attentive_np": attentive_np(**common),
    }


def fit_images(settings: Settings) -> Trained:
    """The learners of images with their meta-parameters, by name."""
    tasks = image_completion(
        omniglot("meta_train"),
        shot=settings.image_shot,
        num_queries=settings.image_queries,
    )
    changed = dataclasses.replace(
        settings, tasks_per_step=settings.image_tasks_per_step
    )
    return {
        name: (
            learner,
            fit(f"images-{name}", learner, tasks, settings.image_steps, changed),
        )
        for name, learner in image_learners(settings).items()
    }


def fit(
    name: str,
    learner: Learner,
    tasks: TaskDistribution,
    steps: int,
    settings: Settings,
) -> PyTree:
    """The meta-parameters of one run, which goes on where it was stopped."""
    half = steps // 2
    rate = optax.linear_schedule(
        settings.outer_rate, 0.0, steps - half, transition_begin=half
    )
    result = train(
        learner,
        tasks,
        optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(rate)),
        steps=steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        steps_per_dispatch=250,
        log_every=1000,
        checkpoint_every=1000,
        run_dir=f"runs/{NAME}/{name}-{settings.seed}",
        config=training_settings(
            settings,
            "num_samples",
            "num_test_tasks",
            "num_test_images",
            "shown_pixels",
            "outer_steps",
            "image_steps",
            steps=steps,
        ),
        progress=False,
    )
    return result.meta_params


def referee(tasks: GaussianProcess) -> Learner:
    """The exact posterior as a learner that has nothing to learn."""

    def init(key: Array, task: Task) -> PyTree:
        del key, task
        return ()

    def adapt(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> Examples:
        del meta_params, key
        return support

    def predict(
        adapted: Examples,
        inputs: Array,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Gaussian:
        del key
        query = Examples(inputs, jnp.zeros((len(inputs), 1)), mask)
        return exact_posterior(tasks, adapted, query).marginals

    def loss(*_: Any, **__: Any) -> tuple[Array, dict[str, Array]]:
        raise NotImplementedError("The exact posterior is not trained.")

    return Learner(init, adapt, predict, loss)


def judge(
    trained: Trained, tasks: GaussianProcess, settings: Settings
) -> list[dict[str, Any]]:
    """The rows of the result on curves; intervals are over tasks."""
    reports = {
        name: evaluate(learner, params, tasks, num_tasks=settings.num_test_tasks)
        for name, (learner, params) in ({EXACT: (referee(tasks), ())} | trained).items()
    }
    rows = []
    for name, report in reports.items():
        row = {"part": "curves", "learner": name, **_log_likelihood(report)}
        row["mse"] = report.mean["mse"]
        if name != EXACT:
            found = compare(report, reports[EXACT], "nll")
            row["gap"] = {
                "mean": found.difference,
                "half_width": found.half_width,
                "share_of_tasks_above": found.share_lower,
            }
        rows.append(row)
    return rows


def judge_images(
    trained: Trained, images: dict[str, ClassTable], settings: Settings
) -> list[dict[str, Any]]:
    """The rows of the result on images; intervals are over images."""
    rows = []
    for data, table in images.items():
        for pixels in settings.shown_pixels:
            tasks = image_completion(table, shot=pixels)
            for name, (learner, params) in trained.items():
                report = evaluate(
                    learner,
                    params,
                    tasks,
                    num_tasks=settings.num_test_images,
                    check_leakage=False,  # it was checked on curves
                )
                row = {"part": "images", "data": data, "pixels": pixels}
                row |= {"learner": name, **_log_likelihood(report)}
                rows.append(row | {"mse": report.mean["mse"]})
    return rows


def _log_likelihood(report: Report) -> dict[str, Any]:
    values = -report.values["nll"].astype(float)
    return {
        "metric": "log likelihood",
        **interval(values),
        "num_tasks": len(values),
    }


def draw_curves(trained: Trained, tasks: GaussianProcess) -> None:
    """Means and bands of two deviations, of learners and of the exact posterior."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(3 * len(trained), 2.3 * len(SHOWN_POINTS)), layout="constrained"
    )
    panels = figure.subplots(
        len(SHOWN_POINTS), len(trained), squeeze=False, sharex=True, sharey=True
    )
    grid = np.linspace(*tasks.x_range, 200, dtype=np.float32)
    for shot, row in zip(SHOWN_POINTS, panels, strict=True):
        support = bank_task(dataclasses.replace(tasks, shot=(shot, shot)), 0).support
        query = Examples(grid[:, None], np.zeros((len(grid), 1), np.float32))
        exact = exact_posterior(tasks, support, query).marginals
        for axes, (name, (learner, params)) in zip(row, trained.items(), strict=True):
            _band(axes, grid, exact, "0.35", "exact posterior")
            adapted = learner.adapt(params, support, key=jax.random.key(0))
            outputs = moments(learner.predict(adapted, query.x))
            _band(axes, grid, outputs, "tab:blue", "prediction")
            axes.plot(support.x[:, 0], support.y[:, 0], "k.", ms=8, label="context")
            if shot == SHOWN_POINTS[0]:
                axes.set_title(name, fontsize=10)
        row[0].set_ylabel(f"{shot} points")
    panels[0, 0].legend(fontsize=7, frameon=False, loc="upper left")
    panels[0, 0].set_ylim(-3.5, 3.5)
    figure.savefig(pathlib.Path(RESULTS) / f"{NAME}.png", dpi=110)


def _band(axes: Any, x: np.ndarray, outputs: Gaussian, color: str, label: str) -> None:
    mean, scale = (np.asarray(leaf)[:, 0] for leaf in outputs)
    axes.fill_between(x, mean - 2 * scale, mean + 2 * scale, color=color, alpha=0.2)
    axes.plot(x, mean, color=color, lw=1.5, label=label)


def draw_images(
    trained: Trained, images: dict[str, ClassTable], settings: Settings
) -> None:
    """Pixels that were given, and what each learner makes of them."""
    from matplotlib.figure import Figure

    titles = ["given", *(f"{name}\nmean" for name in trained), "deviation x 2"]
    height, width = len(images) * len(settings.shown_pixels), len(titles) + 1
    figure = Figure(figsize=(1.3 * width, 1.25 * height), layout="constrained")
    panels = iter(figure.subplots(height, width, squeeze=False))
    for data, table in images.items():
        size = table.images.shape[2:4]
        for pixels in settings.shown_pixels:
            row = next(panels)
            tasks = image_completion(table, shot=pixels)
            support, query = bank_task(tasks, SHOWN_IMAGE)
            given = np.full((*size, 3), (0.55, 0.65, 0.9))
            places = (np.asarray(support.x) + 1) / 2 * (np.asarray(size) - 1)
            rows, columns = np.rint(places).astype(int).T
            given[rows, columns] = np.asarray(support.y)
            shown = [given]
            for learner, params in trained.values():
                adapted = learner.adapt(params, support)
                outputs = moments(learner.predict(adapted, query.x))
                shown.append(np.asarray(outputs.mean).reshape(size))
            # The deviation is that of the last learner.
            shown += [np.asarray(outputs.scale).reshape(size) * 2]
            shown += [np.asarray(query.y).reshape(size)]
            for axes, image in zip(row, shown, strict=True):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
            row[0].set_ylabel(f"{data}\n{pixels} pixels", fontsize=8)
            if data == next(iter(images)) and pixels == settings.shown_pixels[0]:
                for axes, title in zip(row, [*titles, "image"], strict=True):
                    axes.set_title(title, fontsize=8)
    figure.savefig(pathlib.Path(RESULTS) / f"{NAME}-images.png", dpi=110)


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    of_curves = [r for r in results if r["part"] == "curves"]
    rows = [
        [
            r["learner"],
            interval_cell(r, 3),
            interval_cell(r["gap"], 3) if "gap" in r else "",
            f"{100 * r['gap']['share_of_tasks_above']:.1f} %" if "gap" in r else "",
            f"{r['mse']:.4f}",
        ]
        for r in of_curves
    ]
    header = ["learner", "log likelihood", "gap", "tasks above it", "squared error"]
    low, high = settings["shot"]
    parts = [
        "Log likelihood of a target in nats, after "
        f"{low} to {high} points of a draw of a Gaussian process (RBF kernel, length "
        f"scale {settings['length_scale']:g}, noise {settings['noise']:g}), "
        f"{settings['num_test_tasks']:,} test tasks of {settings['num_queries']} "
        "targets, one seed; and by how much it is below that of the exact posterior, "
        "target by target, paired.\n",
        markdown(header, rows),
        picture(path),
    ]
    of_images = [r for r in results if r["part"] == "images"]
    if of_images:
        pixels = settings["shown_pixels"]
        found = {(r["data"], r["learner"], r["pixels"]): r for r in of_images}
        rows = [
            [data, name, *(interval_cell(found[data, name, p], 3) for p in pixels)]
            for data, name in dict.fromkeys(
                (r["data"], r["learner"]) for r in of_images
            )
        ]
        header = ["images", "learner", *(f"{p} pixels" for p in pixels)]
        parts += [
            "Log likelihood of a pixel in nats, at most 1.38, after some pixels of "
            f"28 x 28, {settings['num_test_images']} images of each set; trained on "
            "other characters of Omniglot:\n",
            markdown(header, rows),
            picture(path.with_stem(f"{path.stem}-images")),
        ]
    return "\n".join(parts)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
