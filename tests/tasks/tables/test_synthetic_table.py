"""Synthetic tables: what the recipe promises, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.tables.synthetic_table import synthetic_table
from metajax.tasks.task_checks import check_task


def draw(seed=0, **arguments):
    task = synthetic_table(**arguments)(jax.random.key(seed))
    return jax.tree.map(np.asarray, task)


def test_shapes_labels_and_balance():
    task = draw(way=3, shot=4, num_queries=5, columns=12, wrong_labels=0.0)
    check_task(jax.tree.map(jnp.asarray, task), "tasks")
    assert task.support.x.shape == (12, 12)
    assert task.query.x.shape == (15, 12)
    np.testing.assert_array_equal(task.support.y, np.repeat(range(3), 4))
    np.testing.assert_array_equal(task.query.y, np.repeat(range(3), 5))


def test_tasks_differ_and_support_is_not_query():
    first, second = draw(0), draw(1)
    assert not np.array_equal(first.support.x, second.support.x)
    assert not np.array_equal(first.support.x, first.query.x[: len(first.support.x)])


@pytest.mark.parametrize("redundant", [0, 4])
def test_redundant_columns_are_combinations(redundant):
    """Of 12 columns, 3 carry information and 5 are noise: rank 8 + the rest."""
    noise = 5
    task = draw(
        shot=200, columns=3 + redundant + noise, informative=3, redundant=redundant
    )
    values = np.linalg.svd(task.support.x.astype(float), compute_uv=False)
    assert np.sum(values > 1e-3 * values[0]) == 3 + noise


def test_classes_are_where_their_clusters_are():
    """Means over a class are those of its clusters' centres, all of them vertices."""
    task = draw(
        shot=4000,
        num_queries=1,
        columns=4,
        informative=4,
        redundant=0,
        clusters=1,
        separation=2.0,
        wrong_labels=0.0,
    )
    means = task.support.x.reshape(2, 4000, 4).mean(axis=1)
    # Standard error: a column's deviation is at most sqrt(4 / 3) in expectation.
    np.testing.assert_allclose(np.abs(means), 2.0, atol=6 * 2 / np.sqrt(4000))
    assert not np.array_equal(np.sign(means[0]), np.sign(means[1]))


def test_no_two_clusters_share_a_vertex():
    """As many clusters as vertices: each of the four stands for one."""
    task = draw(
        shot=500,
        columns=2,
        informative=2,
        redundant=0,
        clusters=2,
        separation=50.0,
        wrong_labels=0.0,
    )
    corners = {tuple(row) for row in np.sign(task.support.x)}
    assert len(corners) == 4
    for label in range(2):
        own = {tuple(row) for row in np.sign(task.support.x[task.support.y == label])}
        assert len(own) == 2


def test_no_label_is_wrong_for_an_integer_zero():
    """It is a share like any other, and JAX draws by floating-point ones only."""
    exact, same = (draw(shot=8, wrong_labels=share) for share in (0.0, 0))
    np.testing.assert_array_equal(exact.support.y, same.support.y)


def test_wrong_labels_are_as_many_as_asked_for():
    task = draw(shot=5000, wrong_labels=0.4)
    share = np.mean(task.support.y != np.repeat([0, 1], 5000))
    # Half of the redrawn labels are right by chance; six standard errors.
    assert abs(share - 0.2) < 6 * np.sqrt(0.2 * 0.8 / 10_000)


def test_no_class_is_lost_to_wrong_labels():
    """Nothing could be said of its queries."""
    tasks = synthetic_table(way=5, shot=2, num_queries=2, wrong_labels=0.9)
    labels = jax.vmap(tasks)(jax.random.split(jax.random.key(0), 200)).support.y
    assert all(len(set(row)) == 5 for row in np.asarray(labels).tolist())
    own = np.repeat(np.arange(5), 2)
    assert np.mean(np.asarray(labels) != own) > 0.3


def test_a_family_shares_its_columns():
    """Where columns are noise, every class has mean 0 in every task of the family."""

    def noise_columns(seed, family):
        task = draw(seed, shot=3000, separation=4.0, clusters=1, family=family)
        means = task.support.x.reshape(2, 3000, 20).mean(axis=1)
        return frozenset(np.flatnonzero(np.abs(means).max(axis=0) < 0.15))

    first = noise_columns(0, family=3)
    assert len(first) == 10
    assert noise_columns(1, family=3) == first
    assert noise_columns(0, family=4) != first
    assert noise_columns(0, None) != noise_columns(1, None)


ERRORS = {
    "way": ({"way": 1}, "`way` must be an integer of at least 2, got 1"),
    "shot": ({"shot": 0}, "`shot` must be .* got 0"),
    "columns": ({"columns": 9}, "are 10 columns, and `columns` is 9"),
    "vertices": (
        {"informative": 1, "way": 2, "clusters": 2},
        "4 centres, and 1 informative columns have 2 vertices",
    ),
    "informative": ({"informative": 21, "columns": 40}, "at most 20, got 21"),
    "separation": ({"separation": 0.0}, "must be above 0 and finite, got 0.0"),
    "wrong_labels": ({"wrong_labels": 1.0}, r"must be in \[0, 1\), got 1.0"),
    "family": ({"family": 0.5}, "None or an integer, got 0.5"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        synthetic_table(**arguments)
