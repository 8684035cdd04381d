"""ResNet-12: against loops in NumPy, published sizes, masks, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.models import resnet12
from metajax.models.normalization import NORMALIZATIONS


def convolved(x, kernel):
    """One product for each place of the window, over images with a border of zeros."""
    rows, columns = kernel.shape[:2]
    border = ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0))
    height, width = x.shape[1:3]
    x = np.pad(x, border)
    return sum(
        x[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(rows)
        for j in range(columns)
    )


def standardised(x, params):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return params["scale"] * (x - mean) / np.sqrt(variance + 1e-5) + params["bias"]


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def block_of(x, params):
    outputs = x
    for i in range(4):
        inputs = x if i == 3 else outputs
        made = convolved(inputs, params[f"Conv_{i}"]["kernel"])
        made = standardised(made, params[f"Normalize_{i}"])
        if i == 3:  # the shortcut
            outputs = leaky(outputs + made)
        else:
            outputs = made if i == 2 else leaky(made)
    height, width = outputs.shape[1] // 2, outputs.shape[2] // 2
    outputs = outputs[:, : 2 * height, : 2 * width]
    outputs = outputs.reshape(len(x), height, 2, width, 2, -1)
    return outputs.max((2, 4))


@pytest.mark.parametrize("summary", ["mean", "flatten"])
def test_against_numpy(summary, key):
    model = resnet12(3, widths=(4, 6), summary=summary)
    x = jax.random.normal(key, (3, 11, 8, 2))
    params = jax.jit(model.init)(key, x)
    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * generator.normal(size=leaf.shape).astype("f"), params
    )
    outputs = jax.jit(model.apply)(params, x)
    values = jax.tree.map(lambda leaf: np.asarray(leaf, float), params["params"])
    wanted = np.asarray(x, float)
    for i in range(2):
        wanted = block_of(wanted, values[f"Block_{i}"])
    assert wanted.shape == (3, 2, 2, 6)
    wanted = wanted.mean((1, 2)) if summary == "mean" else wanted.reshape(3, -1)
    wanted = wanted @ values["head"]["kernel"] + values["head"]["bias"]
    np.testing.assert_allclose(outputs, wanted, rtol=1e-3, atol=1e-4)


def sizes(model, *input_shape):
    x = jnp.zeros(input_shape)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return count, jax.eval_shape(model.apply, params, x).shape


def by_hand(widths, channels):
    """Three windows of 9 and one of 1, and scale and shift of four normalisations."""
    total = 0
    for width in widths:
        total += 9 * channels * width + 2 * 9 * width**2 + channels * width + 8 * width
        channels = width
    return total


@pytest.mark.parametrize(
    ("widths", "millions"), [((64, 160, 320, 640), 12.4), ((64, 128, 256, 512), 8.0)]
)
def test_sizes_of_the_papers(widths, millions):
    count, shape = sizes(resnet12(widths=widths), 2, 84, 84, 3)
    assert shape == (2, widths[-1])
    assert count == by_hand(widths, 3)
    assert round(count / 1e6, 1) == millions


def test_flattened_maps_of_84_pixels():
    _, shape = sizes(resnet12(summary="flatten"), 1, 84, 84, 3)
    assert shape == (1, 16_000)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_normalization_reaches_the_layers(kind):
    model = resnet12(widths=(8,), normalization=kind)
    assert model.normalization == kind
    assert (model.statistics is None) == (kind not in ("support", "calibrated"))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 4, 4, 1)))
    layers = params["params"]["Block_0"]
    assert sum(name.startswith("Normalize") for name in layers) == 4 * (kind != "none")


def test_starts_as_he(key):
    params = jax.jit(resnet12(widths=(40,)).init)(key, jnp.ones((1, 2, 2, 30)))
    layers = params["params"]["Block_0"]
    for name, fan_out in (("Conv_0", 9 * 40), ("Conv_2", 9 * 40), ("Conv_3", 40)):
        std = np.std(layers[name]["kernel"])
        np.testing.assert_allclose(std, np.sqrt(2 / fan_out), rtol=0.06)


def test_masked_images_are_as_if_absent(key):
    model = resnet12(widths=(4, 4))
    real = jax.random.normal(key, (3, 6, 5, 1))
    padded = jnp.concatenate([real, jnp.full((2, 6, 5, 1), jnp.nan)])
    params = jax.jit(model.init)(key, real)

    def run(x, mask):
        def value(params):
            embeddings = model.apply(params, x, mask=mask)[:3]
            return jnp.sum(jnp.sin(embeddings)), embeddings

        return jax.jit(jax.grad(value, has_aux=True))(params)

    masked, absent = run(padded, jnp.arange(5) < 3), run(real, None)
    chex.assert_trees_all_close(masked, absent, rtol=1e-3, atol=1e-4)
    assert np.std(absent[1]) > 0.01


ERRORS = {
    "outputs": ({"num_outputs": 0}, "`num_outputs` must be an integer .* got 0"),
    "widths": ({"widths": (8, 0)}, r"`widths\[1\]` must be .* got 0"),
    "no widths": ({"widths": ()}, r"`widths` must hold at least 1 size, got \(\)"),
    "summary": ({"summary": "max"}, "`summary` must be one of mean, flatten, got 'max"),
    "normalization": ({"normalization": "bn"}, "`normalization` must be .* got 'bn'"),
    "groups": (
        {"widths": (8, 12), "normalization": "group"},
        r"`widths\[1\]` must be a multiple of 8, .*, got 12",
    ),
    "precision": ({"precision": "float8"}, "`precision` must be .* got 'float8'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_arguments(name):
    arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        resnet12(**arguments)


def test_wrong_images():
    with pytest.raises(ValueError, match="4 poolings .* at least 16 x 16, got 28 x 15"):
        sizes(resnet12(), 2, 28, 15, 1)
    with pytest.raises(ValueError, match="must be a batch"):
        sizes(resnet12(), 2, 28, 28)
