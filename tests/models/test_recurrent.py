"""The LSTM model: a loop written out, causality, contexts, and its errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.filters import path_names
from metajax.models.recurrent import lstm


def test_equals_the_equations_written_out(key):
    model = lstm(2, hidden_sizes=(3,))
    x = jax.random.normal(key, (4, 5, 2))
    params = model.init(key, x)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    cell = params["params"]["LSTMCell_0"]
    head = params["params"]["head"]
    outputs = model.apply(params, x)
    chex.assert_shape(outputs, (4, 5, 2))

    def gate(name, value, hidden):
        weights, before = cell[f"i{name}"], cell[f"h{name}"]
        inner = hidden @ before["kernel"] + before["bias"]
        return value @ np.asarray(weights["kernel"]) + inner

    def sigmoid(value):
        return 1 / (1 + np.exp(-value))

    for row in range(4):
        c, h = np.zeros(3), np.zeros(3)
        for t in range(5):
            i, f, g, o = (gate(name, x[row, t], h) for name in "ifgo")
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            expected = h @ np.asarray(head["kernel"]) + head["bias"]
            np.testing.assert_allclose(outputs[row, t], expected, rtol=1e-4, atol=1e-5)


def test_answers_depend_on_the_past_of_their_own_sequence_alone(key):
    model = lstm(1, hidden_sizes=(4, 3))
    x = jax.random.normal(key, (2, 6, 1))
    params = model.init(key, x)
    jacobian = jax.jit(jax.jacobian(lambda x: model.apply(params, x)))
    slopes = jacobian(x)[:, :, 0, :, :, 0]
    for row in range(2):
        assert not np.any(slopes[row, :, 1 - row])
        assert not np.any(np.triu(slopes[row, :, row], 1))
        assert np.all(np.tril(slopes[row, :, row])[np.tril_indices(6)])


def test_paths_and_layers(key):
    params = lstm(2, hidden_sizes=(4, 3)).init(key, jnp.zeros((1, 2, 5)))
    paths = path_names(params)
    assert "params/head/kernel" in paths
    chex.assert_shape(params["params"]["head"]["kernel"], (3, 2))
    chex.assert_shape(params["params"]["LSTMCell_0"]["ii"]["kernel"], (5, 4))
    chex.assert_shape(params["params"]["LSTMCell_1"]["ii"]["kernel"], (4, 3))


def test_a_context_is_an_input_of_every_step(key):
    model = lstm(1, hidden_sizes=(3,))
    x, context = jax.random.normal(key, (2, 4, 1)), jnp.array([[1.0, 2.0], [3.0, 4.0]])
    params = model.init(key, (x, context))
    repeated = jnp.repeat(context[:, None], 4, axis=1)
    chex.assert_trees_all_close(
        model.apply(params, (x, context)),
        model.apply(params, jnp.concatenate([x, repeated], axis=-1)),
    )


ERRORS = {
    "outputs": ({"num_outputs": 0}, "`num_outputs` must be .*got 0"),
    "no layer": (
        {"hidden_sizes": ()},
        r"`hidden_sizes` must hold at least 1 size, got \(\)",
    ),
    "size": ({"hidden_sizes": (8, 0)}, r"`hidden_sizes\[1\]` must .*got 0"),
    "number": ({"hidden_sizes": 8}, "`hidden_sizes` must .*got 8"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        lstm(**{"num_outputs": 1} | changes)


def test_inputs_without_a_time_axis_are_refused(key):
    with pytest.raises(ValueError, match="must be a batch"):
        lstm(1).init(key, jnp.zeros((3, 2)))
