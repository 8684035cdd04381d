"""BD-CSPN: rectified prototypes against NumPy, gradients, absent classes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import Entry, sample, small_mlp
from learners.metric.oracles import cosines, in_double, numbers, rectified

import metajax
from metajax.builders.transductive import rectified_prototypes
from metajax.learners import bd_cspn
from metajax.types import Examples

ENTRIES = {
    "bd_cspn": Entry(
        lambda: bd_cspn(small_mlp(5), way=4, scale=10.0), is_inductive=False
    ),
}

IDENTITY = metajax.models.identity()


def answered(learner, task):
    adapt = jax.jit(lambda task: learner.adapt({}, task.support))
    return jax.jit(learner.predict)(adapt(task), task.query.x, mask=task.query.mask)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 10.0])
def test_against_numpy(sharpness, key):
    """The queries are moved far off, so that the shift matters."""
    task = sample(key)
    task = task._replace(query=task.query._replace(x=task.query.x + 3))
    learner = bd_cspn(IDENTITY, way=3, sharpness=sharpness, scale=2.0)
    support, labels, queries = numbers(task)
    wanted = 2 * cosines(queries, rectified(support, labels, queries, sharpness))
    np.testing.assert_allclose(answered(learner, task), wanted, rtol=1e-4, atol=1e-5)


def test_gradient_is_that_of_finite_differences(key):
    with jax.enable_x64(True):
        task = in_double(sample(key))
        model = metajax.models.from_functions(
            lambda key, x: jnp.eye(4), lambda matrix, x: x @ matrix
        )
        learner = bd_cspn(model, way=4)
        loss = jax.jit(lambda matrix: learner.loss(matrix, task)[0])
        start, generator = jnp.eye(4), np.random.default_rng(0)
        gradient = jax.grad(loss)(start)
        direction = jnp.asarray(generator.normal(size=(4, 4)))
        step = 1e-6 * direction
        slope = (loss(start + step) - loss(start - step)) / 2e-6
        np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=1e-6)
        assert abs(slope) > 1e-3


def test_absent_classes_take_no_query(key):
    task = sample(key)
    fewer = jax.tree.map(lambda leaf: leaf[2:], task.support)  # no example of class 0
    logits = answered(bd_cspn(IDENTITY, way=5), task._replace(support=fewer))
    assert np.all(np.isneginf(np.asarray(logits)[:, [0, 3, 4]]))
    support, labels, queries = numbers(task._replace(support=fewer))
    wanted = cosines(queries, rectified(support, labels - 1, queries))
    np.testing.assert_allclose(logits[:, 1:3], wanted, rtol=1e-4, atol=1e-5)


def test_padded_queries_do_not_move_prototypes():
    x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    support = Examples(x, jnp.arange(2))
    learner = bd_cspn(IDENTITY, way=2)
    adapted = learner.adapt({}, support)
    rows = jnp.array([[0.8, 0.1], [0.3, 0.9], [jnp.nan, 5.0]])
    masked = learner.predict(adapted, rows, mask=jnp.array([True, True, False]))
    alone = learner.predict(adapted, rows[:2])
    np.testing.assert_allclose(masked[:2], alone, rtol=1e-6)
    # Nor make them shorter, which cosines do not show.
    hidden = rows.at[2].set(0)
    padded, short = (
        rectified_prototypes(
            adapted.fitted, rows, jnp.arange(len(rows)) < 2, sharpness=1
        )
        for rows in (hidden, hidden[:2])
    )
    np.testing.assert_allclose(padded, short, rtol=1e-6)


ERRORS = {
    "way": ({"way": 1.5}, "`way` must be an integer of at least 1, .*got 1.5"),
    "sharpness": ({"sharpness": -1}, "`sharpness` must be at least 0 .* got -1"),
    "scale": ({"scale": 0}, "`scale` must be above 0 and finite, got 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        bd_cspn(IDENTITY, **changes)
