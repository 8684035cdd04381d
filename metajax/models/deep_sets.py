"""A network that reads a whole set of labelled examples: one vector for a task.

M. Zaheer et al., "Deep Sets", NeurIPS 2017, https://arxiv.org/abs/1703.06114, theorem
2, with a mean in place of the sum, so that a set may have any size:

    e = rho(mean over i of phi([x_i, y_i]))

x_i, y_i are an input and its target (a regression target as it is, a label as one-hot),
phi and rho layers with ReLU. A label says which class, and classes of few-shot tasks
are numbered anew in every task: with `classes="unnamed"` the set is a set of classes,
and each of these a set of inputs,

    e = rho(mean over classes k of psi([share of k, mean over i in k of phi(x_i)]))

which does not change when classes are numbered differently. The mean over k is over
classes that have an example.

Order never matters, and masked examples are as if absent.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.checks import check_choice, check_integers, check_sizes
from metajax.masks import hide_padding
from metajax.objectives import class_vectors
from metajax.types import Array, Examples, PyTree

__all__ = ["Layers", "TaskEncoder", "set_mean", "task_encoder"]

Classes = Literal["named", "unnamed"]
CLASSES: tuple[Classes, ...] = get_args(Classes)


class TaskEncoder(NamedTuple):
    """A task encoder as pure functions of its parameters.

    Attributes:
      init: `(key, examples) -> params`; the key is consumed.
      apply: `(params, examples) -> e [size]`, for `Examples` of one task.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Array]


def set_mean(elements: Array, is_member: Array) -> Array:
    """Averages the elements of a set; the mean of an empty set is 0.

    Args:
      elements: `[n, ...]`; finite, those outside of the set too.
      is_member: `[n]`, bool, or 0 and 1.
    """
    weights = is_member.astype(elements.dtype)
    return jnp.tensordot(weights, elements, 1) / jnp.maximum(jnp.sum(weights), 1)


class Layers(nn.Module):
    """Dense layers with He initialisation and ReLU, over the last axis.

    Attributes:
      sizes: of each layer.
      ends_linear: whether the last one has no ReLU.
    """

    sizes: Sequence[int]
    ends_linear: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `[..., D]` to `[..., sizes[-1]]`."""
        for place, size in enumerate(self.sizes):
            x = nn.Dense(size, kernel_init=nn.initializers.he_normal())(x)
            if not (self.ends_linear and place == len(self.sizes) - 1):
                x = nn.relu(x)
        return x


class _Encoder(nn.Module):
    size: int
    hidden_sizes: Sequence[int]
    num_classes: int | None
    classes: Classes

    @nn.compact
    def __call__(self, examples: Examples) -> Array:
        x, y, mask = examples
        x = hide_padding(x.reshape(len(y), math.prod(x.shape[1:])), mask)
        # Integer inputs must not make integers of targets.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.num_classes is None:
            targets = y.reshape(len(y), math.prod(y.shape[1:]))
        else:
            targets = class_vectors(y, self.num_classes)
        targets = hide_padding(targets, mask).astype(x.dtype)
        if self.classes == "named":
            pairs = jnp.concatenate([x, targets], axis=1)
            e = set_mean(Layers(self.hidden_sizes, name="phi")(pairs), examples.is_real)
        else:
            values = Layers(self.hidden_sizes, name="phi")(x)
            means = jax.vmap(set_mean, (None, 1))(values, targets)
            counts = jnp.sum(targets, axis=0)
            shares = (counts / jnp.maximum(jnp.sum(counts), 1))[:, None]
            of_class = jnp.concatenate([shares, means], axis=1)
            e = set_mean(Layers(self.hidden_sizes, name="psi")(of_class), counts > 0)
        sizes = (*self.hidden_sizes, self.size)
        return Layers(sizes, ends_linear=True, name="rho")(e)


def task_encoder(
    code_size: int,
    *,
    num_classes: int | None = None,
    classes: Classes = "named",
    hidden_sizes: Sequence[int] = (64, 64),
) -> TaskEncoder:
    """Builds a permutation-invariant encoder of a set of labelled examples.

    For learners that condition on a task: pass `Examples` of the support set, or their
    embeddings by another model where inputs are images.

    Args:
      code_size: of the vector.
      num_classes: N, where `y` are labels `[n]` in [0, N); None where they are
        regression targets `[n, ...]`.
      classes: `"named"`, if a label means the same in every task, or `"unnamed"`, if
        classes may be numbered in any order.
      hidden_sizes: sizes of the layers of phi, psi and, before its last one, of rho; at
        least one.

    Returns:
      Two functions, see `TaskEncoder`. `x` `[n, ...]` is flattened.

    Raises:
      ValueError: if a size is out of range, the name is unknown, or classes are
        unnamed where there are none.

    Example:
      >>> import jax
      >>> from metajax.models import task_encoder
      >>> from metajax.tasks import synthetic_table
      >>> support = synthetic_table(way=2, shot=8)(jax.random.key(0)).support
      >>> encoder = task_encoder(16, num_classes=2, classes="unnamed")
      >>> params = encoder.init(jax.random.key(1), support)
      >>> encoder.apply(params, support).shape
      (16,)
    """
    check_integers(1, code_size=code_size)
    check_choice(CLASSES, classes=classes)
    check_sizes(fewest=1, hidden_sizes=hidden_sizes)
    hidden_sizes = tuple(hidden_sizes)
    if num_classes is not None:
        check_integers(1, num_classes=num_classes)
    elif classes == "unnamed":
        raise ValueError(
            "classes='unnamed' needs classes, and `num_classes` is None, which means "
            "regression targets; give their number, or leave `classes` out."
        )
    module = _Encoder(code_size, hidden_sizes, num_classes, classes)
    return TaskEncoder(module.init, cast(Callable[..., Array], module.apply))
