"""Memory Matching Networks: what is written where, and what is read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import PADDING, WAY, Entry, small_mlp

import metajax
from metajax.types import Examples, Task

ENTRIES = {
    "mm_net": Entry(
        lambda: metajax.learners.mm_net(
            small_mlp(5), way=4, slots=6, key_size=5, hidden_size=3, rank=2
        ),
        ignores_order=False,
    ),
    "mm_net, a slot for each": Entry(
        lambda: metajax.learners.mm_net(
            small_mlp(5), way=WAY, slots=6, key_size=5, hidden_size=3, rank=2, near=2.0
        ),
        ignores_order=False,
        laws=PADDING,
    ),
}


def built(**changes):
    learner = metajax.learners.mm_net(
        metajax.models.identity(),
        way=4,
        key_size=3,
        hidden_size=2,
        rank=2,
        **({"slots": 6} | changes),
    )
    x = jax.random.normal(jax.random.key(0), (7, 5))
    support = Examples(x[:5], jnp.asarray([2, 0, 2, 1, 0]))
    params = learner.init(jax.random.key(1), Task(support, support))
    return learner, params, support, x[5:]


def parts(params):
    return jax.tree.map(np.asarray, params.reader["params"])


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def test_a_class_takes_one_slot_which_a_gate_mixes():
    learner, params, support, _ = built()
    memory = learner.adapt(params, support).state
    p = parts(params)
    z = np.asarray(support.x) @ p["embed"]["kernel"]

    def mix(old, new):
        both = np.concatenate([old, new]) @ p["gate"]["kernel"] + p["gate"]["bias"]
        gate = 1 / (1 + np.exp(-both))
        return gate * old + (1 - gate) * new

    expected = [mix(z[0], z[2]), mix(z[1], z[4]), z[3]]
    np.testing.assert_allclose(memory.keys[:3], expected, rtol=1e-5)
    np.testing.assert_array_equal(np.argmax(memory.labels[:3], axis=1), [2, 0, 1])
    np.testing.assert_array_equal(memory.written, [3, 5, 4, 0, 0, 0])


def test_with_a_slot_for_each_example_it_matches():
    """The layer of the contextual learner is 0 at first: Matching Networks."""
    learner, params, support, query = built(near=2.0)
    adapted = learner.adapt(params, support)
    assert np.sum(adapted.state.written > 0) == 5
    kernel = parts(params)["embed"]["kernel"]
    close = 10 * unit(query @ kernel) @ unit(support.x @ kernel).T
    weights = np.exp(close) / np.exp(close).sum(1, keepdims=True)
    chances = weights @ np.eye(4)[np.asarray(support.y)]
    found = learner.predict(adapted, query)
    np.testing.assert_allclose(np.exp(found), chances, rtol=1e-4, atol=1e-6)
    assert np.all(np.isneginf(found[:, 3]))


def test_the_contextual_learner_moves_queries_by_the_whole_memory():
    learner, params, support, query = built()
    right = params.reader["params"]["right"]
    params.reader["params"]["right"] = jax.tree.map(lambda v: v + 0.3, right)

    def answer(x):
        adapted = learner.adapt(params, Examples(x, support.y))
        # Class 2 alone is asked for, relative to class 1.
        outputs = learner.predict(adapted, query)[0]
        return outputs[2] - outputs[1]

    gradient = jax.grad(answer)(support.x)
    of_other_class = np.abs(gradient[1])  # class 0 has no part in the difference
    assert np.all(of_other_class > 1e-7)


def test_when_slots_run_out_the_oldest_makes_room():
    learner, params, support, query = built(slots=2)
    memory = learner.adapt(params, support).state
    # Written: class 2 (1), class 0 (2), class 2 (3), class 1 takes class 0's place (4),
    # and class 0 that of class 2 (5).
    np.testing.assert_array_equal(np.argmax(memory.labels, axis=1), [0, 1])
    np.testing.assert_array_equal(memory.written, [5, 4])
    outputs = learner.predict(learner.adapt(params, support), query)
    assert np.all(np.isneginf(outputs[:, 2]))


BAD = {
    "slots": ({"slots": 0}, "`slots` must be an integer of at least 1"),
    "scale": ({"scale": 0.0}, "`scale` must be above 0 and finite, got 0.0"),
    "near": ({"near": float("nan")}, "`near` must be finite, got nan"),
    "rank": ({"rank": 0}, "`rank` must be an integer of at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.mm_net(metajax.models.identity(), way=2, **changes)
