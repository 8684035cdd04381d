"""Every exported learner on a tiny model and task, for the battery of shared tests.

A learner joins by one entry; `test_battery.py` fails for an exported one without entry.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import metajax
from metajax.types import Array, Examples, Learner, Model, Task

WAY, SHOT, NUM_QUERIES, SIZE = 3, 2, 3, 4


class Entry(NamedTuple):
    """A learner under test.

    Attributes:
      make: builds it.
      is_inductive: whether queries are answered independently of one another.
    """

    make: Callable[[], Learner]
    is_inductive: bool = True


def _mlp(num_outputs: int, normalization: str = "none") -> Model:
    return metajax.mlp(num_outputs, hidden=(8,), normalization=normalization)


REGISTRY = {
    "maml": Entry(lambda: metajax.maml(_mlp(WAY), optax.sgd(0.1), steps=3)),
    "maml, mixed Adam": Entry(
        lambda: metajax.maml(
            _mlp(WAY), optax.adam(0.01, eps_root=1e-8), steps=2, gradient="mixed"
        )
    ),
    "maml, head only, first order": Entry(
        lambda: metajax.maml(
            _mlp(WAY),
            optax.sgd(0.1),
            steps=2,
            gradient="first_order",
            adapts=metajax.only("head"),
        )
    ),
    "maml, batch statistics": Entry(
        lambda: metajax.maml(_mlp(WAY, "batch"), optax.sgd(0.05), steps=2),
        is_inductive=False,
    ),
    "maml, support statistics": Entry(
        lambda: metajax.maml(_mlp(WAY, "support"), optax.sgd(0.05), steps=2)
    ),
    "prototypical": Entry(lambda: metajax.prototypical(_mlp(5))),
    "prototypical, cosine": Entry(
        lambda: metajax.prototypical(_mlp(5), way=4, distance="cosine", scale=10.0)
    ),
    "prototypical, support statistics": Entry(
        lambda: metajax.prototypical(_mlp(5, "support"))
    ),
}


def sample(key: Array) -> Task:
    """Gaussian blobs: `WAY` classes around centres in `SIZE` dimensions."""
    key_centers, key_noise = jax.random.split(key)
    centers = 2 * jax.random.normal(key_centers, (WAY, 1, SIZE))
    noise = jax.random.normal(key_noise, (WAY, SHOT + NUM_QUERIES, SIZE))
    x = centers + 0.3 * noise
    labels = jnp.arange(WAY)

    def examples(x: Array) -> Examples:
        return Examples(x.reshape(-1, SIZE), jnp.repeat(labels, x.shape[1]))

    return Task(examples(x[:, :SHOT]), examples(x[:, SHOT:]))


def pad(examples: Examples, num: int) -> Examples:
    """The same examples followed by `num` rows of nonsense that the mask hides."""
    x = jnp.concatenate([examples.x, jnp.full((num, SIZE), 1e3)])
    y = jnp.concatenate([examples.y, jnp.zeros(num, examples.y.dtype)])
    return Examples(x, y, jnp.arange(len(y)) < len(examples.y))
