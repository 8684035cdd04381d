"""Generated networks: hypernetworks and CNAPs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import WAY, Entry, small_mlp

import metajax
from metajax.filters import path_names
from metajax.types import Examples, Task

ENTRIES = {
    "hypernetwork": Entry(
        lambda: metajax.learners.hypernetwork(
            small_mlp(WAY), way=WAY, code_size=5, hidden_sizes=(6,)
        ),
        uses_labels_untrained=False,
    ),
    "hypernetwork, scales of support statistics": Entry(
        lambda: metajax.learners.hypernetwork(
            small_mlp(WAY, "support"),
            way=4,
            code_size=5,
            hidden_sizes=(6,),
            rank=2,
            generates=metajax.filters.only("scale", "bias"),
        ),
        uses_labels_untrained=False,
    ),
    "cnaps": Entry(
        lambda: metajax.learners.cnaps(
            small_mlp(5, "layer"), way=4, code_size=4, hidden_sizes=(6,)
        )
    ),
    "cnaps, any way, support statistics": Entry(
        lambda: metajax.learners.cnaps(
            small_mlp(5, "support"), code_size=4, hidden_sizes=(6,), rank=2
        )
    ),
}


@pytest.fixture
def task(key) -> Task:
    return metajax.tasks.synthetic_table(way=3, shot=4, num_queries=2, columns=12)(key)


@pytest.mark.parametrize("rank", [None, 2])
def test_parameters_are_a_linear_map_of_the_code(task, key, rank):
    learner = metajax.learners.hypernetwork(
        metajax.models.mlp(3, hidden_sizes=(4,)),
        way=3,
        code_size=5,
        hidden_sizes=(6,),
        rank=rank,
    )
    params = learner.init(key, task)
    encoder = metajax.models.task_encoder(5, num_classes=3, hidden_sizes=(6,))
    code = encoder.apply(params.encoder, task.support)
    matrix = params.generator["up"]
    if rank is not None:
        matrix = params.generator["down"] @ matrix
        assert np.linalg.matrix_rank(matrix) == rank
    theta, unravel = jax.flatten_util.ravel_pytree(params.base)
    expected = unravel(theta + code @ matrix)
    chex.assert_trees_all_close(
        learner.adapt(params, task.support), expected, rtol=1e-5
    )


def test_scales_and_shifts_alone(task, key):
    learner = metajax.learners.hypernetwork(
        metajax.models.mlp(3, hidden_sizes=(4,), normalization="layer"),
        way=3,
        generates=metajax.filters.only("scale", "bias"),
    )
    params = learner.init(key, task)
    adapted = learner.adapt(params, task.support)
    for path, old, new in zip(
        path_names(adapted),
        jax.tree.leaves(params.base),
        jax.tree.leaves(adapted),
        strict=True,
    ):
        assert np.array_equal(old, new) == path.endswith("kernel"), path


def test_it_learns_sinusoids(key):
    tasks = metajax.tasks.sinusoid(shot=10, num_queries=20)
    learner = metajax.learners.hypernetwork(
        metajax.models.mlp(1, hidden_sizes=(32, 32)),
        num_outputs=1,
        rank=8,
    )
    result = metajax.train(
        learner, tasks, optax.adam(3e-3), steps=600, tasks_per_step=16
    )
    bank = [tasks(k) for k in jax.random.split(jax.random.key(9), 40)]
    loss = jax.jit(learner.loss)
    mean = np.mean([loss(result.meta_params, task)[0] for task in bank])
    # What no function that is the same for all tasks can be below (TARGETS: 3.0).
    assert mean < 2.0


def cnaps_params(task, key, **changes):
    learner = metajax.learners.cnaps(
        metajax.models.mlp(6, hidden_sizes=(8,), normalization="layer"),
        code_size=4,
        hidden_sizes=(5,),
        **({"way": 3} | changes),
    )
    return learner, learner.init(key, task)


def test_numbers_of_classes_mean_nothing(task, key):
    learner, params = cnaps_params(task, key)
    outputs = learner.predict(learner.adapt(params, task.support), task.query.x)
    new = jnp.asarray([2, 0, 1])
    support = task.support._replace(y=new[task.support.y])
    renamed = learner.predict(learner.adapt(params, support), task.query.x)
    np.testing.assert_allclose(renamed[:, new], outputs, rtol=1e-4, atol=1e-5)


def test_without_offsets_the_head_is_made_of_class_means(task, key):
    learner, params = cnaps_params(task, key, way=4)
    silent = params._replace(
        generator=jax.tree.map(jnp.zeros_like, params.generator),
        head=jax.tree.map(jnp.zeros_like, params.head),
    )
    model = metajax.models.mlp(6, hidden_sizes=(8,), normalization="layer")
    features = model.apply(params.embedding, task.support.x)
    means = [features[task.support.y == k].mean(0) for k in range(3)]
    asked = model.apply(params.embedding, task.query.x)
    outputs = learner.predict(learner.adapt(silent, task.support), task.query.x)
    np.testing.assert_allclose(
        outputs[:, :3], asked @ np.stack(means).T, rtol=1e-4, atol=1e-5
    )
    assert np.all(np.isneginf(outputs[:, 3]))
    # And the task changes the embedding.
    adapted = learner.adapt(params, task.support)
    changed = model.apply(adapted.embedding, task.query.x)
    assert not np.allclose(changed, asked, rtol=1e-3)


def test_one_model_for_any_way(key, task):
    learner, params = cnaps_params(task, key, way="support")
    other = metajax.tasks.synthetic_table(way=2, shot=3, num_queries=2, columns=12)(key)
    for way, some in ((3, task), (2, other)):
        adapted = learner.adapt(params, some.support)
        outputs = learner.predict(adapted, some.query.x)
        assert np.all(np.isfinite(outputs[:, :way]))
        assert np.all(np.isneginf(outputs[:, way:]))


BAD = {
    "objective": (
        lambda: metajax.learners.hypernetwork(metajax.models.mlp(1)),
        "Give either `way`, .* or `num_outputs`",
    ),
    "rank": (
        lambda: metajax.learners.hypernetwork(
            metajax.models.mlp(2), way=2, code_size=4, rank=5
        ),
        "`rank` must be None or an integer from 1 to 4, .* got 5",
    ),
    "scale": (
        lambda: metajax.learners.hypernetwork(
            metajax.models.mlp(2), way=2, offset_scale=0.0
        ),
        "`offset_scale` must be above 0",
    ),
    "way": (
        lambda: metajax.learners.hypernetwork(metajax.models.mlp(2), way=0),
        "`way` must be an integer of at least 1, got 0",
    ),
    "cnaps way": (
        lambda: metajax.learners.cnaps(metajax.models.mlp(2), way=0),
        "`way` must be an integer of at least 1, or 'support'",
    ),
    "cnaps hidden": (
        lambda: metajax.learners.cnaps(metajax.models.mlp(2), hidden_sizes=()),
        "`hidden_sizes` must hold at least 1 size",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_filter_that_accepts_nothing(key, task):
    learner = metajax.learners.cnaps(
        metajax.models.mlp(4), generates=metajax.filters.only("scale")
    )
    with pytest.raises(ValueError, match="accepts none of the floating-point leaves"):
        learner.init(key, task)


def test_targets_of_another_kind(key, task):
    learner = metajax.learners.hypernetwork(
        metajax.models.mlp(1), num_outputs=1, code_size=4
    )
    support = Examples(task.support.x, task.support.y.astype(float)[:, None])
    params = learner.init(key, Task(support, support))
    assert np.isfinite(learner.loss(params, Task(support, support))[0])
