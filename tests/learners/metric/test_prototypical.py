"""Prototypical Networks: Eqs. (1) and (2) by hand, masks, absent classes, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import PADDING, Entry, sample, small_mlp

import metajax
from metajax.builders.prototypes import class_means, linear_head
from metajax.types import Examples

ENTRIES = {
    "prototypical": Entry(lambda: metajax.learners.prototypical(small_mlp(5))),
    "prototypical, bucketed": Entry(
        lambda: metajax.tasks.bucketed(
            metajax.learners.prototypical(small_mlp(5), way=4), [(6, 9)]
        ),
        laws=PADDING,
    ),
    "prototypical, cosine": Entry(
        lambda: metajax.learners.prototypical(
            small_mlp(5), way=4, distance="cosine", scale=10.0
        )
    ),
    "prototypical, support statistics": Entry(
        lambda: metajax.learners.prototypical(small_mlp(5, "support"))
    ),
}

IDENTITY = metajax.models.from_functions(lambda key, x: {}, lambda params, x: x)


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_probabilities_are_a_softmax_of_squared_distances(key):
    task = sample(key)
    learner = metajax.learners.prototypical(IDENTITY, way=3)
    logits = learner.predict(learner.adapt({}, task.support), task.query.x)
    support, labels = np.asarray(task.support.x), np.asarray(task.support.y)
    centers = np.stack([support[labels == k].mean(0) for k in range(3)])
    queries = np.asarray(task.query.x)
    distances = ((queries[:, None] - centers[None]) ** 2).sum(-1)
    expected = log_softmax(-distances)
    np.testing.assert_allclose(jax.nn.log_softmax(logits), expected, atol=1e-4)
    loss, metrics = learner.loss({}, task)
    truth = np.asarray(task.query.y)
    np.testing.assert_allclose(
        loss, -expected[np.arange(len(truth)), truth].mean(), atol=1e-5
    )
    np.testing.assert_allclose(
        metrics["accuracy"], (expected.argmax(-1) == truth).mean()
    )


def test_cosine_against_numpy(key):
    task = sample(key)
    learner = metajax.learners.prototypical(
        IDENTITY, way=3, distance="cosine", scale=7.0
    )
    adapted = learner.adapt({}, task.support)
    logits = learner.predict(adapted, task.query.x)
    x, c = np.asarray(task.query.x), np.asarray(adapted.fitted)
    cosines = x @ c.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(c, axis=1)
    np.testing.assert_allclose(logits, 7 * cosines, rtol=1e-4, atol=1e-5)
    zero = jnp.zeros((1, x.shape[1]))
    gradient = jax.grad(lambda x: learner.predict(adapted, x).sum())(zero)
    assert np.isfinite(gradient).all()


def test_linear_head_differs_from_distances_by_a_constant_per_query(key):
    features = jax.random.normal(key, (6, 4))
    centers = jax.random.normal(jax.random.fold_in(key, 1), (3, 4))
    kernel, bias = linear_head(centers)
    logits = features @ kernel + bias[None, :]
    distances = jnp.sum(jnp.square(features[:, None] - centers[None]), -1)
    gap = logits + distances
    np.testing.assert_allclose(gap, np.asarray(gap[:, :1]).repeat(3, 1), rtol=1e-4)


def test_uneven_shots_and_absent_classes():
    x = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [jnp.nan, jnp.inf]])
    support = Examples(x, jnp.array([0, 0, 2, 1]), jnp.array([True, True, True, False]))
    centers, is_present = class_means(x, support, 4)
    np.testing.assert_array_equal(centers, [[2, 0], [0, 0], [0, 5], [0, 0]])
    np.testing.assert_array_equal(is_present, [True, False, True, False])
    learner = metajax.learners.prototypical(IDENTITY, way=4)
    logits = learner.predict(learner.adapt({}, support), x[:3])
    assert np.all(np.isneginf(logits[:, [1, 3]]))
    assert np.isfinite(np.asarray(logits)[:, [0, 2]]).all()


def test_trains_at_one_way_and_answers_at_another(key):
    learner = metajax.learners.prototypical(metajax.models.mlp(5, hidden_sizes=(8,)))
    task = sample(key)
    params = learner.init(key, task)
    fewer = jax.tree.map(lambda leaf: leaf[:4], task.support)  # two of three classes
    outputs = learner.predict(learner.adapt(params, fewer), task.query.x)
    assert outputs.shape == (9, 4)
    assert np.asarray(outputs).argmax(-1).max() <= 1


def test_gradient_with_absent_classes_is_finite(key):
    learner = metajax.learners.prototypical(
        metajax.models.mlp(5, hidden_sizes=(8,)), way=7
    )
    task = sample(key)
    params = learner.init(key, task)
    gradient = jax.grad(lambda p: learner.loss(p, task)[0])(params)
    chex.assert_tree_all_finite(gradient)
    expected = jax.grad(
        lambda p: metajax.learners.prototypical(
            metajax.models.mlp(5, hidden_sizes=(8,)), way=3
        ).loss(p, task)[0]
    )(params)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-5, atol=1e-8)


ERRORS = {
    "way": ({"way": 0}, "`way` must be an integer of at least 1, .*got 0"),
    "distance": ({"distance": "manhattan"}, "squared_euclidean, cosine, got 'manha"),
    "scale": ({"scale": 0.0}, "`scale` must be above 0 and finite, got 0.0"),
    "scale of NaN": (
        {"scale": float("nan")},
        "`scale` must be .* finite, got nan",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.prototypical(IDENTITY, **changes)
