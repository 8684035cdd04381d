"""The networks of the papers: a multi-layer perceptron and the two forms of Conv-4.

`mlp` is the regression network of Finn et al., "Model-Agnostic Meta-Learning", ICML
2017, https://arxiv.org/abs/1703.03400, section 5.1. Conv-4 comes in the form of their
Omniglot experiments (strides of 2, mean over space) and in that of Vinyals et al.,
"Matching Networks", NeurIPS 2016, https://arxiv.org/abs/1606.04080, and Snell et al.,
"Prototypical Networks", NeurIPS 2017, https://arxiv.org/abs/1703.05175 (max-pooling,
flattened). Relation Networks keep maps: F. Sung et al., "Learning to Compare", CVPR
2018, https://arxiv.org/abs/1711.06025, figure 2.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import jax.numpy as jnp
from flax import linen as nn

from metajax.checks import check_choice, check_integers, check_sizes
from metajax.models.adapters import from_functions, from_linen
from metajax.models.convolution import Conv, max_pool
from metajax.models.normalization import PER_CHANNEL, Normalization, Normalize
from metajax.models.precision import Precision, with_precision
from metajax.types import Array, Model, PyTree

__all__ = ["check_groups", "check_images", "conv4", "identity", "mlp"]

Pooling = Literal["max", "stride", "maps"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

Inputs = Array | tuple[Array, Array]  # alone, or beside a context `[n, c]`


class MLP(nn.Module):
    """Dense layers with ReLU between them; the last one is named `head`."""

    hidden_sizes: Sequence[int]
    num_outputs: int
    normalization: str

    @nn.compact
    def __call__(self, x: Inputs, mask: Array | None = None) -> Array:
        """Maps `[n, ...]`, flattened, to `[n, num_outputs]`."""
        init = nn.initializers.he_normal()
        x, context = _split_context(x)
        _check_no_bytes(x)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        if context is not None and not self.hidden_sizes:
            raise ValueError(
                "A context is read by the first hidden layer, and `hidden_sizes` is "
                "empty; give the model one."
            )
        for size in self.hidden_sizes:
            x = nn.Dense(size, kernel_init=init)(x)
            x = Normalize(self.normalization)(x, mask)
            if context is not None:
                # As if appended to the inputs, but after statistics over the batch,
                # which would take away what all rows share.
                x += nn.Dense(size, use_bias=False, kernel_init=init, name="context")(
                    context
                )
                context = None
            x = nn.relu(x)
        return nn.Dense(self.num_outputs, kernel_init=init, name="head")(x)


class Conv4(nn.Module):
    """Four blocks of convolution, normalisation and ReLU, and an optional `head`."""

    num_outputs: int | None
    features: int
    pooling: Pooling
    normalization: str

    @nn.compact
    def __call__(self, x: Inputs, mask: Array | None = None) -> Array:
        """Maps images `[n, H, W, C]` to `[n, num_outputs]` or embeddings `[n, D]`."""
        x, context = _split_context(x)
        check_images(x)
        is_strided = self.pooling == "stride"
        num_poolings = {"max": 4, "stride": 0, "maps": 2}[self.pooling]
        if min(x.shape[1:3]) < 2**num_poolings:
            least = f"{2**num_poolings} x {2**num_poolings}"
            raise ValueError(
                f"{num_poolings} poolings of 2 x 2 need images of at least {least}, "
                f"got {x.shape[1]} x {x.shape[2]}; use larger ones or pooling='stride'."
            )
        # Glorot as in MAML's code; uniform within 1 / sqrt(fan in) as in PyTorch's
        # default, which is what Prototypical Networks were trained from.
        init = (
            nn.initializers.glorot_uniform()
            if is_strided
            else nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        )
        for block in range(4):
            x = Conv(
                self.features,
                strides=2 if is_strided else 1,
                kernel_init=init,
                use_bias=self.normalization not in PER_CHANNEL,
            )(x)
            x = Normalize(self.normalization)(x, mask)
            if context is not None and block == 2:
                x = _modulate(x, nn.Dense(2 * self.features, name="film")(context))
            # The same as after ReLU, which then has a quarter of the work.
            x = nn.relu(max_pool(x) if block < num_poolings else x)
        if self.pooling == "maps" and self.num_outputs is None:
            return x
        if self.pooling == "max":
            x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        else:
            x = jnp.mean(x, (1, 2))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, kernel_init=init, name="head")(x)


def mlp(
    num_outputs: int,
    *,
    hidden_sizes: Sequence[int] = (40, 40),
    normalization: str = "none",
    precision: Precision = "float32",
) -> Model:
    """Builds a multi-layer perceptron with ReLU, He initialisation and zero biases.

    Args:
      num_outputs: size of the output.
      hidden_sizes: sizes of the hidden layers; the default is MAML's for sinusoids.
      normalization: see `metajax.models.normalization`.
      precision: see `metajax.models.precision`.

    Returns:
      A model from `[n, ...]` (flattened) to `[n, num_outputs]`; its last layer is
      `params/head`. It also takes pairs of inputs and a context `[n, c]`, which the
      first hidden layer takes in through weights of its own (`params/context`).

    Raises:
      ValueError: if a size is not at least 1, the normalisation is unknown, or a hidden
        size is no multiple of the number of groups of `"group"`, 8; in `init` and
        `apply`, if inputs are bytes (uint8).
    """
    check_integers(1, num_outputs=num_outputs)
    check_sizes(hidden_sizes=hidden_sizes)
    for index, size in enumerate(hidden_sizes):
        check_groups(f"hidden_sizes[{index}]", size, normalization)
    module = MLP(tuple(hidden_sizes), num_outputs, normalization)
    return with_precision(from_linen(module, normalization=normalization), precision)


def conv4(
    num_outputs: int | None = None,
    *,
    features: int = 64,
    pooling: Pooling = "max",
    normalization: Normalization = "batch",
    precision: Precision = "float32",
) -> Model:
    """Builds the four-block convolutional network of few-shot learning.

    Args:
      num_outputs: size of a linear head on top (`params/head`), or None for embeddings.
      features: channels of every block.
      pooling: `"max"`, 2 x 2 max-pooling after each block and flattening at the end: 64
        embedding values for 28 x 28 images; `"stride"`, strides of 2 instead and the
        mean over space at the end; or `"maps"`, max-pooling after the first two blocks
        only, and embeddings that are maps `[n, H / 4, W / 4, features]` (below a head,
        their mean over space).
      normalization: see `metajax.models.normalization`.
      precision: see `metajax.models.precision`.

    Returns:
      A model from images `[n, H, W, C]` to `[n, num_outputs]` or `[n, D]`. It also
      takes pairs of images and a context `[n, c]`, from which a linear layer
      (`params/film`) makes a factor and an offset for each channel of the third block,
      after its normalisation (E. Perez et al., "FiLM", AAAI 2018).

    Raises:
      ValueError: if a size is not at least 1, a name is unknown, `features` is no
        multiple of the number of groups of `"group"`, 8; in `init` and `apply`, if an
        image is too small for four poolings or inputs are bytes (uint8).
    """
    check_choice(POOLINGS, pooling=pooling)
    check_integers(1, features=features)
    check_groups("features", features, normalization)
    if num_outputs is not None:
        check_integers(1, num_outputs=num_outputs)
    module = Conv4(num_outputs, features, pooling, normalization)
    return with_precision(from_linen(module, normalization=normalization), precision)


def _split_context(x: Inputs) -> tuple[Array, Array | None]:
    return x if isinstance(x, tuple) else (x, None)


def _modulate(x: Array, film: Array) -> Array:
    """Images `[n, H, W, C]` under factors (beside 1) and offsets `[n, 2 C]`."""
    factor, offset = jnp.split(film[:, None, None, :], 2, axis=-1)
    return x * (1 + factor) + offset


def check_groups(name: str, size: int, normalization: str) -> None:
    """Raises a ValueError if `"group"` cannot divide as many channels."""
    if normalization == "group" and size % Normalize.num_groups:
        raise ValueError(
            f"`{name}` must be a multiple of {Normalize.num_groups}, the number of "
            f"groups of normalization='group', got {size}."
        )


def identity() -> Model:
    """Builds a model without parameters that returns inputs, as float32 `[n, ...]`.

    As the other networks here, it refuses bytes, of which tasks make floats in [0, 1].
    """

    def apply(params: PyTree, x: Array) -> Array:
        _check_no_bytes(x)
        return x.astype(jnp.float32)

    return from_functions(lambda key, x: {}, apply)


def check_images(x: Array) -> None:
    """Raises a ValueError unless `x` is a batch of images of floats."""
    _check_no_bytes(x)
    if x.ndim != 4:
        raise ValueError(
            f"Images must be a batch, `[n, H, W, C]`, got shape {list(x.shape)}; give "
            "one image as image[None], and channels as the last axis."
        )


def _check_no_bytes(x: Array) -> None:
    """Raises a ValueError for bytes, as tasks give images in [0, 1]."""
    if x.dtype == jnp.uint8:
        raise ValueError(
            "The inputs of this network are bytes (uint8), and tasks give images as "
            "floats in [0, 1]: divide yours by 255, or convert other numbers to "
            "float32."
        )
