"""The generator of parameters: its parts by hand, its limits, and its errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import WAY, Entry, sample, small_mlp

import metajax
from metajax.filters import path_names
from metajax.learners.optimizer.lstm_generator import as_sequences
from metajax.models.adapters import from_linen
from metajax.models.recurrent import RecurrentLSTM
from metajax.objectives import squared_error
from metajax.types import Examples

ENTRIES = {
    "lstm_generator": Entry(
        lambda: metajax.learners.lstm_generator(
            small_mlp(WAY), optax.sgd(0.1), inner_steps=2, way=WAY, hidden_sizes=(5,)
        )
    ),
    "lstm_generator, low rank, support statistics": Entry(
        lambda: metajax.learners.lstm_generator(
            small_mlp(WAY, "support"),
            metajax.optimizers.learned(
                optax.sgd, learning_rate=metajax.optimizers.HyperParameter(0.05)
            ),
            inner_steps=1,
            way=4,
            hidden_sizes=(5,),
            rank=2,
        )
    ),
}


def generator(steps=1, **changes):
    settings = {"hidden_sizes": (4,), "num_outputs": 1} | changes
    model = metajax.models.lstm(1, hidden_sizes=(3,))
    return metajax.learners.lstm_generator(
        model, optax.sgd(0.1), inner_steps=steps, **settings
    )


@pytest.fixture(name="task")
def _task(key):
    return metajax.tasks.sequence_sinusoid(shot=3, num_queries=2, length=4)(key)


@functools.lru_cache
def start(**changes):
    """Meta-parameters away from where they start."""
    learner = generator(**changes)
    task = metajax.tasks.sequence_sinusoid(shot=3, num_queries=2, length=4)(
        jax.random.key(0)
    )
    meta_params = jax.jit(learner.init)(jax.random.key(1), task)
    return jax.tree.map(lambda leaf: 1.5 * leaf + 0.05, meta_params)


@pytest.mark.parametrize("rank", [None, 2])
def test_offsets_are_the_linear_map_of_the_mean_final_state(task, rank):
    meta_params = start(rank=rank)
    learner = generator(steps=0, rank=rank)
    adapted = jax.jit(learner.adapt)(meta_params, task.support)
    reader = from_linen(RecurrentLSTM((4,)))
    rows = jnp.concatenate([task.support.x, task.support.y], axis=-1)
    states = jax.jit(reader.apply)(meta_params.encoder, rows)
    code = np.mean(states[:, -1], axis=0)
    matrix = np.asarray(meta_params.generator["up"])
    if rank is not None:
        matrix = np.asarray(meta_params.generator["down"]) @ matrix
        assert np.linalg.matrix_rank(matrix) <= rank < 4
    offsets = code @ matrix
    found = [
        np.ravel(new - old)
        for new, old in zip(
            jax.tree.leaves(adapted), jax.tree.leaves(meta_params.base), strict=True
        )
    ]
    np.testing.assert_allclose(np.concatenate(found), offsets, rtol=1e-3, atol=1e-5)


def test_a_generator_of_zeros_is_maml(task):
    meta_params = start()
    zeros = jax.tree.map(jnp.zeros_like, meta_params.generator)
    meta_params = meta_params._replace(generator=zeros)
    maml = metajax.learners.maml(
        metajax.models.lstm(1, hidden_sizes=(3,)),
        optax.sgd(0.1),
        inner_steps=1,
        objective=squared_error,
    )
    chex.assert_trees_all_close(
        jax.jit(generator().loss)(meta_params, task),
        jax.jit(maml.loss)(meta_params.base, task),
        rtol=1e-5,
    )


def test_offsets_start_small(key, task):
    learner = generator(steps=0, offset_scale=0.01, hidden_sizes=(16,))

    @jax.jit
    def offsets(key):
        meta_params = learner.init(key, task)
        adapted = learner.adapt(meta_params, task.support)
        return jax.tree.map(jnp.subtract, adapted, meta_params.base)

    leaves = jax.tree.leaves(offsets(key))
    sizes = np.abs(np.concatenate([np.ravel(leaf) for leaf in leaves]))
    assert 0 < np.mean(sizes) < 0.01
    assert np.max(sizes) < 0.05


def test_gradients_reach_everything(task):
    meta_params = start(rank=2)
    learner = generator(rank=2)
    slopes = jax.jit(jax.grad(lambda p: learner.loss(p, task)[0]))(meta_params)
    for path, leaf in zip(path_names(slopes), jax.tree.leaves(slopes), strict=True):
        assert np.any(leaf), path


def test_what_is_generated_and_what_adapts(task):
    head, rest = metajax.filters.only("head"), metajax.filters.all_but("head")
    learner = generator(steps=1, generates=head, adapts=rest)
    meta_params = start(generates=head, adapts=rest)
    chex.assert_shape(meta_params.generator["up"], (4, 3 + 1))
    path = jax.jit(learner.adapt_steps)(meta_params, task.support)
    for name, base, states in zip(
        path_names(path),
        jax.tree.leaves(meta_params.base),
        jax.tree.leaves(path),
        strict=True,
    ):
        is_head = head(name)
        assert np.array_equal(states[0], base) != is_head
        assert np.array_equal(states[1], states[0]) == is_head


def test_learned_rates_are_used(key, task):
    rate = metajax.optimizers.HyperParameter(0.1)
    inner = metajax.optimizers.learned(optax.sgd, learning_rate=rate)
    learner = metajax.learners.lstm_generator(
        metajax.models.lstm(1, hidden_sizes=(3,)),
        inner,
        inner_steps=1,
        hidden_sizes=(4,),
        num_outputs=1,
    )
    meta_params = start()._replace(optimizer=inner.init(key, None))

    @jax.jit
    def losses_and_slope(meta_params):
        fixed, _ = generator().loss(start(), task)
        loss = jax.value_and_grad(lambda params: learner.loss(params, task)[0])
        return fixed, *loss(meta_params)

    fixed, loss, slope = losses_and_slope(meta_params)
    np.testing.assert_allclose(loss, fixed, rtol=1e-5)
    assert slope.optimizer["learning_rate"] != 0
    assert jax.eval_shape(learner.init, key, task).optimizer is not None


def test_sequences_of_labels_images_and_constants():
    x, y = jnp.arange(24.0).reshape(2, 3, 4), jnp.array([1, 0])
    # A label of a whole sequence stands at every step.
    found = as_sequences(Examples(x, y), 2, None)
    chex.assert_trees_all_equal(found[..., :4], x)
    chex.assert_trees_all_equal(
        found[..., 4:], jnp.stack([jax.nn.one_hot(y, 2)] * 3, 1)
    )
    # A label of each step.
    labels = jnp.array([[0, 1, 2], [2, 1, 0]])
    found = as_sequences(Examples(x, labels), 3, None)
    chex.assert_trees_all_equal(found[..., 4:], jax.nn.one_hot(labels, 3))
    # Without a time axis there is one step.
    found = as_sequences(
        Examples(jnp.ones((2, 4, 4, 3)), jnp.array([2.0, 3.0])), None, 1
    )
    chex.assert_shape(found, (2, 1, 49))
    np.testing.assert_array_equal(found[:, 0, -1], [2, 3])


def test_classifies_without_a_time_axis(key):
    """It tells tasks apart before the first step: labels of another task do worse."""
    learner = metajax.learners.lstm_generator(
        metajax.models.mlp(WAY, hidden_sizes=(8,)),
        optax.sgd(0.1),
        inner_steps=0,
        way=WAY,
        hidden_sizes=(8,),
    )
    result = metajax.train(
        learner,
        sample,
        optax.adam(0.01),
        steps=100,
        tasks_per_step=8,
        steps_per_dispatch=50,
        log_every=50,
        progress=False,
    )
    tasks = jax.vmap(sample)(jax.random.split(key, 100))
    wrong = tasks._replace(
        support=tasks.support._replace(y=(tasks.support.y + 1) % WAY)
    )
    loss = jax.jit(jax.vmap(learner.loss, (None, 0)))
    difference = loss(result.meta_params, wrong)[0] - loss(result.meta_params, tasks)[0]
    assert np.mean(difference) > 4 * np.std(difference) / np.sqrt(100)


ERRORS = {
    "inner_steps": (
        {"inner_steps": -1},
        ValueError,
        "`inner_steps` must be an integer of at least 0",
    ),
    "optimizer": ({"inner_optimizer": 0.1}, TypeError, "optax.sgd.*got 0.1"),
    "hidden": (
        {"hidden_sizes": ()},
        ValueError,
        "`hidden_sizes` must hold at least 1 size",
    ),
    "rank": ({"rank": 65}, ValueError, "`rank` must be .* from 1 to 64,.*got 65"),
    "way": ({"way": 0}, ValueError, "`way` must be an integer .*got 0"),
    "scale": ({"offset_scale": 0}, ValueError, "`offset_scale` must be above 0.*got 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, kind, message = ERRORS[name]
    settings = {"inner_optimizer": optax.sgd(0.1), "inner_steps": 1, "num_outputs": 1}
    if "way" in changes:
        del settings["num_outputs"]
    settings |= changes
    with pytest.raises(kind, match=message):
        metajax.learners.lstm_generator(metajax.models.lstm(1), **settings)


EXAMPLES = {
    "labels": ((jnp.zeros((2, 3)), jnp.zeros(2, int)), "integers.*give `way`"),
    "lengths": ((jnp.zeros((2, 3, 1)), jnp.zeros((2, 4, 1))), r"\[3, 4\] time steps"),
    "pytree": (({"a": jnp.zeros((2, 1))}, jnp.zeros(2)), "needs `x` as one.*got dict"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_it_cannot_read_are_explained(name):
    (x, y), message = EXAMPLES[name]
    with pytest.raises(ValueError, match=message):
        as_sequences(Examples(x, y), None, y.shape[-1] if y.ndim > 1 else 1)
