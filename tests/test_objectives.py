import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.objectives import (
    accuracy,
    class_vectors,
    cross_entropy,
    example_losses,
    query_loss,
    query_score,
    split_key,
    squared_error,
)
from metajax.types import Examples, Task


def test_cross_entropy_is_minus_the_log_probability():
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(probabilities[range(4), labels])
    got = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_absent_classes_have_minus_infinity():
    """They take no probability, and gradients stay finite."""
    logits = jnp.array([[1.0, -jnp.inf, 2.0], [0.5, -jnp.inf, -1.0]])
    labels = jnp.array([2, 0])
    expected = cross_entropy(logits[:, ::2], labels // 2)
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-6)
    gradient = jax.grad(lambda logits: jnp.sum(cross_entropy(logits, labels)))(logits)
    assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_array_equal(gradient[:, 1], 0)


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[1e4, -1e4]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([1])), [2e4])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (jnp.ones((3, 2)), jnp.ones(3), "type"),
        (jnp.ones((3, 2)), jnp.ones(3, bool), "type"),
        (jnp.ones((3, 2)), jnp.ones((3, 2), int), "rank"),
        (jnp.ones(3), jnp.ones(3, int), "rank"),
        (jnp.ones((3, 2)), jnp.ones(4, int), "shape"),
    ],
)
def test_cross_entropy_wants_logits_and_integers(logits, labels, message):
    with pytest.raises(AssertionError, match=message):
        cross_entropy(logits, labels)


def test_squared_error_averages_all_but_the_first_axis():
    outputs, targets = np.random.default_rng(0).normal(size=(2, 3, 4, 2))
    got = squared_error(jnp.asarray(outputs), jnp.asarray(targets))
    np.testing.assert_allclose(got, ((outputs - targets) ** 2).mean((1, 2)), rtol=1e-5)
    one = squared_error(jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0]))
    np.testing.assert_allclose(one, [1, 4])


def test_squared_error_wants_one_shape():
    with pytest.raises(AssertionError, match="shape"):
        squared_error(jnp.ones((3, 1)), jnp.ones(3))


def test_accuracy_of_each_example():
    logits = jnp.array([[0.0, 1.0], [3.0, -jnp.inf], [0.2, 0.1]])
    got = accuracy(logits, jnp.array([1, 1, 0]))
    np.testing.assert_array_equal(got, [1, 0, 1])
    assert got.dtype == logits.dtype
    with pytest.raises(AssertionError, match="rank"):
        accuracy(logits, jnp.ones((3, 1), int))


def test_split_key(key):
    assert split_key(None, 3) == [None] * 3
    keys = split_key(key, 2)
    assert len(keys) == 2
    assert keys[0] != keys[1]


def predict(adapted, inputs, *, mask=None, key=None):
    """Logits that tell what was passed."""
    del mask
    noise = 0.0 if key is None else jax.random.normal(key, inputs.shape)
    return adapted * inputs + noise


LOGITS = jnp.array([[2.0, 0.0], [0.0, 3.0], [jnp.nan, jnp.nan], [1.0, 0.0]])
MASK = jnp.array([True, True, False, True])


@pytest.mark.parametrize("as_array", [jnp.asarray, np.asarray])
def test_query_score_is_of_the_real_queries(as_array):
    """And the same for labels that were never put on a device."""
    labels = as_array([0, 1, 1, 1])
    query = Examples(LOGITS, labels, MASK)
    loss, metrics = query_score(predict, 2.0, query, cross_entropy)
    real = np.array([0, 1, 3])
    expected = cross_entropy(2 * LOGITS[real], jnp.asarray(labels)[real])
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], 2 / 3, rtol=1e-6)


def test_a_query_set_of_padding_has_no_score():
    query = Examples(LOGITS, jnp.zeros(4, int), jnp.zeros(4, bool))
    loss, metrics = query_score(predict, 1.0, query, cross_entropy)
    assert jnp.isnan(loss)
    assert jnp.isnan(metrics["accuracy"])


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (jnp.ones((3, 1)), jnp.ones((3, 1))),
        (jnp.ones((3, 2)), jnp.ones((3, 2), int)),  # counts, not classes
        (jnp.ones(3), jnp.ones(3, int)),
        ({"mean": jnp.ones((3, 2))}, jnp.ones(3, int)),
        (jnp.ones((3, 2)), {"label": jnp.ones(3, int)}),
    ],
)
def test_only_labels_have_an_accuracy(outputs, targets):
    def answer(adapted, inputs, *, mask=None, key=None):
        return outputs

    query = Examples(jnp.ones((3, 1)), targets)
    loss, metrics = query_score(answer, (), query, lambda outputs, y: jnp.arange(3.0))
    assert metrics == {}
    assert loss == 1


def test_query_loss_adapts_and_then_scores(key):
    def adapt(meta_params, support, *, key=None):
        scale = 1.0 if key is None else jax.random.uniform(key)
        return meta_params * scale * jnp.sum(support.x)

    support = Examples(jnp.array([1.0, 2.0]), jnp.zeros(2))
    query = Examples(jnp.array([[1.0], [2.0]]), jnp.array([[5.0], [5.0]]))
    loss = query_loss(adapt, predict, squared_error)
    value, metrics = loss(2.0, Task(support, query))
    np.testing.assert_allclose(value, np.mean([(6 - 5) ** 2, (12 - 5) ** 2]))
    assert metrics == {}
    # Each stage has its own part of the key.
    key_adapt, key_predict = jax.random.split(key)
    adapted = adapt(2.0, support, key=key_adapt)
    expected, _ = query_score(predict, adapted, query, squared_error, key_predict)
    value, _ = loss(2.0, Task(support, query), key=key)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_labels_that_are_no_class_are_not_hidden():
    vectors = class_vectors(jnp.array([1, 3, -1, 0]), 3)
    expected = [[0, 1, 0], [np.nan] * 3, [np.nan] * 3, [1, 0, 0]]
    np.testing.assert_array_equal(vectors, expected)
    losses = cross_entropy(jnp.zeros((3, 3)), jnp.array([2, 3, -1]))
    np.testing.assert_allclose(losses, [np.log(3), np.nan, np.nan], rtol=1e-6)
    with pytest.raises(ValueError, match="must be integers from 0 to 2, .* float32"):
        class_vectors(jnp.zeros(3), 3)


def test_padded_targets_do_not_reach_the_gradient():
    query = Examples(jnp.ones((2, 1)), jnp.array([[3.0], [jnp.nan]]))
    query = query._replace(mask=jnp.array([True, False]))

    def loss(weight):
        predict = lambda adapted, x, *, mask, key: adapted * x  # noqa: E731
        return query_score(predict, weight, query, squared_error)[0]

    assert jax.value_and_grad(loss)(1.0) == (4.0, -4.0)


def pairs(outputs, y):
    """Of `[n, 1]` and `[n]`, all pairs."""
    return jnp.square(outputs - y)


def mean_of_pairs(outputs, y):
    return jnp.mean(jnp.square(outputs - y), axis=1)


BROADCASTS = {"pairs": pairs, "their mean": mean_of_pairs, "scalar": lambda o, y: 0.0}


@pytest.mark.parametrize("name", BROADCASTS)
def test_objectives_that_broadcast_are_refused(name):
    outputs, y = jnp.arange(4.0)[:, None], jnp.arange(4.0)
    message = "mixes examples" if name == "their mean" else r"for each of 4 examples"
    with jax.numpy_rank_promotion("allow"):
        with pytest.raises(ValueError, match=f"`objective`.* {message}"):
            example_losses(BROADCASTS[name], outputs, y)
        with pytest.raises(ValueError, match=f"`objective`.* {message}"):
            jax.jit(lambda o, y: example_losses(BROADCASTS[name], o, y))(outputs, y)


KEPT = {
    "first column": lambda o, y: jnp.square(o[:, 0] - y),
    "promotes within examples": lambda o, y: jnp.sum(o * jnp.arange(2.0), 1) - y,
    "weights of classes": lambda o, y: jnp.ones(2)[y.astype(int)] * o[:, 0],
}


@pytest.mark.parametrize("name", KEPT)
def test_objectives_of_each_example_are_kept(name):
    outputs, y = jnp.arange(8.0).reshape(4, 2), jnp.asarray([0.0, 1.0, 0.0, 1.0])
    with jax.numpy_rank_promotion("allow"):
        expected = KEPT[name](outputs, y)
        found = example_losses(KEPT[name], outputs, y)
    np.testing.assert_array_equal(found, expected)


def test_no_accuracy_of_labels_that_are_no_class():
    logits = jnp.asarray([[2.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    found = accuracy(logits, jnp.asarray([0, 2, -1]))
    np.testing.assert_array_equal(found, [1, np.nan, np.nan])


def test_class_vectors_of_sequences():
    """Of any length: each label by itself, and NaN where one is no class."""
    labels = jnp.asarray([[0, 1, 2, 1], [1, 0, -1, 3]])
    vectors = np.asarray(class_vectors(labels, 3))
    assert vectors.shape == (2, 4, 3)
    np.testing.assert_array_equal(vectors[0], np.eye(3)[[0, 1, 2, 1]])
    np.testing.assert_array_equal(vectors[1, :2], np.eye(3)[[1, 0]])
    assert np.isnan(vectors[1, 2:]).all()
