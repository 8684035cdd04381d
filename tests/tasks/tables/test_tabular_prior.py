"""Tables of random causal models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax

PRIOR = metajax.tasks.tabular_prior(
    way=(2, 4), rows=(10, 30), columns=(2, 6), num_queries=8
)


@pytest.fixture(scope="module")
def batch():
    return jax.jit(jax.vmap(PRIOR))(jax.random.split(jax.random.key(0), 300))


def test_shapes_and_masks(batch):
    support, query = batch
    assert support.x.shape == (300, 30, 6)
    assert query.x.shape == (300, 8, 6)
    assert support.y.dtype == jnp.int32
    assert query.mask is None
    num_rows = support.mask.sum(axis=1)
    assert set(np.unique(num_rows)) == set(range(10, 31))
    # Real rows come first, and padding is 0.
    assert np.all(support.mask[:, :-1] >= support.mask[:, 1:])
    assert np.all(np.where(support.mask[..., None], 0, support.x) == 0)
    fixed = metajax.tasks.tabular_prior(rows=20, columns=3)(jax.random.key(0))
    assert fixed.support.mask is None
    assert fixed.support.x.shape == (20, 3)


def test_columns_and_classes_differ_by_task(batch):
    support, query = batch
    is_used = np.any(support.x != 0, axis=1)
    # A column may be constant in a small support set, so the last one in use counts.
    num_columns = 6 - np.argmax(is_used[:, ::-1], axis=1)
    assert {2, 3, 4, 5, 6} <= set(np.unique(num_columns))
    assert np.mean(is_used.sum(axis=1) == num_columns) > 0.9
    labels = np.concatenate([support.y, query.y], axis=1)
    assert labels.min() == 0
    assert labels.max() == 3
    num_classes = np.asarray([len(np.unique(row)) for row in labels])
    assert {2, 3, 4} <= set(num_classes)
    # Classes are those from 0 on, each of them the most frequent now and then.
    assert all(set(row) <= set(range(row.max() + 1)) for row in labels)
    firsts = [np.bincount(row, minlength=4).argmax() for row in labels]
    assert np.all(np.bincount(firsts, minlength=4) > 10)


def test_few_columns_and_classes_are_usual():
    tasks = metajax.tasks.tabular_prior(
        way=(2, 8), rows=100, columns=(2, 32), num_queries=1
    )
    support = jax.jit(jax.vmap(tasks))(jax.random.split(jax.random.key(0), 200)).support
    num_columns = np.any(support.x != 0, axis=1).sum(axis=1)
    # Log-uniform: as many up to the geometric mean of the ends as beyond it.
    assert 0.4 < np.mean(num_columns <= 8) < 0.65
    share = np.mean(support.y.max(axis=1) < 4)
    assert 0.55 < share < 0.75, share


def test_some_classes_have_an_order_and_others_none():
    """How much of the target's variance is between classes: most of it if it is cut."""
    nodes = jax.random.normal(jax.random.key(0), (200, 96))
    prior = metajax.tasks.tabular_prior(way=3)
    keys = jax.random.split(jax.random.key(1), 300)
    labels = jax.jit(jax.vmap(lambda k: prior._labels(k, nodes, jnp.asarray(30))))(keys)
    values = np.asarray(nodes[:, 30])
    shares = []
    for y in np.asarray(labels):
        of_class = [values[y == c] for c in range(3)]
        within = sum(len(v) * np.var(v) for v in of_class if len(v))
        shares.append(1 - within / len(values) / np.var(values))
    assert 0.35 < np.mean(np.asarray(shares) > 0.5) < 0.75


def test_some_columns_have_few_levels_and_some_tasks_no_others():
    tasks = metajax.tasks.tabular_prior(rows=200, columns=12, num_queries=1)
    found = jax.jit(jax.vmap(tasks))(jax.random.split(jax.random.key(3), 100)).support
    counts = np.asarray([[len(np.unique(c)) for c in x.T] for x in found.x])
    is_cut = counts <= 5
    assert not np.any((counts > 5) & (counts < 20))
    # A quarter of all are cut whatever they were; the others here are categories.
    assert 0.35 < np.mean(is_cut) < 0.7
    assert 0.05 < np.mean(np.all(is_cut, axis=1)) < 0.4


def test_columns_are_standardized_by_support(batch):
    support, _ = batch
    for x, mask in zip(np.asarray(support.x), np.asarray(support.mask), strict=True):
        x = x[mask]
        is_usual = (np.ptp(x, axis=0) > 0) & (np.abs(x).max(axis=0) < 8)
        np.testing.assert_allclose(x.mean(axis=0)[is_usual], 0, atol=1e-4)
        np.testing.assert_allclose(x.std(axis=0)[is_usual], 1, atol=1e-3)
    assert np.abs(support.x).max() <= 8


def test_there_is_something_to_learn():
    """A forest that is fitted to the support set does better than the largest class."""
    from sklearn.ensemble import RandomForestClassifier

    tasks = metajax.tasks.tabular_prior(way=3, rows=100, columns=12, num_queries=50)
    tasks = jax.jit(jax.vmap(tasks))(jax.random.split(jax.random.key(1), 60))
    gains = []
    for i in range(60):
        (x, y, _), (asked, labels, _) = jax.tree.map(
            lambda leaf, i=i: np.asarray(leaf[i]), tuple(tasks)
        )
        forest = RandomForestClassifier(30, random_state=0).fit(x, y)
        largest = np.bincount(y).argmax()
        right = np.mean(forest.predict(asked) == labels)
        gains.append(right - np.mean(labels == largest))
    assert np.mean(gains) > 4 * np.std(gains) / np.sqrt(60)
    assert np.mean(gains) > 0.06


def test_same_key_same_task(key):
    first, second = PRIOR(key), jax.jit(PRIOR)(key)
    np.testing.assert_array_equal(first.support.y, second.support.y)
    np.testing.assert_allclose(first.support.x, second.support.x, rtol=1e-3, atol=1e-3)


BAD = {
    "way": ({"way": 1}, "`way` must be an integer of at least 2, got 1"),
    "rows": ({"rows": (5, 3)}, "`rows` must be an integer .* low <= high"),
    "columns": ({"columns": 96}, "`columns` must be at most 95, .* got 96"),
    "queries": ({"num_queries": 0}, "`num_queries` must be an integer of at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        metajax.tasks.tabular_prior(**changes)
