"""Heads that a solver fits: against scikit-learn on the same embeddings, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import PADDING, WAY, Entry, pad, sample, small_mlp
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC

import metajax
from metajax.types import Task

ENTRIES = {
    "ridge": Entry(lambda: metajax.learners.ridge(small_mlp(5), way=WAY)),
    "ridge, more columns than rows": Entry(
        lambda: metajax.learners.ridge(small_mlp(15, "support"), learn_strength=False),
        laws=PADDING,
    ),
    "logistic": Entry(lambda: metajax.learners.logistic(small_mlp(5), way=4)),
    # Steps until what is left of the solver's error is rounding, as logits amplify it.
    "svm": Entry(
        lambda: metajax.learners.svm(
            small_mlp(8), way=4, learn_penalty=True, iterations=2000
        )
    ),
}

LEARNERS = {
    "ridge": metajax.learners.ridge,
    "logistic": metajax.learners.logistic,
    "svm": metajax.learners.svm,
}
NUMBERS = {"ridge": "strength", "logistic": "strength", "svm": "penalty"}


def with_ones(x):
    return np.concatenate([np.asarray(x), np.ones((len(x), 1))], axis=1)


def fitted(name, number, key):
    """Logits of the queries, and those of scikit-learn, of three of four classes."""
    task = sample(key)
    steps = {} if name == "ridge" else {"iterations": 1000}
    learner = LEARNERS[name](
        metajax.models.identity(), way=4, scale=1.0, **{NUMBERS[name]: number}, **steps
    )
    adapted = learner.adapt(learner.init(key, task), pad(task.support, 2))
    logits = np.asarray(learner.predict(adapted, task.query.x))
    x, y = with_ones(task.support.x), np.asarray(task.support.y)
    if name == "ridge":
        weights = Ridge(alpha=number, fit_intercept=False).fit(x, np.eye(3)[y]).coef_
    elif name == "logistic":
        weights = np.concatenate(
            [
                LogisticRegression(C=1 / number, fit_intercept=False, tol=1e-8)
                .fit(x, y == k)
                .coef_
                for k in range(3)
            ]
        )
    else:
        machine = LinearSVC(
            C=number,
            multi_class="crammer_singer",
            fit_intercept=False,
            tol=1e-8,
            max_iter=10**6,
        )
        weights = machine.fit(x, y).coef_
    return logits, with_ones(task.query.x) @ weights.T


@pytest.mark.parametrize(
    ("name", "number"), [("ridge", 0.5), ("logistic", 0.5), ("svm", 0.1), ("svm", 1.0)]
)
def test_logits_are_those_of_scikit_learn(name, number, key):
    logits, expected = fitted(name, number, key)
    np.testing.assert_allclose(logits[:, :3], expected, rtol=1e-3, atol=2e-3)
    assert np.all(np.isneginf(logits[:, 3]))


@pytest.mark.parametrize("name", LEARNERS)
def test_numbers_are_learned_if_asked(name, key):
    task, number = sample(key), NUMBERS[name]
    for learns in (True, False):
        learner = LEARNERS[name](
            metajax.models.identity(), way=3, **{number: 0.3, f"learn_{number}": learns}
        )
        head = learner.init(key, task).head
        assert (f"log_{number}" in head) == learns
    learner = LEARNERS[name](
        metajax.models.identity(), way=3, **{f"learn_{number}": True}
    )
    gradient = jax.grad(lambda p: learner.loss(p, task)[0])(learner.init(key, task))
    assert gradient.head[f"log_{number}"] != 0
    assert gradient.head["log_scale"] != 0


@pytest.mark.parametrize(
    ("name", "metric"), [("logistic", "solver_residual"), ("svm", "duality_gap")]
)
def test_loss_says_how_far_the_solver_got(name, metric, key):
    task = sample(key)
    few, many = (
        LEARNERS[name](metajax.models.identity(), way=3, iterations=steps)
        for steps in (1, 500)
    )
    meta_params = few.init(key, task)
    assert few.loss(meta_params, task)[1][metric] > 1e-3
    assert abs(many.loss(meta_params, task)[1][metric]) < 1e-4


def test_gap_is_between_primal_and_dual(key):
    """It bounds how far the primal is from its least value."""
    task = sample(key)
    x, y = with_ones(task.support.x), np.asarray(task.support.y)

    def primal(weights):
        scores = x @ weights
        margins = scores + 1 - np.eye(3)[y] - scores[np.arange(len(y)), y][:, None]
        return np.sum(weights**2) / 2 + 0.1 * margins.max(1).sum()

    values, gaps = [], []
    for steps in (2, 5, 1000):
        learner = metajax.learners.svm(
            metajax.models.identity(), way=3, iterations=steps
        )
        meta_params = learner.init(key, task)
        values.append(
            primal(np.asarray(learner.adapt(meta_params, task.support).fitted))
        )
        gaps.append(learner.loss(meta_params, task)[1]["duality_gap"])
    assert gaps[0] > gaps[1] > gaps[2]
    for value, gap in zip(values[:2], gaps[:2], strict=True):
        assert 0 < value - values[2] <= gap * value * 1.001


def test_nothing_to_solve_has_no_gap(key):
    """All rows are of one class."""
    task = sample(key)
    support = task.support._replace(y=jnp.zeros_like(task.support.y))
    task = Task(support, support)
    learner = metajax.learners.svm(metajax.models.identity(), way=2)
    _, metrics = learner.loss(learner.init(key, task), task)
    assert metrics["duality_gap"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_bad_configuration_is_explained(name):
    number = NUMBERS[name]
    for changes, message in (
        ({number: 0.0}, f"`{number}` must be above 0 and finite, got 0.0"),
        ({"scale": -1}, "`scale` must be above 0 and finite, got -1"),
        ({"way": 0}, "`way` must be an integer of at least 1, .*got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            LEARNERS[name](metajax.models.identity(), **changes)
    if name != "ridge":
        with pytest.raises(
            ValueError, match="`iterations` must be an integer of at least"
        ):
            LEARNERS[name](metajax.models.identity(), iterations=0)


def test_identity_gives_floats(key):
    model = metajax.models.identity()
    outputs = model.apply(model.init(key, None), jnp.array([[1, 2]], jnp.int32))
    assert outputs.dtype == jnp.float32
