"""Tables with real targets: their tasks, and predictions in the table's units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax import Examples
from metajax.distributions import Gaussian, Mixture, log_likelihood
from metajax.tasks import row_tasks, standard_task, table_pairs, table_tasks
from metajax.tasks.tables.tables import Table
from metajax.tasks.tables.units import Units, target_units
from metajax.tasks.task_checks import check_task


def numbered(name, rows, columns=2, offset=1000.0):
    """A table whose first column and target tell the number of a row."""
    x = np.random.default_rng(rows).normal(size=(rows, columns))
    x[:, 0] = np.arange(rows)
    return Table(x, offset + 3.0 * np.arange(rows), [*"abcd"[:columns]], (), name)


TABLES = [numbered("a", 30), numbered("b", 40, columns=3, offset=-5.0)]
CLASSES = Table([[1.0], [2.0]] * 9, [0, 1] * 9, ["x"], ["u", "v"], "classes")


@jax.jit
def draw_all(tasks, keys):
    return jax.vmap(lambda key: (tasks(key), tasks.rows(key), tasks.units(key)))(keys)


def draw(tasks, num):
    keys = jax.random.split(jax.random.key(0), num)
    return jax.tree.map(np.asarray, draw_all(tasks, keys))


@pytest.mark.parametrize("standardize", ["support", "table", None])
def test_a_task_holds_what_it_says(standardize):
    tasks = row_tasks(TABLES, rows=(3, 8), num_queries=4, standardize=standardize)
    drawn, rows, units = draw(tasks, 60)
    assert drawn.support.y.shape == (60, 8, 1)
    assert drawn.query.y.shape == (60, 4, 1)
    assert np.all(drawn.support.y[~drawn.support.mask] == 0)
    for task in range(60):
        y = TABLES[rows.table[task]].y.astype(np.float64)
        real = rows.support_mask[task]
        support, query = rows.support[task][real], rows.query[task]
        assert len({*support, *query}) == len(support) + 4
        by = {"support": y[support], "table": y, None: np.asarray([-1.0, 1.0])}
        center, scale = by[standardize].mean(), by[standardize].std()
        np.testing.assert_allclose(units.center[task], center, rtol=1e-5)
        np.testing.assert_allclose(units.scale[task], scale, rtol=1e-5)
        for told, part in (
            (drawn.support.y[task][real], support),
            (drawn.query.y[task], query),
        ):
            expected = (y[part] - center) / scale
            np.testing.assert_allclose(told[:, 0], expected, rtol=1e-4, atol=1e-4)
            back = Units(units.center[task], units.scale[task]).restore(told)
            np.testing.assert_allclose(back[:, 0], y[part], rtol=1e-5)


def test_rows_are_uniform():
    tasks = row_tasks(numbered("t", 10), rows=3, num_queries=2)
    _, rows, _ = draw(tasks, 3000)
    for part, share in ((rows.support, 0.3), (rows.query, 0.2)):
        error = np.sqrt(share * (1 - share) / 3000)
        for row in range(10):
            hits = (part == row).any(axis=1)
            assert abs(np.mean(hits) - share) < 6 * error


def test_constant_targets_have_a_scale_of_one():
    for y, center in (([[7.0]], 7), ([[5.0]] * 3, 5)):
        units = target_units(jnp.asarray(y))
        assert (units.center.tolist(), units.scale.tolist()) == ([center], [1])
    table = Table(np.zeros((9, 1)), [0.1] * 9, ["x"], ())
    for standardize in ("support", "table"):
        tasks = row_tasks(table, rows=2, num_queries=1, standardize=standardize)
        task = tasks(jax.random.key(0))
        check_task(task, "tasks")
        np.testing.assert_allclose(task.query.y, 0, atol=1e-6)


def test_distributions_come_back_with_their_density(key):
    """A density in other units differs by the length of the unit, and no more."""
    units = Units(jnp.asarray([3.0, -1.0]), jnp.asarray([2.0, 0.5]))
    keys = jax.random.split(key, 3)
    mean, y = jax.random.normal(keys[0], (4, 2)), jax.random.normal(keys[1], (4, 2))
    gaussian = Gaussian(mean, jnp.exp(mean))
    components = jax.random.normal(keys[2], (4, 5, 2))
    mixture = Mixture(Gaussian(components, jnp.exp(components)))
    for outputs in (gaussian, mixture):
        restored = units.restore(outputs)
        assert type(restored) is type(outputs)
        inside = log_likelihood(outputs, units.standardize(y))
        np.testing.assert_allclose(log_likelihood(restored, y), inside, rtol=1e-4)
        # The product of both scales is 1.
    other = Units(units.center, units.scale * 2)
    change = log_likelihood(other.restore(gaussian), y) - log_likelihood(
        gaussian, other.standardize(y)
    )
    np.testing.assert_allclose(change, -2 * np.log(2), rtol=1e-4)


def test_own_rows_become_the_same_task(key):
    tasks = row_tasks(TABLES, rows=(3, 8), num_queries=4).only(0)
    task, rows, units = tasks(key), tasks.rows(key), tasks.units(key)
    table = TABLES[0]
    support = Examples(table.x[rows.support], table.y[rows.support], rows.support_mask)
    query = Examples(table.x[rows.query], table.y[rows.query])
    own, own_units = standard_task(support, query, num_columns=3)
    real = rows.support_mask
    for ours, theirs in (
        (own.support.x[real], task.support.x[real]),
        (own.support.y[real], task.support.y[real]),
        (own.query.x, task.query.x),
        (own.query.y, task.query.y),
        (own_units.center, units.center),
        (own_units.scale, units.scale),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"`num_columns` is 1, and `support.x` has 2"):
        standard_task(support, query, num_columns=1)
    with pytest.raises(ValueError, match=r"`query` must be `Examples.*got tuple"):
        standard_task(support, (query.x, query.y))
    with pytest.raises(
        ValueError, match=r"`num_columns` must be an integer .* got 2.5"
    ):
        standard_task(support, query, num_columns=2.5)
    with pytest.raises(ValueError, match=r"must be \[n, D\] with the same D, got"):
        standard_task(support, query._replace(x=query.x[:, :1]))


def test_kinds_of_targets_are_kept_apart():
    with pytest.raises(ValueError, match=r"'classes' has classes and 'a' has not"):
        row_tasks([TABLES[0], CLASSES], rows=3, num_queries=1)
    for make in (
        lambda: table_tasks(TABLES, way=2, shot=1, num_queries=1),
        lambda: table_pairs(TABLES, rows=2),
    ):
        with pytest.raises(
            ValueError, match=r"'b' has real targets; `row_tasks` draws"
        ):
            make()
    tasks = row_tasks(CLASSES, rows=3, num_queries=1)
    with pytest.raises(ValueError, match=r"`units` .*these tables have classes; read"):
        tasks.units(jax.random.key(0))
