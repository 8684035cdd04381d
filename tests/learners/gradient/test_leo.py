"""LEO: its parts by hand, what the inner steps move, its penalties, and its errors."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import SIZE, WAY, Entry, sample, small_mlp

import metajax
from metajax.learners.gradient.leo import (
    encode,
    kl_to_standard,
    row_correlation_penalty,
)
from metajax.types import Examples

ENTRIES = {
    "leo": Entry(
        lambda: metajax.learners.leo(
            small_mlp(5), num_latents=3, inner_steps=2, fine_tuning_rate=0.1
        )
    ),
    "leo, support statistics": Entry(
        lambda: metajax.learners.leo(
            small_mlp(5, "support"),
            way=4,
            num_latents=3,
            inner_steps=1,
            train_embedding=True,
        )
    ),
}

NUM_LATENTS = 3


def frozen_features():
    """A model whose features are its inputs."""
    return metajax.models.from_functions(lambda key, x: {}, lambda params, x: x)


def leo(**changes):
    settings = {"way": 4, "num_latents": NUM_LATENTS, "fine_tuning_rate": 0.1}
    return metajax.learners.leo(frozen_features(), **settings | changes)


@pytest.fixture(name="task")
def _task(key):
    return sample(key)


@pytest.fixture(name="meta_params")
def _meta_params(key, task):
    return jax.jit(leo().init)(key, task)


def test_codes_are_means_over_pairs(meta_params, task):
    x, y = map(np.asarray, task.support[:2])
    first, second, third = map(np.asarray, meta_params.relation)
    encoded = x @ np.asarray(meta_params.encoder)
    outputs = {label: [] for label in range(WAY)}
    for left, right in itertools.product(range(len(x)), repeat=2):
        pair = np.concatenate([encoded[left], encoded[right]])
        hidden = np.maximum(np.maximum(pair @ first, 0) @ second, 0)
        outputs[y[left]].append(hidden @ third)
    means, spreads, is_present = encode(meta_params, task.support.x, task.support, 4)
    np.testing.assert_array_equal(is_present, [True, True, True, False])
    for label in range(WAY):
        expected = np.mean(outputs[label], axis=0)
        mean, raw = np.split(expected, 2)
        np.testing.assert_allclose(means[label], mean, rtol=1e-4, atol=1e-5)
        spread = np.log1p(np.exp(raw) * (np.e - 1))
        np.testing.assert_allclose(spreads[label], spread, rtol=1e-4, atol=1e-5)


def test_renaming_the_classes_renames_the_answers(meta_params, task):
    """A code depends on the other classes, but not on their names or order."""
    learner = leo()
    names = jnp.array([2, 0, 1])
    renamed = Examples(task.support.x, names[task.support.y])

    @jax.jit
    def answer(support):
        return learner.predict(learner.adapt(meta_params, support), task.query.x)

    chex.assert_trees_all_close(
        answer(renamed)[:, names], answer(task.support)[:, :WAY], rtol=1e-4, atol=1e-4
    )
    assert np.all(answer(task.support)[:, WAY] == -np.inf)


def test_no_steps_give_the_decoded_weights(meta_params, task):
    learner = leo(inner_steps=0, fine_tuning_steps=0)
    adapted = learner.adapt(meta_params, task.support)
    means, *_ = encode(meta_params, task.support.x, task.support, 4)
    decoded = (means @ meta_params.decoder)[:, :SIZE]
    chex.assert_trees_all_close(adapted["head"]["kernel"], decoded)
    logits = learner.predict(adapted, task.query.x)
    expected = task.query.x @ decoded[:WAY].T
    chex.assert_trees_all_close(logits[:, :WAY], expected, rtol=1e-5)


def test_steps_on_the_code_and_then_on_the_weights(meta_params, task):
    """By hand, with a rate for each dimension."""
    learner = leo(inner_steps=2, fine_tuning_steps=1)
    key = jax.random.key(5)
    alpha = jax.random.uniform(key, (1, NUM_LATENTS))
    eta = jax.random.uniform(key, (1, SIZE))
    meta_params = meta_params._replace(
        rates={"latent": {"learning_rate": alpha}, "weights": {"learning_rate": eta}}
    )
    decoder, labels = meta_params.decoder, jax.nn.one_hot(task.support.y, WAY)

    def loss(weights):
        logs = jax.nn.log_softmax(task.support.x @ weights[:WAY].T)
        return -jnp.mean(jnp.sum(labels * logs, axis=1))

    def loss_of_code(code):
        return loss((code @ decoder)[:, :SIZE])

    @jax.jit
    def expected():
        code, *_ = encode(meta_params, task.support.x, task.support, 4)
        states = []
        for _ in range(2):
            states.append((code @ decoder)[:, :SIZE])
            code = code - alpha * jax.grad(loss_of_code)(code)
        weights = (code @ decoder)[:, :SIZE]
        states += [weights, weights - eta * jax.grad(loss)(weights)]
        return jnp.stack(states), jnp.stack([loss(state) for state in states[:3]])

    states, losses = expected()
    path = jax.jit(learner.adapt_steps)(meta_params, task.support)
    kernels = path["head"]["kernel"]
    chex.assert_trees_all_close(kernels, states, rtol=1e-4, atol=1e-5)
    # The code alone moves: all of these are linear in it.
    moves = np.asarray(kernels[1:3] - kernels[:2]).reshape(-1, SIZE)
    assert np.linalg.matrix_rank(decoder[:, :SIZE]) == NUM_LATENTS < SIZE
    assert np.linalg.matrix_rank(moves, tol=1e-4) <= NUM_LATENTS
    assert np.linalg.matrix_rank(kernels[3, :3] - kernels[2, :3], tol=1e-4) > 1
    _, metrics = jax.jit(learner.loss)(meta_params, task)
    for step, value in enumerate(losses):
        np.testing.assert_allclose(metrics[f"support_loss_{step}"], value, rtol=1e-4)


def test_the_loss_is_the_sum_of_its_parts(meta_params, task):
    weights = {"kl_weight": 0.3, "encoder_penalty": 0.2, "orthogonality": 0.7}
    none = dict.fromkeys(weights, 0.0)

    @jax.jit
    def losses(meta_params):
        with_all = leo(**weights).loss(meta_params, task)
        return with_all, leo(**none).loss(meta_params, task)

    (loss, metrics), (bare, _) = losses(meta_params)
    expected = bare + 0.3 * metrics["kl"] + 0.2 * metrics["encoder_penalty"]
    expected += 0.7 * row_correlation_penalty(meta_params.decoder)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    means, spreads, _ = encode(meta_params, task.support.x, task.support, 4)
    kl = np.mean(kl_to_standard(means, spreads)[:WAY])  # not of the absent class
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)


def test_the_encoder_penalty_draws_the_code_alone(meta_params, task):
    """Its gradient is -2 (z' - z) / number of entries, through z and not z'."""
    learner = leo(fine_tuning_steps=0, kl_weight=0, orthogonality=0, encoder_penalty=1)
    bare = leo(fine_tuning_steps=0, kl_weight=0, orthogonality=0, encoder_penalty=0)

    def penalty(meta_params):
        return learner.loss(meta_params, task)[0] - bare.loss(meta_params, task)[0]

    value, slopes = jax.jit(jax.value_and_grad(penalty))(meta_params)
    assert value > 1e-6
    # z does not depend on the decoder or the rates, only z' does.
    np.testing.assert_allclose(slopes.decoder, 0, atol=1e-5)
    np.testing.assert_allclose(slopes.rates["latent"]["learning_rate"], 0, atol=1e-5)
    assert np.abs(slopes.encoder).max() > 1e-4


def test_kl_is_that_of_normal_distributions(key):
    """Against the mean log ratio of densities over samples."""
    means = jnp.array([[0.5, -1.0], [0.0, 0.0]])
    spreads = jnp.array([[0.3, 2.0], [1.0, 1.0]])
    value = kl_to_standard(means, spreads)
    logpdf = jax.scipy.stats.norm.logpdf
    draws = means[None] + spreads[None] * jax.random.normal(key, (20_000, 2, 2))
    ratios = logpdf(draws, means[None], spreads[None]) - logpdf(draws)
    ratios = np.asarray(jnp.mean(ratios, axis=-1), np.float64)
    error = ratios.std(axis=0) / np.sqrt(len(ratios))
    assert np.all(error < 0.02)
    assert np.all(np.abs(ratios.mean(axis=0) - value) <= 4 * error + 1e-6)
    assert value[1] == 0


def test_the_orthogonality_penalty(key):
    rows = jnp.linalg.qr(jax.random.normal(key, (5, 3)))[0].T
    scaled = jnp.array([[2.0], [0.1], [30.0]]) * rows
    np.testing.assert_allclose(row_correlation_penalty(scaled), 0, atol=1e-10)
    # Two equal rows and one orthogonal to both: two of nine entries are off by 1.
    equal = jnp.stack([rows[0], 3 * rows[0], rows[1]])
    np.testing.assert_allclose(row_correlation_penalty(equal), 2 / 9, rtol=1e-5)


def test_samples_are_for_training_alone(meta_params, task):
    learner = leo()
    answers = [
        learner.adapt(meta_params, task.support, key=key)["head"]["kernel"]
        for key in (None, jax.random.key(1))
    ]
    chex.assert_trees_all_equal(*answers)
    loss = jax.jit(learner.loss)
    first, again, other = (
        loss(meta_params, task, key=jax.random.key(seed))[0] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("trains", [False, True])
def test_the_embedding_is_frozen_unless_asked_for(key, task, trains):
    model = metajax.models.mlp(SIZE, hidden_sizes=(8,))
    learner = metajax.learners.leo(model, num_latents=2, train_embedding=trains)

    @jax.jit
    def slopes(key):
        meta_params = learner.init(key, task)
        return jax.grad(lambda params: learner.loss(params, task)[0])(meta_params)

    found = slopes(key)
    leaves = jax.tree.leaves(found.embedding)
    assert all(bool(np.any(leaf)) == trains for leaf in leaves)
    assert np.any(found.encoder)


ERRORS = {
    "way": ({"way": 0}, "`way` must be an integer of at least 1, .*got 0"),
    "latents": ({"num_latents": 0}, "`num_latents` must be .*at least 1, got 0"),
    "inner_steps": (
        {"inner_steps": -1},
        "`inner_steps` must be an integer of at least 0, got -1",
    ),
    "more steps": ({"fine_tuning_steps": 0.5}, "`fine_tuning_steps` must .*got 0.5"),
    "rate": ({"latent_rate": 0}, "`latent_rate` must be above 0 and finite, got 0"),
    "other rate": ({"fine_tuning_rate": -1}, "`fine_tuning_rate` must be above 0"),
    "penalty": ({"kl_weight": -0.1}, "`kl_weight` must be at least 0 .*got -0.1"),
    "gradient": ({"gradient": "second"}, "reverse, remat, mixed"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        leo(**changes)
