import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from metajax.models import convolution
from metajax.models.adapters import from_linen, from_nnx
from metajax.models.convolution import (
    Conv,
    Geometry,
    conv_general_dilated,
    convolve,
    max_pool,
)

# (images, height, width, channels), (window height, width), filters, stride, padding
CASES = [
    ((2, 5, 6, 2), (3, 3), 3, 1, "SAME"),
    ((2, 5, 6, 2), (2, 3), 3, 2, "SAME"),
    ((2, 7, 5, 1), (3, 3), 1, 2, "SAME"),
    ((1, 7, 8, 5), (2, 3), 2, 3, "SAME"),
    ((3, 4, 5, 5), (1, 1), 2, 3, "SAME"),
    ((2, 6, 5, 6), (3, 3), 1, 1, "VALID"),
    ((2, 7, 8, 1), (2, 3), 2, 2, "VALID"),
]


# Programs that run once need no optimisation: it is most of the time of these tests.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def reference(x, kernel, *, stride=1, padding="SAME"):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def draw(*shapes):
    """Float64 arrays of these shapes: call it in 64-bit mode."""
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


def derivatives(conv, point, first, second):
    """The value and all derivatives up to the third, along two directions."""

    def dot(a, b):
        return sum(jnp.vdot(one, other) for one, other in zip(a, b, strict=True))

    def value(p):
        return jnp.sum(jnp.sin(conv(*p)))

    gradient = jax.grad(value)
    hessian_product = jax.grad(lambda p: dot(gradient(p), first))

    def slope(p):
        return jax.jvp(value, (p,), (first,))[1]

    return {
        "value": conv(*point),
        "reverse": gradient(point),
        "reverse over reverse": hessian_product(point),
        "third": jax.grad(lambda p: dot(hessian_product(p), second))(point),
        "forward over reverse": jax.jvp(gradient, (point,), (first,))[1],
        "forward over forward": jax.jvp(slope, (point,), (second,))[1],
        "reverse over forward": jax.grad(slope)(point),
    }


def assert_same_derivatives(ours, theirs, shapes):
    with jax.enable_x64(True):
        arrays = draw(*shapes * 3)
        points = arrays[:2], arrays[2:4], arrays[4:]
        got = quick_jit(partial(derivatives, ours))(*points)
        expected = quick_jit(partial(derivatives, theirs))(*points)
        chex.assert_type(jax.tree.leaves(got), jnp.float64)
        chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("image", "window", "filters", "stride", "padding"), CASES)
def test_all_derivatives_are_those_of_xla(image, window, filters, stride, padding):
    assert_same_derivatives(
        partial(convolve, stride=stride, padding=padding),
        partial(reference, stride=stride, padding=padding),
        (image, (*window, image[-1], filters)),
    )


@pytest.mark.parametrize(
    ("in_axes", "stride", "padding"),
    [
        ((0, 0), 1, "VALID"),
        ((0, 0), 2, "SAME"),
        ((0, None), 2, "SAME"),
        ((None, 0), 2, "SAME"),
        ((2, 4), 2, "SAME"),
    ],
)
def test_all_derivatives_under_vmap_are_those_of_xla(in_axes, stride, padding):
    """Of the vmapped function: kernel gradients sum over tasks where it is shared."""

    def tasks(shape, axis, num=3):
        return shape if axis is None else (*shape[:axis], num, *shape[axis:])

    shapes = (tasks((2, 5, 6, 2), in_axes[0]), tasks((2, 3, 2, 3), in_axes[1]))
    assert_same_derivatives(
        jax.vmap(partial(convolve, stride=stride, padding=padding), in_axes),
        jax.vmap(partial(reference, stride=stride, padding=padding), in_axes),
        shapes,
    )


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 0)])
def test_vmap_of_gradients_is_a_loop(in_axes):
    def gradients(conv, x, kernel):
        def value(x, kernel, function):
            return jnp.sum(function(conv(x, kernel, stride=2)))

        # The cotangent of a plain sum is the same for all tasks, and has no task axis.
        return [
            jax.grad(value, (0, 1))(x, kernel, function)
            for function in (jnp.sin, lambda outputs: outputs)
        ]

    with jax.enable_x64(True):
        x, kernel = draw((3, 2, 5, 4, 2), (3, 3, 3, 2, 2))
        x = x if in_axes[0] == 0 else x[0]
        kernel = kernel if in_axes[1] == 0 else kernel[0]
        got = quick_jit(jax.vmap(partial(gradients, convolve), in_axes))(x, kernel)
        one_task = quick_jit(partial(gradients, reference))
        loop = [
            one_task(
                x if in_axes[0] is None else x[task],
                kernel if in_axes[1] is None else kernel[task],
            )
            for task in range(3)
        ]
        chex.assert_trees_all_close(
            got, jax.tree.map(lambda *tasks: jnp.stack(tasks), *loop), rtol=1e-10
        )


def test_vmaps_nest():
    """As seeds over tasks: every kernel meets every set of images."""
    with jax.enable_x64(True):
        x, kernel = draw((2, 2, 4, 4, 1), (3, 3, 3, 1, 2))
        got = quick_jit(jax.vmap(jax.vmap(convolve, (0, None)), (None, 0)))(x, kernel)
        one_task = quick_jit(reference)
        for seed in range(3):
            for task in range(2):
                expected = one_task(x[task], kernel[seed])
                np.testing.assert_allclose(got[seed, task], expected, rtol=1e-12)


@settings(max_examples=10, deadline=None)
@given(
    st.tuples(st.integers(1, 3), *[st.integers(1, 7)] * 2, st.integers(1, 6)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from(["SAME", "VALID"]),
)
def test_any_size_has_the_value_and_gradient_of_xla(
    image, window, filters, stride, padding
):
    fits = window[0] <= image[1] and window[1] <= image[2]
    assume(padding == "SAME" or fits)

    @partial(quick_jit, static_argnums=0)
    def run(conv, x, kernel):
        conv = partial(conv, stride=stride, padding=padding)
        value, pull = jax.vjp(conv, x, kernel)
        return value, pull(jnp.cos(value))

    with jax.enable_x64(True):
        arrays = draw(image, (*window, image[-1], filters))
        chex.assert_trees_all_close(
            run(convolve, *arrays), run(reference, *arrays), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize(
    ("images", "size", "channels"), [(6, 18, 5), (7, 18, 5), (2, 257, 1)]
)
def test_kernel_gradient_in_blocks(images, size, channels):
    """Two blocks of three images, seven of one, and two of one with many positions."""

    def gradient(conv, x, kernel):
        return jax.grad(lambda w: jnp.sum(jnp.sin(conv(x, w))))(kernel)

    with jax.enable_x64(True):
        x, kernel = draw((images, size, size, channels), (3, 3, channels, 2))
        got = quick_jit(partial(gradient, convolve))
        assert "while" in got.lower(x, kernel).as_text()
        np.testing.assert_allclose(
            got(x, kernel),
            quick_jit(partial(gradient, reference))(x, kernel),
            rtol=1e-9,
        )


@pytest.mark.parametrize("case", CASES)
def test_programs_of_other_backends_are_equal(case):
    image, window, filters, stride, padding = case
    pads = jax.lax.padtype_to_pads(image[1:3], window, (stride, stride), padding)
    geometry = Geometry(stride, tuple(pads), image[1:3], window)
    with jax.enable_x64(True):
        cotangent = (image[0], *geometry.output, filters)
        x, w, g = draw(image, (*window, image[3], filters), cotangent)
        for name, args in (("input", (g, w)), ("kernel", (x, g))):
            cpu = getattr(convolution, f"_{name}_gradient")
            other = getattr(convolution, f"_xla_{name}_gradient")
            np.testing.assert_allclose(
                quick_jit(partial(other, geometry=geometry))(*args),
                quick_jit(partial(cpu, geometry=geometry))(*args),
                rtol=1e-10,
                atol=1e-10,
            )


@pytest.mark.parametrize(("platform", "count"), [("cpu", 1), ("cuda", 0), ("tpu", 0)])
def test_programs_are_chosen_by_the_backend(platform, count):
    def gradient(x, w):
        return jax.grad(lambda w: jnp.sum(convolve(x, w) ** 2))(w)

    x, w = jnp.ones((16, 14, 14, 8)), jnp.ones((3, 3, 8, 4))
    lowered = jax.jit(gradient).trace(x, w).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.while") == count  # the blocks of CPU


def test_no_images_have_a_zero_kernel_gradient():
    x, kernel = jnp.zeros((0, 4, 4, 1)), jnp.ones((3, 3, 1, 2))
    gradient = jax.grad(lambda w: jnp.sum(convolve(x, w)))(kernel)
    np.testing.assert_array_equal(gradient, 0)


def group_counts(function, *args):
    text = jax.jit(function).lower(*args).as_text()
    return {int(count) for count in re.findall(r"_group_count = (\d+)", text)}


def outer_loss(conv, kernel, x):
    """The mean over tasks after one inner step: per-task kernels from the second on."""

    def task_loss(kernel, x):
        def inner(kernel):
            return jnp.sum(jnp.sin(conv(x, kernel)))

        return inner(kernel - 0.1 * jax.grad(inner)(kernel))

    return jnp.mean(jax.vmap(task_loss, (None, 0))(kernel, x))


def test_per_task_kernels_make_no_grouped_convolution():
    x, kernel = jnp.ones((4, 2, 6, 6, 3)), jnp.ones((3, 3, 3, 2))
    assert max(group_counts(jax.grad(partial(outer_loss, reference)), kernel, x)) == 4
    assert group_counts(jax.grad(partial(outer_loss, convolve)), kernel, x) <= {1}
    kernels = jnp.ones((4, 3, 3, 3, 2))
    assert group_counts(jax.vmap(convolve), x, kernels) == set()


def test_shared_kernel_stays_one_convolution_over_all_tasks():
    x, kernel = jnp.ones((4, 2, 6, 6, 3)), jnp.ones((3, 3, 3, 2))
    text = jax.jit(jax.vmap(convolve, (0, None))).lower(x, kernel).as_text()
    assert text.count("stablehlo.convolution") == 1
    assert "tensor<8x6x6x3xf32>" in text


@pytest.mark.parametrize(
    ("image", "kernel"), [("uint8", "float32"), ("bfloat16", "float32")]
)
def test_types_are_promoted_as_in_flax(key, image, kernel):
    x = jax.random.randint(key, (3, 2, 4, 4, 1), 0, 9).astype(image)
    w = jax.random.normal(key, (3, 3, 3, 1, 2)).astype(kernel)
    expected = quick_jit(jax.vmap(reference))(x.astype(jnp.float32), w)
    loop = jnp.stack([convolve(*task) for task in zip(x, w, strict=True)])
    for got in (loop, quick_jit(jax.vmap(convolve))(x, w)):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_kernel_gradient_sums_in_float32():
    """64 blocks of ones: a sum kept in bfloat16 stops at 256 of a block's 1024."""
    x, kernel = jnp.ones((64, 32, 32, 1)), jnp.zeros((1, 1, 1, 1))
    half = x.astype(jnp.bfloat16) / 1000, kernel.astype(jnp.bfloat16)
    gradient = quick_jit(jax.grad(lambda w, x: jnp.sum(convolve(x, w))))
    got = gradient(half[1], half[0])
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), 65.536, rtol=0.01)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"padding": "same"}, "`padding` must be 'SAME' or 'VALID', got 'same'"),
        ({"stride": 0}, "`stride` must be an integer of at least 1, got 0"),
        ({"stride": (2, 2)}, r"`stride` must be an integer .*, got \(2, 2\)"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), **kwargs)


def test_wrong_shapes():
    with pytest.raises(AssertionError, match="rank"):
        convolve(jnp.ones((4, 4, 1)), jnp.ones((3, 3, 1, 1)))
    with pytest.raises(AssertionError, match="2"):
        convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 1)))


@pytest.mark.parametrize(
    "kwargs", [{}, {"strides": 2, "padding": "VALID"}, {"use_bias": False}]
)
def test_conv_is_a_drop_in_for_flax(key, kwargs):
    x = jax.random.normal(key, (2, 7, 6, 3))

    @partial(quick_jit, static_argnums=0)
    def run(module, key, x):
        params = module.init(key, x)
        shifted = jax.tree.map(lambda leaf: leaf + 0.5, params)  # biases are not 0
        return params, module.apply(shifted, x)

    params, outputs = run(Conv(5, (3, 2), **kwargs), key, x)
    flax_params, flax_outputs = run(nn.Conv(5, (3, 2), **kwargs), key, x)
    chex.assert_trees_all_equal(params, flax_params)
    np.testing.assert_allclose(outputs, flax_outputs, rtol=1e-5, atol=1e-5)


def test_max_pool_is_a_window_of_two():
    @quick_jit
    def run(images):
        block = (1, 2, 2, 1)
        return [
            (
                max_pool(x),
                jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, block, block, "VALID"),
            )
            for x in images
        ]

    sizes = [(2, 2), (4, 6), (5, 7), (2, 3), (3, 4), (1, 4)]
    images = [
        np.random.default_rng(0).normal(size=(3, *size, 2)).astype(np.float32)
        for size in sizes
    ]
    for (height, width), (ours, theirs) in zip(sizes, run(images), strict=True):
        chex.assert_shape(ours, (3, height // 2, width // 2, 2))
        np.testing.assert_array_equal(ours, theirs)


def test_max_pool_has_the_derivatives_of_a_maximum(key):
    def pool(x):
        return jnp.max(x[:, :4, :4].reshape(2, 2, 2, 2, 2, 1), (2, 4))

    def slope(pool, x):
        return jnp.vdot(jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))(x), jnp.cos(x))

    x = jax.random.normal(key, (2, 5, 4, 1))
    second = [quick_jit(jax.grad(partial(slope, p))) for p in (max_pool, pool)]
    got, expected = (derivative(x) for derivative in second)
    assert jnp.any(got != 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert jnp.all(jnp.isfinite(second[0](jnp.zeros_like(x))))  # all ties


CONVOLUTIONS = {
    "same": {},
    "valid, steps": {"padding": "VALID", "strides": 2},
    "pads": {"padding": ((1, 0), (2, 1))},
    "steps that differ": {"strides": (1, 2)},
    "groups": {"feature_group_count": 2},
    "dilation": {"kernel_dilation": 2},
    "precision": {"precision": "highest"},
}


@pytest.mark.parametrize("flax", ["linen", "nnx"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_as_an_argument_of_flax(key, flax, name):
    """Equal to XLA's, and without it where it can be done."""
    x = jax.random.normal(key, (2, 7, 8, 2))
    options = CONVOLUTIONS[name]

    def model(**others):
        if flax == "linen":
            return from_linen(nn.Conv(4, (3, 3), **options, **others))
        return from_nnx(
            lambda rngs: nnx.Conv(2, 4, (3, 3), **options, **others, rngs=rngs)
        )

    fast, own = model(conv_general_dilated=conv_general_dilated), model()
    params = own.init(key, x)
    np.testing.assert_allclose(
        fast.apply(params, x), own.apply(params, x), rtol=1e-5, atol=1e-5
    )
    found = str(jax.make_jaxpr(fast.apply)(params, x))
    assert ("conv_general_dilated" in found) == (list(CONVOLUTIONS).index(name) > 2)
