"""Relation Networks: the pairs of Eq. (1), the loss of Eq. (2), maps, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.learners.metric.relation import relation_error
from metajax.types import Examples, Task

ENTRIES = {
    "relation": Entry(
        lambda: metajax.learners.relation(small_mlp(5), way=WAY, features=4),
        uses_labels_untrained=False,
    ),
    "relation, batch statistics": Entry(
        lambda: metajax.learners.relation(
            small_mlp(5), way=4, features=4, normalization="batch"
        ),
        is_inductive=False,
        uses_labels_untrained=False,
    ),
}


def test_halves_of_the_first_layer_are_the_layer_of_pairs(key):
    """On maps, against one convolution of both beside each other."""
    classes, queries = (
        jax.random.normal(k, (num, 4, 4, 2))
        for k, num in zip(jax.random.split(key), (3, 5), strict=True)
    )
    learner = metajax.learners.relation(
        metajax.models.identity(), way=3, features=2, normalization="none"
    )
    support = Examples(classes, jnp.arange(3))
    meta_params = learner.init(key, Task(support, support))
    params = meta_params.head["params"]
    got = learner.predict(learner.adapt(meta_params, support), queries)
    kernels = [params[name]["kernel"] for name in ("classes", "queries")]
    first = {"kernel": jnp.concatenate(kernels, axis=2), "bias": jnp.zeros(2)}
    for i, query in enumerate(queries):
        for k, of_class in enumerate(classes):
            pair = jnp.concatenate([of_class, query], axis=2)[None]
            out = nn.Conv(2, (3, 3)).apply({"params": first}, pair)
            out = nn.relu(nn.max_pool(out, (2, 2), (2, 2)))
            out = nn.Conv(2, (3, 3)).apply({"params": params["pairs"]}, out)
            out = nn.relu(nn.max_pool(out, (2, 2), (2, 2))).reshape(1, -1)
            out = nn.relu(nn.Dense(8).apply({"params": params["Dense_0"]}, out))
            out = nn.Dense(1).apply({"params": params["Dense_1"]}, out)
            np.testing.assert_allclose(got[i, k], out[0, 0], rtol=1e-3, atol=1e-5)


def test_shots_are_averaged(key):
    """A class shown twice is not the class shown once."""
    task = sample(key)
    learner = metajax.learners.relation(metajax.models.identity(), way=3, features=4)
    meta_params = learner.init(key, task)
    means, _ = learner.adapt(meta_params, task.support).fitted
    x = np.asarray(task.support.x)
    np.testing.assert_allclose(means, (x[0::2] + x[1::2]) / 2, rtol=1e-5)


def test_error_is_that_of_sigmoids():
    scores = jnp.array([[0.3, -1.0, -jnp.inf], [2.0, 0.0, -jnp.inf]])
    chances = 1 / (1 + np.exp(-np.asarray(scores)))
    expected = ((chances - np.array([[1, 0, 0], [0, 1, 0]])) ** 2).sum(1)
    got = relation_error(scores, jnp.array([0, 1]))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    gradient = jax.grad(lambda s: relation_error(s, jnp.array([0, 1])).sum())(scores)
    assert np.isfinite(gradient).all()


def test_maps_of_images(key):
    model = metajax.models.conv4(features=2, pooling="maps", normalization="layer")
    images = jnp.zeros((5, 12, 12, 1))
    assert model.apply(model.init(key, images), images).shape == (5, 3, 3, 2)
    support = Examples(images, jnp.arange(5))
    learner = metajax.learners.prototypical(model)
    meta_params = learner.init(key, Task(support, support))
    with pytest.raises(ValueError, match=r"vectors.*gives \[5, 3, 3, 2\].*pooling='ma"):
        learner.adapt(meta_params, support)


ERRORS = {
    "features": ({"features": 0}, "`features` must be an integer of at least 1"),
    "normalization": ({"normalization": "group"}, "none, layer, batch, got 'group'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.relation(metajax.models.identity(), **changes)
