"""The memory of MANN against plain NumPy, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learners.entry import WAY, Entry, small_mlp

import metajax
from metajax.learners.memory.mann import slot_memory

ENTRIES = {
    "mann": Entry(
        lambda: metajax.learners.mann(
            metajax.models.identity(), way=WAY, hidden_size=8, slots=5, width=4, heads=2
        ),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
    "lstm_learner": Entry(
        lambda: metajax.learners.lstm_learner(
            small_mlp(5), way=4, hidden_size=8, trains_on="query"
        ),
        ignores_order=False,
        uses_labels_untrained=False,
    ),
}


def in_numpy(commands, *, slots, width, heads, decay, strength):
    """The equations step by step, with loops; reads `[T, heads * width]` and usage."""

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    memory, usage = np.zeros((slots, width)), np.zeros(slots)
    reads = np.zeros((heads, slots))
    outputs, usages = [], []
    for row in commands.reshape(-1, heads, 2 * width + 2):
        least = np.argsort(usage, kind="stable")[:heads]
        memory[least] = 0
        writes = np.zeros((heads, slots))
        for head in range(heads):
            gate = sigmoid(row[head, 2 * width] - 3)
            writes[head] = gate * reads[head]
            writes[head, least[head]] += 1 - gate
        for head in range(heads):
            for slot in range(slots):
                memory[slot] += writes[head, slot] * np.tanh(row[head, width:-2])
        new_reads = np.zeros((heads, slots))
        for head in range(heads):
            key = np.tanh(row[head, :width])
            beta = 1 + np.log1p(np.exp(row[head, 2 * width + 1] + 7))
            beta = beta if strength is None else strength
            norms = np.sqrt((key @ key + 1e-4) * (np.sum(memory**2, 1) + 1e-4))
            scores = np.exp(beta * (memory @ key) / norms) * np.any(memory, axis=1)
            new_reads[head] = scores / scores.sum()
        reads = new_reads
        usage = decay * usage + (reads + writes).sum(0)
        outputs.append((reads @ memory).reshape(-1))
        usages.append(usage)
    return np.stack(outputs), np.stack(usages)


@pytest.mark.parametrize("strength", [None, 1.0])
def test_equals_numpy_step_by_step(strength):
    sizes = {"slots": 5, "width": 3, "heads": 2, "decay": 0.9, "strength": strength}
    memory = slot_memory(**sizes)
    commands = np.random.default_rng(0).normal(size=(8, memory.num_commands)) * 2
    expected, usages = in_numpy(commands, **sizes)

    def step(state, row):
        state, reads = memory.update({}, state, row)
        return state, (reads, state.usage)

    _, found = jax.lax.scan(step, memory.start({}), jnp.asarray(commands, jnp.float32))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], usages, rtol=1e-4, atol=1e-5)


def command(key, *, gate, beta):
    """One that writes what it reads by."""
    key = jnp.asarray(key, float)
    return jnp.concatenate([key, key, jnp.asarray([gate, beta])])


def test_what_is_written_is_read_and_then_forgotten():
    memory = slot_memory(slots=3, width=3, heads=1, decay=0.5, strength=None)
    state = memory.start({})
    keys = 3 * np.eye(3)  # of unlike directions
    for key in keys:
        # A gate of -20 writes to the slot of least usage, beta of 50 reads sharply.
        state, reads = memory.update({}, state, command(key, gate=-20.0, beta=50.0))
        np.testing.assert_allclose(reads, np.tanh(key), atol=1e-3)
    np.testing.assert_allclose(state.contents, np.tanh(keys), atol=1e-3)
    # The first is the one that was used longest ago: a fourth takes its place.
    state, _ = memory.update({}, state, command([-3.0, -3, 0], gate=-20.0, beta=50.0))
    np.testing.assert_allclose(state.contents[1:], np.tanh(keys[1:]), atol=1e-3)
    np.testing.assert_allclose(state.contents[0], np.tanh([-3, -3, 0]), atol=1e-3)
    # A gate of 20 writes to the slot that was read last, on top of what it holds. What
    # is least used makes room all the same.
    state, _ = memory.update({}, state, command([0, 0, 3.0], gate=20.0, beta=50.0))
    np.testing.assert_allclose(state.contents[0], np.tanh([-3, -3, 3]), atol=1e-3)
    np.testing.assert_allclose(state.contents[1], 0, atol=1e-3)


def test_the_memory_learns(key):
    """It learns to bind: better than chance from the second instance on."""
    import optax

    def tasks(key):
        key_code, key_noise = jax.random.split(key)
        codes = jax.random.normal(key_code, (2, 1, 6))
        x = codes + 0.05 * jax.random.normal(key_noise, (2, 4, 6))
        support = metajax.Examples(x.reshape(8, 6), jnp.repeat(jnp.arange(2), 4))
        return metajax.Task(support, support)

    learner = metajax.learners.mann(
        metajax.models.identity(), way=2, hidden_size=32, slots=8, width=8, heads=1
    )
    result = metajax.train(
        learner, tasks, optax.adam(5e-3), steps=300, tasks_per_step=32
    )
    found = metajax.evaluation.instance_accuracy(
        learner, result.meta_params, tasks, num_tasks=300
    )
    # The first answer is a guess; of a second class it can be told by exclusion.
    assert found.mean[0] < 0.85
    assert found.mean[-1] > 0.9


BAD = {
    "slots": ({"slots": 0}, "`slots` must be an integer of at least 1"),
    "heads": ({"slots": 2, "heads": 3}, "`slots` must be at least `heads`, 3,.*got 2"),
    "decay": ({"decay": 1.0}, r"`decay` must lie in \(0, 1\), got 1.0"),
    "strength": ({"strength": 0.0}, "`strength` must be above 0"),
    "hidden": (
        {"hidden_size": 0},
        "`hidden_size` must be an integer of at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        metajax.learners.mann(metajax.models.identity(), way=2, **changes)
