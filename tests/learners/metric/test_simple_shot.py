"""SimpleShot: centring, normalisation and both distances against NumPy; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import PADDING, Entry, sample, small_mlp

import metajax
from metajax.learners import center_embeddings, simple_shot
from metajax.types import Examples, Task

ENTRIES = {
    "simple_shot": Entry(lambda: simple_shot(small_mlp(5), way=4, scale=10.0)),
    "simple_shot, squared_euclidean": Entry(
        lambda: simple_shot(small_mlp(5), distance="squared_euclidean"), laws=PADDING
    ),
}

IDENTITY = metajax.models.identity()


def expected(task, center, distance, *, normalize):
    """The paper's equations, one example after the other."""

    def transform(rows):
        rows = np.asarray(rows, float) - center
        return (
            np.stack([row / np.linalg.norm(row) for row in rows]) if normalize else rows
        )

    support, queries = transform(task.support.x), transform(task.query.x)
    labels = np.asarray(task.support.y)
    result = np.zeros((len(queries), 3))
    for k in range(3):
        mean = support[labels == k].mean(0)
        for i, query in enumerate(queries):
            if distance == "cosine":
                lengths = np.linalg.norm(query) * np.linalg.norm(mean)
                result[i, k] = query @ mean / lengths
            else:
                result[i, k] = -np.sum((query - mean) ** 2)
    return result


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("distance", ["cosine", "squared_euclidean"])
def test_against_numpy(distance, normalize, key):
    task, center = sample(key), np.array([0.5, -1.0, 2.0, 0.0])
    learner = simple_shot(
        IDENTITY, way=3, distance=distance, normalize=normalize, scale=3.0
    )
    meta_params = learner.init(key, task)
    np.testing.assert_array_equal(meta_params.head, 0)
    meta_params = meta_params._replace(head=jnp.asarray(center, jnp.float32))
    logits = learner.predict(learner.adapt(meta_params, task.support), task.query.x)
    wanted = 3 * expected(task, center, distance, normalize=normalize)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def test_the_centre_is_the_mean_over_real_examples(key):
    """Of a model that doubles, and of sets whose padding is far away."""
    model = metajax.models.from_functions(
        lambda key, x: {"factor": jnp.float32(2)}, lambda p, x: p["factor"] * x
    )

    def tasks(key):
        task = sample(key)
        x = jnp.concatenate([task.support.x, jnp.full((2, 4), jnp.nan)])
        y = jnp.concatenate([task.support.y, jnp.zeros(2, int)])
        return Task(Examples(x, y, jnp.arange(8) < 6), task.query)

    learner = simple_shot(model)
    meta_params = learner.init(key, sample(key))
    found = center_embeddings(model, meta_params, tasks, key, num_tasks=5)
    every = [
        np.asarray(examples.x)
        for key in jax.random.split(key, 5)
        for examples in sample(key)
    ]
    mean = 2 * np.concatenate(every).mean(0)
    np.testing.assert_allclose(found.head, mean, rtol=1e-5, atol=1e-6)
    assert found.embedding is meta_params.embedding


def test_no_gradient_reaches_the_centre_and_one_reaches_the_embedding(key):
    model, task = small_mlp(5), sample(key)
    learner = simple_shot(model, way=3)
    meta_params = learner.init(key, task)._replace(head=jnp.ones(5))
    gradient = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(meta_params)
    np.testing.assert_array_equal(gradient.head, 0)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient.embedding))


def test_an_example_at_the_centre_has_a_finite_gradient():
    support = Examples(jnp.eye(2), jnp.arange(2))
    learner = simple_shot(IDENTITY, way=2)
    meta_params = learner.init(jax.random.key(0), Task(support, support))
    adapted = learner.adapt(meta_params, support)
    slope = jax.grad(lambda x: learner.predict(adapted, x).sum())(jnp.zeros((1, 2)))
    assert np.isfinite(slope).all()


ERRORS = {
    "way": ({"way": 0}, "`way` must be an integer of at least 1, .*got 0"),
    "distance": ({"distance": "l1"}, "`distance` must be one of cosine, .* got 'l1'"),
    "scale": ({"scale": 0}, "`scale` must be above 0 and finite, got 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        simple_shot(IDENTITY, **changes)


def test_a_centre_needs_tasks(key):
    learner = simple_shot(IDENTITY)
    meta_params = learner.init(key, sample(key))
    with pytest.raises(ValueError, match="`num_tasks` must be .* got 0"):
        center_embeddings(IDENTITY, meta_params, sample, key, num_tasks=0)
