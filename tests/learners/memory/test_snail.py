"""SNAIL against its equations, written for a whole sequence at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import WAY, Entry, small_mlp

import metajax
from metajax.types import Examples, Task

ENTRIES = {
    "snail": Entry(
        lambda: metajax.learners.snail(
            small_mlp(5), way=WAY, context=4, filters=3, keys=(3, 4), values=(2, 5)
        ),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
}


def built(context):
    learner = metajax.learners.snail(
        metajax.models.identity(),
        way=3,
        context=context,
        filters=2,
        keys=(3, 4),
        values=(2, 5),
    )
    x = jax.random.normal(jax.random.key(0), (6, 4))
    support = Examples(x[:5], jnp.asarray([2, 0, 1, 1, 2]))
    params = learner.init(jax.random.key(1), Task(support, support))
    return learner, params, support, x[5:]


def whole_sequence(params, tokens, context):
    """Outputs at the last token `[D + C]` of a sequence `[T, D + C]`, in NumPy."""
    params = jax.tree.map(np.asarray, params["params"])

    def dense(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    def attention(layer, x):
        q, k, v = (dense(layer[name], x) for name in ("query", "key", "value"))
        scores = q @ k.T / np.sqrt(k.shape[1])
        place = np.arange(len(x))
        back = place[:, None] - place[None, :]
        scores = np.where((back >= 0) & (back <= context), scores, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        return np.concatenate([x, weights / weights.sum(1, keepdims=True) @ v], axis=1)

    def convolution(layer, x, dilation):
        earlier = np.concatenate([np.zeros_like(x[:dilation]), x])[: len(x)]
        both = dense(layer["Dense_0"], np.concatenate([x, earlier], axis=1))
        values, gates = np.split(both, 2, axis=1)
        return np.concatenate([x, np.tanh(values) / (1 + np.exp(-gates))], axis=1)

    x = attention(params["attention_0"], np.asarray(tokens))
    dilation = 1
    while dilation < context:
        x = convolution(params[f"dense_0_{dilation}"], x, dilation)
        dilation *= 2
    x = attention(params["attention_1"], x)
    return dense(params["outputs"], x)[-1]


@pytest.mark.parametrize("context", [3, 5, 8])
def test_equals_the_whole_sequence(context):
    learner, params, support, query = built(context)
    labels = np.eye(3)[np.asarray(support.y)]
    tokens = np.concatenate([support.x, labels], axis=1)
    asked = np.concatenate([query, np.zeros((1, 3))], axis=1)
    expected = whole_sequence(params.reader, np.concatenate([tokens, asked]), context)
    found = learner.predict(learner.adapt(params, support), query)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


BAD = {
    "context": ({"context": 1}, "`context` must be an integer of at least 2, got 1"),
    "sizes": ({"keys": (3,)}, r"as many as each other, got \(3,\) and \(32, 128, 256"),
    "none": ({"keys": (), "values": ()}, "must have a size for each attention"),
    "zero": ({"keys": (3, 0, 1)}, r"`keys\[1\]` must be an integer of at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.snail(metajax.models.identity(), way=2, **changes)
