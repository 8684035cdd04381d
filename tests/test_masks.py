"""Padding reaches no mean, no gradient and no comparison."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.masks import expand, hide_padding, masked_mean


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-100, 100, width=32), st.booleans()), min_size=1, max_size=6
    )
)
def test_masked_mean_is_the_mean_of_what_is_left(pairs):
    values = np.array([value for value, _ in pairs], np.float32)
    mask = np.array([is_real for _, is_real in pairs])
    got = masked_mean(jnp.asarray(values), jnp.asarray(mask))
    expected = values[mask].mean() if mask.any() else np.nan
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_masked_mean_without_a_mask():
    assert masked_mean(jnp.array([1.0, 2.0, 6.0]), None) == 3


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_padding_reaches_neither_the_mean_nor_its_gradient(garbage):
    values = jnp.array([1.0, garbage, 3.0])
    mask = jnp.array([True, False, True])
    value, gradient = jax.value_and_grad(masked_mean)(values, mask)
    assert value == 2
    np.testing.assert_array_equal(gradient, [0.5, 0, 0.5])


@pytest.mark.parametrize(
    ("dtype", "size"), [(jnp.float16, 70_000), (jnp.bfloat16, 1001)]
)
def test_masked_mean_counts_beyond_half_precision(dtype, size):
    """float16 ends at 65504; bfloat16 does not tell 1001 from 1000."""
    got = masked_mean(jnp.ones(size, dtype), jnp.ones(size, bool))
    assert got.dtype == dtype
    assert got == 1


def test_masked_mean_wants_one_shape():
    with pytest.raises(AssertionError, match="shape"):
        masked_mean(jnp.ones((3, 1)), jnp.ones(3, bool))


def test_hide_padding_keeps_types_and_structure():
    x = {"image": np.ones((3, 2, 2), np.uint8), "flag": np.ones(3, bool)}
    hidden = hide_padding(x, jnp.array([True, False, True]))
    assert hidden["image"].dtype == jnp.uint8
    assert hidden["flag"].dtype == bool
    np.testing.assert_array_equal(hidden["flag"], [True, False, True])
    np.testing.assert_array_equal(hidden["image"][:, 0, 0], [1, 0, 1])
    assert hide_padding(x, None) is x


def test_masks_grow_to_the_rank_of_what_they_hide():
    mask = jnp.array([True, False])
    assert expand(mask, jnp.ones((2, 3, 4))).shape == (2, 1, 1)
    assert expand(mask, mask) is not None
    np.testing.assert_array_equal(expand(mask, jnp.ones((2, 1)))[:, 0], mask)
