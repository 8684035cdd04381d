import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.inner.clipping import clip_by_global_norm

GRADIENTS = {"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}


def clipped(optimizer, gradients):
    return optimizer.update(gradients, optimizer.init(gradients))[0]


@pytest.mark.parametrize("max_norm", [0.5, 4.99, 5.01, 100.0])
def test_equals_optax(max_norm):
    ours, theirs = (
        clipped(module.clip_by_global_norm(max_norm), GRADIENTS)
        for module in (__import__("metajax").optimizers, optax)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_derivative_at_zero_is_that_of_the_identity():
    def total(gradients):
        return sum(map(jnp.sum, clipped(clip_by_global_norm(1.0), gradients).values()))

    slopes = jax.grad(total)(jax.tree.map(jnp.zeros_like, GRADIENTS))
    np.testing.assert_allclose(slopes["w"], [1, 1])
    np.testing.assert_allclose(slopes["b"], 1)


def test_dtypes_stay():
    assert clipped(clip_by_global_norm(1.0), jnp.ones(3, jnp.bfloat16)).dtype == (
        jnp.bfloat16
    )


@pytest.mark.parametrize("max_norm", [0, -1.0, np.nan, "1"])
def test_wrong_norms(max_norm):
    with pytest.raises((TypeError, ValueError), match="`max_norm`"):
        clip_by_global_norm(max_norm)
