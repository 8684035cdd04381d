"""The machine against scikit-learn's, its derivatives, padding, errors, learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import WAY, Entry, pad, sample
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC

import metajax
from metajax.learners.solver.kernel_svm import LEARNED, kernel_svm
from metajax.types import Examples, Task

ENTRIES = {
    "kernel_svm": Entry(lambda: metajax.learners.kernel_svm(way=WAY)),
    "kernel_svm, linear": Entry(
        lambda: metajax.learners.kernel_svm(
            way=4, kernel="linear", learn=("penalty", "scale")
        )
    ),
}

NUM, SIZE = 24, 4


def table(seed=0, way=2, num=NUM):
    """Noisy labels that hang on the first two columns; 15 queries."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(num + 15, SIZE)).astype(np.float32)
    total = x[:, 0] + 0.5 * x[:, 1] ** 2 + 0.5 * generator.normal(size=len(x))
    order = np.argsort(np.argsort(total))
    y = (order * way // len(x)).astype(np.int32)
    return Task(Examples(x[:num], y[:num]), Examples(x[num:], y[num:]))


def spread(x):
    return np.sum(np.var(x, axis=0))


@functools.lru_cache
def program(kernel, way, steps=2000):
    """Logits at any numbers, and the gap: one compilation for all of them."""
    learner = kernel_svm(kernel=kernel, way=way, iterations=steps)

    def answer(head, task):
        meta_params = learner.init(jax.random.key(0), task)._replace(head=head)
        adapted = learner.adapt(meta_params, task.support)
        gap = learner.loss(meta_params, task)[1]["duality_gap"]
        return learner.predict(adapted, task.query.x), gap

    return jax.jit(answer)


def numbers(
    penalty=1.0,
    width=(1.0,),
    scales=(1.0,) * SIZE,
    scale=1.0,
    weights=(1.0,),
    relevance=(0.0,),
):
    values = {"penalty": penalty, "width": width, "weights": weights}
    values |= {"scales": scales, "scale": scale}
    logarithms = {f"log_{k}": jnp.log(jnp.float32(v)) for k, v in values.items()}
    return logarithms | {"relevance": jnp.float32(relevance)}


def machine(kernel, penalty, width, x):
    """Scikit-learn's, for rows that are divided by the width for a linear kernel."""
    gamma = 1 / (width**2 * spread(x))
    if kernel == "linear":
        penalty *= gamma
    return SVC(C=penalty, kernel=kernel, gamma=gamma, tol=1e-8)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
@pytest.mark.parametrize("penalty", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("width", [0.5, 2.0])
def test_two_classes_are_those_of_scikit_learn(kernel, penalty, width):
    task = table()
    head = numbers(penalty, (width,), scale=3.0)
    logits, gap = program(kernel, 2)(head, task)
    x = task.support.x
    expected = machine(kernel, penalty, width, x).fit(x, task.support.y)
    decisions = expected.decision_function(task.query.x)
    np.testing.assert_allclose(logits[:, 1] / 3, decisions, atol=1e-3)
    np.testing.assert_allclose(logits[:, 0] / 3, -decisions, atol=1e-3)
    answers = np.argmax(logits, axis=1)
    is_clear = np.abs(decisions) > 1e-3
    assert is_clear.sum() > 10
    np.testing.assert_array_equal(
        answers[is_clear], expected.predict(task.query.x)[is_clear]
    )
    assert abs(gap) < 1e-4


def test_bias_lies_in_the_middle_where_no_row_is_free():
    """All rows at C: LIBSVM and we take the middle of where the bias may lie."""
    x = np.asarray([[0.0], [0.4], [1.0], [1.2]], np.float32)
    x = np.repeat(x, SIZE, axis=1)
    y = np.asarray([0, 0, 1, 1], np.int32)
    task = Task(Examples(x, y), Examples(x, y))
    logits, _ = program("rbf", 2)(numbers(0.01), task)
    expected = machine("rbf", 0.01, 1.0, x).fit(x, y)
    assert np.all(np.abs(expected.dual_coef_) == 0.01)
    np.testing.assert_allclose(logits[:, 1], expected.decision_function(x), atol=1e-5)


def test_wide_kernels_at_a_low_penalty():
    """What rounding leaves off an end by 3e-5 of C once passed for a free row."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20, 3))
    y = (x[:, 0] + 0.7 * generator.normal(size=20) > 0).astype(np.int32)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    task = Task(Examples(x, y), Examples(x, y))
    logits, _ = program("rbf", 2)(numbers(0.01, (10.0,), (1.0,) * 3), task)
    expected = machine("rbf", 0.01, 10.0, x).fit(x, y).decision_function(x)
    np.testing.assert_allclose(logits[:, 1], expected, atol=1e-3)


def test_more_classes_are_one_against_the_rest():
    task = table(way=3)
    logits, _ = program("rbf", 4)(numbers(2.0), task)
    x = task.support.x
    expected = OneVsRestClassifier(machine("rbf", 2.0, 1.0, x)).fit(x, task.support.y)
    decisions = expected.decision_function(task.query.x)
    np.testing.assert_allclose(logits[:, :3], decisions, atol=1e-3)
    assert np.all(np.isneginf(logits[:, 3]))


def test_scales_are_of_columns():
    """A learned scale is as if the column had been multiplied before."""
    task, factors = table(), np.asarray([2.0, 1.0, 0.5, 0.25], np.float32)
    logits, _ = program("rbf", 2)(numbers(scales=factors), task)
    stretched = jax.tree.map(lambda a: a * factors if a.ndim == 2 else a, task)
    expected, _ = program("rbf", 2)(numbers(), stretched)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    # A factor of all scales is none.
    doubled, _ = program("rbf", 2)(numbers(scales=2 * factors), task)
    np.testing.assert_allclose(logits, doubled, atol=1e-4)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_a_mix_is_that_of_scikit_learn_on_the_mixed_kernel(kernel):
    """Two widths and powers with weights 1 : 3, by NumPy, for three classes."""
    task = table(way=3)
    x, y, others = task.support.x, task.support.y, task.query.x
    widths, powers, shares = (0.7, 1.5), (0.0, 0.5), (0.25, 0.75)
    means = np.stack([x[y == c].mean(axis=0) for c in range(3)])
    between = np.square(means[y] - x.mean(axis=0)).sum(axis=0)
    relevance = between / np.square(x - x.mean(axis=0)).sum(axis=0) + 1 / len(x)

    def gram(rows):
        total = 0.0
        for width, power, share in zip(widths, powers, shares, strict=True):
            factors = relevance**power
            factors /= width * np.sqrt(spread(x * factors))
            z, z_support = ((r - x.mean(axis=0)) * factors for r in (rows, x))
            if kernel == "linear":
                total += share * z @ z_support.T
            else:
                apart = z[:, None] - z_support[None]
                total += share * np.exp(-np.square(apart).sum(axis=-1))
        return total

    head = numbers(
        2.0, widths, weights=np.multiply(8.0, shares), relevance=np.float32(powers)
    )
    logits, _ = program(kernel, 3)(head, task)
    svc = SVC(C=2.0, kernel="precomputed", tol=1e-8)
    expected = OneVsRestClassifier(svc).fit(gram(x), y)
    decisions = expected.decision_function(gram(others))
    np.testing.assert_allclose(logits, decisions, atol=1e-3)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_rows_and_columns_of_padding_change_nothing(kernel, key):
    task = sample(key)
    learner = kernel_svm(kernel=kernel, way=3, iterations=100)
    gradient = jax.jit(jax.value_and_grad(learner.loss, has_aux=True))
    (loss, metrics), slope = gradient(learner.init(key, task), task)
    other = jax.tree.map(
        lambda a: jnp.pad(a, ((0, 0), (0, 2))) if a.ndim == 2 else a,
        Task(pad(task.support, 3), pad(task.query, 4)),
    )
    (value, found), got = gradient(learner.init(key, other), other)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], metrics["accuracy"])
    for name, theirs in slope.head.items():
        ours = got.head[name]
        if name == "log_scales":
            np.testing.assert_array_equal(ours[SIZE:], 0)
            ours = ours[:SIZE]
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_gradient_is_that_of_finite_differences(kernel):
    with jax.enable_x64(True):
        task = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64 if a.ndim == 2 else a.dtype), table()
        )
        learner = kernel_svm(kernel=kernel, way=2, width=(1, 1), iterations=3000)
        start = learner.init(jax.random.key(0), task)
        head = {
            "log_penalty": jnp.float64(0.3),
            "log_width": jnp.asarray([-0.2, 0.5], jnp.float64),
            "log_weights": jnp.asarray([0.3, -0.1], jnp.float64),
            "relevance": jnp.asarray([0.1, 0.6], jnp.float64),
            "log_scale": jnp.float64(0.4),
            "log_scales": jnp.asarray([0.2, -0.1, 0.3, -0.4], jnp.float64),
        }
        loss = jax.jit(lambda h: learner.loss(start._replace(head=h), task)[0])
        slope = jax.jit(jax.grad(loss))(head)
        assert slope["log_penalty"].dtype == jnp.float64
        step = 1e-5
        for name, value in head.items():
            for place in np.ndindex(value.shape):
                ends = [
                    loss(head | {name: value.at[place].add(change)})
                    for change in (step, -step)
                ]
                expected = (ends[0] - ends[1]) / (2 * step)
                assert abs(expected) > 1e-4
                np.testing.assert_allclose(
                    slope[name][place], expected, rtol=1e-4, err_msg=f"{name}{place}"
                )


def test_gradient_where_no_row_is_free():
    """Variables stay at their ends; what moves is the middle, and C."""
    with jax.enable_x64(True):
        x = jnp.asarray([[0.0, 1.0], [0.4, 0.2], [1.0, 0.7], [1.2, 0.1]], jnp.float64)
        y = jnp.asarray([0, 0, 1, 1])
        task = Task(Examples(x, y), Examples(x + 0.3, y))
        learner = kernel_svm(
            way=2, penalty=0.01, learn=("penalty", "width"), iterations=500
        )
        start = learner.init(jax.random.key(0), task)
        head = jax.tree.map(lambda v: v.astype(jnp.float64), start.head)
        loss = jax.jit(lambda h: learner.loss(start._replace(head=h), task)[0])
        slope = jax.grad(loss)(head)
        for name, value in head.items():
            ends = [loss(head | {name: value + change}) for change in (1e-5, -1e-5)]
            expected = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(jnp.sum(slope[name]), expected, rtol=1e-4)


def test_loss_says_how_far_the_solver_got():
    task, head = table(), numbers(20.0)
    gaps = [float(program("rbf", 2, steps)(head, task)[1]) for steps in (3, 30, 2000)]
    assert gaps[0] > gaps[1] > 1e-3
    assert abs(gaps[2]) < 1e-4


def test_one_class_only():
    """All queries are of it, and nothing is NaN, not even for rows that agree."""
    x = np.ones((3, SIZE), np.float32)
    y = np.ones(3, np.int32)
    task = Task(Examples(x, y), Examples(x + 1, y))
    learner = kernel_svm(way=2, iterations=5)
    meta_params = learner.init(jax.random.key(0), task)
    gradient = jax.jit(jax.value_and_grad(learner.loss, has_aux=True))
    (loss, metrics), slope = gradient(meta_params, task)
    assert loss == 0
    assert metrics["accuracy"] == 1
    assert metrics["duality_gap"] == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("learned", [(), ("scale",), ("width", "penalty"), LEARNED])
def test_only_what_is_asked_is_learned(learned, key):
    task = sample(key)
    learner = kernel_svm(way=3, penalty=0.5, width=2.0, scale=3.0, learn=learned)
    head = learner.init(key, task).head
    assert {name.removeprefix("log_") for name in head} == set(learned)
    for name, value in (("penalty", 0.5), ("width", 2.0), ("scale", 3.0)):
        if name in learned:
            np.testing.assert_allclose(head[f"log_{name}"], np.log(value), rtol=1e-6)


def test_learning_finds_the_column_that_matters():
    """One column of four carries the label; the query loss falls, and it grows."""

    def tasks(key):
        key_x, key_side = jax.random.split(key)
        x = jax.random.normal(key_x, (60, SIZE))
        # Which side is which class is new in each task, and so are all rows.
        side = jax.random.bernoulli(key_side)
        y = ((x[:, 2] > 0) ^ side).astype(jnp.int32)
        return Task(Examples(x[:20], y[:20]), Examples(x[20:], y[20:]))

    learner = kernel_svm(way=2, iterations=100)
    result = metajax.train(
        learner,
        tasks,
        optax.adam(0.1),
        steps=40,
        tasks_per_step=8,
        steps_per_dispatch=10,
        log_every=10,
        progress=False,
    )
    losses = [record["loss"] for record in result.history]
    assert losses[-1] < 0.5 * losses[0]
    scales = np.exp(result.meta_params.head["log_scales"])
    assert np.argmax(scales) == 2
    assert scales[2] > 3 * np.delete(scales, 2).max()


BAD = {
    "kernel": ({"kernel": "poly"}, "`kernel` must be one of rbf, linear, got 'poly'"),
    "penalty": ({"penalty": 0.0}, "`penalty` must be above 0 and finite, got 0.0"),
    "width": ({"width": 0}, "`width` must be above 0 and finite, got 0"),
    "scale": ({"scale": -1.0}, "`scale` must be above 0 and finite, got -1.0"),
    "infinite": ({"penalty": float("inf")}, "`penalty` must be above 0 and finite"),
    "iterations": (
        {"iterations": 0},
        "`iterations` must be an integer of at least 1, got 0",
    ),
    "way": ({"way": 0}, "`way` must be an integer of at least 1, .*got 0"),
    "widths": ({"width": (1, -1)}, "`width` must be above 0 and finite, got -1"),
    "no width": ({"width": ()}, "`width` must have at least one number, got none"),
    "relevance": (
        {"width": (1, 2, 3), "relevance": (0, 1)},
        r"one for each of the 3 widths, got \(0, 1\)",
    ),
    "infinite power": ({"relevance": float("nan")}, "`relevance` must be one finite"),
    "learn": ({"learn": ("C",)}, "`learn` must be one of penalty, width, relevance, "),
    "word": ({"learn": "width"}, "list of names, got the one word 'width'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_configuration_is_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        kernel_svm(**{"way": 2} | changes)


def test_bad_inputs_are_explained(key):
    task = sample(key)
    learner = kernel_svm(way=3)
    meta_params = learner.init(key, task)
    for shape in ((6, 2, 2), (6, 0)):
        support = Examples(jnp.zeros(shape), task.support.y)
        with pytest.raises(ValueError, match=r"`\[n, D\]` with D of at least 1, got"):
            learner.adapt(meta_params, support)
    narrow = Examples(task.support.x[:, :3], task.support.y)
    with pytest.raises(ValueError, match="`scales` were made for 4 columns, and"):
        learner.adapt(meta_params, narrow)
