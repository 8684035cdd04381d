"""Attention against loops, and what it must not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models.attention import AttentionBlock, MultiHeadAttention

N, M, SIZE, HEADS = 3, 5, 6, 2


def rows(num, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=(num, SIZE)))


def built(module, *inputs):
    return module.init(jax.random.key(0), *inputs)


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def test_it_is_the_formula():
    query, key, value = rows(N), rows(M, 1), rows(M, 2)
    is_real = jnp.asarray([True, False, True, True, False])
    module = MultiHeadAttention(HEADS)
    params = built(module, query, key, value, is_real)
    w = {name: np.asarray(p["kernel"], float) for name, p in params["params"].items()}
    q, k, v = query @ w["query"], key @ w["key"], value @ w["value"]
    expected = np.zeros((N, SIZE))
    for place in range(N):
        for head in range(HEADS):
            cut = slice(head * SIZE // HEADS, (head + 1) * SIZE // HEADS)
            real = np.flatnonzero(is_real)
            scores = k[real, cut] @ q[place, cut] / np.sqrt(SIZE / HEADS)
            expected[place, cut] = softmax(np.asarray(scores)) @ v[real, cut]
    found = module.apply(params, query, key, value, is_real)
    np.testing.assert_allclose(found, expected @ w["out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("garbage", [0.0, 1e3])
def test_an_empty_set_reads_as_0_with_finite_gradients(garbage):
    query, other = rows(N), jnp.full((M, SIZE), garbage)
    module = MultiHeadAttention(HEADS)
    params = built(module, query, other, other, jnp.ones(M, bool))

    def read(params, query):
        return module.apply(params, query, other, other, jnp.zeros(M, bool))

    np.testing.assert_array_equal(read(params, query), np.zeros((N, SIZE)))
    gradient = jax.grad(lambda *args: read(*args).sum(), (0, 1))(params, query)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(gradient))


def test_a_block_ignores_padding_and_order_and_answers_row_by_row():
    x, context = rows(N), rows(M, 1)
    module = AttentionBlock(HEADS, 7)
    params = built(module, x, context, jnp.ones(M, bool))

    def apply(x, context, is_real):
        return np.asarray(module.apply(params, x, context, jnp.asarray(is_real)))

    whole = apply(x, context, np.ones(M, bool))
    order = np.random.default_rng(0).permutation(M)
    np.testing.assert_allclose(
        apply(x, context[order], np.ones(M, bool)), whole, rtol=1e-5, atol=1e-5
    )
    padded = jnp.concatenate([context, jnp.full((2, SIZE), 1e3)])
    np.testing.assert_allclose(
        apply(x, padded, np.arange(M + 2) < M), whole, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        apply(x[1:2], context, np.ones(M, bool)), whole[1:2], rtol=1e-5, atol=1e-5
    )
    less = apply(x, context, np.arange(M) < M - 1)
    assert np.abs(less - whole).max() > 1e-3
