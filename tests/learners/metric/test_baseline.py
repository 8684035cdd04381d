"""Baselines: training on all classes, each head against a plain loop, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.objectives import cross_entropy

ENTRIES = {
    "baseline": Entry(
        lambda: metajax.learners.baseline(
            small_mlp(5), num_classes=WAY, way=WAY, inner_steps=10
        )
    ),
    "baseline, cosine, fine-tuned": Entry(
        lambda: metajax.learners.baseline(
            small_mlp(5, "support"),
            num_classes=WAY,
            head="cosine",
            inner_steps=2,
            fine_tune=True,
        )
    ),
    "baseline, centroid": Entry(
        lambda: metajax.learners.baseline(
            small_mlp(5), num_classes=WAY, head="centroid"
        )
    ),
}


def built(key, head, **arguments):
    task = sample(key)
    learner = metajax.learners.baseline(
        metajax.models.identity(), num_classes=7, way=4, head=head, **arguments
    )
    return learner, task, learner.init(key, task)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_training_classifies_all_classes(head, key):
    learner, task, meta_params = built(key, head)
    assert meta_params.kernel.shape == (4, 7)
    query = task.query._replace(y=task.query.y + 4)
    loss, _ = learner.loss(meta_params, task._replace(query=query))
    x, kernel = np.asarray(query.x), np.asarray(meta_params.kernel)
    logits = x @ kernel
    if head == "cosine":
        logits = 10 * logits / np.linalg.norm(kernel, axis=0)
        logits /= np.linalg.norm(x, axis=1)[:, None]
    expected = cross_entropy(jnp.array(logits), query.y).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_linear_head_is_fitted_from_zero(key):
    """By hand, with the gradient of the softmax of three present classes."""
    learner, task, meta_params = built(
        key, "linear", inner_steps=5, inner_optimizer=optax.sgd(0.3)
    )
    x, one_hot = np.asarray(task.support.x), np.eye(3)[np.asarray(task.support.y)]
    kernel, bias = np.zeros((4, 3)), np.zeros(3)
    for _ in range(5):
        chances = np.exp(x @ kernel + bias)
        slope = (chances / chances.sum(1, keepdims=True) - one_hot) / len(x)
        kernel, bias = kernel - 0.3 * x.T @ slope, bias - 0.3 * slope.sum(0)
    adapted = learner.adapt(meta_params, task.support)
    np.testing.assert_allclose(adapted.classifier.kernel[:, :3], kernel, rtol=1e-4)
    np.testing.assert_allclose(adapted.classifier.bias[:3], bias, rtol=1e-4, atol=1e-6)
    logits = learner.predict(adapted, task.query.x)
    assert np.all(np.isneginf(logits[:, 3]))


def test_cosine_head_starts_at_the_means(key):
    learner, task, meta_params = built(key, "cosine", inner_steps=0)
    theirs = metajax.learners.prototypical(
        metajax.models.identity(), way=4, distance="cosine", scale=10.0
    )
    ours = learner.predict(learner.adapt(meta_params, task.support), task.query.x)
    expected = theirs.predict(theirs.adapt({}, task.support), task.query.x)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    more, _, _ = built(key, "cosine", inner_steps=20)
    adapted = more.adapt(meta_params, task.support)
    after, before = (
        cross_entropy(more.predict(a, task.support.x), task.support.y).mean()
        for a in (adapted, learner.adapt(meta_params, task.support))
    )
    assert after < before


def test_centroids_are_prototypes(key):
    learner, task, meta_params = built(key, "centroid")
    theirs = metajax.learners.prototypical(metajax.models.identity(), way=4)
    ours = learner.predict(learner.adapt(meta_params, task.support), task.query.x)
    expected = theirs.predict(theirs.adapt({}, task.support), task.query.x)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("fine_tune", [False, True])
def test_only_fine_tuning_changes_the_embedding(fine_tune, key):
    task = sample(key)
    learner = metajax.learners.baseline(
        metajax.models.mlp(5, hidden_sizes=(4,)),
        num_classes=3,
        inner_steps=3,
        fine_tune=fine_tune,
    )
    meta_params = learner.init(key, task)
    adapted = learner.adapt(meta_params, task.support)
    before, after = (
        jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(params)])
        for params in (meta_params.embedding, adapted.classifier.embedding)
    )
    assert np.array_equal(before, after) != fine_tune


ERRORS = {
    "classes": ({"num_classes": 0}, "`num_classes` must be an integer of at least 1"),
    "head": ({"head": "svm"}, "`head` must be one of linear, cosine, centroid, got 's"),
    "scale": ({"scale": 0}, "`scale` must be above 0 and finite, got 0"),
    "inner_steps": (
        {"inner_steps": -1},
        "`inner_steps` must be an integer of at least 0, got -1",
    ),
    "centroid": ({"head": "centroid", "fine_tune": True}, "cannot be fine-tuned"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.baseline(
            metajax.models.identity(), **({"num_classes": 3} | changes)
        )
