"""Several task distributions as one: every task is of one of them.

Training on several sources of tasks is the setting of E. Triantafillou et al.,
"Meta-Dataset: A Dataset of Datasets for Learning to Learn from Few Examples", ICLR
2020, https://arxiv.org/abs/1903.03096, section 3.3: a source is drawn, and then a task
of it. Tasks of one shape are what makes that a single compiled program, so images must
agree in size and channels (the readers convert), and sets are padded to the largest of
all sources.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap

from metajax.checks import as_numbers
from metajax.tasks.summaries import summary
from metajax.types import Array, Examples, Task, TaskDistribution

__all__ = ["Mixture", "mixture"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["domains"],
    meta_fields=["weights", "rows"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """A `TaskDistribution`; build it with `mixture`, which checks it.

    Attributes:
      domains: the task distributions.
      weights: chance of each.
      rows: of support and query set; None where all domains have as many and no masks.
    """

    domains: tuple[TaskDistribution, ...]
    weights: tuple[float, ...]
    rows: tuple[int | None, int | None]

    __repr__ = summary

    def __call__(self, key: Array) -> Task:
        """Draws one task; the key is consumed."""
        return _draw(self, key)

    def domain(self, key: Array) -> Array:
        """Tells which of the domains the task of this key is of, an int32 scalar."""
        key_domain, _ = jax.random.split(key)
        ends = np.cumsum(self.weights)[:-1].astype(np.float32)
        return jnp.searchsorted(ends, jax.random.uniform(key_domain), side="right")


# Of a batch of tasks, one after the other: with all at once every task would be drawn
# from every domain, and the others thrown away.
@sequential_vmap
def _draw(tasks: Mixture, key: Array) -> Task:
    _, key_task = jax.random.split(key)

    def draw(domain: TaskDistribution, key: Array) -> Task:
        sets = zip(domain(key), tasks.rows, strict=True)
        return Task(*(_padded(examples, rows) for examples, rows in sets))

    branches = [functools.partial(draw, domain) for domain in tasks.domains]
    return jax.lax.switch(tasks.domain(key), branches, key_task)


def mixture(
    tasks: Sequence[TaskDistribution], weights: Sequence[float] | None = None
) -> Mixture:
    """Builds a task distribution that draws the domain of every task.

    Args:
      tasks: at least one distribution of tasks whose support and query are `Examples`;
        inputs and targets must agree but for the number of examples. Sets are padded to
        the largest, with zeros and a mask.
      weights: the chance of each, at least 0, with a sum of 1; None makes them equal.

    Returns:
      A callable `(key) -> Task`, itself a pytree. Draws of a `vmap` run one after the
      other, each of its own domain only.

    Raises:
      ValueError: if there are no tasks, weights are out of range, or tasks differ in
        more than the number of examples.

    Example:
      >>> from metajax.tasks import glyphs, mixture
      >>> easy = glyphs(way=5, shot=5, num_queries=5)
      >>> hard = glyphs(way=20, shot=1, num_queries=5)
      >>> task = mixture([easy, hard], [0.25, 0.75])(jax.random.key(0))
      >>> task.support.x.shape, task.query.x.shape
      ((25, 28, 28, 1), (100, 28, 28, 1))
    """
    if not isinstance(tasks, Sequence) or not tasks:
        got = "none" if isinstance(tasks, Sequence) else type(tasks).__name__
        raise ValueError(
            f"`tasks` must be a list of at least one distribution, got {got}."
        )
    for number, domain in enumerate(tasks):
        if not callable(domain):
            raise ValueError(
                "`tasks` must be functions from a random key to a `Task`, but number "
                f"{number} is a {type(domain).__name__}."
            )
    if weights is None:
        weights = [1 / len(tasks)] * len(tasks)
    numbers = as_numbers(weights=weights)
    if numbers.ndim != 1:
        raise ValueError(f"`weights` must be a list of numbers, got {weights!r}.")
    weights = numbers.tolist()
    if len(weights) != len(tasks):
        raise ValueError(
            f"`weights` must have one number for each of the {len(tasks)} "
            f"distributions, got {len(weights)}."
        )
    is_chance = all(0 <= weight < math.inf for weight in weights)
    if not is_chance or abs(math.fsum(weights) - 1) > 1e-6:
        raise ValueError(
            f"`weights` must be at least 0 with a sum of 1, got {weights}; divide them "
            "by their sum."
        )
    domains = tuple(
        jax.tree_util.Partial(domain) if jax.tree_util.all_leaves([domain]) else domain
        for domain in tasks
    )
    # Called through a function, so that a distribution may hold NumPy arrays.
    shapes = [
        jax.eval_shape(lambda d, key: d(key), d, jax.random.key(0)) for d in domains
    ]
    return Mixture(domains, tuple(weights), _common_rows(shapes))


def _common_rows(shapes: Sequence[Task]) -> tuple[int | None, int | None]:
    """Rows of support and query set; checks that tasks agree in all else."""
    rows: list[int | None] = []
    for part in Task._fields:
        sets: list[Any] = [getattr(shape, part, None) for shape in shapes]
        for number, examples in enumerate(sets):
            if not isinstance(examples, Examples):
                raise ValueError(
                    "`mixture` takes tasks whose support and query are `Examples`, but "
                    f"the {part} of distribution {number} is a "
                    f"{type(examples).__name__}."
                )
        kinds = [_kind(examples) for examples in sets]
        for number, kind in enumerate(kinds):
            if kind != kinds[0]:
                raise ValueError(
                    "The tasks of a mixture must agree in shape and dtype of an "
                    f"example, but the {part} of distribution 0 has {_text(kinds[0])} "
                    f"and that of distribution {number} has {_text(kind)}. Bring "
                    "images to one size and number of channels by `size` and "
                    "`channels` of the readers."
                )
        sizes = [jax.tree.leaves(examples.x)[0].shape[0] for examples in sets]
        has_masks = any(examples.mask is not None for examples in sets)
        is_even = len(set(sizes)) == 1 and not has_masks
        rows.append(None if is_even else max(sizes))
    support, query = rows
    return support, query


def _kind(examples: Examples) -> Any:
    """Structure, shapes and dtypes of an example, whatever the number of examples."""
    leaves, structure = jax.tree.flatten(examples._replace(mask=None))
    return structure, [(leaf.shape[1:], str(leaf.dtype)) for leaf in leaves]


def _text(kind: Any) -> str:
    return ", ".join(f"{dtype} {list(shape)}" for shape, dtype in kind[1])


def _padded(examples: Examples, rows: int | None) -> Examples:
    """Examples with as many rows and a mask; unchanged for None."""
    if rows is None:
        return examples
    num = jax.tree.leaves(examples.x)[0].shape[0]
    return jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, rows - num)] + [(0, 0)] * (leaf.ndim - 1)),
        Examples(examples.x, examples.y, examples.is_real),
    )
