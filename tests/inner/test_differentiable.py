import gc
import weakref

import jax
import jax.numpy as jnp
import optax
import pytest

from metajax.inner.differentiable import is_search, lacks_derivative, parts_of
from metajax.inner.unroll import check_inner_loop, unroll


def at_rest(threshold, *, jump):
    """Its slope at 0 is 1, or it jumps there; JAX finds 0 in both cases."""

    def update(updates, state, params=None):
        del params

        def of_leaf(leaf):
            moved = jnp.sign(leaf) if jump else leaf
            return jnp.where(jnp.abs(leaf) > threshold, moved, 0 * leaf)

        return jax.tree.map(of_leaf, updates), state

    return optax.GradientTransformation(lambda params: (), update)


FAULTS = {
    "adam": (optax.adam(0.1), "a gradient is 0"),
    "of the first steps": (
        optax.radam(0.1, eps_root=1e-8),
        "its first 6 steps are differentiated, at any gradient",
    ),
    "norms of arrays": (
        optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
        "all gradients of an array are 0",
    ),
    "a norm of all": (optax.contrib.normalize(), "all gradients are 0"),
    "of parameters": (
        optax.stateless(lambda g, p: jax.tree.map(lambda x: x * optax.tree.norm(x), p)),
        "an array of parameters is 0",
    ),
    "a wrong one": (at_rest(0.0, jump=False), "all gradients are 0"),
}
RIGHT = {
    "sgd": optax.sgd(0.1),
    "adam with eps_root": optax.adam(0.1, eps_root=1e-8),
    "adagrad": optax.adagrad(0.1),
    "a jump": at_rest(0.0, jump=True),
    "a sign": optax.sign_sgd(0.1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name):
    optimizer, where = FAULTS[name]
    found = lacks_derivative(optimizer)
    assert found is not None
    assert found.startswith(where)
    with pytest.raises(ValueError, match=f"`inner_optimizer`.*{where}"):
        check_inner_loop(optimizer, 1, "reverse")
    check_inner_loop(optimizer, 1, "first_order")


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_taken(name):
    assert lacks_derivative(RIGHT[name]) is None


def test_optimizers_are_let_go():
    optimizer = optax.sgd(0.1)
    lacks_derivative(optimizer)
    update = weakref.ref(optimizer.update)
    del optimizer
    gc.collect()
    assert update() is None


def test_what_cannot_be_tried_is_taken():
    labels = {"encoder": "a", "head": "b"}
    optimizer = optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, labels)
    assert lacks_derivative(optimizer) is None


def test_searches():
    assert is_search(optax.lbfgs())
    assert not is_search(optax.adam(0.1))


@pytest.mark.parametrize(
    ("optimizer", "parts"),
    [
        (optax.adam(0.1), "scale_by_adam, scale"),
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
            "clip_by_global_norm, identity, scale",
        ),
        (optax.flatten(optax.adam(0.1)), "flatten(scale_by_adam, scale)"),
        (at_rest(0.0, jump=True), "at_rest"),
    ],
)
def test_parts_have_names(optimizer, parts):
    assert parts_of(optimizer) == parts


def test_an_error_of_the_optimizer_names_it():
    with pytest.raises(AttributeError) as caught:
        unroll(
            lambda params, args, key: jnp.sum(params["w"] ** 2),
            optax.lookahead(optax.sgd(0.1), 2, 0.5),
            {"w": jnp.ones(2)},
            (),
            inner_steps=1,
        )
    assert (
        "In the inner optimizer: lookahead(identity, scale)." in caught.value.__notes__
    )
