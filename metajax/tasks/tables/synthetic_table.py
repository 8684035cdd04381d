"""Synthetic tables: clusters in a few hidden factors, seen through many columns.

The recipe is that of `sklearn.datasets.make_classification`, from I. Guyon, "Design of
experiments of the NIPS 2003 variable selection benchmark", drawn inside `jit`:

* Each class has clusters whose centres are vertices of a hypercube of half-width
  `separation` in the space of informative columns; no two clusters share one.
* Within a cluster, rows are normal and then sheared by a random matrix.
* Redundant columns are random combinations of the informative ones, all further columns
  are noise. Columns stand in random order, and a few labels are wrong.

Without `family`, everything is drawn anew for each task, and all that tasks share is
this recipe. A `family` fixes the combinations and the order of columns: tasks then ask
different questions of one measuring instrument.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from metajax.checks import check_integers, check_positive, is_integer, is_number
from metajax.types import Array, Examples, Task

__all__ = ["SyntheticTable", "synthetic_table"]


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class SyntheticTable:
    """The distribution that `synthetic_table` builds; its fields are its arguments."""

    way: int
    shot: int
    num_queries: int
    columns: int
    informative: int
    redundant: int
    clusters: int
    separation: float
    wrong_labels: float
    family: int | None

    def __call__(self, key: Array, /) -> Task:
        """Draws one task; the key is consumed.

        Returns:
          A task whose inputs are float32 `[N * K, columns]` and `[N * Q, columns]` and
          whose labels are int32, in order of class but for the wrong ones.
        """
        key_table, key_centers, key_shear, key_support, key_query = jax.random.split(
            key, 5
        )
        if self.family is not None:
            key_table = jax.random.key(self.family)
        key_combine, key_order = jax.random.split(key_table)
        hidden, groups = self.informative, self.way * self.clusters
        # Distinct vertices, by the binary digits of distinct numbers.
        corners = jax.random.choice(key_centers, 2**hidden, (groups,), replace=False)
        bits = (corners[:, None] >> jnp.arange(hidden)[None, :]) & 1
        centers = self.separation * (2.0 * bits - 1)
        shears = _uniform(key_shear, (groups, hidden, hidden))
        combine = _uniform(key_combine, (hidden, self.redundant))
        order = jax.random.permutation(key_order, self.columns)

        def examples(key: Array, per_class: int) -> Examples:
            key_cluster, key_x, key_noise, key_flip, key_label = jax.random.split(
                key, 5
            )
            num = self.way * per_class
            labels = jnp.repeat(jnp.arange(self.way, dtype=jnp.int32), per_class)
            cluster = jax.random.randint(key_cluster, (num,), 0, self.clusters)
            group = labels * self.clusters + cluster
            x = jax.random.normal(key_x, (num, hidden))
            x = jnp.einsum("nh,nhk->nk", x, shears[group]) + centers[group]
            noise = (num, self.columns - hidden - self.redundant)
            x = jnp.concatenate(
                [x, x @ combine, jax.random.normal(key_noise, noise)], axis=-1
            )
            is_wrong = jax.random.bernoulli(key_flip, self.wrong_labels, (num,))
            is_wrong = _keep_classes(is_wrong.reshape(self.way, per_class)).ravel()
            other = jax.random.randint(key_label, (num,), 0, self.way, jnp.int32)
            return Examples(x[:, order], jnp.where(is_wrong, other, labels))

        return Task(
            examples(key_support, self.shot), examples(key_query, self.num_queries)
        )


def synthetic_table(
    *,
    way: int = 2,
    shot: int = 16,
    num_queries: int = 50,
    columns: int = 20,
    informative: int = 5,
    redundant: int = 5,
    clusters: int = 2,
    separation: float = 1.0,
    wrong_labels: float = 0.01,
    family: int | None = None,
) -> SyntheticTable:
    """Builds the distribution of these tasks.

    Args:
      way: classes of a task, N, at least 2.
      shot: support rows of a class, K, at least 1.
      num_queries: query rows of a class, Q, at least 1.
      columns: of the table.
      informative: columns that clusters differ in, 1 to 20.
      redundant: columns that are combinations of these, at least 0.
      clusters: of each class, at least 1.
      separation: distance of a centre from 0 along each informative column, above 0.
      wrong_labels: share of the rows whose label is drawn at random, in [0, 1); of each
        class at least one row keeps its own.
      family: None, or a seed for what all tasks then share: which columns are
        informative, redundant and noise, and the combinations.

    Raises:
      ValueError: if a number is out of range, there are more informative and redundant
        columns than columns, or more clusters than vertices.

    Example:
      >>> import jax
      >>> from metajax.tasks import synthetic_table
      >>> task = synthetic_table(family=0)(jax.random.key(0))
      >>> task.support.x.shape
      (32, 20)
    """
    check_integers(2, way=way)
    check_integers(1, shot=shot, num_queries=num_queries, columns=columns)
    check_integers(1, informative=informative, clusters=clusters)
    check_integers(0, redundant=redundant)
    if informative > 20:
        raise ValueError(f"`informative` must be at most 20, got {informative}.")
    if informative + redundant > columns:
        raise ValueError(
            f"`informative` + `redundant` are {informative + redundant} columns, and "
            f"`columns` is {columns}; ask for fewer, or for more columns."
        )
    if way * clusters > 2**informative:
        raise ValueError(
            f"`way` * `clusters` are {way * clusters} centres, and {informative} "
            f"informative columns have {2**informative} vertices for them; raise "
            "`informative` or lower the others."
        )
    check_positive(separation=separation)
    if not is_number(wrong_labels) or not 0 <= wrong_labels < 1:
        raise ValueError(f"`wrong_labels` must be in [0, 1), got {wrong_labels!r}.")
    if family is not None and not is_integer(family):
        raise ValueError(f"`family` must be None or an integer, got {family!r}.")
    return SyntheticTable(
        way=way,
        shot=shot,
        num_queries=num_queries,
        columns=columns,
        informative=informative,
        redundant=redundant,
        clusters=clusters,
        separation=separation,
        wrong_labels=float(wrong_labels),
        family=family,
    )


def _keep_classes(is_wrong: Array) -> Array:
    """Makes the first of each class's rows `[N, K]` right where all are wrong.

    A class without a support row is one that nothing can be said of.
    """
    is_lost = jnp.all(is_wrong, axis=1)
    return is_wrong.at[:, 0].set(is_wrong[:, 0] & ~is_lost)


def _uniform(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
