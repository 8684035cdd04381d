"""A prior over tables: rows of random causal models, of any width and classes.

S. Müller, N. Hollmann, S. Pineda Arango, J. Grabocka, F. Hutter, "Transformers Can Do
Bayesian Inference", ICLR 2022, https://arxiv.org/abs/2112.10510, and N. Hollmann,
S. Müller, K. Eggensperger, F. Hutter, "TabPFN", ICLR 2023,
https://arxiv.org/abs/2207.01848, section 4, whose idea it follows in a smaller form. A
network that is trained on its tasks and then asked about a real table has a prior over
tables in place of a method for them (`metajax.learners.in_context` with
`context=None`).

A task is drawn inside `jit`:

* a random network: up to six causes among its inputs, layers of nodes with sparse
  random weights, one activation for each layer (none at all in a few tasks) and noise
  on every node. Inputs are normal or, in some tasks, in clusters; some are categories,
  whose levels have effects in their order or in none;
* its columns are nodes: of any layer, so that some are causes of the class and others
  its effects, or inputs alone. Some are warped, some cut into a few levels, as counts
  and categories are;
* the class is a further node, cut at random shares into 2 or more classes, or which of
  as many rows is nearest in up to four nodes, so that classes have an order in some
  tasks alone. They are then numbered at random; a few labels are wrong;
* columns are standardised by the support set.

Columns and classes are few more often than many (log-uniform). Tasks differ in rows,
columns and classes; they share one shape by masks, by columns of 0, and by classes that
do not occur.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from metajax.checks import check_integers
from metajax.tasks.sizes import as_range, check_num_queries
from metajax.tasks.tables.stacked_tables import by_support
from metajax.types import Array, Examples, Task

__all__ = ["TabularPrior", "tabular_prior"]

NODES, LAYERS, MOST_CAUSES, MOST_LEVELS, CLUSTERS = 24, 3, 6, 5, 8
# Standard deviation of what is added to a node, whose own is about 1.
NOISE = (0.01, 0.3)
MOST_WRONG_LABELS = 0.15


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True)
class TabularPrior:
    """The distribution that `tabular_prior` builds; its fields are the arguments."""

    way: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    num_queries: int

    def __call__(self, key: Array, /) -> Task:
        """Draws one task; the key is consumed. Shapes are in `tabular_prior`."""
        keys = jax.random.split(key, 6)
        num = self.rows[1] + self.num_queries
        num_columns = _few(keys[4], *self.columns)
        # No more than there can be columns of, so that some tasks show all.
        most = jnp.minimum(num_columns, MOST_CAUSES)
        num_causes = jax.random.randint(keys[5], (), 1, most + 1)
        nodes, target = _nodes(keys[0], num, num_causes)
        x = self._columns(keys[1], nodes, target, num_causes)
        x = jnp.where(jnp.arange(self.columns[1])[None, :] < num_columns, x, 0.0)
        y = self._labels(keys[2], nodes, target)
        num_real = jax.random.randint(keys[3], (), self.rows[0], self.rows[1] + 1)
        mask = jnp.arange(self.rows[1]) < num_real
        support, query = by_support(x[: self.rows[1]], x[self.rows[1] :], mask)
        # Real tables have outliers; what is learned from must not be made of them.
        support, query = (jnp.clip(x, -8, 8) for x in (support, query))
        support = jnp.where(mask[:, None], support, 0)
        is_fixed = self.rows[0] == self.rows[1]
        return Task(
            Examples(support, y[: self.rows[1]], None if is_fixed else mask),
            Examples(query, y[self.rows[1] :]),
        )

    def _columns(
        self, key: Array, nodes: Array, target: Array, num_causes: Array
    ) -> Array:
        """Chosen nodes `[n, D]`, warped and cut."""
        key_mode, key_node, key_warp, key_cut = jax.random.split(key, 4)
        total, most = nodes.shape[1], self.columns[1]
        # Inputs in half of the tasks, causes first: they are the first layer's.
        place = jnp.arange(total)
        prefers = 1.0 * (place < NODES) + (place < num_causes)
        prefers *= jax.random.bernoulli(key_mode)
        order = jax.random.uniform(key_node, (total,)) + prefers
        order = order.at[target].set(-1.0)
        _, chosen = jax.lax.top_k(order, most)
        x = nodes[:, chosen]
        key_has, key_power = jax.random.split(key_warp)
        powers = jnp.exp(jax.random.normal(key_power, (most,)) * 0.5)
        is_warped = jax.random.bernoulli(key_has, 0.3, (most,))
        powers = jnp.where(is_warped, powers, 1.0)[None, :]
        x = jnp.sign(x) * (jnp.abs(x) + 1e-6) ** powers
        key_is, key_levels = jax.random.split(key_cut)
        is_cut = jax.random.bernoulli(key_is, 0.25, (most,))
        return jnp.where(is_cut[None, :], _levels(key_levels, x), x)

    def _labels(self, key: Array, nodes: Array, target: Array) -> Array:
        """Classes int32 `[n]` of the nodes `[n, nodes]`, foremost of the target."""
        key_way, key_kind, key_cut, key_near, key_name, key_wrong = jax.random.split(
            key, 6
        )
        most = self.way[1]
        way = _few(key_way, self.way[0], most)
        labels = jnp.where(
            jax.random.bernoulli(key_kind),
            _cut(key_cut, nodes[:, target], way, most),
            _nearest(key_near, nodes, target, way, most),
        )
        # Names are those of the classes that there are, in random order.
        order = jax.random.uniform(key_name, (most,)) + (jnp.arange(most) >= way)
        names = jnp.argsort(order)
        key_rate, key_is, key_other = jax.random.split(key_wrong, 3)
        rate = MOST_WRONG_LABELS * jax.random.uniform(key_rate) ** 2
        is_wrong = jax.random.bernoulli(key_is, rate, labels.shape)
        other = jax.random.randint(key_other, labels.shape, 0, way)
        return names[jnp.where(is_wrong, other, labels)].astype(jnp.int32)


def tabular_prior(
    *,
    way: int | tuple[int, int] = (2, 5),
    rows: int | tuple[int, int] = (20, 200),
    columns: int | tuple[int, int] = (2, 20),
    num_queries: int = 50,
) -> TabularPrior:
    """Builds the distribution of tables.

    Args:
      way: classes of a task, at least 2, or an inclusive `(low, high)`; N is the end.
        Some may have no support row; learners whose `predict` gives minus infinity for
        such a class have an infinite loss where it is asked for.
      rows: support rows of a task, at least 1, or an inclusive range; n is its end.
      columns: of a task, at least 1 and at most 95, or an inclusive range; D its end.
      num_queries: Q, query rows of a task, at least 1.

    Returns:
      A task distribution: support `x` float32 `[n, D]` and `y` int32 `[n]` in [0, N),
      query the same with Q. Columns beyond those of a task are 0; `mask` hides support
      rows beyond its own, and is None if there is no range of them. Classes are those
      from 0 on.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> import jax
      >>> from metajax.tasks import tabular_prior
      >>> task = tabular_prior(rows=30, columns=8)(jax.random.key(0))
      >>> task.support.x.shape, task.query.y.shape
      ((30, 8), (50,))
    """
    check_num_queries(num_queries)
    ranges = {
        name: as_range(name, value)
        for name, value in (("way", way), ("rows", rows), ("columns", columns))
    }
    check_integers(2, way=ranges["way"][0])
    most = (1 + LAYERS) * NODES - 1
    if ranges["columns"][1] > most:
        raise ValueError(
            f"`columns` must be at most {most}, the nodes of the random network "
            f"besides the class, got {ranges['columns'][1]}."
        )
    return TabularPrior(num_queries=num_queries, **ranges)


def _nodes(key: Array, num: int, num_causes: Array) -> tuple[Array, Array]:
    """Nodes `[num, (1 + LAYERS) * NODES]` of a random network; which is the target."""
    key_input, key_noise, key_target, key_kind, *key_layers = jax.random.split(
        key, 4 + LAYERS
    )
    low, high = (jnp.log(bound) for bound in NOISE)
    noise = jnp.exp(jax.random.uniform(key_noise, (), minval=low, maxval=high))
    inputs, values = _inputs(key_input, num)
    # Inputs that cause nothing are noise to a learner that is shown them.
    values = jnp.where(jnp.arange(NODES)[None, :] < num_causes, values, 0)
    is_linear = jax.random.bernoulli(key_kind, 0.15)
    layers = [inputs]
    for key_layer in key_layers:
        values = _layer(key_layer, values, noise, is_linear)
        layers.append(values)
    # Not an input, so that there is something to learn.
    target = jax.random.randint(key_target, (), NODES, (1 + LAYERS) * NODES)
    return jnp.concatenate(layers, axis=1), target


def _inputs(key: Array, num: int) -> tuple[Array, Array]:
    """Inputs `[num, NODES]` as they are seen, and as they act."""
    key_normal, key_cluster, key_share, key_is, key_level, key_effect = (
        jax.random.split(key, 6)
    )
    x = jax.random.normal(key_normal, (num, NODES))
    key_has, key_centre, key_which, key_apart = jax.random.split(key_cluster, 4)
    centres = jax.random.normal(key_centre, (CLUSTERS, NODES))
    which = jax.random.randint(key_which, (num,), 0, CLUSTERS)
    apart = jax.random.uniform(key_apart, minval=0.3, maxval=0.95)
    clustered = apart * centres[which] + jnp.sqrt(1 - apart**2) * x
    x = jnp.where(jax.random.bernoulli(key_has, 0.4), clustered, x)
    # None in a quarter of the tasks, all in a quarter, some in the others.
    share = jnp.clip(jax.random.uniform(key_share, minval=-0.5, maxval=1.5), 0, 1)
    is_category = jax.random.bernoulli(key_is, share, (NODES,))[None, :]
    levels = _levels(key_level, x)
    key_any, key_has = jax.random.split(key_effect)
    effects = jax.random.normal(key_any, (MOST_LEVELS, NODES))
    has_order = jax.random.bernoulli(key_has, 0.5, (NODES,))[None, :]
    effects = jnp.where(has_order, jnp.sort(effects, axis=0), effects)
    acts = jnp.take_along_axis(effects, levels, axis=0)
    return jnp.where(is_category, levels, x), jnp.where(is_category, acts, x)


def _levels(key: Array, x: Array) -> Array:
    """Columns `[n, d]` cut at values of 1 to 4 of their rows, int32 from 0 on."""
    key_row, key_num = jax.random.split(key)
    num, columns = x.shape
    rows = jax.random.randint(key_row, (MOST_LEVELS - 1, columns), 0, num)
    ends = jnp.take_along_axis(x, rows, axis=0)
    count = jax.random.randint(key_num, (columns,), 1, MOST_LEVELS)
    is_end = jnp.arange(MOST_LEVELS - 1)[:, None] < count[None, :]
    is_above = x[:, None, :] >= jnp.where(is_end, ends, jnp.inf)[None, :, :]
    return jnp.sum(is_above, axis=1)


def _layer(key: Array, x: Array, noise: Array, is_linear: Array) -> Array:
    """The next layer `[n, NODES]`, its nodes of mean 0 and size 1 before noise."""
    key_weight, key_share, key_has, key_kind, key_gain, key_bias, key_noise = (
        jax.random.split(key, 7)
    )
    share = jax.random.uniform(key_share, (), minval=0.05, maxval=0.6)
    has = jax.random.bernoulli(key_has, share, (NODES, NODES))
    has |= jnp.eye(NODES, dtype=bool)[jnp.arange(NODES) % MOST_CAUSES].T
    weights = jax.random.normal(key_weight, (NODES, NODES)) * has
    bias = jax.random.normal(key_bias, (NODES,))
    x = x @ weights / jnp.sqrt(jnp.sum(weights**2, axis=0))[None, :] + bias[None, :]
    # The more, the less alike to a line.
    x *= jnp.exp(jax.random.uniform(key_gain, (), minval=-0.5, maxval=1.5))
    # Mostly monotone, as most columns of real tables act.
    kinds = [_same, _same, jnp.tanh, jnp.tanh, jax.nn.relu, jnp.abs, jnp.sin, _step]
    kind = jax.random.randint(key_kind, (), 0, len(kinds))
    x = jax.lax.switch(jnp.where(is_linear, 0, kind), kinds, x)
    x = (x - jnp.mean(x, axis=0)[None, :]) / (jnp.std(x, axis=0) + 1e-3)[None, :]
    return x + noise * jax.random.normal(key_noise, x.shape)


def _same(x: Array) -> Array:
    return x


def _step(x: Array) -> Array:
    return (x > 0).astype(x.dtype)


def _cut(key: Array, values: Array, way: Array, most: int) -> Array:
    """Classes `[n]` of values `[n]` cut into `way` parts of random shares."""
    key_uneven, key_share = jax.random.split(key)
    uneven = jax.random.uniform(key_uneven, maxval=1.5)
    shares = jnp.exp(uneven * jax.random.normal(key_share, (most,)))
    shares = jnp.where(jnp.arange(most) < way, shares, 0.0)
    ends = jnp.cumsum(shares) / jnp.sum(shares)
    ranks = (jnp.argsort(jnp.argsort(values)) + 0.5) / values.shape[0]
    return jnp.minimum(jnp.sum(ranks[:, None] > ends[None, :], axis=1), way - 1)


def _nearest(key: Array, nodes: Array, target: Array, way: Array, most: int) -> Array:
    """Classes `[n]`: which of `way` rows is nearest in the target and up to 3 nodes."""
    key_node, key_num, key_row = jax.random.split(key, 3)
    others = jax.random.randint(key_node, (3,), NODES, nodes.shape[1])
    chosen = jnp.concatenate([target[None], others])
    is_used = jnp.arange(4) < jax.random.randint(key_num, (), 1, 5)
    values = nodes[:, chosen] * is_used[None, :]
    rows = jax.random.randint(key_row, (most,), 0, len(nodes))
    squares = jnp.sum((values[:, None, :] - values[None, rows, :]) ** 2, axis=2)
    squares = jnp.where(jnp.arange(most)[None, :] < way, squares, jnp.inf)
    return jnp.argmin(squares, axis=1)


def _few(key: Array, low: int, high: int) -> Array:
    """An integer from `low` to `high`, log-uniform."""
    ends = jnp.log(low), jnp.log(high + 1)
    power = jax.random.uniform(key, minval=ends[0], maxval=ends[1])
    return jnp.clip(jnp.exp(power).astype(jnp.int32), low, high)
