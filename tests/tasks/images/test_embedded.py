"""Embeddings computed once: the same tasks and answers as from the images."""

import numpy as np
import pytest

import metajax
from metajax.tasks.images.class_table import class_table
from metajax.tasks.images.embedded import embed_table, without_embedding


def a_table(rotations=4):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4, 6, 5, 5, 1), dtype=np.uint8)
    names = ["a", "b", "c", "d"]
    return class_table(images, [6, 5, 6, 5], rotations=rotations, class_names=names)


@pytest.mark.parametrize("rotations", [1, 4])
@pytest.mark.parametrize(
    "make", [metajax.learners.prototypical, metajax.learners.ridge]
)
def test_the_same_answers_as_from_images(make, rotations, key):
    table = a_table(rotations)
    model = metajax.models.mlp(7, hidden_sizes=(6,), normalization="layer")
    tasks = metajax.tasks.few_shot(table, way=3, shot=2, num_queries=3)
    learner = make(model, way=3)
    meta_params = learner.init(key, tasks(key))
    params = getattr(meta_params, "embedding", meta_params)
    features = embed_table(model, params, table, batch_size=13)
    assert features.images.shape == (4 * rotations, 6, 7)
    assert np.all(np.asarray(features.images[rotations, 5]) == 0)
    cached = metajax.tasks.few_shot(features, way=3, shot=2, num_queries=3)
    expected, got = (
        metajax.evaluate(*arguments, num_tasks=20)
        for arguments in (
            (learner, meta_params, tasks),
            (
                make(metajax.models.identity(), way=3),
                without_embedding(meta_params),
                cached,
            ),
        )
    )
    for name, values in expected.values.items():
        np.testing.assert_allclose(got.values[name], values, rtol=1e-4, atol=1e-5)


def test_rotations_are_rows_with_names(key):
    model = metajax.models.identity()
    flat = model._replace(apply=lambda params, x, **_: x.reshape(len(x), -1))
    features = embed_table(flat, {}, a_table())
    assert features.class_names[4:7] == ("b 0", "b 90", "b 180")
    image = np.asarray(a_table().images[1, 2, :, :, 0]) / 255
    np.testing.assert_allclose(
        features.images[5, 2], np.rot90(image).reshape(-1), rtol=1e-6
    )


def test_calibrated_statistics_are_used(key):
    model = metajax.models.mlp(7, hidden_sizes=(6,), normalization="calibrated")
    table = a_table(1)
    tasks = metajax.tasks.few_shot(table, way=3, shot=2, num_queries=3)
    params = model.init(key, tasks(key).support.x)
    with pytest.raises(
        ValueError, match="no statistics yet; call `metajax.models.calibrate`"
    ):
        embed_table(model, params, table)
    params = metajax.models.calibrate(model, params, tasks, key)
    features = embed_table(model, params, table)
    alone = model.apply(params, np.asarray(table.images[2, 3:4], np.float32) / 255)
    np.testing.assert_allclose(features.images[2, 3], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "support"])
def test_embeddings_of_a_task_are_refused(kind):
    model = metajax.models.mlp(7, normalization=kind)
    with pytest.raises(ValueError, match=f"'{kind}' an embedding depends"):
        embed_table(model, {}, a_table())


def test_other_bad_input():
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least"):
        embed_table(metajax.models.identity(), {}, a_table(), batch_size=0)
    with pytest.raises(ValueError, match=r"vectors, and the model gives \[5, 5, 1\]"):
        embed_table(metajax.models.identity(), {}, a_table())
    with pytest.raises(ValueError, match=r"no rotations, got shape \(2, 3, 4\) and 4"):
        class_table(np.zeros((2, 3, 4)), rotations=4)


def test_only_bytes_are_scaled():
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    features = embed_table(metajax.models.identity(), {}, class_table(values))
    np.testing.assert_array_equal(features.images, values)


def test_what_is_no_model_or_table_is_named():
    table = class_table(np.zeros((2, 3, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="`model` must be a `metajax.Model`, got 3"):
        embed_table(3, {}, table)
    with pytest.raises(ValueError, match="`table` must be a `ClassTable`, got array"):
        embed_table(metajax.models.identity(), {}, np.zeros((2, 3, 4)))
