"""Conditional neural processes that classify: by hand in NumPy, learning, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import Entry, sample, small_mlp

import metajax

ENTRIES = {
    "class_np": Entry(
        lambda: metajax.learners.class_np(
            small_mlp(5), way=4, code_size=6, decoder_layers=2
        ),
        uses_labels_untrained=False,
    ),
}


def _layers(params, x):
    """Dense layers with ReLU between them."""
    for place in range(len(params)):
        layer = params[f"Dense_{place}"]
        x = x @ layer["kernel"] + layer["bias"]
        if place < len(params) - 1:
            x = np.maximum(x, 0)
    return x


def test_codes_are_averaged_by_class(key):
    """With one of four classes absent."""
    task = sample(key)
    learner = metajax.learners.class_np(
        metajax.models.identity(),
        way=4,
        code_size=6,
        encoder_layers=2,
        decoder_layers=1,
    )
    meta_params = learner.init(key, task)
    params = jax.tree.map(np.asarray, meta_params.head["params"])
    codes = _layers(params["phi"], np.asarray(task.support.x))
    labels = np.asarray(task.support.y)
    means = np.stack([codes[labels == k].mean(0) for k in range(3)])
    classes = np.concatenate([*means, np.zeros(6)])
    queries = np.asarray(task.query.x)
    rows = np.concatenate([queries, np.tile(classes, (len(queries), 1))], axis=1)
    expected = _layers(params["decoder"], rows)
    logits = learner.predict(learner.adapt(meta_params, task.support), task.query.x)
    np.testing.assert_allclose(logits[:, :3], expected[:, :3], rtol=1e-4, atol=1e-5)
    assert np.all(np.isneginf(logits[:, 3]))


def test_it_learns_to_compare(key):
    tasks = metajax.tasks.synthetic_table(way=2, shot=5, num_queries=10, columns=10)
    learner = metajax.learners.class_np(metajax.models.identity(), way=2, code_size=32)
    trained = metajax.train(
        learner, tasks, optax.adam(3e-3), steps=400, tasks_per_step=16, progress=False
    )
    report = metajax.evaluate(learner, trained.meta_params, tasks, num_tasks=200)
    assert report.mean["accuracy"] > 0.6


def test_the_answer_does_not_grow_with_the_support_set(key):
    learner = metajax.learners.class_np(metajax.models.identity(), way=3, code_size=4)
    adapted = []
    for shot in (2, 20):
        tasks = metajax.tasks.synthetic_table(
            way=3, shot=shot, num_queries=2, columns=10
        )
        task = tasks(key)
        adapted.append(learner.adapt(learner.init(key, task), task.support))
    chex.assert_trees_all_equal_shapes(*adapted)


@pytest.mark.parametrize(
    "name", ["way", "code_size", "encoder_layers", "decoder_layers"]
)
def test_numbers_out_of_range(name):
    arguments = {"way": 3} | {name: 0}
    with pytest.raises(ValueError, match=f"`{name}`"):
        metajax.learners.class_np(metajax.models.identity(), **arguments)


def test_maps_are_refused(key):
    task = metajax.Task(
        *(metajax.Examples(jnp.ones((2, 8, 8, 1)), jnp.arange(2)) for _ in range(2))
    )
    learner = metajax.learners.class_np(metajax.models.conv4(pooling="maps"), way=2)
    with pytest.raises(ValueError, match="vectors"):
        learner.init(key, task)
