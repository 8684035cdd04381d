import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from metajax.compute.program_costs import planned_memory
from metajax.filters import path_names
from metajax.inner.unroll import unroll
from metajax.models.adapters import from_functions, from_linen, from_nnx, within
from metajax.models.normalization import Normalize

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
MASK = np.array([True, True, True, False, False])
PADDED = np.where(MASK[:, None], X, np.float32(np.nan))


class LinenDropout(nn.Module):
    """Says how it is to behave in the way of the examples of Flax."""

    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        x = nn.Dense(8)(x)
        return nn.Dropout(0.5, deterministic=deterministic)(x)


class LinenTrain(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool):
        return nn.Dropout(0.5)(nn.Dense(8)(x), deterministic=not train)


class LinenOwnStream(nn.Module):
    """A random stream of another name than dropout."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(8)(x)
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return x


class NnxDropout(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)]
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = self.dropout(layer(x))
        return x


class NnxCallStream(nnx.Module):
    """Takes its randomness with each call."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(3, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, *, rngs: nnx.Rngs | None):
        return self.dropout(self.dense(x), rngs=rngs)


def dense(key, x):
    return {"w": jax.random.normal(key, (x.shape[-1], 8))}


def noisy(params, x, key):
    outputs = x @ params["w"]
    return outputs if key is None else outputs + jax.random.normal(key, outputs.shape)


RANDOM_MODELS = {
    "linen deterministic": from_linen(LinenDropout()),
    "linen train": from_linen(LinenTrain()),
    "linen other stream": from_linen(LinenOwnStream()),
    "nnx": from_nnx(lambda rngs: NnxDropout(rngs)),
    "nnx call": from_nnx(lambda rngs: NnxCallStream(rngs)),
    "functions": from_functions(dense, noisy),
}


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_keys_decide_what_is_random(key, name):
    model = RANDOM_MODELS[name]
    params = model.init(key, X)
    calm = model.apply(params, X)
    chex.assert_shape(calm, (5, 8))
    np.testing.assert_array_equal(model.apply(params, X, key=None), calm)
    one = model.apply(params, X, key=jax.random.key(1))
    np.testing.assert_array_equal(model.apply(params, X, key=jax.random.key(1)), one)
    other = model.apply(params, X, key=jax.random.key(2))
    assert not np.allclose(one, calm)
    assert not np.allclose(one, other)
    assert np.any(calm[:, 1:] != calm[:, :-1])


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_jit_vmap_and_gradients(key, name):
    """Over tasks with their own parameters, images and keys."""
    model = RANDOM_MODELS[name]
    keys = jax.random.split(key, 3)
    params = jax.jit(jax.vmap(model.init, (0, None)))(keys, X)
    alone = model.init(keys[1], X)
    chex.assert_trees_all_close(jax.tree.map(lambda p: p[1], params), alone)
    chex.assert_trees_all_equal(model.init(keys[1], X), alone)

    def value(params, x, key):
        return jnp.sum(jnp.sin(model.apply(params, x, key=key)))

    inputs = jnp.stack([X, 2 * X, X + 1])
    gradients = jax.jit(jax.vmap(jax.grad(value)))(params, inputs, keys)
    expected = jax.grad(value)(alone, inputs[1], keys[1])
    chex.assert_trees_all_close(
        jax.tree.map(lambda g: g[1], gradients), expected, rtol=1e-4, atol=1e-5
    )
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(expected))


def test_paths_of_parameters(key):
    def paths(name):
        return path_names(RANDOM_MODELS[name].init(key, X))

    assert paths("linen train") == ["params/Dense_0/bias", "params/Dense_0/kernel"]
    assert paths("nnx") == [
        "layers/0/bias",
        "layers/0/kernel",
        "layers/1/bias",
        "layers/1/kernel",
    ]
    assert paths("functions") == ["w"]


def test_nnx_dropout_draws_afresh_in_every_layer(key):
    """Two calls of one dropout layer in a pass are not the same mask."""
    model = from_nnx(lambda rngs: NnxDropout(rngs))
    params = jax.tree.map(jnp.ones_like, model.init(key, X))
    params["layers"][0]["kernel"] = jnp.zeros((3, 8)).at[0].set(1)
    params["layers"][1] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    outputs = model.apply(params, jnp.ones((200, 3)), key=key)
    # Kept by both masks with probability 1/4; by one mask used twice it would be 1/2.
    assert 0.2 < np.mean(outputs != 0) < 0.3


def test_nnx_layers_with_streams_of_their_own_draw_apart(key):
    class TwoDropouts(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.first = nnx.Dropout(0.5, rngs=nnx.Rngs(rngs.dropout()))
            self.second = nnx.Dropout(0.5, rngs=nnx.Rngs(rngs.dropout()))

        def __call__(self, x):
            return jnp.stack([self.first(x), self.second(x)])

    model = from_nnx(lambda rngs: TwoDropouts(rngs))
    x = jnp.ones((200, 3))
    first, second = model.apply(model.init(key, x), x, key=key)
    # Alike with probability 1/2.
    assert 0.4 < np.mean(first == second) < 0.6


def test_nnx_parameters_are_a_pure_dict_that_apply_does_not_change(key):
    model = RANDOM_MODELS["nnx"]
    params = model.init(key, X)
    copies = jax.tree.map(jnp.copy, params)
    assert type(params) is dict
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    first = model.apply(params, X)
    model.apply(jax.tree.map(jnp.zeros_like, params), X)
    np.testing.assert_array_equal(model.apply(params, X), first)
    chex.assert_trees_all_equal(params, copies)
    with jax.checking_leaks():  # tracers that stay behind in the module's state
        np.testing.assert_allclose(jax.jit(model.apply)(params, X), first, rtol=1e-5)
    np.testing.assert_allclose(
        first,
        (X @ params["layers"][0]["kernel"]) @ params["layers"][1]["kernel"],
        rtol=1e-4,
        atol=1e-5,
    )


# Masks: a module that mixes rows, in each of the three ways.


class LinenMean(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None):
        x = nn.Dense(2)(x)
        return x - jnp.mean(x, 0, where=column(mask), keepdims=True)


class NnxMean(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x, mask=None):
        x = self.dense(x)
        return x - jnp.mean(x, 0, where=column(mask), keepdims=True)


def mean_apply(params, x, mask):
    x = x @ params["w"]
    return x - jnp.mean(x, 0, where=column(mask), keepdims=True)


def column(mask):
    return None if mask is None else mask[:, None]


@pytest.mark.parametrize(
    "model",
    [
        from_linen(LinenMean()),
        from_nnx(lambda rngs: NnxMean(rngs)),
        from_functions(dense, mean_apply),
    ],
    ids=["linen", "nnx", "functions"],
)
def test_masked_rows_are_as_if_absent(key, model):
    """Even if they are NaN, and in gradients too."""
    params = model.init(key, X)

    def value(params, x, mask):
        outputs = model.apply(params, x, mask=mask)[:3]
        return jnp.sum(jnp.sin(outputs)), outputs

    masked = jax.grad(value, has_aux=True)(params, PADDED, MASK)
    absent = jax.grad(value, has_aux=True)(params, X[:3], None)
    chex.assert_trees_all_close(masked, absent, rtol=1e-5, atol=1e-6)
    assert not np.allclose(masked[1], model.apply(params, X)[:3])


@pytest.mark.parametrize(
    "model",
    [
        from_linen(nn.Dense(2)),
        from_linen(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])),
        from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs)),
        from_functions(dense, lambda params, x: x @ params["w"]),
    ],
    ids=["linen", "linen sequential", "nnx", "functions"],
)
def test_modules_that_know_neither_masks_nor_keys(key, model):
    params = model.init(key, X)
    outputs = model.apply(params, X, mask=jnp.ones(5, bool), key=key)
    np.testing.assert_array_equal(outputs, model.apply(params, X))
    assert model.statistics is None
    assert model.normalization == "none"


# What cannot be a model.


class LinenBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=True)(x)


class LinenNormalized(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x, mask=None):
        return Normalize(self.kind)(nn.Dense(8)(x), mask)


def test_linen_module_with_state(key):
    message = r"LinenBatchNorm keeps state .*\['batch_stats'\].*Normalize"
    with pytest.raises(ValueError, match=message):
        from_linen(LinenBatchNorm()).init(key, X)


def test_nnx_module_with_state():
    message = r"BatchNorm keeps state of the kinds \['BatchStat'\].*nnx.LayerNorm"
    with pytest.raises(ValueError, match=message):
        from_nnx(lambda rngs: nnx.BatchNorm(3, rngs=rngs))


def test_unknown_normalization():
    with pytest.raises(ValueError, match="`normalization` must be one of .*'bn'"):
        from_linen(nn.Dense(2), normalization="bn")


@pytest.mark.parametrize(
    ("kind", "said", "message"),
    [
        ("support", "none", "'none' does not fit LinenNormalized, which has a Norm"),
        ("calibrated", "batch", "'batch' does not fit .* has a Normalize"),
        ("batch", "support", "'support' does not fit .* has no Normalize"),
        ("layer", "calibrated", "'calibrated' does not fit .* has no Normalize"),
    ],
)
def test_normalization_that_the_module_does_not_have(key, kind, said, message):
    with pytest.raises(ValueError, match=message):
        from_linen(LinenNormalized(kind), normalization=said).init(key, X)


@pytest.mark.parametrize("kind", ["none", "layer", "group", "batch", "support"])
def test_normalization_that_the_module_has(key, kind):
    model = from_linen(LinenNormalized(kind), normalization=kind)
    assert set(model.init(key, X)) == {"params"}
    assert model.normalization == kind
    assert (model.statistics is not None) == (kind == "support")


# Modules as they are in the wild.


@pytest.mark.parametrize("rng", ["rng", "key"])
def test_haiku_pair(key, rng):
    """`apply(params, rng, x)`: the key is None without one."""
    seen = []

    def apply(params, key, x):
        seen.append(key)
        return x @ params["w"]

    if rng == "rng":
        pair = dense, lambda params, rng, *inputs: apply(params, rng, *inputs)
    else:
        pair = dense, apply
    model = from_functions(*pair)
    params = model.init(key, X)
    np.testing.assert_array_equal(model.apply(params, X), X @ params["w"])
    model.apply(params, X, key=key, mask=MASK)
    assert seen == [None, key]


def test_haiku_pair_with_a_mode(key):
    """`haiku.transform` gives both functions the arguments of the one it was given."""
    seen = []

    def init(rng, x, is_training):
        seen.append(is_training)
        return dense(rng, x)

    def apply(params, rng, x, is_training):
        seen.append(is_training)
        return x @ params["w"]

    model = from_functions(init, apply)
    params = model.init(key, X)
    model.apply(params, X)
    model.apply(params, X, key=key)
    assert seen == [False, False, True]
    with pytest.raises(ValueError, match=r"init asks for the arguments \['rate'\]"):
        from_functions(lambda key, x, rate: {}, apply)


def test_haiku_state_is_refused():
    with pytest.raises(ValueError, match="`apply` takes `state`.*haiku.transform`"):
        from_functions(dense, lambda params, state, rng, x: x)


FLAGS = ("train", "training", "is_training", "deterministic", "use_running_average")


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("kind", ["linen", "nnx", "functions"])
def test_modes_by_their_usual_names(key, kind, flag):
    """A key means training, and none inference."""
    on = flag not in ("deterministic", "use_running_average")
    call = f"lambda {{}}x, {flag}: x * 0 + ({flag} == {on})"

    if kind == "linen":
        module = type("Net", (nn.Module,), {"__call__": eval(call.format("self, "))})
        model = from_linen(module())
    elif kind == "nnx":
        module = type("Net", (nnx.Module,), {"__call__": eval(call.format("self, "))})
        model = from_nnx(lambda rngs: module())
    else:
        model = from_functions(lambda key, x: {}, eval(call.format("params, ")))
    params = model.init(key, X)
    np.testing.assert_array_equal(model.apply(params, X), 0)
    np.testing.assert_array_equal(model.apply(params, X, key=key), 1)


class LinenTrained(nn.Module):
    """A constant, and averages of a trained network, in the way of Flax's examples."""

    @nn.compact
    def __call__(self, x, train: bool):
        shift = self.variable("constants", "shift", lambda: jnp.arange(3.0)[None])
        x = x + shift.value
        return nn.BatchNorm(use_running_average=not train, epsilon=0.0)(x)


def test_linen_state_that_stays(key):
    module = LinenTrained()
    variables = module.init(key, X, train=False)
    mean, variance = np.float32([1, 2, 3]), np.float32([4, 9, 16])
    state = {
        "constants": variables["constants"],
        "batch_stats": {"BatchNorm_0": {"mean": mean, "var": variance}},
    }
    model = from_linen(module, state=state)
    params = model.init(key, X)
    assert set(params) == {"params"}  # so that neither loop learns the rest
    expected = (X + np.arange(3.0) - mean) / np.sqrt(variance)
    for used in (None, key):
        outputs = model.apply(params, X, key=used)
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    for missing in (None, {"constants": state["constants"]}):
        with pytest.raises(
            ValueError, match=r"collections \['batch_stats', 'constants'"
        ):
            from_linen(module, state=missing).init(key, X)


def test_linen_module_that_changes_its_state(key):
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x):
            count = self.variable("counts", "calls", lambda: jnp.float32(0))
            count.value += 1
            return x * count.value

    model = from_linen(Counter(), state={"counts": {"calls": jnp.float32(0)}})
    with pytest.raises(ValueError, match="Counter changes its state when it is called"):
        model.apply({}, X)


HOLD = {
    "array": lambda: jnp.arange(3.0)[None],
    "numpy": lambda: np.arange(3.0, dtype=np.float32)[None],
    "data": lambda: nnx.data(jnp.arange(3.0)[None]),
    "variable": lambda: nnx.Variable(jnp.arange(3.0)[None]),
    "integers": lambda: nnx.Variable(jnp.arange(3)[None]),
}


@pytest.mark.parametrize("name", HOLD)
def test_nnx_constants_stay(key, name):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 2, rngs=rngs)
            self.shift = HOLD[name]()

        def __call__(self, x):
            is_variable = isinstance(self.shift, nnx.Variable)
            return self.layer(x + (self.shift[...] if is_variable else self.shift))

    model = from_nnx(Net)
    params = jax.jit(model.init)(key, X)
    assert path_names(params) == ["layer/bias", "layer/kernel"]
    outputs = jax.jit(model.apply)(params, X)
    expected = (X + np.arange(3.0)) @ params["layer"]["kernel"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_loaded", [True, False])
def test_nnx_averages_of_a_trained_network_stay(key, is_loaded):
    def build(rngs):
        norm = nnx.BatchNorm(3, use_running_average=is_loaded, epsilon=0.0, rngs=rngs)
        norm.mean[...] = jnp.asarray([1.0, 2.0, 3.0])
        norm.var[...] = jnp.asarray([4.0, 9.0, 16.0])
        return nnx.Sequential(norm)

    if not is_loaded:
        with pytest.raises(ValueError, match="use_running_average=True and averages"):
            from_nnx(build)
        return
    model = from_nnx(build)
    params = model.init(key, X)
    expected = (X - np.asarray([1.0, 2.0, 3.0])) / np.asarray([2.0, 3.0, 4.0])
    for used in (None, key):
        outputs = model.apply(params, X, key=used)
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_nnx_module_that_changes_its_state(key):
    class Counter(nnx.Module):
        def __init__(self):
            self.calls = nnx.Variable(jnp.float32(0))

        def __call__(self, x):
            self.calls[...] += 1
            return x

    model = from_nnx(lambda rngs: Counter())
    with pytest.raises(ValueError, match=r"Counter changes its state .*calls"):
        model.apply(model.init(key, X), X)


def asks_for_more(params, x, temperature):
    return x * temperature


WRONG = {
    "module": (lambda: from_linen(nn.Dense), "`module` must be a Flax Linen module"),
    "build": (lambda: from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0))), "`build` must be"),
    "built": (lambda: from_nnx(lambda rngs: 3), "`build` must give an nnx.Module, got"),
    "apply": (lambda: from_functions(dense, 3), "`apply` must be a function, got 3"),
    "asks": (lambda: from_functions(dense, asks_for_more), r"\['temperature'\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_module_is_named(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_inputs_of_another_size_are_named(key):
    model = from_linen(nn.Dense(2))
    with pytest.raises(ValueError, match=r"shape \[\[3\]\].*one example is a batch"):
        model.apply(model.init(key, X[:, :2]), X[0])


class LinenBlock(nn.Module):
    """Its inside is six times as large as what lies between blocks."""

    @nn.compact
    def __call__(self, x):
        wide = jnp.sin(jnp.tanh(nn.Dense(48)(x)))
        return x + nn.Dense(8)(jnp.cos(wide))


class LinenDeep(nn.Module):
    """Twelve equal blocks in a loop."""

    remat: bool

    @nn.compact
    def __call__(self, x):
        if self.remat:
            return nn.remat_scan(LinenBlock, lengths=(12, 1))()(x)
        blocks = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=12,
        )
        return blocks(LinenBlock(), x, None)[0]


def test_remat_of_blocks_within_the_inner_loop():
    """The same meta-gradient in less than half of the memory."""
    x = jax.random.normal(jax.random.key(0), (512, 8))

    def run(remat):
        model = from_linen(LinenDeep(remat))
        params = model.init(jax.random.key(1), x)
        # The shapes of parameters are all that the two differ in.
        params = jax.tree.map(
            lambda p: 0.3 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
        )

        def loss(params, args, key):
            return jnp.mean(jnp.square(model.apply(params, args, key=key)))

        def after_two_steps(params):
            inner = optax.sgd(0.01)
            phi = unroll(loss, inner, params, x, inner_steps=2).params
            return loss(phi, x, None)

        program = jax.jit(jax.grad(after_two_steps)).lower(params).compile()
        return program(params), planned_memory(program)[1]

    (whole, memory), (blocks, less) = run(False), run(True)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(a.ravel(), b.ravel(), rtol=1e-4, atol=1e-6)
    assert less < 0.5 * memory, (less / 2**20, memory / 2**20)


def test_within_takes_its_part_and_hands_the_whole_on():
    """Masks and keys too reach the model, and hooks see all parameters."""
    seen = []

    def apply(params, x, mask, key):
        seen.append((params, mask, key))
        return x * params

    model = from_functions(lambda key, x: jnp.float32(2), apply)
    wrapped = within(
        model,
        "inner",
        before=lambda params, x: x + params["shift"],
        after=lambda params, outputs: outputs - params["inner"],
    )
    params = {"inner": jnp.float32(3), "shift": jnp.float32(10)}
    x, mask, key = jnp.ones((2, 1)), jnp.array([True, True]), jax.random.key(0)
    outputs = wrapped.apply(params, x, mask=mask, key=key)
    np.testing.assert_array_equal(outputs, np.full((2, 1), (1 + 10) * 3 - 3))
    assert seen == [(3, mask, key)]
    assert wrapped.init(key, x) == 2  # of the part alone
    assert wrapped.statistics is None
    np.testing.assert_array_equal(within(model, "inner").apply(params, x), 3)


def test_within_freezes_the_statistics_of_its_part(key):
    """Those of what the model is given, next to the rest of the parameters."""
    model = from_linen(LinenNormalized("support"), normalization="support")
    wrapped = within(model, "inner", before=lambda params, x: params["scale"] * x)
    assert wrapped.normalization == "support"
    inner, scale = model.init(key, X), jnp.float32(2)
    whole = {"inner": inner, "scale": scale}
    frozen = wrapped.statistics(whole, PADDED, mask=MASK)
    expected = model.statistics(inner, 2 * PADDED, mask=MASK)
    chex.assert_trees_all_equal(frozen, {"inner": expected, "scale": scale})
    one = X[:1]
    np.testing.assert_array_equal(
        wrapped.apply(frozen, one), model.apply(expected, 2 * one)
    )


def test_within_names_what_is_wrong():
    for changes, message in (
        ({"model": nn.Dense(2)}, "`model` must be a `metajax.Model`, got Dense"),
        ({"before": lambda x: x}, r"`before` must be a function of \(params, x\)"),
        ({"after": 3}, r"`after` must be a function of \(params, outputs\).*got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            within(**{"model": from_linen(nn.Dense(2)), "part": "net"} | changes)
