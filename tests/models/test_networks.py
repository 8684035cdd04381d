import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.filters import only, partition, path_names
from metajax.models.networks import conv4, identity, mlp
from metajax.models.normalization import NORMALIZATIONS
from metajax.models.residual import resnet12


def shapes(model, *input_shape):
    """Shapes of parameters and outputs, without computing either."""
    x = jnp.zeros(input_shape)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return params["params"], jax.eval_shape(model.apply, params, x)


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# A block of 64 features: 9 taps; a bias, or scale and shift of a normalisation.
FIRST, OTHER, BIAS, NORM = 9 * 1 * 64, 9 * 64 * 64, 64, 2 * 64


@pytest.mark.parametrize(
    ("model", "input_shape", "outputs", "parameters"),
    [
        (conv4(), (3, 28, 28, 1), 64, FIRST + 3 * OTHER + 4 * NORM),
        (conv4(5), (3, 28, 28, 1), 5, FIRST + 3 * OTHER + 4 * NORM + 65 * 5),
        (conv4(normalization="none"), (2, 28, 28, 1), 64, FIRST + 3 * OTHER + 4 * BIAS),
        (
            conv4(normalization="layer"),
            (2, 28, 28, 1),
            64,
            # Scale and shift of each feature, and a bias that layers do not take away.
            FIRST + 3 * OTHER + 4 * (BIAS + NORM),
        ),
        (conv4(pooling="stride"), (3, 28, 28, 1), 64, FIRST + 3 * OTHER + 4 * NORM),
        (
            conv4(5, pooling="stride"),
            (3, 28, 28, 1),
            5,
            FIRST + 3 * OTHER + 4 * NORM + 65 * 5,
        ),
        (conv4(features=8), (2, 84, 84, 3), 5 * 5 * 8, 27 * 8 + 3 * 72 * 8 + 4 * 16),
        (conv4(features=8), (2, 16, 33, 1), 1 * 2 * 8, 9 * 8 + 3 * 72 * 8 + 4 * 16),
        (conv4(pooling="stride", features=8), (1, 5, 5, 1), 8, 72 + 3 * 576 + 64),
        (mlp(1), (7, 1), 1, 40 * 2 + 40 * 41 + 41),
        (mlp(3, hidden_sizes=(8,), normalization="batch"), (7, 2, 5), 3, 88 + 16 + 27),
        (mlp(3, hidden_sizes=()), (7, 4), 3, 15),
    ],
)
def test_shapes_and_numbers_of_parameters(model, input_shape, outputs, parameters):
    """Counted by hand; 28 x 28 images leave 1 x 1 after four poolings."""
    params, result = shapes(model, *input_shape)
    chex.assert_shape(result, (input_shape[0], outputs))
    assert size(params) == parameters


@pytest.mark.parametrize(
    "model", [mlp(5, hidden_sizes=(8, 8)), conv4(5), conv4(5, pooling="stride")]
)
def test_the_head_has_a_path(model):
    params, _ = shapes(model, 2, 28, 28, 1)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), {"params": params})
    adapts, _ = partition(zeros, only("head"))
    assert path_names(adapts) == ["params/head/bias", "params/head/kernel"]


def test_embeddings_have_no_head():
    assert "head" not in shapes(conv4(), 2, 28, 28, 1)[0]


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_normalization_reaches_the_layers(kind):
    """And the model says which it is."""
    for model in (
        conv4(normalization=kind),
        mlp(2, hidden_sizes=(8,), normalization=kind),
    ):
        assert model.normalization == kind
        assert (model.statistics is None) == (kind not in ("support", "calibrated"))
        params, _ = shapes(model, 2, 28, 28, 1)
        num_layers = sum(name.startswith("Normalize") for name in params)
        blocks = sum(name.startswith(("Conv", "Dense")) for name in params)
        assert num_layers == (0 if kind == "none" else blocks)


def test_mlp_starts_as_he_with_zero_biases(key):
    """The normal is truncated, but has variance 2 / fan in all the same."""
    params = mlp(50, hidden_sizes=(400, 400)).init(key, jnp.ones((1, 200)))["params"]
    for name, fan_in in (("Dense_0", 200), ("Dense_1", 400), ("head", 400)):
        np.testing.assert_array_equal(params[name]["bias"], 0)
        std = np.std(params[name]["kernel"])  # standard error 0.5 % for the smallest
        np.testing.assert_allclose(std, np.sqrt(2 / fan_in), rtol=0.03)


@pytest.mark.parametrize("pooling", ["max", "stride"])
def test_conv4_starts_uniform_with_zero_biases(key, pooling):
    """Within 1 / sqrt(fan in), or Glorot's sqrt(6 / (fan in + fan out))."""
    model = conv4(50, features=24, pooling=pooling, normalization="layer")
    params = jax.jit(model.init)(key, jnp.ones((1, 28, 28, 3)))["params"]
    fans = {
        "Conv_0": (9 * 3, 9 * 24),
        "Conv_1": (9 * 24, 9 * 24),
        "Conv_3": (9 * 24, 9 * 24),
        "head": (24, 50),
    }
    for name, (fan_in, fan_out) in fans.items():
        np.testing.assert_array_equal(params[name]["bias"], 0)
        kernel = np.asarray(params[name]["kernel"])
        bound = (
            1 / np.sqrt(fan_in) if pooling == "max" else np.sqrt(6 / (fan_in + fan_out))
        )
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)


@pytest.mark.parametrize("pooling", ["max", "stride"])
def test_masked_images_are_as_if_absent(key, pooling):
    """For embeddings and gradients, even where they are NaN."""
    model = conv4(features=4, pooling=pooling)
    real = jax.random.normal(key, (3, 17, 16, 1))
    padded = jnp.concatenate([real, jnp.full((2, 17, 16, 1), jnp.nan)])

    @jax.jit
    def run(params, x, mask):
        def value(params):
            embeddings = model.apply(params, x, mask=mask)[:3]
            return jnp.sum(jnp.sin(embeddings)), embeddings

        return jax.grad(value, has_aux=True)(params)

    params = jax.jit(model.init)(key, real)
    absent = run(params, real, None)
    masked = run(params, padded, jnp.arange(5) < 3)
    chex.assert_trees_all_close(masked, absent, rtol=1e-3, atol=1e-4)
    assert np.std(absent[1]) > 0.01


CONTEXT = jnp.array([[1.0, -2.0]] * 3)


def with_context(model, x, key):
    """Its parameters for pairs, and `apply` to pairs as a compiled function."""
    params = jax.jit(model.init)(key, (x, CONTEXT))
    return params, jax.jit(lambda params, context: model.apply(params, (x, context)))


def test_mlp_reads_a_context_as_if_appended_to_its_inputs(key):
    x = jax.random.normal(key, (3, 4))
    params, apply = with_context(mlp(2, hidden_sizes=(5, 4)), x, key)
    first, context = (params["params"][name] for name in ("Dense_0", "context"))
    assert context.keys() == {"kernel"}
    kernel = jnp.concatenate([first["kernel"], context["kernel"]])
    appended = {k: v for k, v in params["params"].items() if k != "context"}
    appended["Dense_0"] = first | {"kernel": kernel}
    expected = mlp(2, hidden_sizes=(5, 4)).apply(
        {"params": appended}, jnp.concatenate([x, CONTEXT], axis=1)
    )
    np.testing.assert_allclose(apply(params, CONTEXT), expected, rtol=1e-5, atol=1e-6)


def test_film_moves_scale_and_shift_of_the_third_block(key):
    """With factors f and offsets o: x (1 + f) + o of what is x = z scale + shift."""
    x = jax.random.normal(key, (3, 7, 7, 1))
    model = conv4(2, features=4, pooling="stride")
    params, apply = with_context(model, x, key)
    film, last = params["params"]["film"], params["params"]["Normalize_2"]
    factor, offset = jnp.split(CONTEXT[0] @ film["kernel"] + film["bias"], 2)
    moved = {
        "scale": last["scale"] * (1 + factor),
        "bias": last["bias"] * (1 + factor) + offset,
    }
    alone = {k: v for k, v in params["params"].items() if k != "film"}
    expected = jax.jit(model.apply)({"params": alone | {"Normalize_2": moved}}, x)
    outputs = apply(params, CONTEXT)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(outputs - apply(params, 0 * CONTEXT)).max() > 0.01


@pytest.mark.parametrize("kind", ["layer", "batch", "support"])
def test_no_normalization_takes_a_context_away(kind, key):
    """All rows share it, so that in front of statistics over the batch it would go."""
    x = jax.random.normal(key, (3, 4))
    model = mlp(2, hidden_sizes=(8,), normalization=kind)
    params, apply = with_context(model, x, key)
    change = apply(params, CONTEXT) - apply(params, 3 * CONTEXT)
    assert np.abs(change).max() > 0.1


def test_context_in_half_precision(key):
    x = jax.random.normal(key, (3, 4))
    params, apply = with_context(
        mlp(2, hidden_sizes=(5,), precision="bfloat16"), x, key
    )
    outputs = apply(params, CONTEXT)
    assert outputs.dtype == jnp.float32
    _, exact = with_context(mlp(2, hidden_sizes=(5,)), x, key)
    np.testing.assert_allclose(outputs, exact(params, CONTEXT), rtol=0.05, atol=0.05)


def test_a_context_needs_a_hidden_layer(key):
    with pytest.raises(
        ValueError, match="first hidden layer, and `hidden_sizes` is empty"
    ):
        mlp(2, hidden_sizes=()).init(key, (jnp.ones((3, 4)), CONTEXT))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mlp(0), "`num_outputs` must be an integer of at least 1, got 0"),
        (lambda: mlp(1, hidden_sizes=(8, 0)), r"`hidden_sizes\[1\]` must be .* got 0"),
        (lambda: mlp(1.5), "`num_outputs` must be an integer .* got 1.5"),
        (lambda: mlp(1, normalization="bn"), "`normalization` must be .* got 'bn'"),
        (lambda: conv4(features=-1), "`features` must be .* got -1"),
        (lambda: conv4(0), "`num_outputs` must be .* got 0"),
        (
            lambda: conv4(pooling="mean"),
            "`pooling` must be one of max, .* got 'mean'",
        ),
        (lambda: conv4(normalization="bn"), "`normalization` must be .* got 'bn'"),
        (
            lambda: conv4(features=10, normalization="group"),
            "`features` must be a multiple of 8, .*, got 10",
        ),
        (
            lambda: mlp(2, hidden_sizes=(8, 4), normalization="group"),
            r"`hidden_sizes\[1\]` must be a multiple of 8, .*, got 4",
        ),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("model", [conv4(), resnet12(widths=(2,)), mlp(3), identity()])
def test_bytes_are_refused(model, key):
    """A network that learned from [0, 1] would answer to 255 what it never saw."""
    images = jnp.ones((2, 16, 16, 1))
    params = model.init(key, images)
    for call in (model.apply, jax.jit(model.apply)):
        call(params, images)
        with pytest.raises(ValueError, match=r"are bytes .* \[0, 1\]: divide yours"):
            call(params, images.astype(jnp.uint8))
    with pytest.raises(ValueError, match="are bytes"):
        model.init(key, images.astype(jnp.uint8)) or model.apply({}, jnp.uint8(images))


def test_images_too_small_for_four_poolings():
    message = "at least 16 x 16, got 28 x 15; .*pooling='stride'"
    with pytest.raises(ValueError, match=message):
        shapes(conv4(), 2, 28, 15, 1)


@pytest.mark.parametrize("pooling", ["max", "stride"])
def test_images_need_channels(pooling):
    with pytest.raises(ValueError, match="must be a batch"):
        shapes(conv4(pooling=pooling), 2, 28, 28)
