"""Matching Networks: Eq. (1) in NumPy loops, full context by hand, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import PADDING, Entry, pad, sample, small_mlp

import metajax
from metajax.types import Examples

ENTRIES = {
    "matching": Entry(lambda: metajax.learners.matching(small_mlp(5))),
    "matching, full context": Entry(
        lambda: metajax.learners.matching(
            small_mlp(5, "support"),
            way=4,
            similarity="squared_euclidean",
            full_context=True,
        ),
        ignores_order=False,
        laws=PADDING,
    ),
}


def similarity(kind, a, b):
    if kind == "cosine":
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return -np.sum((a - b) ** 2)


@pytest.mark.parametrize("kind", ["cosine", "squared_euclidean"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_labels_of_those_that_are_alike(kind, scale, key):
    task = sample(key)
    learner = metajax.learners.matching(
        metajax.models.identity(),
        way=4,
        similarity=kind,
        scale=scale,
        learn_scale=False,
    )
    adapted = learner.adapt(learner.init(key, task), task.support)
    logits = np.asarray(learner.predict(adapted, task.query.x))
    support, queries = np.asarray(task.support.x), np.asarray(task.query.x)
    for query, row in zip(queries, logits, strict=True):
        weights = np.exp([scale * similarity(kind, query, x) for x in support])
        weights /= weights.sum()
        shares = [weights[np.asarray(task.support.y) == k].sum() for k in range(3)]
        np.testing.assert_allclose(np.exp(row[:3]), shares, rtol=1e-4, atol=1e-30)
    assert np.all(np.isneginf(logits[:, 3]))


def test_with_one_shot_it_is_prototypical(key):
    task = sample(key)
    support = jax.tree.map(lambda leaf: leaf[::2], task.support)
    answers = [
        learner.predict(learner.adapt(params, support), task.query.x)
        for learner, params in (
            (metajax.learners.prototypical(metajax.models.identity()), {}),
            (
                metajax.learners.matching(
                    metajax.models.identity(),
                    similarity="squared_euclidean",
                    learn_scale=False,
                ),
                {},
            ),
        )
    ]
    ours, theirs = (jax.nn.log_softmax(answer) for answer in answers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_scale_is_learned(key):
    task = sample(key)
    learner = metajax.learners.matching(metajax.models.identity(), way=3, scale=5.0)
    meta_params = learner.init(key, task)
    np.testing.assert_allclose(meta_params.head["log_scale"], np.log(5), rtol=1e-6)
    gradient = jax.grad(lambda p: learner.loss(p, task)[0])(meta_params)
    assert gradient.head["log_scale"] < 0  # blobs are far apart: sharper is better


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell(params, x, state, memory):
    gates = x @ params["input"] + state @ params["state"] + params["bias"]
    enter, forget, values, leave = np.split(gates, 4)
    memory = sigmoid(forget) * memory + sigmoid(enter) * np.tanh(values)
    return sigmoid(leave) * np.tanh(memory), memory


def test_full_context_by_hand(key):
    """Eqs. (3) to (6) and appendix A.2, one example after the other."""
    task = sample(key)
    learner = metajax.learners.matching(
        metajax.models.identity(), way=3, full_context=True, learn_scale=False, reads=2
    )
    meta_params = learner.init(key, task)
    params = jax.tree.map(np.asarray, meta_params.head)
    x = np.asarray(task.support.x)
    embedded = x.copy()
    for name, order in (("forward", range(6)), ("backward", reversed(range(6)))):
        state = memory = np.zeros(4)
        for i in order:
            state, memory = cell(params[name], x[i], state, memory)
            embedded[i] += state
    query = np.asarray(task.query.x[0])
    state, memory = query, np.zeros(4)
    for _ in range(2):
        scores = np.exp(embedded @ state - (embedded @ state).max())
        read = scores / scores.sum() @ embedded
        out, memory = cell(params["query"], query, np.append(state, read), memory)
        state = out + query
    weights = np.exp([10 * similarity("cosine", state, row) for row in embedded])
    weights /= weights.sum()
    expected = [weights[np.asarray(task.support.y) == k].sum() for k in range(3)]
    adapted = learner.adapt(meta_params, task.support)
    got = np.exp(learner.predict(adapted, task.query.x)[0])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_padding_within_a_sequence_is_stepped_over(key):
    task = sample(key)
    learner = metajax.learners.matching(
        metajax.models.identity(), way=3, full_context=True
    )
    meta_params = learner.init(key, task)
    padded = pad(task.support, 2)
    order = jnp.array([0, 6, 1, 2, 7, 3, 4, 5])
    mixed = Examples(padded.x[order], padded.y[order], padded.mask[order])
    expected, got = (
        learner.predict(learner.adapt(meta_params, support), task.query.x)
        for support in (task.support, mixed)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


ERRORS = {
    "similarity": ({"similarity": "dot"}, "cosine, squared_euclidean, got 'dot'"),
    "scale": ({"scale": -1.0}, "`scale` must be above 0 and finite, got -1.0"),
    "reads": ({"reads": 0}, "`reads` must be an integer of at least 1, got 0"),
    "way": ({"way": 0}, "`way` must be an integer of at least 1, .*got 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.matching(metajax.models.identity(), **changes)


def test_padding_is_further_than_anything_real(key):
    """However large distances are."""
    task = sample(key)
    support = task.support._replace(x=1e5 * task.support.x)
    learner = metajax.learners.matching(
        metajax.models.identity(), way=3, similarity="squared_euclidean"
    )
    params = learner.init(key, task)
    answers = [
        learner.predict(learner.adapt(params, examples), 1e5 * task.query.x)
        for examples in (support, pad(support, 3))
    ]
    np.testing.assert_allclose(*answers, rtol=1e-6)
