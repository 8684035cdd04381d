"""ResNet-12, the residual network of few-shot learning.

B. N. Oreshkin, P. Rodriguez, A. Lacoste, "TADAM: Task dependent adaptive metric for
improved few-shot learning", NeurIPS 2018, https://arxiv.org/abs/1805.10123; with the
widths of MetaOptNet, K. Lee, S. Maji, A. Ravichandran, S. Soatto, "Meta-Learning with
Differentiable Convex Optimization", CVPR 2019, https://arxiv.org/abs/1904.03758.

    block(x) = pool(a(b_3(a(b_2(a(b_1(x))))) + s(x))),   a = leaky ReLU with slope 0.1

b_i is a 3 x 3 convolution and a normalisation, s a 1 x 1 convolution and one, and pool
takes maxima of 2 x 2; the activation is left out after b_3. Four blocks follow one
another, and the mean over space (or none, as in MetaOptNet) ends them.

Differs from the papers: no dropout and no DropBlock. With `normalization="batch"` and
the weights of easyfsl 1.5's `feat_resnet12` in training mode it gives the same outputs.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import jax.numpy as jnp
from flax import linen as nn

from metajax.checks import check_choice, check_integers, check_sizes
from metajax.models.adapters import from_linen
from metajax.models.convolution import Conv, max_pool
from metajax.models.networks import check_groups, check_images
from metajax.models.normalization import PER_CHANNEL, Normalization, Normalize
from metajax.models.precision import Precision, with_precision
from metajax.types import Array, Model

__all__ = ["resnet12"]

Summary = Literal["mean", "flatten"]
SUMMARIES: tuple[Summary, ...] = get_args(Summary)

activation = partial(nn.leaky_relu, negative_slope=0.1)


class Block(nn.Module):
    """Three convolutions beside one of 1 x 1, and a pooling."""

    features: int
    normalization: str

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Maps `[n, H, W, C]` to `[n, H // 2, W // 2, features]`."""

        def normalized(x: Array, window: int) -> Array:
            x = Conv(
                self.features,
                (window, window),
                kernel_init=nn.initializers.variance_scaling(2, "fan_out", "normal"),
                use_bias=self.normalization not in PER_CHANNEL,
            )(x)
            return Normalize(self.normalization)(x, mask)

        shortcut = x
        for last in (False, False, True):
            x = normalized(x, 3)
            x = x if last else activation(x)
        # The same as before pooling, but with a quarter of the work.
        return activation(max_pool(x + normalized(shortcut, 1)))


class ResNet12(nn.Module):
    """Four blocks, and an optional `head`."""

    num_outputs: int | None
    widths: Sequence[int]
    summary: Summary
    normalization: str

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Maps images `[n, H, W, C]` to `[n, num_outputs]` or embeddings `[n, D]`."""
        check_images(x)
        least = 2 ** len(self.widths)
        if min(x.shape[1:3]) < least:
            raise ValueError(
                f"{len(self.widths)} poolings of 2 x 2 need images of at least {least} "
                f"x {least}, got {x.shape[1]} x {x.shape[2]}; use larger ones or fewer "
                "`widths`."
            )
        for width in self.widths:
            x = Block(width, self.normalization)(x, mask)
        if self.summary == "mean":
            x = jnp.mean(x, (1, 2))
        else:
            x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        if self.num_outputs is None:
            return x
        return nn.Dense(self.num_outputs, name="head")(x)


def resnet12(
    num_outputs: int | None = None,
    *,
    widths: Sequence[int] = (64, 160, 320, 640),
    summary: Summary = "mean",
    normalization: Normalization = "batch",
    precision: Precision = "float32",
) -> Model:
    """Builds ResNet-12, He-initialised, of which most published numbers are today.

    Args:
      num_outputs: size of a linear head on top (`params/head`), or None for embeddings.
      widths: channels of every block; the default is MetaOptNet's, with 12.4 million
        parameters, and (64, 128, 256, 512) TADAM's.
      summary: `"mean"` over space at the end, for embeddings of the last width, or
        `"flatten"`: 16,000 values for 84 x 84 images.
      normalization: see `metajax.models.normalization`.
      precision: see `metajax.models.precision`.

    Returns:
      A model from images `[n, H, W, C]` to `[n, num_outputs]` or `[n, D]`.

    Raises:
      ValueError: if a size is not at least 1, a name is unknown, or a width is no
        multiple of the number of groups of `"group"`, 8; in `init` and `apply`, if an
        image is too small for all poolings.

    Example:
      >>> from metajax.learners import prototypical
      >>> from metajax.models import resnet12
      >>> learner = prototypical(resnet12(normalization="calibrated"))
    """
    check_choice(SUMMARIES, summary=summary)
    check_sizes(fewest=1, widths=widths)
    for index, width in enumerate(widths):
        check_groups(f"widths[{index}]", width, normalization)
    if num_outputs is not None:
        check_integers(1, num_outputs=num_outputs)
    module = ResNet12(num_outputs, tuple(widths), summary, normalization)
    return with_precision(from_linen(module, normalization=normalization), precision)
