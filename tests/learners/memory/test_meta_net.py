"""MetaNet against its equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import Entry, small_mlp

import metajax
from metajax.inner.lstm_cells import log_and_sign
from metajax.types import Examples, Task

ENTRIES = {
    "meta_net": Entry(
        lambda: metajax.learners.meta_net(small_mlp(5), way=4, units=6, hidden_size=5),
        uses_labels_untrained=False,
    ),
}


def relu(v):
    return np.maximum(v, 0)


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def test_equals_the_equations():
    learner = metajax.learners.meta_net(
        metajax.models.identity(), way=3, units=4, hidden_size=5
    )
    x = jax.random.normal(jax.random.key(0), (8, 5))
    support = Examples(x[:6], jnp.asarray([0, 1, 2, 0, 1, 2]))
    query = np.asarray(x[6:])
    params = learner.init(jax.random.key(1), Task(support, support))
    head = jax.tree.map(np.asarray, params.head)
    z, y = np.asarray(support.x), np.asarray(support.y)

    def gradient(layers, i):
        """Of the cross entropy of one example, first layer and then second."""
        h = relu(z[i] @ layers["first"])
        logits = h @ layers["second"]
        error = np.exp(logits) / np.exp(logits).sum() - np.eye(3)[y[i]]
        first = np.outer(z[i], (layers["second"] @ error) * (h > 0))
        return first, np.outer(h, error)

    def made(generator, gradients):
        layers = generator["params"]

        def one(values):
            v = np.asarray(log_and_sign(jnp.asarray(values.reshape(-1)), 7.0))
            for name in ("Dense_0", "Dense_1"):
                v = relu(v @ layers[name]["kernel"] + layers[name]["bias"])
            v = v @ layers["Dense_2"]["kernel"] + layers["Dense_2"]["bias"]
            return v.reshape(values.shape)

        return [one(values) for values in gradients]

    asked = [made(head["key_generator"], gradient(head["key"], i)) for i in range(6)]
    key_weights = head["key"]["first"] + np.mean([a[0] for a in asked], axis=0)
    memory = [made(head["base_generator"], gradient(head["base"], i)) for i in range(6)]
    scores = 10 * unit(query @ key_weights) @ unit(z @ key_weights).T
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = []
    for q, w in zip(query, weights, strict=True):
        first, second = (
            sum(w[i] * memory[i][layer] for i in range(6)) for layer in (0, 1)
        )
        h = relu(q @ head["base"]["first"]) + relu(q @ first)
        expected.append(h @ head["base"]["second"] + h @ second)
    found = learner.predict(learner.adapt(params, support), jnp.asarray(query))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_labels_act_through_gradients_alone():
    learner = metajax.learners.meta_net(
        metajax.models.identity(), way=2, units=4, hidden_size=5
    )
    x = jax.random.normal(jax.random.key(0), (4, 3))
    y = jnp.asarray([0, 1, 0, 1])
    params = learner.init(jax.random.key(1), Task(Examples(x, y), Examples(x, y)))
    answers = [
        learner.predict(learner.adapt(params, Examples(x, labels)), x)
        for labels in (y, 1 - y)
    ]
    assert not np.allclose(*answers, rtol=1e-2)
    # Networks on gradients that give nothing leave the slow network.
    silent = params._replace(
        head=params.head
        | {
            name: jax.tree.map(jnp.zeros_like, params.head[name])
            for name in ("key_generator", "base_generator")
        }
    )
    slow = params.head["base"]
    expected = jax.nn.relu(x @ slow["first"]) @ slow["second"]
    found = learner.predict(learner.adapt(silent, Examples(x, y)), x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


BAD = {
    "units": ({"units": 0}, "`units` must be an integer of at least 1"),
    "threshold": ({"threshold": 0.0}, "`threshold` must be above 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.meta_net(metajax.models.identity(), way=2, **changes)
