"""Dataset2Vec: meta-features of tables that are learned, not designed.

H. Jomaa, L. Schmidt-Thieme, J. Grabocka, "Dataset2Vec: Learning Dataset Meta-Features",
Data Mining and Knowledge Discovery 2021, https://arxiv.org/abs/1905.11063.

A table is a set of columns and a set of classes, and each pair of these a set of cells:

    e = h(mean over columns m and classes t of g(mean over rows n of f(x_nm, y_nt)))

where y_nt is 1 if row n has class t, else 0; f, g and h are small networks. So e does
not depend on the order of rows, columns or classes, and tables of any width share one
network. It is trained to say whether two samples of rows come from the same table,

    p(same) = exp(-gamma |e - e'|)

by cross-entropy, over as many pairs of one table as of two.

In terms of a `Learner`, the support set is one sample of a table, which `adapt` embeds;
a query is another sample, its target whether it is of the same table (1) or not (0);
`predict` gives log(1 - p) and log p. `metajax.tasks.table_pairs` draws such tasks. For
the embedding alone, `adapt` takes the support set of any classification task:

    e = learner.adapt(meta_params, support).embedding

f is a function of one number for each of two targets. It is evaluated on a grid of
these numbers and interpolated linearly, which makes it cheap: the mean over rows of f
is then a product of f on the grid, `2 G` evaluations in all, with a histogram of each
column and class, in which a value counts for the two points that it lies between.

Differs from the paper: that grid, from -4 to 4 standard deviations, with what lies
beyond moved to its ends; columns are standardised by the rows of the sample, so that
the units of a column are without effect, and those with a single value there are left
out, so that columns of padding are too; networks are smaller. |e - e'| is the distance
of the paper; its code takes the square.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from metajax.checks import check_integers, check_positive
from metajax.masks import hide_padding
from metajax.models.deep_sets import Layers, set_mean
from metajax.objectives import class_vectors, cross_entropy, query_loss
from metajax.types import Array, Examples, Learner, PyTree, Task

__all__ = ["EmbeddedTable", "dataset2vec"]

# The grid on which f is evaluated, in standard deviations.
_REACH, _GRID = 4.0, 33
_SPACING = 2 * _REACH / (_GRID - 1)
# Below the square root of a distance's square: it has a gradient where it is 0.
_SMALL = 1e-12


class EmbeddedTable(NamedTuple):
    """What one sample of a table teaches.

    Attributes:
      params: of the network.
      embedding: e `[size]`.
    """

    params: PyTree
    embedding: Array


class _Residual(nn.Module):
    """A dense layer, then blocks of two that are added to what they are given."""

    units: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Layers((self.units,))(x)
        for _ in range(self.blocks):
            x = nn.relu(x + Layers((self.units, self.units), ends_linear=True)(x))
        return x


class _Network(nn.Module):
    size: int
    units: int
    blocks: int

    @nn.compact
    def __call__(
        self, x: Array, labels: Array, is_row: Array, is_column: Array
    ) -> Array:
        """Embeds columns `[n, D]` with one-hot labels `[n, C]`, 0 in padding."""
        grid = jnp.linspace(-_REACH, _REACH, _GRID)
        cells = jnp.stack(jnp.meshgrid(jnp.arange(2.0), grid, indexing="ij"), axis=-1)
        f = _Residual(self.units, self.blocks, name="f")(cells)
        # How much each value counts for each point `[n, D, G]`, its sum over all rows,
        # over those of each class `[C, D, G]`, and the means `[D, C, units]`.
        offsets = jnp.clip(x, -_REACH, _REACH)[..., None] - grid[None, None, :]
        counts = jnp.maximum(1 - jnp.abs(offsets) / _SPACING, 0)
        of_class = jnp.tensordot(labels.T, counts, 1)
        others = jnp.tensordot(is_row.astype(x.dtype), counts, 1)[None] - of_class
        sums = others @ f[0] + of_class @ f[1]
        means = jnp.swapaxes(sums, 0, 1) / jnp.maximum(jnp.sum(is_row), 1)
        pairs = Layers((self.units, self.units), name="g")(means)
        is_class = jnp.sum(labels, axis=0) > 0
        pooled = set_mean(jax.vmap(set_mean, (0, None))(pairs, is_class), is_column)
        e = _Residual(self.units, self.blocks, name="h")(pooled)
        return nn.Dense(self.size, name="e")(e)


def dataset2vec(
    *,
    num_classes: int,
    code_size: int = 16,
    units: int = 32,
    blocks: int = 2,
    gamma: float = 1.0,
) -> Learner:
    """Builds Dataset2Vec.

    Choose it beside `meta_features` to compare tables, or where a gradient has to pass
    through the comparison: what makes two samples of one table alike is learned, and
    not said. Trained on about 37 tables of PMLB, it told held-out ones apart less well
    than `meta_features` (86 against 98 % of samples, `benchmarks/task_map.py`).

    Args:
      num_classes: C, the most classes a table may have; labels are below it. Classes
        without a row change nothing, so a larger one costs time only.
      code_size: of the embedding.
      units: of the layers of f, g and h.
      blocks: residual blocks of two layers in f and h each, at least 0.
      gamma: of the probability, above 0.

    Returns:
      A learner whose support is `Examples` of a table, `x` `[n, D]` and labels `[n]`,
      and whose query `x` is `Examples` of Q samples, `[Q, n, D]` and `[Q, n]`, with
      labels `[Q]`, 1 if the table is the same. `adapted` is `EmbeddedTable`; `predict`
      gives log-probabilities `[Q, 2]`. Neither n nor D need be those of training.

    Raises:
      ValueError: if an argument is out of range; in all four functions, if the query
        does not consist of samples of tables or `x` of a table is not `[n, D]`.

    Example:
      >>> from metajax.learners import dataset2vec
      >>> from metajax.tasks import table_pairs
      >>> pairs = table_pairs(tables, rows=(20, 40))
      >>> learner = dataset2vec(num_classes=3)
      >>> task = pairs(jax.random.key(0))
      >>> meta_params = learner.init(jax.random.key(1), task)
      >>> learner.adapt(meta_params, task.support).embedding.shape
      (16,)
    """
    check_integers(1, num_classes=num_classes, code_size=code_size, units=units)
    check_integers(0, blocks=blocks)
    check_positive(gamma=gamma)
    network = _Network(code_size, units, blocks)

    def init(key: Array, task: Task) -> PyTree:
        _check_samples(task.query.x)
        return network.init(key, *_prepare(task.support, num_classes))

    def embed(params: PyTree, examples: Examples) -> Array:
        return cast(Array, network.apply(params, *_prepare(examples, num_classes)))

    def adapt(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> EmbeddedTable:
        del key
        return EmbeddedTable(meta_params, embed(meta_params, support))

    def predict(
        adapted: EmbeddedTable,
        inputs: Examples,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> Array:
        del key
        _check_samples(inputs)
        samples = hide_padding(inputs, mask)
        others = jax.vmap(embed, (None, 0))(adapted.params, samples)
        squares = jnp.sum(jnp.square(others - adapted.embedding[None]), axis=1)
        log_p = -gamma * jnp.sqrt(squares + _SMALL)
        return jnp.stack([jnp.log(-jnp.expm1(log_p)), log_p], axis=1)

    return Learner(init, adapt, predict, query_loss(adapt, predict, cross_entropy))


def _check_samples(inputs: Any) -> None:
    if not isinstance(inputs, Examples):
        raise ValueError(
            "Queries of Dataset2Vec are samples of tables, `Examples` with a leading "
            f"axis of samples in place of inputs, got {type(inputs).__name__}; "
            "`metajax.tasks.table_pairs` draws such tasks."
        )


def _prepare(examples: Examples, num_classes: int) -> tuple[Array, Array, Array, Array]:
    """Standard columns, one-hot labels, which rows are real, which columns vary."""
    x, y, mask = examples
    if x.ndim != 2:
        raise ValueError(
            f"A table is rows and columns, `x` [n, D], got {list(x.shape)}; flatten "
            "the inputs or embed them first."
        )
    is_row = jnp.ones(len(y), bool) if mask is None else mask
    where = is_row[:, None]
    x = jnp.where(where, x, 0).astype(jnp.float32)
    low = jnp.min(jnp.where(where, x, jnp.inf), axis=0, keepdims=True)
    high = jnp.max(jnp.where(where, x, -jnp.inf), axis=0, keepdims=True)
    # A range, not a variance, which rounding keeps from being 0 where it should be.
    varies = high > low
    unit = jnp.where(where & varies, (x - low) / jnp.where(varies, high - low, 1), 0)
    center = unit - set_mean(unit, is_row)[None, :]
    variance = set_mean(jnp.square(center), is_row)[None, :]
    standard = center / jnp.sqrt(jnp.where(varies, variance, 1))
    labels = class_vectors(y, num_classes)
    return (
        jnp.where(where & varies, standard, 0),
        jnp.where(where, labels, 0),
        is_row,
        varies[0],
    )
