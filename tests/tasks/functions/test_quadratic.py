"""Random quadratics: the model and objective give f, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.functions.quadratic import linear, quadratic, row_loss


def test_the_mean_loss_is_f(key):
    task = quadratic(dim=4)(key)
    model = linear()
    theta = model.init(jax.random.key(1), task.support.x)
    outputs = model.apply(theta, task.support.x)
    value = jnp.mean(row_loss(outputs, task.support.y))
    x, y = np.asarray(task.support.x), np.asarray(task.support.y)
    expected = np.sum(np.square(x @ np.asarray(theta) - y))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_query_is_support_and_entries_are_normal(key):
    tasks = jax.vmap(quadratic(dim=10))(jax.random.split(key, 200))
    assert tasks.query is tasks.support or np.array_equal(
        tasks.query.x, tasks.support.x
    )
    # Six standard errors of a mean and of a variance of 20,000 normal numbers.
    assert abs(np.mean(tasks.support.x)) < 6 / np.sqrt(20_000)
    assert abs(np.var(tasks.support.x) - 1) < 6 * np.sqrt(2 / 20_000)


@pytest.mark.parametrize("dim", [0, 2.5, True])
def test_bad_size_is_explained(dim):
    with pytest.raises(ValueError, match="`dim` must be an integer of at least 1"):
        quadratic(dim=dim)
