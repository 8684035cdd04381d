"""A memory that is written by gradient steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import WAY, Entry

import metajax
from metajax.learners.memory.sgdstore import network_memory

ENTRIES = {
    "sgdstore": Entry(
        lambda: metajax.learners.sgdstore(
            metajax.models.identity(),
            way=WAY,
            hidden_size=8,
            width=4,
            units=5,
            writes=2,
            reads=1,
        ),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
}


def ask(state, keys):
    hidden = np.tanh(keys @ state["in"] + state["bias"])
    return hidden @ state["out"] / np.sqrt(hidden.shape[1])


def test_a_write_is_a_gradient_step(key):
    writes, reads, width, units, max_rate = 3, 2, 3, 4, 0.8
    memory = network_memory(
        width=width, units=units, writes=writes, reads=reads, max_rate=max_rate
    )
    state = jax.tree.map(np.asarray, memory.start(memory.init(key)))
    commands = np.random.default_rng(0).normal(size=memory.num_commands)
    keys, targets, queries = np.split(np.tanh(commands[:-1]).reshape(-1, width), [3, 6])
    rate = max_rate / (1 + np.exp(-commands[-1]))
    # The gradient by hand.
    hidden = np.tanh(keys @ state["in"] + state["bias"])
    error = (ask(state, keys) - targets) / writes / np.sqrt(units)
    back = (error @ state["out"].T) * (1 - hidden**2)
    expected = {
        "in": state["in"] - rate * keys.T @ back,
        "bias": state["bias"] - rate * back.sum(0),
        "out": state["out"] - rate * hidden.T @ error,
    }
    new, found = memory.update({}, state, jnp.asarray(commands, jnp.float32))
    chex.assert_trees_all_close(new, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found, ask(expected, queries).reshape(-1), rtol=1e-4, atol=1e-5
    )


def test_repeated_writes_are_read_back(key):
    memory = network_memory(width=4, units=16, writes=1, reads=1, max_rate=1.0)
    state = memory.init(key)
    wanted = np.asarray([1.0, -1, 1, -1])
    key_of = np.asarray([0.5, 1, -1, 0.2])
    row = jnp.concatenate([jnp.asarray(v) for v in (key_of, wanted, key_of, [3.0])])
    errors = []
    for _ in range(40):
        state, reads = memory.update({}, state, row)
        errors.append(np.max(np.abs(reads - np.tanh(wanted))))
    assert errors[-1] < 0.02 < errors[0]


def test_second_order_through_the_writes(key):
    """The gradient for what was written, against finite differences."""
    with jax.enable_x64(True):
        memory = network_memory(width=2, units=3, writes=1, reads=1, max_rate=1.0)
        start = jax.tree.map(lambda v: v.astype("float64"), memory.init(key))
        rows = jax.random.normal(key, (3, memory.num_commands), "float64")

        def read(rows, start):
            state, reads = jax.lax.scan(
                lambda state, row: memory.update({}, state, row), start, rows
            )
            return jnp.sum(jnp.sin(reads))

        chex.assert_numerical_grads(read, (rows, start), order=1, eps=1e-5)


BAD = {
    "width": ({"width": 0}, "`width` must be an integer of at least 1"),
    "rate": ({"max_rate": -1.0}, "`max_rate` must be above 0 and finite, got -1.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.sgdstore(metajax.models.identity(), way=2, **changes)
