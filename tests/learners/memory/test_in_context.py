"""The in-context transformer: what sees what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import PADDING, WAY, Entry, small_mlp

import metajax
from metajax.types import NO_STREAM, Examples, Task

ENTRIES = {
    "in_context": Entry(
        lambda: metajax.learners.in_context(
            metajax.models.identity(),
            way=WAY,
            context=4,
            token_size=8,
            layers=1,
            heads=2,
        ),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
    "in_context, whole": Entry(
        lambda: metajax.learners.in_context(
            small_mlp(5), way=4, context=None, token_size=8, layers=1, heads=2
        ),
        uses_labels_untrained=False,
        laws=PADDING,
    ),
}


def built(context, layers=1):
    learner = metajax.learners.in_context(
        metajax.models.identity(),
        way=3,
        context=context,
        token_size=8,
        layers=layers,
        heads=2,
    )
    key_x, key_init = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key_x, (7, 4))
    support = Examples(x[:6], jnp.asarray([2, 0, 1, 1, 2, 0]))
    params = learner.init(key_init, Task(support, support))
    # Off their initial values, among which there are zeros.
    params = jax.tree.map(
        lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
    )
    return learner, params, support, x[6:]


def influence(learner, params, support, query, *, layers=1):
    """Which support inputs a query's answer depends on, bool `[6]`."""

    def answer(x):
        adapted = learner.adapt(params, Examples(x, support.y))
        return learner.predict(adapted, query)[0]

    jacobian = jax.jacrev(answer)(support.x)
    return np.abs(jacobian).max(axis=(0, 2)) > 0


def test_context_is_how_far_an_example_is_seen():
    learner, params, support, query = built(2)
    np.testing.assert_array_equal(
        influence(learner, params, support, query), [0, 0, 0, 0, 1, 1]
    )
    # With a second layer, pairs that are seen have seen one more.
    learner, params, support, query = built(2, layers=2)
    np.testing.assert_array_equal(
        influence(learner, params, support, query), [0, 0, 0, 1, 1, 1]
    )
    learner, params, support, query = built(6)
    assert influence(learner, params, support, query).all()


def test_support_longer_than_context_is_the_stream():
    learner, params, support, query = built(4, layers=2)
    adapted, outputs = metajax.evaluation.prequential(learner, params, support)
    at_once = learner.adapt(params, support)
    assert adapted.state.keys.shape[1] == 1 + 4
    assert adapted.state.num_read == 6
    np.testing.assert_allclose(
        learner.predict(adapted, query), learner.predict(at_once, query), rtol=1e-5
    )
    # The answers that training sees are those of the stream.
    losses = -jax.nn.log_softmax(outputs)[jnp.arange(6), support.y]
    value, _ = learner.loss(params, Task(support, support._replace(x=support.x + 1)))
    asked = learner.predict(at_once, support.x + 1)
    losses = jnp.append(losses, -jax.nn.log_softmax(asked)[jnp.arange(6), support.y])
    np.testing.assert_allclose(value, jnp.mean(losses), rtol=1e-5)


def test_going_on_after_adapting():
    """A key and value cache takes further examples."""
    learner, params, support, query = built(6, layers=2)
    first = Examples(support.x[:4], support.y[:4])
    adapted = learner.adapt(params, first)
    for x, y in zip(support.x[4:], support.y[4:], strict=True):
        adapted, _ = learner.stream.observe(adapted, x, y)
    expected = learner.predict(learner.adapt(params, support), query)
    np.testing.assert_allclose(learner.predict(adapted, query), expected, rtol=1e-5)


def test_whole_sets_have_no_order_and_no_stream(key):
    learner, params, support, query = built(None, layers=2)
    assert learner.stream == NO_STREAM
    order = jax.random.permutation(key, 6)
    shuffled = Examples(support.x[order], support.y[order])
    answers = [
        learner.predict(learner.adapt(params, s), query) for s in (support, shuffled)
    ]
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-6)
    # The causal one has: by its second layer.
    learner, params, support, query = built(6, layers=2)
    answers = [
        learner.predict(learner.adapt(params, s), query) for s in (support, shuffled)
    ]
    assert not np.allclose(*answers, rtol=1e-3)


BAD = {
    "size": (
        {"token_size": 6, "heads": 4},
        "`token_size` must be a multiple of `heads`, got 6",
    ),
    "context": ({"context": 0}, "`context` must be an integer of at least 1, got 0"),
    "layers": ({"layers": 0}, "`layers` must be an integer of at least 1"),
    "whole": (
        {"context": None, "trains_on": "sequence"},
        "reads the whole support set at once; train on 'query'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.in_context(metajax.models.identity(), way=2, **changes)
