"""The tree against scikit-learn's, its hardening, derivatives, units, learning."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import Entry
from sklearn.tree import DecisionTreeClassifier

import metajax
from metajax.builders.decision_tree import (
    DecisionTree,
    decide,
    depth_of,
    leaf_of,
    level_slices,
)
from metajax.builders.heads import Fitted
from metajax.builders.splits import FEATURES
from metajax.learners.solver import soft_tree as module
from metajax.learners.solver.soft_tree import SoftTree, harden, soft_tree
from metajax.types import Examples, Task

ENTRIES = {
    "soft_tree": Entry(
        lambda: metajax.learners.soft_tree(way=3, depth=2, inner_steps=1)
    ),
}

NUM, SIZE, WAY = 120, 5, 3


def table(seed=0, wrong=0.5):
    """Three classes by two columns, wrong labels, two columns of 0; 20 queries.

    So many rows that no two splits of a large leaf are equally good.
    """
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(NUM + 20, SIZE)).astype(np.float32)
    x[:, 3:] = 0
    y = np.where(x[:, 0] > 0.3, 0, 1 + (x[:, 1] + 0.3 * x[:, 0] > 0))
    is_wrong = generator.random(len(x)) < wrong
    y = np.where(is_wrong, generator.integers(0, WAY, len(x)), y).astype(np.int32)
    return Task(Examples(x[:NUM], y[:NUM]), Examples(x[NUM:], y[NUM:]))


class Found(NamedTuple):
    logits: jax.Array
    tree: DecisionTree
    hard: jax.Array
    fitted: SoftTree
    loss: jax.Array
    metrics: dict[str, jax.Array]
    support_loss: jax.Array


@functools.lru_cache
def program(steps=0):
    """All that a tree says, at any numbers: one compilation for most tests."""
    depth = 2 if steps else 3
    learner = soft_tree(way=3, depth=depth, inner_steps=steps, hidden_size=4)

    @jax.jit
    def answer(meta_params, task):
        adapted = learner.adapt(meta_params, task.support)
        tree = harden(adapted)
        real = jnp.ones(NUM, bool)
        return Found(
            learner.predict(adapted, task.query.x),
            tree,
            decide(tree, task.query.x),
            adapted.fitted,
            *learner.loss(meta_params, task),
            module._support_loss(adapted.fitted, real, level_slices(depth)),
        )

    start = jax.jit(learner.init)(jax.random.key(0), table())
    return lambda head, task: answer(start._replace(head=start.head | head), task)


def log(**numbers):
    return {f"log_{name}": jnp.log(jnp.float32(v)) for name, v in numbers.items()}


def rates(rate):
    both = dict.fromkeys(("gates", "scores"), jnp.log(jnp.float32(rate)))
    return {"optimizer": {"learning_rate": both}}


def cart(support, **settings):
    tree = DecisionTreeClassifier(criterion="entropy", random_state=0, **settings)
    return tree.fit(support.x, support.y)


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize("leaf", [1, 4])
def test_hardened_at_first_it_is_cart(seed, leaf):
    task = table(seed)
    # What lightness costs is for leaves that are allowed, and CART has no such price.
    numbers = log(min_mass=leaf, penalty=1e-9, smoothing=1e-6)
    found = program()(numbers, task)
    expected = cart(task.support, max_depth=3, min_samples_leaf=leaf)
    assert depth_of(found.tree) == expected.get_depth() == 3
    probabilities = expected.predict_proba(task.query.x)
    np.testing.assert_allclose(found.hard, probabilities, atol=1e-4)
    ours = found.tree.column[0], found.tree.threshold[0]
    root = expected.tree_.feature[0], expected.tree_.threshold[0]
    np.testing.assert_allclose(ours, root, rtol=1e-6)
    # Both put the support rows into the same leaves, whatever these are called.
    x = task.support.x
    leaves = np.asarray(leaf_of(found.tree, x)), expected.apply(x)
    pairs = set(zip(*leaves, strict=True))
    assert len(pairs) == len(set(leaves[0])) == len(set(leaves[1])) > 4


def members(tree, x):
    """Which of the rows are in each node."""
    is_here = {0: np.ones(len(x), bool)}
    for node in np.flatnonzero(tree.is_split):
        is_left = x[:, tree.column[node]] <= tree.threshold[node]
        is_here[2 * node + 1] = is_here[node] & is_left
        is_here[2 * node + 2] = is_here[node] & ~is_left
    return is_here


def test_classes_are_drawn_to_those_of_the_parent():
    task = table()
    tree = program()(log(smoothing=5.0), task).tree.on_host()
    is_here = members(tree, task.support.x)
    assert len(is_here) > 10
    expected = {-1: np.full(WAY, 1 / WAY)}
    for node, here in sorted(is_here.items()):
        counts = np.bincount(task.support.y[here], minlength=WAY)
        above = expected[(node - 1) // 2 if node else -1]
        expected[node] = (counts + 5 * above) / (counts.sum() + 5)
        np.testing.assert_allclose(tree.probabilities[node], expected[node], rtol=1e-5)
        assert tree.mass[node] == counts.sum()


def test_thresholds_are_in_the_middle_of_their_node():
    """Where rows elsewhere have values, between those two around the middle."""
    task = table()
    tree, x = program()({}, task).tree.on_host(), task.support.x
    is_here, num_moved = members(tree, x), 0
    for node in np.flatnonzero(tree.is_split):
        column, threshold = x[:, tree.column[node]], tree.threshold[node]
        low = column[is_here[2 * node + 1]].max()
        high = column[is_here[2 * node + 2]].min()
        ends = sorted([threshold, (low + high) / 2])
        assert not np.any((ends[0] < column) & (column <= ends[1]))
        num_moved += np.any((low < column) & (column < high))
    assert num_moved > 2


@pytest.mark.parametrize("gate", [20.0, -20.0])
def test_hardening_keeps_answers_where_gates_saturate(gate):
    task = table()
    gates = jnp.asarray([20.0, 20.0, gate])
    numbers = log(temperature=1e-6, sharpness=1e3, penalty=1e4, min_mass=4)
    numbers |= {"depth_gates": gates}
    found = program()(numbers, task)
    assert depth_of(found.tree) == (3 if gate > 0 else 2)
    np.testing.assert_allclose(jnp.exp(found.logits), found.hard, atol=1e-5)
    ours, theirs = found.fitted.probabilities[:3], found.tree.probabilities[:3]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # It says something: with wide sigmoids both differ.
    wide = program()(numbers | log(temperature=0.5), task)
    assert np.max(np.abs(jnp.exp(wide.logits) - wide.hard)) > 0.1


def test_loss_reports_the_hard_tree():
    task = table()
    found = program()({}, task)
    own = np.arange(len(task.query.y)), task.query.y
    np.testing.assert_allclose(found.loss, -np.mean(found.logits[own]), rtol=1e-5)
    hard = np.argmax(found.hard, axis=1)
    share = np.mean(hard == task.query.y)
    np.testing.assert_allclose(found.metrics["hard_accuracy"], share, rtol=1e-6)
    assert np.any(hard != np.argmax(found.logits, axis=1))


def test_stick_of_depth():
    """Random labels in heavy nodes, none of them pure: a row may go on everywhere."""
    gates = jnp.asarray([1.0, 0.2, -0.5])
    numbers = log(min_mass=10) | {"depth_gates": gates}
    metrics = program()(numbers, table(wrong=1.0)).metrics
    expected = np.sum(np.cumprod(jax.nn.sigmoid(gates)))
    np.testing.assert_allclose(metrics["expected_depth"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["hard_depth"], 2, rtol=1e-6)


def test_a_closed_tree_answers_by_the_shares_of_classes():
    task = table()
    numbers = log(smoothing=2.0) | {"depth_gates": jnp.full(3, -1e3)}
    found = program()(numbers, task)
    shares = (np.bincount(task.support.y) + 2 / WAY) / (NUM + 2)
    expected = np.tile(shares, (20, 1))
    np.testing.assert_allclose(jnp.exp(found.logits), expected, rtol=1e-5)
    np.testing.assert_allclose(found.hard, expected, rtol=1e-5)
    assert depth_of(found.tree) == 0


def lightest(tree):
    """Mass of the lightest leaf, and how many splits there are."""
    is_split, mass = np.asarray(tree.is_split), np.asarray(tree.mass)
    children = np.concatenate([mass[1::2][is_split], mass[2::2][is_split]])
    return children.min(), is_split.sum()


@pytest.mark.parametrize("min_mass", [1.0, 2.4, 2.6, 6.0])
def test_no_leaf_is_lighter_than_the_least(min_mass):
    mass, num_splits = lightest(program()(log(min_mass=min_mass), table()).tree)
    assert mass >= round(min_mass)
    assert num_splits >= 4


def test_leaves_are_weighed_again_where_inner_steps_changed_the_root():
    fitted = program()(log(min_mass=6), table()).fitted
    harden_fitted = jax.jit(lambda tree: harden(Fitted((), (), tree, ())))
    sizes = []
    for split in np.flatnonzero(fitted.is_allowed[0])[::30]:
        tree = fitted._replace(scores=fitted.scores.at[0, split].set(1e6))
        mass, num_splits = lightest(harden_fitted(tree))
        assert mass >= 6
        sizes.append(num_splits)
    assert min(sizes) < 7


def test_inner_loss_takes_each_row_out_of_its_leaves():
    found = program(2)({}, table())
    levels = level_slices(2)

    @jax.jit
    def one_by_one(tree):
        reach, stop = module._routes(*module._choices(tree, tree.rows), levels)

        def loss(row):
            without = tree._replace(one_hot=tree.one_hot.at[row].set(0))
            answer = stop[row] @ module._probabilities(without, reach, levels)
            return -jnp.log(answer @ tree.one_hot[row])

        return jnp.mean(jax.vmap(loss)(jnp.arange(NUM)))

    expected = one_by_one(found.fitted)
    np.testing.assert_allclose(found.support_loss, expected, rtol=1e-5)


def test_inner_steps_descend():
    still, moved = (
        program(2)(rates(rate), table()).support_loss for rate in (1e-9, 100)
    )
    assert moved < still - 1e-3


def test_columns_may_stand_in_any_order_and_unit():
    task = table()
    order = np.asarray([2, 4, 0, 3, 1])
    factor = np.asarray([100.0, 1.0, 0.25, 1.0, 3.0], np.float32)

    def other(x):
        return x[:, order] * factor + 5 * factor

    moved = task._replace(
        support=task.support._replace(x=other(task.support.x)),
        query=task.query._replace(x=other(task.query.x)),
    )
    weights = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    numbers = {"weights_out": weights[0], "bias": weights[1]}
    ours, theirs = program(2)(numbers, task), program(2)(numbers, moved)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)
    np.testing.assert_allclose(ours.hard, theirs.hard, atol=1e-5)
    kept = np.asarray(ours.tree.is_split)
    assert kept.sum() > 2
    column = order[np.asarray(theirs.tree.column)[kept]]
    np.testing.assert_array_equal(column, np.asarray(ours.tree.column)[kept])


def test_gradient_is_that_of_finite_differences():
    with jax.enable_x64(True):
        task = jax.tree.map(
            lambda a: jnp.asarray(a, jnp.float64 if a.ndim == 2 else a.dtype),
            table(),
        )
        task = jax.tree.map(lambda a: a[:14], task)
        learner = soft_tree(way=3, depth=1, inner_steps=1, hidden_size=2)
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


def test_learning_finds_the_column_that_matters(key):
    """One column carries the label, on either side; eight rows cannot tell which."""

    def tasks(key):
        key_x, key_side, key_wrong = jax.random.split(key, 3)
        # Both classes are in the support set.
        x = jax.random.normal(key_x, (28, 6)).at[:2, 4].set(jnp.asarray([1, -1]))
        is_wrong = jax.random.bernoulli(key_wrong, 0.2, (28,)).at[:2].set(False)
        y = (x[:, 4] > 0) ^ is_wrong ^ jax.random.bernoulli(key_side)
        y = y.astype(jnp.int32)
        return Task(Examples(x[:8], y[:8]), Examples(x[8:], y[8:]))

    learner = soft_tree(way=2, depth=1, inner_steps=0, hidden_size=2, same_columns=True)
    keys = jax.random.split(key, 64)
    start = jax.jit(learner.init)(key, tasks(key))

    @jax.jit
    def outer(columns):
        meta_params = start._replace(head=start.head | {"columns": columns})
        loss = functools.partial(learner.loss, meta_params)
        losses, metrics = jax.vmap(lambda key: loss(tasks(key)))(keys)
        return jnp.mean(losses), jnp.mean(metrics["hard_accuracy"])

    gradient = jax.jit(jax.value_and_grad(outer, has_aux=True))
    columns, accuracies = start.head["columns"], []
    for _ in range(10):
        (_, accuracy), slope = gradient(columns)
        accuracies.append(accuracy)
        columns -= 30 * slope
    assert columns[0, 4] > 1 + np.max(np.delete(columns[0], 4))
    assert accuracies[-1] > accuracies[0] + 0.03


def test_one_row_and_one_class():
    """All queries are of it, and no slope is NaN."""
    x = np.ones((1, SIZE), np.float32)
    y = np.ones(1, np.int32)
    task = Task(Examples(x, y), Examples(x + 1, y))
    learner = soft_tree(way=2, depth=1, inner_steps=0)
    meta_params = jax.jit(learner.init)(jax.random.key(0), task)
    gradient = jax.jit(jax.value_and_grad(learner.loss, has_aux=True))
    (loss, metrics), slope = gradient(meta_params, task)
    assert (loss, metrics["hard_accuracy"], metrics["expected_depth"]) == (0, 1, 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))


def test_features_have_weights(key):
    head = jax.eval_shape(
        soft_tree(way=3, depth=2, hidden_size=5).init, key, table()
    ).head
    assert head["weights_in"].shape == (len(FEATURES), 5)
    assert head["gate_weights"].shape == (len(FEATURES),)


BAD = {
    "depth": ({"depth": 0}, "`depth` must be an integer of at least 1, got 0"),
    "inner_steps": (
        {"inner_steps": -1},
        "`inner_steps` must be an integer of at least 0, got -1",
    ),
    "hidden": (
        {"hidden_size": 0},
        "`hidden_size` must be an integer of at least 1, got 0",
    ),
    "way": ({"way": 0}, "`way` must be an integer of at least 1, .*got 0"),
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
        soft_tree(**{"way": 2} | changes)


def test_bad_inputs_are_explained(key):
    task = table()
    learner = soft_tree(way=3, depth=1, inner_steps=0, same_columns=True)
    meta_params = jax.eval_shape(learner.init, key, task)
    support = Examples(jnp.zeros((6, 2, 2)), jnp.zeros(6, jnp.int32))
    with pytest.raises(ValueError, match="`soft_tree` takes rows of a table"):
        jax.eval_shape(learner.adapt, meta_params, support)
    narrow = Examples(task.support.x[:, :2], task.support.y)
    with pytest.raises(ValueError, match="scores were made for 5 columns, and these"):
        jax.eval_shape(learner.adapt, meta_params, narrow)
