"""What solvers say of their error, against optima in double precision.

Problems are easy and hard: features of one scale or of very different ones, penalties
and strengths from lenient to strict, few iterations and many.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.svm import SVC, LinearSVC

import metajax
from metajax.learners.solver.kernel_svm import kernel_svm
from metajax.types import Examples, Task

WAY, SHOT, SIZE = 3, 8, 5
SCALES = (1.0, 30.0)  # of the first column; others keep to 1


@functools.cache
def task(scale: float, shift: float) -> Task:
    """Classes `shift` apart in the second column."""
    generator = np.random.default_rng(int(scale + 10 * shift))
    y = np.repeat(np.arange(WAY), SHOT)
    x = generator.normal(size=(len(y), SIZE))
    x[:, 1] += shift * y
    x[:, 0] *= scale
    examples = Examples(x.astype(np.float32), y.astype(np.int32))
    return Task(examples, examples)


def with_ones(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x.astype(np.float64), np.ones((len(x), 1))], axis=1)


@functools.cache
def program(name: str, number: float, iterations: int):
    """Fitted weights or machine, and what the loss reports."""
    if name == "kernel_svm":
        learner = kernel_svm(
            way=2, kernel="linear", penalty=number, iterations=iterations, learn=()
        )
    else:
        what = {"svm": "penalty", "logistic": "strength"}[name]
        learner = getattr(metajax.learners, name)(
            metajax.models.identity(), way=WAY, iterations=iterations, **{what: number}
        )

    @jax.jit
    def run(task):
        meta_params = learner.init(jax.random.key(0), task)
        fitted = learner.adapt(meta_params, task.support).fitted
        return fitted, learner.loss(meta_params, task)[1]

    return run


def svm_optimum(task: Task, penalty: float) -> np.ndarray:
    """By LIBLINEAR, whose own gap says that it is an optimum."""
    x, y = with_ones(task.support.x), task.support.y
    machine = LinearSVC(
        C=penalty,
        multi_class="crammer_singer",
        fit_intercept=False,
        tol=1e-10,
        max_iter=10**7,
    )
    return machine.fit(x, y).coef_.T


def logistic_optimum(task: Task, strength: float) -> np.ndarray:
    x, y = with_ones(task.support.x), np.asarray(task.support.y)
    columns = []
    for k in range(WAY):
        signs = np.where(y == k, 1.0, -1.0)

        def loss(w, signs=signs):
            margins = signs * (x @ w)
            value = np.logaddexp(0, -margins).sum() + strength / 2 * w @ w
            return value, strength * w - x.T @ (signs * expit(-margins))

        def curvature(w, signs=signs):
            chance = expit(-signs * (x @ w))
            weights = (chance * (1 - chance))[:, None]
            return x.T @ (weights * x) + strength * np.eye(x.shape[1])

        w = np.zeros(x.shape[1])
        for _ in range(3):
            found = minimize(
                loss,
                w,
                jac=True,
                hess=curvature,
                method="trust-exact",
                options={"gtol": 1e-12 * max(1, strength)},
            )
            w = found.x - np.linalg.solve(curvature(found.x), loss(found.x)[1])
        columns.append(w)
    return np.stack(columns, axis=1)


def linear_errors(name, optimum, number, iterations, scale, shift):
    """The largest true error of the weights, and what was reported."""
    of = task(scale, shift)
    fitted, metrics = program(name, number, iterations)(of)
    weights = np.asarray(fitted, np.float64)
    away = weights - optimum(of, number)
    if name == "logistic":  # class by class
        errors = np.linalg.norm(away, axis=0) / np.linalg.norm(weights, axis=0)
        return errors.max(), metrics
    return np.linalg.norm(away) / np.linalg.norm(weights), metrics


OPTIMA = {"svm": svm_optimum, "logistic": logistic_optimum}
GRIDS = {
    "svm": ((0.01, 0.1, 1.0), (5, 50, 1000, 10000)),
    "logistic": ((10.0, 0.5, 0.01, 1e-4), (1, 3, 10)),
}


@pytest.mark.parametrize("name", OPTIMA)
def test_weights_are_as_near_as_the_loss_says(name):
    numbers, iterations = GRIDS[name]
    rows = []
    for number, steps, scale, shift in itertools.product(
        numbers, iterations, SCALES, (0.5, 4.0)
    ):
        error, metrics = linear_errors(name, OPTIMA[name], number, steps, scale, shift)
        rows.append((error, float(metrics["coefficient_error"]), number, steps, scale))
        assert not error > rows[-1][1], rows[-1]
    bounds = np.asarray([row[1] for row in rows])
    assert 0.15 < np.mean(bounds <= 0.01) < 0.9  # it passes some, and not all


def test_a_small_gap_does_not_do_for_weights():
    """The gap is 0.01 % of the primal here, and weights are off by 3 %."""
    error, metrics = linear_errors("svm", svm_optimum, 0.01, 50, 1.0, 0.5)
    assert metrics["duality_gap"] < 1e-4
    assert error > 0.01
    assert metrics["coefficient_error"] > 0.01


def test_machines_with_a_bias_are_as_near_as_the_loss_says():
    bounds = []
    for number, steps, scale, shift in itertools.product(
        (0.1, 1.0, 20.0), (5, 50, 1000, 10000), SCALES, (0.5, 4.0)
    ):
        of = task(scale, shift)
        support = of.support._replace(y=(of.support.y > 0).astype(np.int32))
        machine, metrics = program("kernel_svm", number, steps)(Task(support, support))
        rows = np.asarray(machine.rows[0], np.float64)
        found = rows.T @ np.asarray(machine.weights[:, 1], np.float64)
        oracle = SVC(C=number, kernel="linear", tol=1e-10).fit(rows, support.y)
        error = np.linalg.norm(found - oracle.coef_[0]) / np.linalg.norm(found)
        bounds.append(float(metrics["coefficient_error"]))
        assert not error > bounds[-1], (error, bounds[-1], number, steps, scale)
    assert 0.2 < np.mean(np.asarray(bounds) <= 0.01) < 0.9


@pytest.mark.parametrize("name", OPTIMA)
def test_usual_settings_pass_the_bound(name):
    """Wide apart classes and the learner's own number, so no false alarms."""
    number, steps = {"svm": (0.1, 500), "logistic": (1.0, 10)}[name]
    _, metrics = linear_errors(name, OPTIMA[name], number, steps, 1.0, 4.0)
    assert metrics["coefficient_error"] < 0.01


def test_what_is_not_a_number_has_no_small_error():
    of = task(1.0, 0.5)
    broken = of.support._replace(x=of.support.x * np.nan)
    for name in OPTIMA:
        _, metrics = program(name, 1.0, 10)(Task(broken, of.query))
        assert np.isnan(metrics["coefficient_error"])
