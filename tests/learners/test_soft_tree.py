"""The tree against scikit-learn's, its hardening, derivatives, units, learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.tree import DecisionTreeClassifier

import metajax
from metajax.decision_tree import decide, depth_of, leaf_of, level_slices
from metajax.learners.solver import soft_tree as module
from metajax.learners.solver.soft_tree import FEATURES, harden, soft_tree
from metajax.types import Examples, Task

NUM, SIZE, WAY = 40, 3, 3


def table(seed=0, num=NUM, wrong=0.1):
    """Three classes by two of the columns, with wrong labels; 20 queries."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(num + 20, SIZE)).astype(np.float32)
    y = np.where(x[:, 0] > 0.3, 0, 1 + (x[:, 1] + 0.3 * x[:, 0] > 0))
    is_wrong = generator.random(len(x)) < wrong
    y = np.where(is_wrong, generator.integers(0, WAY, len(x)), y).astype(np.int32)
    return Task(Examples(x[:num], y[:num]), Examples(x[num:], y[num:]))


@functools.lru_cache
def program(steps=0):
    """Soft logits, the hard tree, the loss: one compilation for all numbers."""
    learner = soft_tree(way=WAY, steps=steps, hidden=4)

    def answer(head, task):
        meta_params = learner.init(jax.random.key(0), task)
        meta_params = meta_params._replace(head=meta_params.head | head)
        adapted = learner.adapt(meta_params, task.support)
        loss, metrics = learner.loss(meta_params, task)
        logits = learner.predict(adapted, task.query.x)
        return logits, harden(adapted), adapted.fitted, loss, metrics

    return jax.jit(answer)


def log(**numbers):
    return {f"log_{name}": jnp.log(jnp.float32(v)) for name, v in numbers.items()}


def cart(support, **settings):
    tree = DecisionTreeClassifier(criterion="entropy", random_state=0, **settings)
    return tree.fit(support.x, support.y)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("leaf", [1, 4])
def test_hardened_at_first_it_is_cart(seed, leaf):
    # So many rows that no two splits are equally good.
    task = table(seed, num=120, wrong=0.5)
    # What lightness costs is for leaves that are allowed, and CART has no such price.
    numbers = log(min_mass=leaf, penalty=1e-9, smoothing=1e-6)
    _, tree, *_ = program()(numbers, task)
    expected = cart(task.support, max_depth=3, min_samples_leaf=leaf)
    assert depth_of(tree) == expected.get_depth() == 3
    found = decide(tree, task.query.x)
    np.testing.assert_allclose(found, expected.predict_proba(task.query.x), atol=1e-4)
    root = expected.tree_.feature[0], expected.tree_.threshold[0]
    np.testing.assert_allclose([tree.column[0], tree.threshold[0]], root, rtol=1e-6)
    # Both put the support rows into the same leaves, whatever these are called.
    leaves = np.asarray(leaf_of(tree, task.support.x)), expected.apply(task.support.x)
    pairs = set(zip(*leaves, strict=True))
    assert len(pairs) == len(set(leaves[0])) == len(set(leaves[1])) > 4


@pytest.mark.parametrize("gate", [20.0, -20.0])
def test_hardening_keeps_answers_where_gates_saturate(gate):
    task = table()
    gates = jnp.asarray([20.0, 20.0, gate])
    numbers = log(temperature=1e-6, sharpness=1e3) | {"depth_gates": gates}
    logits, tree, fitted, *_ = program()(numbers, task)
    assert depth_of(tree) == (3 if gate > 0 else 2)
    hard = decide(tree, task.query.x)
    np.testing.assert_allclose(jnp.exp(logits), hard, atol=1e-5)
    ours, theirs = fitted.probabilities[:3], tree.probabilities[:3]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # It says something: with wide sigmoids both differ.
    logits, *_ = program()(numbers | log(temperature=0.5), task)
    assert np.max(np.abs(jnp.exp(logits) - hard)) > 0.1


def test_loss_reports_the_hard_tree():
    task = table()
    logits, tree, _, loss, metrics = program()({}, task)
    own = np.arange(len(task.query.y)), task.query.y
    np.testing.assert_allclose(loss, -np.mean(logits[own]), rtol=1e-5)
    hard = np.argmax(decide(tree, task.query.x), axis=1)
    is_right = hard == task.query.y
    np.testing.assert_allclose(metrics["hard_accuracy"], is_right.mean(), rtol=1e-6)
    assert np.any(hard != np.argmax(logits, axis=1))


def test_stick_of_depth():
    """Labels at random, so that no node is pure: every row may go on everywhere."""
    task = table(num=120, wrong=1.0)
    gates = jnp.asarray([1.0, 0.2, -0.5])
    *_, metrics = program()({"depth_gates": gates}, task)
    expected = np.sum(np.cumprod(jax.nn.sigmoid(gates)))
    np.testing.assert_allclose(metrics["expected_depth"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["hard_depth"], 2, rtol=1e-6)


def test_a_closed_tree_answers_by_the_shares_of_classes():
    task = table()
    numbers = log(smoothing=2.0) | {"depth_gates": jnp.full(3, -1e3)}
    logits, tree, *_ = program()(numbers, task)
    shares = (np.bincount(task.support.y) + 2 / WAY) / (NUM + 2)
    np.testing.assert_allclose(jnp.exp(logits), np.tile(shares, (20, 1)), rtol=1e-5)
    np.testing.assert_allclose(decide(tree, task.query.x)[0], shares, rtol=1e-5)
    assert depth_of(tree) == 0


@pytest.mark.parametrize("min_mass", [1.0, 2.4, 2.6, 6.0])
def test_no_leaf_is_lighter_than_the_least(min_mass):
    _, tree, *_ = program()(log(min_mass=min_mass), table())
    is_split, mass = np.asarray(tree.is_split), np.asarray(tree.mass)
    children = np.concatenate([mass[1::2][is_split], mass[2::2][is_split]])
    assert children.min() >= round(min_mass)
    assert len(children) >= 6


def test_inner_loss_takes_each_row_out_of_its_leaves():
    task = table(num=12)
    *_, fitted, _, _ = program(2)({}, task)
    levels = level_slices(3)
    left, gates = module._choices(fitted, fitted.rows)
    reach, stop = module._routes(left, gates, levels)
    is_real = jnp.ones(12, bool)
    found = module._support_loss(fitted, is_real, levels)
    losses = []
    for row, label in enumerate(task.support.y):
        without = fitted.one_hot.at[row].set(0)
        # All classes are still there, or the root's parent would be another.
        assert np.all(np.sum(without, axis=0) > 0)
        tree = fitted._replace(one_hot=without)
        answer = stop[row] @ module._probabilities(tree, reach, levels)
        losses.append(-np.log(answer[label]))
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


def test_inner_steps_descend():
    task = table()
    losses = []
    for steps in (0, 2):
        *_, fitted, _, _ = program(steps)({}, task)
        real = jnp.ones(NUM, bool)
        losses.append(module._support_loss(fitted, real, level_slices(3)))
    assert losses[1] < losses[0] - 1e-3


def test_columns_may_stand_in_any_order_and_unit():
    task = table()
    order = np.asarray([2, 0, 1])
    factor = np.asarray([100.0, 0.25, 3.0], np.float32)

    def other(x):
        wide = np.pad(x[:, order] * factor + 5 * factor, ((0, 0), (0, 2)))
        return wide.astype(np.float32)

    moved = task._replace(
        support=task.support._replace(x=other(task.support.x)),
        query=task.query._replace(x=other(task.query.x)),
    )
    weights = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    numbers = {"weights_out": weights[0], "bias": weights[1]}
    logits, tree, *_ = program(2)(numbers, task)
    expected, moved_tree, *_ = program(2)(numbers, moved)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(
        decide(tree, task.query.x), decide(moved_tree, moved.query.x), atol=1e-5
    )
    kept = np.asarray(tree.is_split)
    column = np.asarray(moved_tree.column)[kept]
    np.testing.assert_array_equal(order[column], np.asarray(tree.column)[kept])


def test_gradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        task = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64 if a.ndim == 2 else a.dtype),
            table(num=14),
        )
        learner = soft_tree(way=WAY, depth=2, steps=2, hidden=2)
        start = learner.init(jax.random.key(0), task)
        leaves, structure = jax.tree.flatten(start)
        generator = np.random.default_rng(0)
        point = structure.unflatten(
            [jnp.asarray(v + 0.3 * generator.normal(size=v.shape)) for v in leaves]
        )
        loss = jax.jit(lambda p: learner.loss(p, task)[0])
        slope = jax.jit(jax.grad(loss))(point)
        for seed in range(4):
            generator = np.random.default_rng(seed)
            direction = jax.tree.map(
                lambda v, g=generator: jnp.asarray(g.normal(size=v.shape)), point
            )
            ends = [
                loss(jax.tree.map(lambda v, d, c=c: v + c * d, point, direction))
                for c in (1e-6, -1e-6)
            ]
            products = jax.tree.map(jnp.vdot, slope, direction)
            found = sum(jax.tree.leaves(products))
            np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-5)
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(slope.head))


def test_learning_finds_the_column_that_matters():
    """One column carries the label, on either side; eight rows cannot tell which."""

    def tasks(key):
        key_x, key_side = jax.random.split(key)
        x = jax.random.normal(key_x, (28, 6))
        y = ((x[:, 4] > 0) ^ jax.random.bernoulli(key_side)).astype(jnp.int32)
        return Task(Examples(x[:8], y[:8]), Examples(x[8:], y[8:]))

    learner = soft_tree(way=2, depth=1, steps=0, hidden=2, same_columns=True)
    result = metajax.train(
        learner,
        tasks,
        optax.adam(0.3),
        steps=30,
        tasks_per_step=8,
        steps_per_dispatch=15,
        log_every=1,
        progress=False,
    )
    first, last = result.history[0], result.history[-1]
    columns = result.meta_params.head["columns"][0]
    assert np.argmax(columns) == 4
    assert first["hard_accuracy"] < 0.8 < 0.9 < last["hard_accuracy"]


def test_one_row_and_one_class():
    """All queries are of it, and no slope is NaN."""
    x = np.ones((1, SIZE), np.float32)
    y = np.ones(1, np.int32)
    task = Task(Examples(x, y), Examples(x + 1, y))
    learner = soft_tree(way=2, depth=1, steps=1)
    meta_params = learner.init(jax.random.key(0), task)
    (loss, metrics), slope = jax.value_and_grad(learner.loss, has_aux=True)(
        meta_params, task
    )
    assert (loss, metrics["hard_accuracy"], metrics["expected_depth"]) == (0, 1, 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_features_have_weights(key):
    head = soft_tree(depth=2, hidden=5).init(key, table()).head
    assert head["weights_in"].shape == (len(FEATURES), 5)
    assert head["gate_weights"].shape == (len(FEATURES),)


BAD = {
    "depth": ({"depth": 0}, "`depth` must be an integer of at least 1, got 0"),
    "steps": ({"steps": -1}, "`steps` must be an integer of at least 0, got -1"),
    "hidden": ({"hidden": 0}, "`hidden` must be an integer of at least 1, got 0"),
    "way": ({"way": 0}, "`way` must be None or an integer of at least 1, got 0"),
    "smoothing": ({"smoothing": 0}, "`smoothing` must be above 0 and finite, got 0"),
    "mass": ({"min_mass": -1.0}, "`min_mass` must be above 0 and finite, got -1.0"),
    "temperature": ({"temperature": 0}, "`temperature` must be above 0 and finite"),
    "sharpness": ({"sharpness": 0}, "`sharpness` must be above 0 and finite, got 0"),
    "gradient": ({"gradient": "no"}, "`gradient` must be one of reverse, remat, mixed"),
    "optimizer": ({"inner_optimizer": optax.adam(0.1)}, "need eps_root=1e-8"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_configuration_is_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        soft_tree(**changes)


def test_bad_inputs_are_explained(key):
    task = table()
    learner = soft_tree(way=WAY, depth=1, steps=0, same_columns=True)
    meta_params = learner.init(key, task)
    support = Examples(jnp.zeros((6, 2, 2)), jnp.zeros(6, jnp.int32))
    with pytest.raises(ValueError, match="`soft_tree` takes rows of a table"):
        learner.adapt(meta_params, support)
    narrow = Examples(task.support.x[:, :2], task.support.y)
    with pytest.raises(ValueError, match="scores were made for 3 columns, and these"):
        learner.adapt(meta_params, narrow)
