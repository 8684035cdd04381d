"""The inner loop: closed forms, finite differences, and agreement of gradient modes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.filters import all_but, everything, only
from metajax.inner.clipping import clip_by_global_norm
from metajax.inner.unroll import GRADIENT_MODES, check_inner_loop, unroll

EXACT_MODES = ("reverse", "remat", "mixed")
OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    # Without `eps_root` the square root at 0 has no derivative.
    "adam": functools.partial(optax.adam, eps_root=1e-6),
}
CASES = {
    "sgd, dropout": ("sgd", everything, True),
    "momentum, head only": ("momentum", only("head"), False),
    "adam": ("adam", everything, False),
    "adam, head only, dropout": ("adam", only("head"), True),
}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(params, args, key):
    """`||phi - s||^2 / 2`, whose gradient is phi - s and whose Hessian is 1."""
    del key
    return 0.5 * jnp.sum(jnp.square(params - args))


def network_loss(params, args, key):
    """A two-layer network with dropout, for which no closed form exists."""
    x, y, weights = args
    hidden = jnp.tanh(x @ params["body"]["kernel"] + params["body"]["bias"][None, :])
    if key is not None:
        hidden = 2 * hidden * jax.random.bernoulli(key, 0.5, hidden.shape)
    logits = hidden @ params["head"]["kernel"]
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.mean(weights * losses)


def network_problem():
    rng = np.random.default_rng(0)
    params = {
        "body": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)},
        "head": {"kernel": rng.normal(size=(4, 2))},
        "count": np.int32(3),
    }
    args = (rng.normal(size=(6, 3)), np.array([0, 1, 1, 0, 1, 0]), rng.uniform(size=6))
    return jax.tree.map(jnp.asarray, (params, args))


def outer_loss(inexact, integers, rate, *, mode, make, adapts, key):
    """The query loss as a function of everything that an outer gradient may reach."""
    params, (x, weights) = inexact
    count, y = integers
    result = unroll(
        network_loss,
        make(rate),
        params | {"count": count},
        (x, y, weights),
        inner_steps=3,
        gradient=mode,
        adapts=adapts,
        key=key,
    )
    query = (x[::-1] + 0.5, y, jnp.ones(6))
    return network_loss(result.params, query, None) + jnp.sum(result.losses)


@pytest.mark.parametrize(("steps", "rate"), [(0, 0.1), (1, 1.0), (2, 0.5), (7, 0.1)])
@pytest.mark.parametrize("mode", GRADIENT_MODES)
def test_quadratic_matches_closed_form(mode, rate, steps):
    theta, s, q = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]), jnp.array([2.0, 2.0])

    def query(theta, s):
        result = unroll(
            quadratic, optax.sgd(rate), theta, s, inner_steps=steps, gradient=mode
        )
        return 0.5 * jnp.sum(jnp.square(result.params - q)), result

    (grad_theta, grad_s), result = jax.grad(query, (0, 1), has_aux=True)(theta, s)
    decay = (1 - rate) ** steps
    phi = s + decay * (theta - s)
    chex.assert_trees_all_close(result.params, phi, rtol=1e-5)
    powers = (1 - rate) ** (2 * np.arange(steps))
    expected = 0.5 * powers * np.sum(np.square(theta - s))
    chex.assert_trees_all_close(result.losses, jnp.asarray(expected), rtol=1e-5)
    if mode == "first_order":
        # phi = theta - constants: the derivative of phi is 1 and that by s is 0.
        chex.assert_trees_all_close(grad_theta, phi - q, rtol=1e-5)
        chex.assert_trees_all_close(grad_s, jnp.zeros(2))
    else:
        chex.assert_trees_all_close(grad_theta, decay * (phi - q), atol=1e-6)
        chex.assert_trees_all_close(grad_s, (1 - decay) * (phi - q), atol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_modes_match_finite_differences(case):
    name, adapts, dropout = CASES[case]
    params, (x, y, weights) = network_problem()
    integers = (params.pop("count"), y)
    inexact = (params, (x, weights))
    key = jax.random.key(3) if dropout else None

    def loss(mode):
        return functools.partial(
            outer_loss, mode=mode, make=OPTIMIZERS[name], adapts=adapts, key=key
        )

    value = jax.jit(lambda leaves, rate: loss("reverse")(leaves, integers, rate))
    flat, unflatten = jax.flatten_util.ravel_pytree((inexact, 0.1))
    step = 1e-5
    rows = jnp.eye(len(flat)) * step
    ahead = jax.vmap(lambda row: value(*unflatten(flat + row)))(rows)
    behind = jax.vmap(lambda row: value(*unflatten(flat - row)))(rows)
    expected = (ahead - behind) / (2 * step)
    for mode in EXACT_MODES:
        gradient = jax.jit(jax.grad(loss(mode), (0, 2)))(inexact, integers, 0.1)
        flat_gradient, _ = jax.flatten_util.ravel_pytree(gradient)
        np.testing.assert_allclose(flat_gradient, expected, rtol=2e-5, atol=1e-7)
    first_order = jax.grad(loss("first_order"), (0, 2))(inexact, integers, 0.1)
    flat_gradient, _ = jax.flatten_util.ravel_pytree(first_order)
    assert np.max(np.abs(flat_gradient - expected)) > 1e-3


def test_mixed_reaches_values_in_the_closure():
    def outer(scale, mode):
        def loss(params, args, key):
            return scale * quadratic(params, args, key)

        start, target = jnp.zeros(2), jnp.ones(2)
        result = unroll(
            loss, optax.sgd(0.1), start, target, inner_steps=3, gradient=mode
        )
        return jnp.sum(result.params)

    expected = jax.grad(outer)(2.0, "reverse")
    assert expected != 0
    chex.assert_trees_all_close(jax.grad(outer)(2.0, "mixed"), expected, rtol=1e-6)


@jax.custom_vjp
def reversed_gradient(x):
    return x


reversed_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@jax.custom_vjp
def square(x):
    return jnp.square(x)


square.defvjp(lambda x: (jnp.square(x), x), lambda x, g: (2 * x * g,))


def outer_loss_with(rule, mode, *, scale=1.0, check_mixed=True):
    """Of two features of which one goes through `rule`, over two tasks."""
    labels = jnp.array([[1], [0]])

    def task_loss(params, label):
        def loss(params, args, key):
            del key
            # The label is in the closure, and an integer: it stays in the trace.
            mixed = rule(params[1:]) * params[:1]
            return jnp.sum(jnp.square(mixed * scale + params[:1] - label * args))

        phi = unroll(
            loss,
            optax.sgd(0.1),
            params,
            jnp.ones(1),
            inner_steps=2,
            gradient=mode,
            check_mixed=check_mixed,
        ).params
        return jnp.sum(jnp.square(phi))

    return jax.jit(
        jax.grad(lambda params: jnp.sum(jax.vmap(task_loss, (None, 0))(params, labels)))
    )(jnp.array([0.7, -0.4]))


def test_mixed_refuses_a_custom_rule_that_is_no_transpose():
    with pytest.raises(ValueError, match="% off that of gradient='reverse'.*remat"):
        outer_loss_with(reversed_gradient, "mixed")
    mixed = outer_loss_with(reversed_gradient, "mixed", check_mixed=False)
    reverse = outer_loss_with(reversed_gradient, "reverse")
    assert not np.allclose(mixed, reverse, rtol=1e-2)


def test_mixed_takes_a_custom_rule_that_is_the_transpose():
    expected = outer_loss_with(square, "reverse")
    chex.assert_trees_all_close(outer_loss_with(square, "mixed"), expected, rtol=1e-5)


def test_mixed_says_when_a_custom_rule_could_not_be_checked():
    with pytest.warns(UserWarning, match="not finite"):
        outer_loss_with(reversed_gradient, "mixed", scale=jnp.inf)


@pytest.mark.parametrize("mode", GRADIENT_MODES)
def test_vmap_equals_a_loop_over_tasks(mode):
    thetas = jnp.arange(6.0).reshape(3, 2)
    targets = jnp.ones((3, 2))

    def outer(theta, s):
        result = unroll(
            quadratic, OPTIMIZERS["adam"](0.1), theta, s, inner_steps=4, gradient=mode
        )
        return jnp.sum(jnp.square(result.params))

    batched = jax.vmap(jax.value_and_grad(outer))(thetas, targets)
    single = [
        jax.value_and_grad(outer)(t, s) for t, s in zip(thetas, targets, strict=True)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    chex.assert_trees_all_close(batched, stacked, rtol=1e-5)


@pytest.mark.parametrize("mode", GRADIENT_MODES)
def test_one_step_is_taken_without_a_loop(mode):
    """So that `vmap` over tasks sees parameters that all tasks share."""

    def outer(params, target, steps):
        result = unroll(
            quadratic, optax.sgd(0.1), params, target, inner_steps=steps, gradient=mode
        )
        return jnp.sum(jnp.square(result.params))

    def has_loop(steps):
        gradient = jax.vmap(jax.grad(outer), (None, 0, None))
        program = jax.make_jaxpr(gradient, static_argnums=2)
        return "scan[" in str(program(jnp.ones(2), jnp.ones((3, 2)), steps))

    assert has_loop(2)
    assert not has_loop(1)


def test_path_holds_every_state():
    theta, s = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    full = unroll(quadratic, optax.sgd(0.3), theta, s, inner_steps=3, keep_path=True)
    for steps in range(4):
        result = unroll(quadratic, optax.sgd(0.3), theta, s, inner_steps=steps)
        chex.assert_trees_all_close(full.path[steps], result.params)


def test_path_repeats_what_does_not_adapt():
    params, args = network_problem()
    result = unroll(
        network_loss,
        optax.sgd(0.1),
        params,
        args,
        inner_steps=2,
        adapts=all_but("body"),
        keep_path=True,
    )
    chex.assert_trees_all_equal(
        result.path["body"],
        jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), params["body"]),
    )
    assert result.path["count"].dtype == params["count"].dtype
    chex.assert_trees_all_equal(result.params["body"], params["body"])
    assert not np.allclose(result.params["head"]["kernel"], params["head"]["kernel"])


def test_steps_have_different_keys():
    def noise_loss(params, args, key):
        del args
        return jnp.sum(params * jax.random.normal(key, (2,)))

    result = unroll(
        noise_loss,
        optax.sgd(1.0),
        jnp.zeros(2),
        (),
        inner_steps=2,
        key=jax.random.key(0),
        keep_path=True,
    )
    first, second = jnp.diff(result.path, axis=0)
    assert not np.allclose(first, second)


NOT_DIFFERENTIABLE = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "clipped adam": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "until its sixth step": optax.radam(0.1, eps_root=1e-8),
    "clip_by_global_norm": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "where a unit is off": optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", NOT_DIFFERENTIABLE)
def test_optimizers_without_a_derivative_are_refused(name):
    def run(**mode):
        params, args = network_problem()
        optimizer = NOT_DIFFERENTIABLE[name]
        return unroll(network_loss, optimizer, params, args, inner_steps=1, **mode)

    remedy = "eps_root=1e-8"
    if name == "clip_by_global_norm":
        remedy = "Clip by `metajax"
    elif name == "until its sixth step":
        remedy = "at any gradient"
    with pytest.raises(ValueError, match=f"`optimizer` .*no finite.*{remedy}"):
        run()
    run(gradient="first_order")  # differentiates no update


@pytest.mark.parametrize("traced", [False, True])
def test_eps_root_is_the_remedy(traced):
    def outer(theta, rate):
        target = jnp.array([1.0, 0.0])  # the second coordinate has gradient exactly 0
        optimizer = optax.adam(rate if traced else 0.1, eps_root=1e-8)
        return jnp.sum(
            unroll(quadratic, optimizer, theta, target, inner_steps=1).params
        )

    gradient = jax.jit(jax.grad(outer))(jnp.zeros(2), 0.1)
    assert np.isfinite(gradient).all()


def test_other_optimizers_are_not_refused():
    for optimizer in (
        optax.chain(clip_by_global_norm(1.0), optax.sgd(0.1)),
        optax.rmsprop(0.1),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
    ):
        check_inner_loop(optimizer, 1, "reverse")


def test_rows_of_step_args_reach_their_steps():
    """The loss of step t is t + 1 times a slope, so the path tells the rows apart."""

    def loss(phi, args_and_row, key):
        slope, row = args_and_row
        return jnp.sum(phi) * slope * row

    rows = jnp.arange(1.0, 4.0)
    for mode in GRADIENT_MODES:
        for steps in (0, 1, 3):
            result = unroll(
                loss,
                optax.sgd(1.0),
                jnp.zeros(2),
                jnp.float32(2.0),
                inner_steps=steps,
                gradient=mode,
                step_args=rows[:steps],
                keep_path=True,
            )
            expected = -2 * np.cumsum([0, 1, 2, 3])[: steps + 1]
            np.testing.assert_allclose(result.path[:, 0], expected)


def test_going_on_from_a_state_is_as_if_never_stopped():
    optimizer = OPTIMIZERS["adam"](0.1)
    theta, target = jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])
    whole = unroll(quadratic, optimizer, theta, target, inner_steps=5)
    part = unroll(quadratic, optimizer, theta, target, inner_steps=2)
    rest = unroll(
        quadratic,
        optimizer,
        part.params,
        target,
        inner_steps=3,
        opt_state=part.opt_state,
    )
    chex.assert_trees_all_close(rest.params, whole.params, rtol=1e-6)
    again = unroll(quadratic, optimizer, part.params, target, inner_steps=3)
    assert not np.allclose(again.params, whole.params)


def test_the_optimizer_is_told_the_loss():
    """And in first-order mode as a constant."""

    def update(updates, state, params=None, *, value, **extra):
        return jax.tree.map(lambda g: -value * jnp.ones_like(g), updates), state

    optimizer = optax.GradientTransformationExtraArgs(lambda p: (), update)

    def outer(theta, mode):
        result = unroll(
            lambda p, a, k: jnp.sum(p**2),
            optimizer,
            theta,
            (),
            inner_steps=1,
            gradient=mode,
        )
        return jnp.sum(result.params)

    theta = jnp.array([3.0])
    assert outer(theta, "reverse") == 3 - 9
    np.testing.assert_allclose(jax.grad(outer)(theta, "reverse"), 1 - 6)
    np.testing.assert_allclose(jax.grad(outer)(theta, "first_order"), 1)


@pytest.mark.parametrize("mode", GRADIENT_MODES)
def test_an_optimizer_that_evaluates_the_loss_itself(mode):
    """Gradient descent by `value_fn` is that by the gradient, but to first order."""

    def update(updates, state, params, *, grad, value_fn, **extra):
        chex.assert_trees_all_equal_shapes(updates, grad)
        return jax.tree.map(lambda g: -0.1 * g, jax.grad(value_fn)(params)), state

    by_itself = optax.GradientTransformationExtraArgs(lambda p: (), update)

    def outer(theta, target, optimizer):
        phi = unroll(
            quadratic, optimizer, theta, target, inner_steps=3, gradient=mode
        ).params
        return jnp.sum(phi**3)

    theta, target = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    slopes = [
        jax.grad(outer, (0, 1))(theta, target, optimizer)
        for optimizer in (by_itself, optax.sgd(0.1))
    ]
    if mode == "first_order":  # through `params`, which are no constant; not the target
        np.testing.assert_array_equal(slopes[0][1], 0)
    else:
        chex.assert_trees_all_close(*slopes, rtol=1e-6)


def test_a_line_search_has_no_derivative_but_to_first_order():
    """One step of L-BFGS solves the quadratic, whatever theta is."""
    theta, target = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])

    def outer(theta, mode):
        result = unroll(
            quadratic, optax.lbfgs(), theta, target, inner_steps=2, gradient=mode
        )
        return 0.5 * jnp.sum(result.params**2), result.params

    gradient, phi = jax.grad(outer, has_aux=True)(theta, "first_order")
    np.testing.assert_allclose(phi, target, rtol=1e-6)
    np.testing.assert_allclose(gradient, phi, rtol=1e-6)  # of phi = theta + constant
    for mode in EXACT_MODES:
        with pytest.raises(ValueError, match=r"line search.*'first_order', or `imaml`"):
            jax.grad(outer, has_aux=True)(theta, mode)


@pytest.mark.parametrize("mode", ["reverse", "remat", "mixed"])
def test_half_precision_has_gradients(mode):
    """In which losses are in single precision."""
    theta = jnp.array([1.0, -2.0], jnp.bfloat16)

    def loss(phi, target, key):
        return jnp.sum(jnp.square(phi.astype(jnp.float32) - target))

    def outer(theta):
        end = unroll(
            loss, optax.sgd(0.1), theta, jnp.ones(2), inner_steps=2, gradient=mode
        ).params
        return jnp.sum(end.astype(jnp.float32))

    gradient = jax.jit(jax.grad(outer))(theta)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(gradient.astype(float), 0.8**2, rtol=0.02)


ERRORS = {
    "rows": (
        ValueError,
        {"step_args": jnp.zeros(5)},
        "`step_args` must have a row for each of the 1 steps, got 5 rows",
    ),
    "negative steps": (
        ValueError,
        {"inner_steps": -1},
        "`inner_steps` must be an integer.*got -1",
    ),
    "fractional steps": (
        ValueError,
        {"inner_steps": 1.5},
        "`inner_steps` must be .*got 1.5",
    ),
    "unknown mode": (
        ValueError,
        {"gradient": "backward"},
        "one of reverse, remat, mixed, first_order, got 'backward'",
    ),
    "no optimizer": (
        TypeError,
        {"optimizer": 0.1},
        "`optimizer`.*GradientTransformation.*got 0.1",
    ),
    "empty filter": (
        ValueError,
        {"adapts": only("hand")},
        "accepts none of the floating-point leaves",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    kind, changes, message = ERRORS[name]
    params, args = network_problem()
    settings = {"optimizer": optax.sgd(0.1), "inner_steps": 1} | changes
    with pytest.raises(kind, match=message):
        unroll(network_loss, settings.pop("optimizer"), params, args, **settings)
