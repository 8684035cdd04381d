"""Whether a learner is inductive: whether the answer to one query depends on others.

It is measured, and not taken on trust. Query labels cannot leak: neither `adapt` nor
`predict` is given them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_parts, named_if_other
from metajax.compute.bound_programs import bound_jit
from metajax.evaluation.contract import check_learner
from metajax.evaluation.metrics import at_least_float32
from metajax.masks import expand
from metajax.types import Array, Learner, PyTree, Task

__all__ = [
    "Leakage",
    "leakage",
]


class Leakage(NamedTuple):
    """What the leakage check measured.

    Attributes:
      max_deviation: the largest change of a prediction when other queries changed, as a
        fraction of the largest prediction; NaN if predictions are.
      tolerance: the largest deviation that is put down to rounding.
    """

    max_deviation: float
    tolerance: float

    @property
    def is_inductive(self) -> bool:
        """Whether no prediction depended on other queries."""
        return self.max_deviation <= self.tolerance

    @property
    def protocol(self) -> str:
        """`"inductive"`, `"transductive"`, or `"unknown"` if predictions are NaN."""
        if math.isnan(self.max_deviation):
            return "unknown"
        return "inductive" if self.is_inductive else "transductive"


def leakage(
    learner: Learner,
    meta_params: PyTree,
    task: Task,
    key: Array | None = None,
    *,
    tolerance: float = 1e-4,
) -> Leakage:
    """Measures whether the answer to one query depends on the other queries.

    The queries are permuted. Then, for a random half of them and again for the others,
    all queries outside the half are replaced by copies of one inside it, or masked out.
    None of this may change the answer to a query that stayed. A query without others
    counts as inductive.

    Args:
      learner: what to check.
      meta_params: as `learner.init` gives them.
      task: any task with `Examples` as its query; the query labels are not used.
      key: for `adapt`; consumed.
      tolerance: the largest change that counts as rounding, as a fraction of the
        largest prediction; sums of float32 in another order stay below 1e-5.

    Returns:
      The largest change found.

    Raises:
      ValueError: if predictions are not arrays `[n, ...]` with a row for each query.
    """
    check_learner(learner, ("adapt", "predict"))
    check_parts(task=task)
    with named_if_other(learner.init, task, meta_params=meta_params):
        deviation = bound_jit(_deviation, learner)(meta_params, task, key)
    return Leakage(float(deviation), tolerance)


def _deviation(
    learner: Learner, meta_params: PyTree, task: Task, key: Array | None
) -> Array:
    """The largest change of a prediction as a fraction of the largest prediction."""
    query = task.query
    num_queries = jax.tree.leaves(query.x)[0].shape[0]
    mask = query.is_real
    own = jnp.arange(num_queries)
    # A fixed order that has nothing to do with that of the classes.
    order = jnp.asarray(np.random.default_rng(0).permutation(num_queries))
    is_kept = order < num_queries // 2

    # Each variant asks for rows under a mask. Where the last entry says so, answers
    # must equal those that the rows `origin` had in the first variant.
    variants = [(own, mask, own, mask), (order, mask[order], order, mask[order])]
    for half in (is_kept & mask, ~is_kept & mask):
        donor = jnp.argmax(half)
        variants.append((jnp.where(half, own, donor), mask, own, half))
        variants.append((own, half, own, half))
    rows, masks, origins, is_compared = map(jnp.stack, zip(*variants, strict=True))

    adapted = learner.adapt(meta_params, task.support, key=key)

    def answer(variant: tuple[Array, Array]) -> PyTree:
        rows, mask = variant
        inputs = jax.tree.map(lambda x: x[rows], query.x)
        return learner.predict(adapted, inputs, mask=mask, key=None)

    # One after the other in one program, so that rounding is alike for all of them.
    outputs = jax.lax.map(answer, (rows, masks))
    deviation = jnp.zeros(())
    for leaf in jax.tree.leaves(outputs):
        if leaf.shape[1:2] != (num_queries,):
            raise ValueError(
                f"`predict` must answer {num_queries} queries with arrays "
                f"[{num_queries}, ...], got shape {leaf.shape[1:]}."
            )
        leaf = at_least_float32(leaf)
        first = leaf[0][origins]
        # Minus infinity, for classes that a task does not have, equals itself.
        change = jnp.where(leaf == first, 0, jnp.abs(leaf - first))
        change = jnp.max(jnp.where(expand(is_compared, leaf), change, 0))
        is_counted = expand(mask, leaf[0]) & ~jnp.isinf(leaf[0])
        largest = jnp.max(jnp.where(is_counted, jnp.abs(leaf[0]), 0))
        smallest_divisor = jnp.finfo(leaf.dtype).tiny
        deviation = jnp.maximum(deviation, change / (largest + smallest_divisor))
    return deviation
