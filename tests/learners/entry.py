"""What the battery needs of a learner: how to build it, and on which tasks.

A test file of learners has `ENTRIES`, name -> `Entry`; `learners.registry` finds them.
A name is that of a constructor, or it and a variant after a comma.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metajax
from metajax.types import Array, Examples, Learner, Model, Task

WAY, SHOT, NUM_QUERIES, SIZE = 3, 2, 3, 4


def sample(key: Array) -> Task:
    """Gaussian blobs: `WAY` classes around centres in `SIZE` dimensions."""
    key_centers, key_noise = jax.random.split(key)
    centers = 2 * jax.random.normal(key_centers, (WAY, 1, SIZE), jnp.float32)
    noise = jax.random.normal(key_noise, (WAY, SHOT + NUM_QUERIES, SIZE), jnp.float32)
    x = centers + 0.3 * noise
    labels = jnp.arange(WAY)

    def examples(x: Array) -> Examples:
        return Examples(x.reshape(-1, SIZE), jnp.repeat(labels, x.shape[1]))

    return Task(examples(x[:, :SHOT]), examples(x[:, SHOT:]))


def sample_pair(key: Array) -> Task:
    """Two of the above are the tables: a sample of one, and one more of each."""
    first, second = (sample(key) for key in jax.random.split(key))
    queries = jax.tree.map(lambda *leaves: jnp.stack(leaves), first.query, second.query)
    return Task(first.support, Examples(queries, jnp.asarray([1, 0])))


def sample_points(key: Array) -> Task:
    """Points of one function of `SIZE` inputs with two targets."""
    key_x, key_slope = jax.random.split(key)
    x = jax.random.normal(key_x, (WAY * (SHOT + NUM_QUERIES), SIZE), jnp.float32)
    y = jnp.sin(x @ jax.random.normal(key_slope, (SIZE, 2), jnp.float32))
    num = WAY * SHOT
    return Task(Examples(x[:num], y[:num]), Examples(x[num:], y[num:]))


# What the battery asks, by the names of its tests. Those of an answer share a program.
ANSWERS = ("masks", "order", "leakage", "labels")
LAWS = ("steps", "batch", *ANSWERS)
PADDING = ("batch", *ANSWERS)


class Entry(NamedTuple):
    """A learner under test.

    Attributes:
      make: builds it.
      is_inductive: whether queries are answered independently of one another.
      ignores_order: whether the order of the support set is without effect.
      uses_labels_untrained: whether it makes sense of labels at random parameters.
      sample: draws a task that it is for; `sample`, unless it does not classify inputs.
      laws: which of `LAWS` it must satisfy; None for all of them, or of a variant (a
        name with a comma) those that it could break.
    """

    make: Callable[[], Learner]
    is_inductive: bool = True
    ignores_order: bool = True
    uses_labels_untrained: bool = True
    sample: Callable[[Array], Task] = sample
    laws: tuple[str, ...] | None = None


def small_mlp(num_outputs: int, normalization: str = "none") -> Model:
    return metajax.models.mlp(
        num_outputs, hidden_sizes=(8,), normalization=normalization
    )


def of_points(make: Callable[[], Learner]) -> Entry:
    return Entry(make, uses_labels_untrained=False, sample=sample_points)


def pad(examples: Examples, num: int) -> Examples:
    """The same examples followed by `num` rows of nonsense that the mask hides."""

    def append(leaf: Array) -> np.ndarray:
        values = np.asarray(leaf)
        # Labels have a range.
        filler = 0 if leaf is examples.y and values.dtype.kind == "i" else 1e3
        return np.concatenate(
            [values, np.full((num, *values.shape[1:]), filler, values.dtype)]
        )

    # In NumPy, as every operation of JAX would be a program to compile.
    x, y = jax.tree.map(append, (examples.x, examples.y))
    is_real = np.arange(len(y)) < len(examples.y)
    return jax.tree.map(jnp.asarray, Examples(x, y, is_real))
