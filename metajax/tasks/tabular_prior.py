"""A prior over tables: rows of random causal models, of any width and classes.

S. Müller, N. Hollmann, S. Pineda Arango, J. Grabocka, F. Hutter, "Transformers Can Do
Bayesian Inference", ICLR 2022, https://arxiv.org/abs/2112.10510, and N. Hollmann,
S. Müller, K. Eggensperger, F. Hutter, "TabPFN", ICLR 2023,
https://arxiv.org/abs/2207.01848, section 4, whose idea it follows in a smaller form. A
network that is trained on its tasks and then asked about a real table has a prior over
tables in place of a method for them (`metajax.in_context` with `context=None`).

A task is drawn inside `jit`:

* a random network: up to six causes among its inputs, layers of nodes with sparse
  random weights, one activation for each layer and noise on every node;
* its columns are nodes: of any layer, so that some are causes of the class and others
  its effects, or inputs alone. Some are warped, some cut into a few levels, as counts
  and categories are;
* the class is a further node, cut at random shares into 2 or more classes, which are
  then numbered at random; a few labels are wrong;
* columns are standardised by the support set.

Its tasks differ in rows, columns and classes; they share one shape by masks, by columns
of 0, and by classes that do not occur.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from metajax.arguments import check_integers
from metajax.tasks.sizes import as_range, check_num_queries
from metajax.tasks.table_tasks import by_support
from metajax.types import Array, Examples, Task

__all__ = ["TabularPrior", "tabular_prior"]

NODES, LAYERS, MOST_CAUSES = 24, 3, 6
# Standard deviation of what is added to a node, whose own is about 1.
NOISE = (0.01, 0.2)
WRONG_LABELS = (0.0, 0.05)


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
        keys = jax.random.split(key, 4)
        num = self.rows[1] + self.num_queries
        nodes, target = _nodes(keys[0], num)
        x = self._columns(keys[1], nodes, target)
        y = self._labels(keys[2], nodes[:, target])
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

    def _columns(self, key: Array, nodes: Array, target: Array) -> Array:
        """Chosen nodes `[n, D]`, warped and cut, and columns of 0 beyond them."""
        key_mode, key_node, key_warp, key_cut, key_num = jax.random.split(key, 5)
        total, most = nodes.shape[1], self.columns[1]
        # Inputs first, in half of the tasks: they are the first layer's.
        place = jnp.arange(total)
        prefers = (place < NODES) + 0.5 * (place < MOST_CAUSES)
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
        levels = jax.random.randint(key_levels, (most,), 2, 6)
        ranks = jnp.argsort(jnp.argsort(x, axis=0), axis=0) / x.shape[0]
        cut = jnp.floor(ranks * levels[None, :])
        is_cut = jax.random.bernoulli(key_is, 0.25, (most,))
        x = jnp.where(is_cut[None, :], cut, x)
        num = jax.random.randint(key_num, (), self.columns[0], most + 1)
        return jnp.where(jnp.arange(most)[None, :] < num, x, 0.0)

    def _labels(self, key: Array, values: Array) -> Array:
        """Classes int32 `[n]` of the values of the target's node `[n]`."""
        key_way, key_share, key_name, key_rate, key_wrong, key_other = jax.random.split(
            key, 6
        )
        most = self.way[1]
        way = jax.random.randint(key_way, (), self.way[0], most + 1)
        shares = 0.5 + jax.random.exponential(key_share, (most,))
        shares = jnp.where(jnp.arange(most) < way, shares, 0.0)
        ends = jnp.cumsum(shares) / jnp.sum(shares)
        ranks = (jnp.argsort(jnp.argsort(values)) + 0.5) / values.shape[0]
        labels = jnp.sum(ranks[:, None] > ends[None, :], axis=1)
        # Names are those of the classes that there are, in random order.
        order = jax.random.uniform(key_name, (most,)) + (jnp.arange(most) >= way)
        names = jnp.argsort(order)
        low, high = WRONG_LABELS
        rate = jax.random.uniform(key_rate, (), minval=low, maxval=high)
        is_wrong = jax.random.bernoulli(key_wrong, rate, values.shape)
        other = jax.random.randint(key_other, values.shape, 0, way)
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
      >>> from metajax import tabular_prior
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


def _nodes(key: Array, num: int) -> tuple[Array, Array]:
    """Nodes `[num, (1 + LAYERS) * NODES]` of a random network; which is the target."""
    key_input, key_noise, key_target, key_cause, *key_layers = jax.random.split(
        key, 3 + LAYERS
    )
    low, high = (jnp.log(bound) for bound in NOISE)
    noise = jnp.exp(jax.random.uniform(key_noise, (), minval=low, maxval=high))
    inputs = jax.random.normal(key_input, (num, NODES))
    # Inputs that cause nothing are noise to a learner that is shown them.
    num_causes = jax.random.randint(key_cause, (), 1, MOST_CAUSES + 1)
    values = jnp.where(jnp.arange(NODES)[None, :] < num_causes, inputs, 0)
    layers = [inputs]
    for key_layer in key_layers:
        values = _layer(key_layer, values, noise)
        layers.append(values)
    # Not an input, so that there is something to learn.
    target = jax.random.randint(key_target, (), NODES, (1 + LAYERS) * NODES)
    return jnp.concatenate(layers, axis=1), target


def _layer(key: Array, x: Array, noise: Array) -> Array:
    """The next layer `[n, NODES]`, its nodes of mean 0 and size 1 before noise."""
    key_weight, key_share, key_has, key_kind, key_bias, key_noise = jax.random.split(
        key, 6
    )
    share = jax.random.uniform(key_share, (), minval=0.05, maxval=0.6)
    has = jax.random.bernoulli(key_has, share, (NODES, NODES))
    has |= jnp.eye(NODES, dtype=bool)[jnp.arange(NODES) % MOST_CAUSES].T
    weights = jax.random.normal(key_weight, (NODES, NODES)) * has
    bias = jax.random.normal(key_bias, (NODES,))
    x = x @ weights / jnp.sqrt(jnp.sum(weights**2, axis=0))[None, :] + bias[None, :]
    # Mostly monotone, as most columns of real tables act.
    kinds = [jnp.tanh, jnp.tanh, _same, _same, jax.nn.relu, jnp.abs, jnp.sin]
    x = jax.lax.switch(jax.random.randint(key_kind, (), 0, len(kinds)), kinds, x)
    x = (x - jnp.mean(x, axis=0)[None, :]) / (jnp.std(x, axis=0) + 1e-3)[None, :]
    return x + noise * jax.random.normal(key_noise, x.shape)


def _same(x: Array) -> Array:
    return x
