"""Convolution and pooling that stay fast when every task has its own weights.

Under `vmap` over per-task kernels an ordinary convolution becomes a grouped one, which
runs tens of times slower than it should; and on CPU the filter gradient that automatic
differentiation makes of it is as slow inside any loop. Both are avoided here.

Convolution is one trilinear form <conv(x, w), g> of images x, kernel w and a cotangent
g. Its three partial gradients,

    conv(x, w) -> g        input_gradient(g, w) -> x        kernel_gradient(x, g) -> w

are each bilinear, and the derivative of any one of them is another one of the three. As
primitives they are closed under every order of forward and reverse differentiation, so
that each needs only one fast program for a backend, chosen in `_define`, and never
meets a slow transpose.
When only images differ between tasks, the tasks are folded into the batch; when kernels
do, the three become matrix products of image patches, one per task.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from metajax.checks import check_functions, check_integers, check_shapes, check_sizes
from metajax.types import Array

__all__ = ["Conv", "conv_general_dilated", "convolve", "max_pool"]


class Geometry(NamedTuple):
    """Static facts of a convolution, which all three primitives share."""

    stride: int
    pads: tuple[tuple[int, int], tuple[int, int]]
    image: tuple[int, int]
    window: tuple[int, int]

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the result."""
        height, width = (
            (size + low + high - window) // self.stride + 1
            for size, (low, high), window in zip(
                self.image, self.pads, self.window, strict=True
            )
        )
        return height, width


# XLA's own programs for one task, which the libraries of accelerators run fast.


def _conv(x: Array, w: Array, *, geometry: Geometry) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        w,
        (geometry.stride, geometry.stride),
        geometry.pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _xla_input_gradient(g: Array, w: Array, *, geometry: Geometry) -> Array:
    x = jax.ShapeDtypeStruct((len(g), *geometry.image, w.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: _conv(x, w, geometry=geometry), x)(g)[0]


def _xla_kernel_gradient(x: Array, g: Array, *, geometry: Geometry) -> Array:
    shape = (*geometry.window, x.shape[-1], g.shape[-1])
    w = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda w: _conv(x, w, geometry=geometry), w)(g)[0]


# Faster ones on CPU, also within loops.


def _input_gradient(g: Array, w: Array, *, geometry: Geometry) -> Array:
    """Dense convolutions with flipped sub-kernels, one per phase of the stride.

    Position p of the image, with p + low = stride * q + r, is reached by the taps k = r
    + stride * j, so that phase r of the result is sum over j of g[q - j] w[r + stride *
    j].
    """
    stride, pads, image, _ = geometry
    w = jnp.swapaxes(w, 2, 3)
    sizes = [-(-size // stride) for size in image]
    (top, _), (left, _) = pads
    rows = [
        jnp.concatenate(
            [
                _phase(
                    g,
                    w[row % stride :: stride, column % stride :: stride],
                    (row // stride, column // stride),
                    sizes,
                )
                for column in range(left, left + stride)
            ],
            axis=-1,
        )
        for row in range(top, top + stride)
    ]
    x = jnp.stack(rows, axis=2)
    x = x.reshape(len(g), *(stride * size for size in sizes), w.shape[-1])
    return x[:, : image[0], : image[1]]


def _phase(g: Array, w: Array, first: Sequence[int], sizes: Sequence[int]) -> Array:
    """Sum over j of g[q - j] w[j] for q from first to first + size - 1, in 2-D."""
    rows, columns = w.shape[:2]
    if rows == 0 or columns == 0:  # a stride larger than the window skips positions
        return jnp.zeros((len(g), *sizes, w.shape[-1]), g.dtype)
    pads = [
        (taps - 1 - start, start + size - have)
        for taps, start, size, have in zip(
            (rows, columns), first, sizes, g.shape[1:3], strict=True
        )
    ]
    return jax.lax.conv_general_dilated(
        g, w[::-1, ::-1], (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _kernel_gradient(x: Array, g: Array, *, geometry: Geometry) -> Array:
    """A sum of products of patches over blocks of images small enough for the cache."""
    channels, filters = x.shape[-1], g.shape[-1]
    window = geometry.window[0] * geometry.window[1] * channels
    # Of images with few channels, patches are cut channel by channel, as rows would be
    # put together from single numbers; and they are small, so that blocks are large.
    is_thin = channels <= 4
    most = 65_536 if is_thin else 1024
    rows = geometry.output[0] * geometry.output[1]
    block = max(
        (
            d
            for d in range(1, len(x) + 1)
            if len(x) % d == 0 and d * rows <= most or d == 1
        ),
        default=0,
    )
    # The wider factor on the right: the left one is packed anew for every product. The
    # barrier keeps XLA from turning them around.
    is_wide = window > filters and not is_thin

    def product(x: Array, g: Array) -> Array:
        right = g.reshape(-1, filters)
        if is_thin:
            return _patches_of_channels(x, geometry) @ right
        left = _patches(x, geometry)
        if is_wide:
            left, right = right, left
        return jax.lax.optimization_barrier(left.T @ right)

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        return total + product(*pair), None

    if block == len(x):
        products = product(x, g)
    else:
        blocks = jax.tree.map(lambda a: a.reshape(-1, block, *a.shape[1:]), (x, g))
        like = jax.eval_shape(product, *jax.tree.map(lambda a: a[0], blocks))
        zeros = jnp.zeros(like.shape, jnp.promote_types(like.dtype, jnp.float32))
        products = jax.lax.scan(add, zeros, blocks)[0].astype(x.dtype)
    if is_wide:
        products = products.T
    return products.reshape(*geometry.window, channels, filters)


# The same three as products of image patches, for kernels that differ between tasks.


def _patches(x: Array, geometry: Geometry) -> Array:
    """All windows of `[n, H, W, C]`, as rows: `[n * H' * W', h * w * C]`."""
    patches = jnp.concatenate(_taps(x, geometry), axis=-1)
    return patches.reshape(-1, patches.shape[-1])


def _patches_of_channels(x: Array, geometry: Geometry) -> Array:
    """The same as columns: `[h * w * C, n * H' * W']`."""
    taps = _taps(jnp.moveaxis(x, -1, 0)[..., None], geometry)
    return jnp.stack(taps).reshape(len(taps) * x.shape[-1], -1)


def _taps(x: Array, geometry: Geometry) -> list[Array]:
    """What each place of the window sees of `[..., H, W, C]`: `[..., H', W', C]`."""
    stride, pads, _, (rows, columns) = geometry
    height, width = geometry.output
    x = jnp.pad(x, ((0, 0),) * (x.ndim - 3) + (*pads, (0, 0)))
    return [
        x[
            ...,
            i : i + stride * (height - 1) + 1 : stride,
            j : j + stride * (width - 1) + 1 : stride,
            :,
        ]
        for i in range(rows)
        for j in range(columns)
    ]


def _conv_product(x: Array, w: Array, *, geometry: Geometry) -> Array:
    products = _patches(x, geometry) @ w.reshape(-1, w.shape[-1])
    return products.reshape(len(x), *geometry.output, w.shape[-1])


def _input_gradient_product(g: Array, w: Array, *, geometry: Geometry) -> Array:
    x = jax.ShapeDtypeStruct((len(g), *geometry.image, w.shape[2]), g.dtype)
    patches = g.reshape(-1, g.shape[-1]) @ w.reshape(-1, w.shape[-1]).T
    return jax.linear_transpose(partial(_patches, geometry=geometry), x)(patches)[0]


def _kernel_gradient_product(x: Array, g: Array, *, geometry: Geometry) -> Array:
    products = _patches(x, geometry).T @ g.reshape(-1, g.shape[-1])
    return products.reshape(*geometry.window, x.shape[-1], g.shape[-1])


# The primitives.


def _define(
    name: str, program: Callable, cpu_program: Callable, abstract: Callable
) -> Primitive:
    """A primitive that is one program on CPU and another one elsewhere."""
    primitive = Primitive(name)
    # Outside of `jit`: bound within it, it is lowered for the backend at hand.
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="geometry"))
    primitive.def_abstract_eval(abstract)
    for platform, chosen in ((None, program), ("cpu", cpu_program)):
        lowering = mlir.lower_fun(chosen, multiple_results=False)
        mlir.register_lowering(primitive, lowering, platform=platform)
    return primitive


def _shaped(like: jax.core.ShapedArray, shape: tuple) -> jax.core.ShapedArray:
    return jax.core.ShapedArray(shape, like.dtype)


conv_p = _define(
    "conv",
    _conv,
    _conv,
    lambda x, w, *, geometry: _shaped(x, (x.shape[0], *geometry.output, w.shape[3])),
)
input_gradient_p = _define(
    "conv_input_gradient",
    _xla_input_gradient,
    _input_gradient,
    lambda g, w, *, geometry: _shaped(g, (g.shape[0], *geometry.image, w.shape[2])),
)
kernel_gradient_p = _define(
    "conv_kernel_gradient",
    _xla_kernel_gradient,
    _kernel_gradient,
    lambda x, g, *, geometry: _shaped(x, (*geometry.window, x.shape[3], g.shape[3])),
)

# ad.defbilinear takes the transposes with respect to the first and second argument.
ad.defbilinear(
    conv_p,
    lambda g, x, w, **kw: input_gradient_p.bind(g, w, **kw),
    lambda g, x, w, **kw: kernel_gradient_p.bind(x, g, **kw),
)
ad.defbilinear(
    input_gradient_p,
    lambda x, g, w, **kw: conv_p.bind(x, w, **kw),
    lambda x, g, w, **kw: kernel_gradient_p.bind(x, g, **kw),
)
ad.defbilinear(
    kernel_gradient_p,
    lambda w, x, g, **kw: input_gradient_p.bind(g, w, **kw),
    lambda w, x, g, **kw: conv_p.bind(x, w, **kw),
)


def _batch(
    primitive: Primitive,
    product: Callable,
    args: Sequence[Array],
    dims: Sequence[int | None],
    *,
    geometry: Geometry,
) -> tuple[Array, int]:
    image_dim, other_dim = dims
    if primitive is not kernel_gradient_p and other_dim is None:  # images differ only
        images = jnp.moveaxis(args[0], image_dim or 0, 0)
        folded = images.reshape(-1, *images.shape[2:])
        outputs = primitive.bind(folded, args[1], geometry=geometry)
        return outputs.reshape(*images.shape[:2], *outputs.shape[1:]), 0
    return jax.vmap(partial(product, geometry=geometry), tuple(dims))(*args), 0


for _primitive, _product in (
    (conv_p, _conv_product),
    (input_gradient_p, _input_gradient_product),
    (kernel_gradient_p, _kernel_gradient_product),
):
    batching.primitive_batchers[_primitive] = partial(_batch, _primitive, _product)


def convolve(
    x: Array, kernel: Array, *, stride: int = 1, padding: str = "SAME"
) -> Array:
    """Cross-correlates in two dimensions, as `jax.lax.conv_general_dilated` in NHWC.

    Other than there, images and kernel of different types are promoted.

    Args:
      x: images `[n, H, W, C]`.
      kernel: `[h, w, C, F]`.
      stride: step in both directions, at least 1.
      padding: `"SAME"` or `"VALID"`, as in XLA.

    Returns:
      `[n, H', W', F]`.

    Raises:
      ValueError: if `padding` is unknown or `stride` is not at least 1.
      AssertionError: at trace time, if an array does not have four axes or the numbers
        of channels differ.
    """
    chex.assert_rank([x, kernel], 4)
    chex.assert_equal(x.shape[3], kernel.shape[2])
    x, kernel = (a.astype(jnp.result_type(x, kernel)) for a in (x, kernel))
    check_integers(1, stride=stride)
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"`padding` must be 'SAME' or 'VALID', got {padding!r}.")
    image, window = (x.shape[1], x.shape[2]), (kernel.shape[0], kernel.shape[1])
    vertical, horizontal = jax.lax.padtype_to_pads(
        image, window, (stride, stride), padding
    )
    geometry = Geometry(stride, (vertical, horizontal), image, window)
    return conv_p.bind(x, kernel, geometry=geometry)


def conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: Any, **others: Any
) -> Array:
    """Computes as `jax.lax.conv_general_dilated`, with the speed of `convolve`.

    Flax takes it as the argument of this name, in NNX as in Linen:

        nnx.Conv(1, 64, (3, 3), conv_general_dilated=conv_general_dilated, rngs=rngs)

    What `convolve` does not do is left to XLA: other than two dimensions, several
    groups, dilation, steps that differ, a precision that is asked for.

    Args:
      lhs: images `[n, H, W, C]`.
      rhs: kernel `[h, w, C, F]`.
      window_strides: steps.
      padding: as in XLA.
      **others: as there.
    """
    plain = {
        "lhs_dilation": (None, (1, 1)),
        "rhs_dilation": (None, (1, 1)),
        "feature_group_count": (1,),
        "batch_group_count": (1,),
    }
    check_shapes(lhs=(lhs, "..."), rhs=(rhs, "..."))
    check_sizes(window_strides=window_strides)
    strides, is_plain = tuple(window_strides), jnp.ndim(lhs) == 4
    for name, value in others.items():
        value = tuple(value) if isinstance(value, list) else value
        if name == "dimension_numbers":
            numbers = partial(jax.lax.conv_dimension_numbers, lhs.shape, rhs.shape)
            is_plain = is_plain and numbers(value) == numbers(("NHWC", "HWIO", "NHWC"))
        else:
            is_plain &= value in plain.get(name, (None,))
    if not is_plain or len(set(strides)) != 1 or "dimension_numbers" not in others:
        return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **others)
    image, window = (lhs.shape[1], lhs.shape[2]), (rhs.shape[0], rhs.shape[1])
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(image, window, strides, padding)
    vertical, horizontal = ((int(low), int(high)) for low, high in padding)
    geometry = Geometry(strides[0], (vertical, horizontal), image, window)
    return conv_p.bind(lhs, rhs, geometry=geometry)


class Conv(nn.Module):
    """A drop-in for two-dimensional `flax.linen.Conv`: same parameters, same outputs.

    Attributes:
      features: number of output channels.
      kernel_size: height and width.
      strides: step in both directions.
      padding: `"SAME"` or `"VALID"`.
      kernel_init: initialiser of the kernel `[h, w, C, F]`.
      use_bias: whether a bias is added to every channel.
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: int = 1
    padding: str = "SAME"
    kernel_init: Callable = nn.initializers.lecun_normal()
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[n, H, W, C]` to `[n, H', W', features]`."""
        check_integers(1, features=self.features, strides=self.strides)
        check_sizes(kernel_size=self.kernel_size)
        example = "`flax.linen.initializers.he_normal()`"
        check_functions(("key", "shape"), example, kernel_init=self.kernel_init)
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        outputs = convolve(x, kernel, stride=self.strides, padding=self.padding)
        if not self.use_bias:
            return outputs
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return outputs + bias[None, None, None, :]


def max_pool(x: Array) -> Array:
    """Takes the maximum over blocks of 2 x 2; an odd last row or column is dropped.

    Written as a maximum of four slices: on CPU the whole training step is 1.8 times
    faster than with `reduce_window`, and it differentiates twice cleanly.

    Args:
      x: `[n, H, W, C]`.

    Returns:
      `[n, H // 2, W // 2, C]`.
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    rows = jnp.maximum(x[:, 0:height:2, :width], x[:, 1:height:2, :width])
    return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])
