"""Hypergradient descent: closed forms, autodiff, the base optimizers, and errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.inner.hypergradient import (
    HypergradientState,
    adam_hd,
    hypergradient,
    sgd_hd,
    sgdn_hd,
)
from metajax.inner.unroll import GRADIENT_MODES, unroll

# Name -> (with hypergradient, the optimizer that it adapts).
FAMILIES = {
    "sgd": (sgd_hd, optax.sgd),
    "sgdn": (sgdn_hd, functools.partial(optax.sgd, momentum=0.9, nesterov=True)),
    "adam": (adam_hd, optax.adam),
}
# Hypergradient rates that bring each from near 0 to a useful rate on `loss`.
BETAS = {"sgd": 1e-4, "sgdn": 1e-5, "adam": 1e-3}
CURVATURE = jnp.array([0.5, 2.0, 1.0])


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def loss(params):
    """Neither separable nor symmetric, over leaves of three ranks."""
    x = params["x"] * CURVATURE.astype(params["x"].dtype)
    y = params["inner"]["y"]
    return jnp.sum(jnp.square(x)) + jnp.sum(jnp.cos(y)) * params["z"] + params["z"] ** 4


def start(dtype=jnp.float32):
    params = {
        "x": jnp.array([1.0, -2.0, 0.5]),
        "inner": {"y": jnp.array([[0.3, -1.0], [2.0, 0.7]])},
        "z": jnp.array(0.8),
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def descend(optimizer, params, steps, *, loss=loss, gradient_dtype=None):
    """The parameters and the rate after every step, op by op."""
    state, path = optimizer.init(params), []
    for _ in range(steps):
        gradient = jax.grad(loss)(params)
        if gradient_dtype is not None:
            gradient = jax.tree.map(lambda g: g.astype(gradient_dtype), gradient)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        path.append((params, optax.tree.get(state, "learning_rate")))
    return path


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7])
def test_matches_closed_form(rate):
    """On c (theta - s)^2 / 2, whose gradient is c times the distance."""
    curvature, centre, beta = 1.5, np.array([2.0, -1.0]), 0.03
    distance = np.array([0.5, 3.0])
    path = descend(
        sgd_hd(rate, hyper_rate=beta),
        jnp.asarray(centre + distance),
        3,
        loss=lambda theta: 0.5 * curvature * jnp.sum(jnp.square(theta - centre)),
    )
    first = 1 - curvature * rate
    squared = curvature**2 * np.sum(distance**2)
    second_rate = rate + beta * first * squared
    second = first * (1 - curvature * second_rate)
    third_rate = second_rate + beta * first * second * squared
    third = second * (1 - curvature * third_rate)
    shrunk, rates = (first, second, third), (rate, second_rate, third_rate)
    for (theta, learning_rate), factor, expected in zip(
        path, shrunk, rates, strict=True
    ):
        np.testing.assert_allclose(theta - centre, factor * distance, atol=1e-12)
        np.testing.assert_allclose(learning_rate, expected, rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", FAMILIES)
def test_hypergradient_is_the_derivative_by_the_last_rate(name):
    make, make_base = FAMILIES[name]
    params, beta, rate = start(jnp.float64), 1e-3, 0.02
    optimizer, base = make(rate, hyper_rate=beta), make_base(1.0)
    state, base_state = optimizer.init(params), base.init(params)
    steps = []
    for _ in range(5):
        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        # What the base does with a rate of 1, of which the update is a multiple.
        direction, base_state = base.update(gradient, base_state)
        steps.append((params, direction, state.learning_rate))
        params = optax.apply_updates(params, updates)
    for (before, direction, old), (_, _, new) in zip(steps, steps[1:], strict=False):

        def loss_after(rate, before=before, direction=direction):
            moved = jax.tree.map(lambda p, u: p + rate * u, before, direction)
            return loss(moved)

        expected = jax.grad(loss_after)(old)
        assert abs(expected) > 1e-2
        np.testing.assert_allclose((old - new) / beta, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_hyper_rate_zero_is_the_base(name, dtype):
    make, make_base = FAMILIES[name]
    with jax.enable_x64(dtype == "float64"):
        path = descend(make(0.03, hyper_rate=0), start(dtype), 6)
        params, base = start(dtype), make_base(0.03)
        state = base.init(params)
        for ours, rate in path:
            updates, state = base.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
            chex.assert_trees_all_equal(ours, params)
            assert rate == jnp.asarray(0.03, dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_rate_zero_recovers(name):
    path = descend(FAMILIES[name][0](0.0, hyper_rate=BETAS[name]), start(), 30)
    chex.assert_trees_all_equal(path[0][0], start())
    assert loss(path[-1][0]) < loss(start()) - 1


def test_rate_falls_where_gradients_oppose():
    """A rate beyond 2 / curvature makes every gradient the opposite of the last."""
    optimizer = sgd_hd(2.5, hyper_rate=0.02)
    path = descend(
        optimizer, jnp.array([1.0]), 40, loss=lambda p: 0.5 * jnp.sum(jnp.square(p))
    )
    assert path[-1][1] < 2
    assert abs(path[-1][0][0]) < 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "power_rate", "power_beta"), [
    ("sgd", 1, 3), ("sgdn", 1, 3), ("adam", 0, 1)
])  # fmt: skip
def test_scale_of_the_loss(name, power_rate, power_beta):
    """What the module says of a loss that is multiplied by c."""
    c, make = 4.0, FAMILIES[name][0]
    path = descend(make(0.02, hyper_rate=1e-3), start(jnp.float64), 8)
    scaled = descend(
        make(0.02 / c**power_rate, hyper_rate=1e-3 / c**power_beta),
        start(jnp.float64),
        8,
        loss=lambda params: c * loss(params),
    )
    chex.assert_trees_all_close(path[-1][0], scaled[-1][0], rtol=1e-6)
    np.testing.assert_allclose(path[-1][1], scaled[-1][1] * c**power_rate, rtol=1e-6)


def train(optimizer, params, steps):
    """As `descend`, in one scan; the last parameters, and all rates if it has some."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        carry = optax.apply_updates(params, updates), state
        return carry, optax.tree.get(state, "learning_rate")

    (params, _), rates = jax.lax.scan(
        step, (params, optimizer.init(params)), None, length=steps
    )
    return params, rates


@pytest.mark.parametrize("name", FAMILIES)
def test_jit_scan_and_vmap_over_rates_and_parameters(name):
    make = FAMILIES[name][0]
    scales, rates = jnp.array([1.0, 0.5, -1.0]), jnp.array([0.01, 0.03, 0.0])
    betas = jnp.array([0.0, 1e-4, 1e-3])

    def run(scale, rate, beta):
        params = jax.tree.map(lambda leaf: scale * leaf, start())
        return train(make(rate, hyper_rate=beta), params, 7)

    params, found = jax.jit(jax.vmap(run))(scales, rates, betas)
    for index in range(3):
        scaled = jax.tree.map(lambda leaf, at=index: scales[at] * leaf, start())
        optimizer = make(float(rates[index]), hyper_rate=float(betas[index]))
        path = descend(optimizer, scaled, 7)
        single = jax.tree.map(lambda leaf, at=index: leaf[at], params)
        chex.assert_trees_all_close(single, path[-1][0], rtol=1e-4, atol=1e-6)
        expected = [rate for _, rate in path]
        np.testing.assert_allclose(found[index], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", FAMILIES)
def test_too_small_a_rate_grows_and_beats_the_base(name):
    make, make_base = FAMILIES[name]
    params, rates = train(make(1e-5, hyper_rate=BETAS[name]), start(), 60)
    slow, _ = train(make_base(1e-5), start(), 60)
    assert jnp.max(rates) > 100 * 1e-5
    assert loss(params) < loss(slow) - 1


@pytest.mark.usefixtures("float64")
def test_weight_decay_in_front_counts_in_the_hypergradient():
    decay, params = 0.3, start(jnp.float64)
    optimizer = optax.chain(
        optax.add_decayed_weights(decay), sgd_hd(0.02, hyper_rate=1e-3)
    )

    def penalised(params):
        squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)]
        return loss(params) + 0.5 * decay * sum(squares)

    chained = descend(optimizer, params, 5)
    expected = descend(sgd_hd(0.02, hyper_rate=1e-3), params, 5, loss=penalised)
    chex.assert_trees_all_close(chained, expected, rtol=1e-12)


def test_any_direction_with_parameters_and_further_arguments():
    """Decay apart from the gradient, and a direction that asks for the loss."""

    def scale(updates, state, params, *, value):
        return jax.tree.map(lambda g, p: value * g + 0.1 * p, updates, params), state

    direction = optax.GradientTransformationExtraArgs(optax.init_empty_state, scale)
    optimizer = hypergradient(direction, 0.5, hyper_rate=0.25)
    params, gradient = jnp.array([2.0, -1.0]), jnp.array([1.0, 3.0])
    state = optimizer.init(params)
    updates, state = optimizer.update(gradient, state, params, value=jnp.array(2.0))
    np.testing.assert_allclose(updates, [-1.1, -2.95], rtol=1e-6)
    _, state = optimizer.update(gradient, state, params, value=jnp.array(2.0))
    np.testing.assert_allclose(state.learning_rate, 0.5 + 0.25 * (2.2 + 3 * 5.9))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "rate_dtype"),
    [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_dtypes_stay(name, dtype, rate_dtype):
    with jax.enable_x64(dtype == "float64"):
        optimizer, params = FAMILIES[name][0](0.01), start(dtype)
        state = optimizer.init(params)
        updates, after = optimizer.update(jax.grad(loss)(params), state, params)
        chex.assert_trees_all_equal_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        assert isinstance(after, HypergradientState)
        assert after.learning_rate.dtype == rate_dtype
        assert not after.learning_rate.weak_type


def test_gradients_of_another_dtype_than_parameters():
    optimizer, params = sgd_hd(0.01), start("bfloat16")
    state = optimizer.init(params)
    gradient = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    updates, after = optimizer.update(gradient, state, params)
    chex.assert_trees_all_equal_dtypes(updates, gradient)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


def test_small_changes_of_the_rate_are_not_lost_in_bfloat16():
    """2^-10 + 2^-20 is no bfloat16; neither is the sum of 1024 ones plus one."""
    optimizer, ones = sgd_hd(2**-10, hyper_rate=2**-20), jnp.ones(1025, jnp.bfloat16)
    state = optimizer.init(ones)
    for _ in range(2):
        _, state = optimizer.update(ones, state)
    assert state.learning_rate == 2**-10 + 1025 * 2**-20


def test_complex_parameters_split_into_two():
    """The remedy that the error names works."""
    optimizer = optax.contrib.split_real_and_imaginary(sgd_hd(0.1, hyper_rate=0.01))
    params = jnp.array([1.0 + 2.0j])
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(params, state, params)
    rate = optax.tree.get(state, "learning_rate")
    np.testing.assert_allclose(rate, 0.1 + 0.01 * 5, rtol=1e-6)
    np.testing.assert_allclose(updates, -0.15 * params, rtol=1e-6)


@pytest.mark.parametrize("mode", GRADIENT_MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_inner_optimizer_of_an_unroll(name, mode):
    """With a coordinate whose gradient is 0 throughout, and both rates learned."""
    make = FAMILIES[name][0]
    if name == "adam":
        make = functools.partial(make, eps_root=1e-8)

    def outer(theta, rate, beta):
        result = unroll(
            lambda params, args, key: 0.5 * jnp.sum(jnp.square(params - args)),
            make(rate, hyper_rate=beta),
            theta,
            jnp.array([2.0, 0.0]),
            inner_steps=4,
            gradient=mode,
        )
        return jnp.sum(jnp.square(result.params - 1))

    gradients = jax.jit(jax.grad(outer, (0, 1, 2)))(jnp.zeros(2), 0.1, 0.01)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 1e-3


@pytest.mark.usefixtures("float64")
def test_outer_gradient_matches_finite_differences():
    def outer(rate):
        optimizer = sgdn_hd(rate, hyper_rate=0.01)
        result = unroll(
            lambda params, args, key: loss(params),
            optimizer,
            start(jnp.float64),
            (),
            inner_steps=3,
        )
        return loss(result.params)

    expected = (outer(0.02 + 1e-6) - outer(0.02 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(outer)(0.02), expected, rtol=1e-6)


def init(leaf):
    return sgd_hd(0.1).init({"layer": {"w": jnp.ones(2), "other": leaf}})


ERRORS = {
    "negative rate": (
        lambda: sgd_hd(-0.1),
        ValueError,
        "`learning_rate` must be one finite number of at least 0, got -0.1",
    ),
    "infinite rate": (lambda: adam_hd(np.inf), ValueError, "`learning_rate`.*got inf"),
    "rate is NaN": (
        lambda: sgdn_hd(jnp.array(jnp.nan, jnp.bfloat16)),
        ValueError,
        "`learning_rate`.*got Array",
    ),
    "rates by leaf": (
        lambda: sgd_hd(jnp.ones(3)),
        ValueError,
        "`learning_rate` must be one finite",
    ),
    "schedule": (
        lambda: sgd_hd(optax.constant_schedule(0.1)),
        ValueError,
        "`learning_rate` must be one finite number.*got <function",
    ),
    "negative hyper_rate": (
        lambda: adam_hd(0.1, hyper_rate=-1e-7),
        ValueError,
        "`hyper_rate` must be one finite number of at least 0, got -1e-07",
    ),
    "hyper_rate is NaN": (
        lambda: sgd_hd(0.1, hyper_rate=np.nan),
        ValueError,
        "`hyper_rate`.*nan",
    ),
    "momentum of 1": (
        lambda: sgdn_hd(0.1, momentum=1.0),
        ValueError,
        "`momentum` must be one finite number of at least 0 and below 1, got 1.0",
    ),
    "negative momentum": (
        lambda: sgdn_hd(0.1, momentum=-0.9),
        ValueError,
        "`momentum`.*got -0.9",
    ),
    "b1": (lambda: adam_hd(0.1, b1=1), ValueError, "`b1`.*below 1, got 1"),
    "b2": (lambda: adam_hd(0.1, b2=1.5), ValueError, "`b2`.*below 1, got 1.5"),
    "eps": (lambda: adam_hd(0.1, eps=-1), ValueError, "`eps` must.*got -1"),
    "eps_root": (lambda: adam_hd(0.1, eps_root=-1), ValueError, "`eps_root` must"),
    "no direction": (
        lambda: hypergradient(0.1, 0.1, hyper_rate=0.1),
        TypeError,
        r"`direction` must be.*optax.scale_by_adam\(\), got 0.1",
    ),
    "integer leaf": (
        lambda: init(jnp.arange(3)),
        TypeError,
        "leaf 'layer/other' is int32; keep it out of the parameters",
    ),
    "bool leaf": (lambda: init(jnp.array(True)), TypeError, "'layer/other' is bool"),
    "key": (lambda: init(jax.random.key(0)), TypeError, "is key<fry>; keep it out"),
    "complex leaf": (
        lambda: init(jnp.ones(2, jnp.complex64)),
        TypeError,
        "'layer/other' is complex64; wrap .* optax.contrib.split_real_and_imaginary",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_explained(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


def test_no_parameters_at_all():
    optimizer = sgd_hd(0.1)
    updates, state = optimizer.update({}, optimizer.init({}))
    assert updates == {}
    np.testing.assert_allclose(state.learning_rate, 0.1, rtol=1e-6)
