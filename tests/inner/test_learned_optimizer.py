"""Learned hyper-parameters: the plain optimizers at first, and what they become."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import metajax
from metajax.inner.clipping import clip_by_global_norm
from metajax.inner.learned_optimizer import GRANULARITIES, HyperParameter, learned
from metajax.inner.unroll import unroll

# Name -> (what makes it, what is learned, what is fixed).
OPTIMIZERS = {
    "sgd": (optax.sgd, {"learning_rate": 0.1}, {}),
    "momentum": (
        optax.sgd,
        {"learning_rate": 0.1, "momentum": 0.7},
        {"nesterov": True},
    ),
    "adam": (
        optax.adam,
        {"learning_rate": 0.05, "b1": 0.8, "b2": 0.95},
        {"eps_root": 1e-8},
    ),
    "rmsprop": (optax.rmsprop, {"learning_rate": 0.02, "decay": 0.8}, {"eps": 1e-3}),
}


def start(dtype=jnp.float32):
    """Leaves of the ranks 0, 1 and 2, which no loss below treats alike."""
    params = {
        "x": jnp.array([1.0, -2.0, 0.5]),
        "inner": {"y": jnp.array([[0.3, -1.0], [2.0, 0.7]])},
        "z": jnp.array(0.8),
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def loss(params, args, key):
    del args, key
    x, y, z = params["x"], params["inner"]["y"], params["z"]
    return jnp.sum(x**2) * z**2 + jnp.sum(jnp.cos(y)) * z + jnp.sum(jnp.sin(x))


def descend(optimizer, steps, **settings):
    settings = {"loss_fn": loss, "params": start()} | settings
    loss_fn, params = settings.pop("loss_fn"), settings.pop("params")
    return unroll(loss_fn, optimizer, params, (), inner_steps=steps, **settings)


def total(params, args, key):
    """A loss whose gradients are ones, so that SGD's updates are minus its rates."""
    del args, key
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("per", "steps"),
    [("optimizer", None), ("optimizer", 3), ("leaf", 3), ("parameter", None)],
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_starts_as_the_plain_optimizer(name, per, steps, key):
    make, numbers, fixed = OPTIMIZERS[name]
    hyper = {
        name: HyperParameter(
            value, per, steps, "positive" if "rate" in name else "unit"
        )
        for name, value in numbers.items()
    }
    optimizer = learned(make, **hyper, **fixed)
    run = functools.partial(descend, steps=5, gradient="first_order", keep_path=True)
    ours = jax.jit(lambda p: run(optimizer.build(p)))(optimizer.init(key, start()))
    plain = jax.jit(lambda: run(make(**numbers, **fixed)))()
    chex.assert_trees_all_close(ours.path, plain.path, rtol=2e-5)
    assert np.abs(ours.path["x"][5] - ours.path["x"][4]).min() > 1e-3


@pytest.mark.parametrize("per", GRANULARITIES)
def test_steps_have_their_own_values_and_later_ones_the_last(per, key):
    number, rng = HyperParameter(0.1, per=per, inner_steps=3), np.random.default_rng(0)
    optimizer = learned(optax.sgd, learning_rate=number)
    initial = optimizer.init(key, start())["learning_rate"]
    rates = jax.tree.map(lambda leaf: rng.uniform(1, 2, leaf.shape), initial)
    build = optimizer.build({"learning_rate": jax.tree.map(jnp.float32, rates)})
    path = descend(build, 5, loss_fn=total, keep_path=True).path
    if per == "optimizer":
        rates = jax.tree.map(lambda leaf: rates, start())

    def moves(rates, leaf):
        steps = [rates[min(step, 2)] for step in range(5)]
        return np.stack([np.broadcast_to(rate, leaf.shape) for rate in steps])

    expected = jax.tree.map(moves, rates, start())
    got = jax.tree.map(lambda leaf: -np.diff(leaf, axis=0), path)
    chex.assert_trees_all_close(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("domain", "value", "low", "high"),
    [
        ("real", 0.3, -jnp.inf, jnp.inf),
        ("positive", 0.3, 0, jnp.inf),
        ("unit", 0.3, 0, 1),
    ],
)
def test_domains(domain, value, low, high, key):
    optimizer = learned(optax.sgd, learning_rate=HyperParameter(value, domain=domain))
    raw = optimizer.init(key, start())["learning_rate"]

    def rate(raw):
        optimizer_params = {"learning_rate": raw}
        params = jnp.zeros(())
        result = descend(
            optimizer.build(optimizer_params), 1, loss_fn=total, params=params
        )
        return -result.params

    np.testing.assert_allclose(rate(raw), value, rtol=1e-6)
    moved = [float(rate(raw + shift)) for shift in (-10.0, -1.0, 1.0, 10.0)]
    assert low < moved[0] < moved[1] < value < moved[2] < moved[3] < high
    # Only real numbers may become negative.
    assert (moved[0] < 0) == (domain == "real")


def test_granularity_is_that_of_the_arrays(key):
    def shapes(per, steps):
        number = HyperParameter(0.1, per=per, inner_steps=steps)
        optimizer = learned(optax.sgd, learning_rate=number)
        rates = optimizer.init(key, start())["learning_rate"]
        return jax.tree.map(jnp.shape, rates, is_leaf=lambda x: hasattr(x, "shape"))

    assert shapes("optimizer", None) == ()
    assert shapes("optimizer", 2) == (2,)
    assert shapes("leaf", None) == {"x": (), "inner": {"y": ()}, "z": ()}
    assert shapes("leaf", 2) == {"x": (2,), "inner": {"y": (2,)}, "z": (2,)}
    assert shapes("parameter", 2) == {"x": (2, 3), "inner": {"y": (2, 2, 2)}, "z": (2,)}


def test_rates_belong_to_what_adapts_only(key):
    learner = metajax.learners.maml(
        metajax.models.mlp(3, hidden_sizes=(4,)),
        learned(optax.sgd, learning_rate=HyperParameter(0.1, per="leaf")),
        inner_steps=1,
        adapts=metajax.filters.only("head"),
    )
    examples = metajax.Examples(jnp.ones((2, 3)), jnp.array([0, 1]))
    meta_params = learner.init(key, metajax.Task(examples, examples))
    rates = jax.tree.leaves(meta_params.optimizer)
    assert len(rates) == 2  # kernel and bias
    assert len(jax.tree.leaves(meta_params.params)) == 4


@pytest.mark.parametrize("per", GRANULARITIES)
def test_gradient_by_hyper_parameters_matches_finite_differences(per, key):
    with jax.enable_x64(True):
        optimizer = learned(
            optax.sgd,
            learning_rate=HyperParameter(
                0.05, per=per, inner_steps=2, domain="positive"
            ),
            momentum=HyperParameter(0.6, domain="unit"),
        )
        params = start(jnp.float64)

        @jax.jit
        def outer(optimizer_params):
            result = descend(optimizer.build(optimizer_params), 3, params=params)
            return loss(result.params, (), None) + jnp.sum(result.losses)

        optimizer_params = optimizer.init(key, params)
        check_grads(outer, (optimizer_params,), order=1, modes=["rev"])
        for leaf in jax.tree.leaves(jax.jit(jax.grad(outer))(optimizer_params)):
            assert np.abs(leaf).min() > 1e-4


def needs_loss(scale):
    """Moves everything by the loss, which it has to be told."""

    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda g: -scale * value * jnp.ones_like(g), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@pytest.mark.parametrize("per", ["optimizer", "leaf"])
def test_optimizers_may_ask_for_the_loss(per, key):
    optimizer = learned(needs_loss, scale=HyperParameter(0.5, per=per))
    build = optimizer.build(optimizer.init(key, start()))
    state, value = build.init(start()), jnp.float32(3)
    updates, _ = build.update(start(), state, start(), value=value)
    expected = jax.tree.map(lambda p: jnp.full_like(p, -1.5), start())
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


@pytest.mark.parametrize("per", ["optimizer", "leaf"])
def test_what_looks_across_leaves_sees_one_if_there_are_values_per_leaf(per, key):
    """As the docstring says of clipping by the global norm."""

    def make(learning_rate):
        return optax.chain(clip_by_global_norm(1.0), optax.sgd(learning_rate))

    optimizer = learned(make, learning_rate=HyperParameter(1.0, per=per))
    build = optimizer.build(optimizer.init(key, start()))
    result = descend(build, 1, loss_fn=total)
    # Of the eight gradients of 1, four are in one leaf, three in another, one alone.
    norms = {"x": 3, "y": 4, "z": 1} if per == "leaf" else dict.fromkeys("xyz", 8)
    moves = jax.tree.map(jnp.subtract, start(), result.params)
    np.testing.assert_allclose(moves["x"], 1 / np.sqrt(norms["x"]), rtol=1e-5)
    np.testing.assert_allclose(moves["inner"]["y"], 1 / np.sqrt(norms["y"]), rtol=1e-5)
    np.testing.assert_allclose(moves["z"], 1 / np.sqrt(norms["z"]), rtol=1e-5)


@pytest.mark.parametrize("per", GRANULARITIES)
def test_is_an_optax_optimizer(per, key):
    """State of one structure, and no parameters needed where the base needs none."""
    number = HyperParameter(0.1, per=per, inner_steps=2)
    optimizer = learned(optax.adam, learning_rate=number)
    build = optimizer.build(optimizer.init(key, start()))
    gradient, state = jax.tree.map(jnp.sin, start()), build.init(start())
    updates, after = build.update(gradient, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    expected, _ = optax.adam(0.1).update(gradient, optax.adam(0.1).init(start()))
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)


ERRORS = {
    "nothing learned": (
        lambda: learned(optax.sgd, learning_rate=0.1),
        ValueError,
        r"got no HyperParameter.*learning_rate=HyperParameter\(0.01\)",
    ),
    "no such argument": (
        lambda: learned(optax.sgd, rate=HyperParameter(0.1)),
        ValueError,
        "`sgd` has no argument 'rate'; it has learning_rate, momentum",
    ),
    "per": (
        lambda: learned(optax.sgd, learning_rate=HyperParameter(0.1, per="layer")),
        ValueError,
        "`per` of 'learning_rate' must be one of optimizer, leaf, parameter, got 'lay",
    ),
    "domain": (
        lambda: learned(optax.sgd, learning_rate=HyperParameter(0.1, domain="log")),
        ValueError,
        "`domain` of 'learning_rate' must be one of real, positive, unit, got 'log'",
    ),
    "inner_steps": (
        lambda: learned(optax.sgd, learning_rate=HyperParameter(0.1, inner_steps=0)),
        ValueError,
        "`inner_steps` of 'learning_rate' must be None or .* of at least 1, got 0",
    ),
    "steps is a bool": (
        lambda: learned(optax.sgd, learning_rate=HyperParameter(0.1, inner_steps=True)),
        ValueError,
        "`inner_steps` of .* got True",
    ),
    "negative": (
        lambda: learned(
            optax.adam,
            learning_rate=HyperParameter(0.1),
            eps_root=HyperParameter(-1.0, domain="positive"),
        ),
        ValueError,
        "`value` of 'eps_root' must be above 0 and finite for domain='positive', got -",
    ),
    "unit": (
        lambda: learned(
            optax.sgd, learning_rate=0.1, momentum=HyperParameter(1.0, domain="unit")
        ),
        ValueError,
        "`value` of 'momentum' must be between 0 and 1 for domain='unit', got 1.0",
    ),
    "infinite": (
        lambda: learned(
            optax.sgd, learning_rate=0.1, momentum=HyperParameter(float("nan"))
        ),
        ValueError,
        "`value` of 'momentum' must be a finite number for domain='real', got nan",
    ),
    "no number": (
        lambda: learned(optax.sgd, learning_rate=HyperParameter(jnp.ones(2))),
        ValueError,
        "`value` of 'learning_rate' must be a finite number",
    ),
    "rate of 0": (
        lambda: learned(optax.sgd, learning_rate=HyperParameter(0.0)),
        ValueError,
        "must be above 0 at first, got 0.0; with domain='real' it may become negative",
    ),
    "no optimizer": (
        lambda: learned(lambda learning_rate: 3, learning_rate=HyperParameter(0.1)),
        TypeError,
        "`make` must give an optax.GradientTransformation, .* got 3",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_configuration_is_explained(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


def test_line_searches_see_one_leaf_if_there_are_values_per_leaf(key):
    """On a loss that is a sum over leaves, that is a search for each leaf."""

    def scaled(scale):
        search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
        return optax.chain(optax.sgd(1.0), search, optax.scale(scale))

    def loss(params):
        return 0.5 * sum(jnp.sum(c * jnp.square(params[k])) for k, c in CURVES.items())

    optimizer = learned(scaled, scale=HyperParameter(1.0, per="leaf"))
    params = {k: jnp.array([1.0, -2.0]) for k in CURVES}
    build = optimizer.build(optimizer.init(key, params))
    value, grad = jax.value_and_grad(loss)(params)
    extra = {"value": value, "grad": grad, "value_fn": loss}
    updates, _ = build.update(grad, build.init(params), params, **extra)
    for name in CURVES:
        # What the other leaves cost is the same for every step of this one.
        alone = lambda leaf, name=name: loss(params | {name: leaf})  # noqa: E731
        one = scaled(1.0)
        expected, _ = one.update(
            grad[name],
            one.init(params[name]),
            params[name],
            value=value,
            grad=grad[name],
            value_fn=alone,
        )
        chex.assert_trees_all_close(updates[name], expected, rtol=1e-5)
    assert not np.allclose(
        updates["flat"] / grad["flat"], updates["steep"] / grad["steep"]
    )


CURVES = {"flat": 0.5, "steep": 30.0}


@pytest.mark.parametrize("wrapper", ["masked", "partition"])
def test_learned_rates_stay_with_their_leaves(key, wrapper):
    """`optax.masked` and `optax.partition` hide leaves before the one with a rate."""
    params = grads = {"a": jnp.ones(3), "b": jnp.ones(3)}
    inner = learned(optax.sgd, learning_rate=HyperParameter(0.1, per="leaf"))
    rates = inner.init(key, params)
    rates["learning_rate"] = {"a": jnp.float32(0.1), "b": jnp.float32(0.7)}
    used, other = inner.build(rates), optax.set_to_zero()
    optimizer = {
        "masked": optax.masked(used, {"a": False, "b": True}),
        "partition": optax.partition(
            {"used": used, "other": other}, {"a": "other", "b": "used"}
        ),
    }[wrapper]
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["b"], -0.7, rtol=1e-6)


def test_rates_of_other_parameters_are_refused(key):
    inner = learned(optax.sgd, learning_rate=HyperParameter(0.1, per="leaf"))
    built = inner.build(inner.init(key, {"a": jnp.ones(3)}))
    with pytest.raises(ValueError, match=r"'learning_rate' has no value .*'b'"):
        built.init({"b": jnp.ones(3)})
