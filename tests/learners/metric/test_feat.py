"""FEAT: attention over the present classes by hand, order, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import Entry, sample, small_mlp

import metajax

ENTRIES = {
    "feat": Entry(lambda: metajax.learners.feat(small_mlp(5))),
}


def built(key, **arguments):
    task = sample(key)
    learner = metajax.learners.feat(metajax.models.identity(), way=4, **arguments)
    return learner, task, learner.init(key, task)


def test_prototypes_attend_to_one_another(key):
    """In NumPy, with one of four classes absent."""
    learner, task, meta_params = built(key, temperature=2.0)
    params = jax.tree.map(np.asarray, meta_params.head["params"])
    x = np.asarray(task.support.x)
    centers = (x[0::2] + x[1::2]) / 2
    query, keys, values = (
        centers @ params[name]["kernel"] for name in ("query", "key", "value")
    )
    weights = np.exp(query @ keys.T / 2)  # the square root of 4 columns
    attended = weights / weights.sum(1, keepdims=True) @ values
    out = centers + attended @ params["out"]["kernel"] + params["out"]["bias"]
    out -= out.mean(1, keepdims=True)
    out /= np.sqrt((out**2).mean(1, keepdims=True) + 1e-6)
    adapted = learner.adapt(meta_params, task.support)
    np.testing.assert_allclose(adapted.fitted[:3], out, rtol=1e-3, atol=1e-4)
    logits = learner.predict(adapted, task.query.x)
    queries = np.asarray(task.query.x)
    distances = ((queries[:, None] - out[None]) ** 2).sum(-1)
    expected = jax.nn.log_softmax(-distances / 2)
    got = jax.nn.log_softmax(logits[:, :3])
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    assert np.all(np.isneginf(logits[:, 3]))


def test_names_of_classes_do_not_matter(key):
    learner, task, meta_params = built(key)
    new_names = jnp.array([2, 0, 1])
    renamed = task.support._replace(y=new_names[task.support.y])
    before, after = (
        learner.predict(learner.adapt(meta_params, support), task.query.x)
        for support in (task.support, renamed)
    )
    np.testing.assert_allclose(after[:, new_names], before[:, :3], rtol=1e-4, atol=1e-5)


def test_dropout_needs_a_key(key):
    learner, task, meta_params = built(key, dropout=0.5)
    with_key, other, without, again = (
        learner.adapt(meta_params, task.support, key=k).fitted
        for k in (key, jax.random.fold_in(key, 1), None, None)
    )
    assert not np.allclose(with_key, other)
    assert not np.allclose(with_key, without)
    np.testing.assert_array_equal(without, again)


ERRORS = {
    "temperature": ({"temperature": 0}, "`temperature` must be above 0 and finite"),
    "dropout": ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.feat(metajax.models.identity(), **changes)
