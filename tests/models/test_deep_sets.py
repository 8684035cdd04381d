"""The task encoder: what it must not notice, against plain loops, and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.deep_sets import set_mean, task_encoder
from metajax.types import Examples

ROWS, COLUMNS, CLASSES = 7, 3, 4
KINDS = {
    "regression": {},
    "named": {"num_classes": CLASSES},
    "unnamed": {"num_classes": CLASSES, "classes": "unnamed"},
}


@functools.lru_cache
def built(kind):
    encoder = task_encoder(5, hidden_sizes=(6,), **KINDS[kind])
    params = encoder.init(jax.random.key(0), examples(kind))
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(1)  # biases too
    moved = [np.asarray(leaf) + rng.normal(0, 0.3, leaf.shape) for leaf in leaves]
    moved = jax.tree.map(lambda leaf: leaf.astype(np.float32), moved)
    return jax.jit(encoder.apply), structure.unflatten(moved)


def examples(kind, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    if kind == "regression":
        return Examples(x, rng.normal(size=ROWS).astype(np.float32))
    return Examples(x, np.asarray([0, 1, 0, 2, 1, 0, 0], np.int32))


def encode(kind, given):
    apply, params = built(kind)
    return np.asarray(apply(params, given))


def layers(params, x, *, ends_linear=False):
    for place in range(len(params)):
        layer = params[f"Dense_{place}"]
        x = np.asarray(x, float) @ np.asarray(layer["kernel"], float) + layer["bias"]
        if not (ends_linear and place == len(params) - 1):
            x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula(kind):
    x, y, _ = examples(kind)
    params = built(kind)[1]["params"]
    if kind == "unnamed":
        sets = []
        for label in np.unique(y):
            values = [layers(params["phi"], row) for row in x[y == label]]
            share = [np.mean(y == label)]
            mean = np.concatenate([share, np.mean(values, axis=0)])
            sets.append(layers(params["psi"], mean))
    else:
        targets = y[:, None] if kind == "regression" else np.eye(CLASSES)[y]
        pairs = np.concatenate([x, targets], axis=1)
        sets = [layers(params["phi"], pair) for pair in pairs]
    expected = layers(params["rho"], np.mean(sets, axis=0), ends_linear=True)
    np.testing.assert_allclose(
        encode(kind, examples(kind)), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_masked_examples_change_nothing(kind):
    given = examples(kind)
    expected = encode(kind, given)
    order = np.random.default_rng(2).permutation(ROWS)
    shuffled = Examples(given.x[order], given.y[order])
    np.testing.assert_allclose(encode(kind, shuffled), expected, rtol=1e-4, atol=1e-6)
    # A class of its own, and NaN, behind the mask.
    junk = np.full((2, COLUMNS), np.nan, np.float32)
    labels = np.full(2, np.nan if kind == "regression" else 3, given.y.dtype)
    padded = Examples(
        np.concatenate([junk, given.x]),
        np.concatenate([labels, given.y]),
        np.arange(ROWS + 2) >= 2,
    )
    np.testing.assert_allclose(encode(kind, padded), expected, rtol=1e-4, atol=1e-6)


def test_names_of_classes_matter_only_if_named():
    given = examples("named")
    renamed = given._replace(y=np.asarray([2, 3, 0, 1], np.int32)[given.y])
    close = functools.partial(np.allclose, rtol=1e-4, atol=1e-6)
    assert close(encode("unnamed", renamed), encode("unnamed", given))
    assert not close(encode("named", renamed), encode("named", given))


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_read_and_gradients_reach_all_parameters(kind):
    given = examples(kind)
    other = given._replace(y=np.roll(given.y, 1))
    assert not np.allclose(encode(kind, given), encode(kind, other), atol=1e-4)
    apply, params = built(kind)

    def loss(params):
        outputs = [apply(params, examples(kind, seed)) for seed in range(4)]
        return jnp.sum(jnp.square(jnp.stack(outputs)))

    gradient = jax.grad(loss)(params)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_integer_inputs_leave_targets_as_they_are(key):
    encoder = task_encoder(4)
    x = jnp.arange(6)[:, None]
    small = Examples(x, jnp.sin(1.0 * x))
    params = encoder.init(key, small)
    code = encoder.apply(params, small)
    assert not np.allclose(code, encoder.apply(params, Examples(x, 0 * small.y)))
    floats = Examples(x.astype(float), small.y)
    np.testing.assert_allclose(code, encoder.apply(params, floats), rtol=1e-6)


def test_the_mean_of_an_empty_set_is_zero():
    elements = jnp.asarray([[1.0, 2.0], [3.0, 6.0]])
    assert set_mean(elements, jnp.asarray([False, False])).tolist() == [0, 0]
    assert set_mean(elements, jnp.asarray([True, True])).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code_size": 0}, "`code_size` must be an integer of at least 1, got 0"),
        ({"num_classes": 0}, "`num_classes` must be an integer of at least 1"),
        ({"classes": "free"}, "`classes` must be one of named, unnamed, got 'free'"),
        ({"classes": "unnamed"}, "`num_classes` is None, which means regression"),
        ({"hidden_sizes": ()}, "`hidden_sizes` must hold at least 1 size"),
        (
            {"hidden_sizes": (4, 0)},
            r"`hidden_sizes\[1\]` must be an integer of at least 1, got 0",
        ),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        task_encoder(**{"code_size": 4} | changes)
