"""Learned optimizers on random quadratics.

    python -m benchmarks.quadratics

Two experiments on f(theta) = ||W theta - y||^2 in 10 dimensions.

1. The LSTM of Andrychowicz et al., NeurIPS 2016, trained by truncated backpropagation
   (20 of 100 steps), against SGD, Nesterov, RMSprop and Adam, each with the learning
   rate of a grid (four a decade) that is best on 200 problems of its own. All are
   judged on 100 fresh problems from the same starts.
2. The one learning rate that is best for k steps of SGD, learned by descending through
   the k steps, against a search on the same 256 problems.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
import tyro

from benchmarks.pages import Named, interval_cell, markdown, picture
from benchmarks.record import RESULTS, write_result
from metajax.evaluation.bank import bank_task
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.inner.lstm_optimizer import lstm_optimizer
from metajax.learners.optimizer.optimizer_learner import optimizer_learner
from metajax.tasks.functions.quadratic import linear, quadratic, row_loss
from metajax.training.outer_gradients import truncated
from metajax.training.trainer import train
from metajax.types import Array, Learner, PyTree, Task

TITLE, FILES = "Learned optimizers on random quadratics", "quadratics"
"""Of its part of the page of results, and the results that it shows."""

BASELINES = {
    "SGD": optax.sgd,
    "Nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "RMSprop": optax.rmsprop,
    "Adam": optax.adam,
}
RATES = 10.0 ** np.arange(-4, 1.01, 0.25)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the experiments are made of."""

    seed: int = 0
    dim: int = 10
    inner_steps: int = 100
    piece: int = 20
    outer_steps: int = 12_000
    outer_rate: float = 3e-3
    """At the start of a cosine."""
    tasks_per_step: int = 64
    num_tuning_tasks: int = 200
    num_test_tasks: int = 100
    rate_steps: tuple[int, ...] = (1, 2, 5, 10)
    """Numbers of steps k of the second experiment."""


def main(settings: Settings) -> None:
    """Runs both and writes the result."""
    rows = compare_with_tuned(settings)
    rows += [learned_rate(settings, steps) for steps in settings.rate_steps]
    write_result("quadratics", dataclasses.asdict(settings), rows)
    draw([row for row in rows if "curve" in row])


def compare_with_tuned(settings: Settings) -> list[dict]:
    """The first experiment: a row for each optimizer, the learned one first."""
    learner = optimizer_learner(
        linear(),
        lstm_optimizer(),
        inner_steps=settings.inner_steps,
        objective=row_loss,
        gradient="first_order",
    )
    result = train(
        learner,
        quadratic(dim=settings.dim),
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(
                optax.cosine_decay_schedule(settings.outer_rate, settings.outer_steps)
            ),
        ),
        steps=settings.outer_steps,
        tasks_per_step=settings.tasks_per_step,
        seed=settings.seed,
        steps_per_dispatch=500,
        log_every=1000,
        mesh=None,
        outer_gradient=truncated(
            learner, inner_steps=settings.piece, num_tasks=settings.tasks_per_step
        ),
        run_dir=f"runs/quadratics-seed{settings.seed}",
        config=dataclasses.asdict(settings),
    )
    tuning = bank(settings, settings.num_tuning_tasks, seed=1)
    test = bank(settings, settings.num_test_tasks, seed=0)
    build = lstm_optimizer().build
    lstm = values(build, result.meta_params.optimizer, test, settings)
    curves: dict[str, tuple[float | None, np.ndarray]] = {"LSTM": (None, lstm)}
    for name, make in BASELINES.items():
        scores = [values(make, r, tuning, settings)[:, -1].mean() for r in RATES]
        best = float(RATES[int(np.nanargmin(scores))])
        curves[name] = (best, values(make, best, test, settings))
    rows = []
    for name, (rate, curve) in curves.items():
        last, gain = curve[:, -1], curve[:, -1] - lstm[:, -1]
        row = {
            "experiment": "tuned optimizers",
            "optimizer": name,
            "rate": rate,
            "mean": float(last.mean()),
            "half_width": half_width(last),
            "median": float(np.median(last)),
            "worse_than_lstm": float(gain.mean()),
            "worse_than_lstm_half_width": half_width(gain),
            "curve": [float(v) for v in curve.mean(axis=0)],
        }
        rows.append(row)
        shown = {key: value for key, value in row.items() if key != "curve"}
        print(shown, flush=True)
    return rows


def bank(settings: Settings, num_tasks: int, seed: int) -> tuple[Task, PyTree]:
    """Problems `[num_tasks]` and where descent on each starts."""
    tasks = quadratic(dim=settings.dim)
    problems = [bank_task(tasks, index, seed=seed) for index in range(num_tasks)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    keys = jax.random.split(jax.random.key(seed), num_tasks)
    return stacked, jax.vmap(linear().init)(keys, stacked.support.x)


def values(
    make: Callable[[PyTree], optax.GradientTransformation],
    hyper: PyTree,
    problems: tuple[Task, PyTree],
    settings: Settings,
) -> np.ndarray:
    """The values of f on the way, `[num_tasks, inner_steps + 1]`."""
    return np.asarray(_values(make, settings.inner_steps, hyper, *problems), float)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _values(
    make: Callable[[PyTree], optax.GradientTransformation],
    steps: int,
    hyper: PyTree,
    tasks: Task,
    thetas: PyTree,
) -> Array:
    optimizer = make(hyper)

    def one(task: Task, theta: Array) -> Array:
        def f(theta: Array) -> Array:
            outputs = linear().apply(theta, task.support.x)
            return jnp.mean(row_loss(outputs, task.support.y))

        def step(carry: PyTree, _: None) -> tuple[PyTree, Array]:
            theta, state = carry
            value, grad = jax.value_and_grad(f)(theta)
            updates, state = optimizer.update(grad, state, theta)
            return (optax.apply_updates(theta, updates), state), value

        start = (theta, optimizer.init(theta))
        (last, _), path = jax.lax.scan(step, start, length=steps)
        return jnp.append(path, f(last))

    return jax.vmap(one)(tasks, thetas)


def learned_rate(settings: Settings, steps: int) -> dict:
    """The second experiment, for one number of steps."""
    rate = HyperParameter(0.01)
    inner_optimizer = learned(optax.sgd, learning_rate=rate)
    learner = optimizer_learner(
        linear(), inner_optimizer, inner_steps=steps, judges="query", objective=row_loss
    )
    with jax.enable_x64(True):  # noqa: FBT003
        tasks, _ = bank(settings, 256, seed=2)
        tasks = jax.tree.map(lambda leaf: leaf.astype(float), tasks)
        keys = jax.random.split(jax.random.key(3), 256)
        problem = jax.jit(lambda params: mean_loss(learner, params, tasks, keys))
        start = learner.init(jax.random.key(0), jax.tree.map(lambda x: x[0], tasks))
        start = jax.tree.map(lambda leaf: leaf.astype(float), start)
        found = descend(problem, start).optimizer["learning_rate"]

        def at(rate: float) -> float:
            return float(problem(start._replace(optimizer={"learning_rate": rate})))

        # The mean over problems has one minimum between 0 and where SGD diverges.
        grid = np.geomspace(1e-4, 1, 200)
        best = int(np.nanargmin([at(r) for r in grid]))
        bracket = (grid[max(best - 1, 0)], grid[min(best + 1, 199)])
        searched = scipy.optimize.minimize_scalar(
            at, bounds=bracket, method="bounded", options={"xatol": 1e-9}
        ).x
    row = {
        "experiment": "learned rate",
        "inner_steps": steps,
        "learned": float(found),
        "searched": float(searched),
        "difference": abs(float(found) - float(searched)),
    }
    print(row, flush=True)
    return row


def mean_loss(learner: Learner, params: PyTree, tasks: Task, keys: Array) -> Array:
    """The outer loss over all problems."""
    losses = jax.vmap(lambda task, key: learner.loss(params, task, key=key)[0])
    return jnp.mean(losses(tasks, keys))


def descend(problem: jax.stages.Wrapped, params: PyTree) -> PyTree:
    """The minimum, by L-BFGS."""
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(problem)

    def step(carry: tuple[PyTree, PyTree], _: None) -> tuple:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=problem
        )
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=50))(start)
    return params


def half_width(numbers: np.ndarray) -> float:
    """Of the 95 % interval of a mean."""
    return float(1.96 * numbers.std(ddof=1) / np.sqrt(len(numbers)))


def draw(rows: list[dict]) -> None:
    """Curves of the first experiment."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for row in rows:
        is_learned = row["rate"] is None
        label = f"{row['optimizer']}, " + (
            "learned" if is_learned else f"rate {row['rate']:.2g}"
        )
        axes.plot(row["curve"], label=label, linewidth=2.5 if is_learned else 1.2)
    axes.set(
        xlabel="step",
        ylabel="f, mean over test problems",
        yscale="log",
        title="random quadratics in 10 dimensions",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(RESULTS / "quadratics.png", dpi=120)
    plt.close(figure)


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(path, record)] = records
    settings, results = record["settings"], record["results"]
    tuned = [r for r in results if r["experiment"] == "tuned optimizers"]
    rows = [
        [
            r["optimizer"],
            "learned" if r["rate"] is None else f"{r['rate']:.3g}",
            interval_cell(r, 4),
            f"{r['median']:.4f}",
            ""
            if r["rate"] is None
            else f"{r['worse_than_lstm']:.4f} ± {r['worse_than_lstm_half_width']:.4f}",
        ]
        for r in tuned
    ]
    found = [r for r in results if r["experiment"] == "learned rate"]
    rates = [
        [
            r["inner_steps"],
            f"{r['learned']:.6f}",
            f"{r['searched']:.6f}",
            f"{r['difference']:.0e}",
        ]
        for r in found
    ]
    return "\n".join(
        [
            f"The value after {settings['inner_steps']} steps on "
            f"{settings['num_test_tasks']} fresh problems in {settings['dim']} "
            "dimensions; rates are the best of a grid on other problems.\n",
            markdown(["optimizer", "rate", "mean", "median", "above the LSTM"], rows),
            picture(path),
            "The best rate for k steps of SGD, learned through the steps, against a "
            "search on the same problems:\n",
            markdown(["k", "learned", "searched", "difference"], rates),
        ]
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
