"""Meta-features: what one can say of a classification task before learning it.

A vector of 28 numbers describes the support set of a table, so that tasks can be
compared, for instance by `metajax.descriptions.warm_start`. The groups are
those of M. Feurer et al., "Efficient and Robust Automated Machine Learning", NeurIPS
2015 (auto-sklearn), of J. Vanschoren, "Meta-Learning: A Survey", 2018,
https://arxiv.org/abs/1810.03548, Table 1, and of E. Alcobaca et al., "MFE: Towards
reproducible meta-feature extraction", JMLR 21(111), 2020 (PyMFE):

* simple: `log_rows`, `log_columns`, `log_rows_per_column`, `log_classes` (natural
  logarithms; a class counts if it has a row), `smallest_class` and `largest_class`
  (shares of rows), `constant_columns` and `categorical_columns` (shares of columns),
  `distinct_values` (mean over columns of distinct values by rows, in (0, 1]).
* statistical, over numeric columns that vary: mean and standard deviation over columns
  of absolute skewness and of excess kurtosis, and `spread` (mean of standard deviation
  by range). Over all p columns that vary, with correlation matrix R: `correlation`
  (mean of |r| over pairs of columns), `first_component` (largest eigenvalue of R by p),
  `effective_columns` (p by ||R||_F^2: 1 for uncorrelated columns, 1 / p for copies).
* information, in nats, over columns cut into bins of equally many rows:
  `class_entropy` H(Y), `column_entropy` mean of H(X), `mutual_information_mean` and
  `..._max` of I(X; Y), `log_equivalent_columns` log(1 + H(Y) / I) and
  `log_noise_to_signal` log(1 + (H(X) - I) / I) with the means over columns, where I is
  taken as at least 0.001.
* landmarks: leave-one-out accuracies, in [0, 1], of the nearest neighbour, the nearest
  centroid, Gaussian naive Bayes, the ridge classifier with penalty 1, and the decision
  stump with the best balanced accuracy, all on standardised columns. They are exact and
  need no refitting: what leaving a row out changes is known in closed form.

Differs from these sources: logarithms keep ratios from dominating a distance. The
variances of naive Bayes have one pseudo-row of the column's variance, so that a class
of one row has one too. The stump weighs classes equally: a plain count would be turned
against the class of the row that is left out, and decide where classes have one size.
Ties (of neighbours, centroids, classes, splits) count as the mean over what is tied, so
that the order of rows and columns cannot matter. A feature that has nothing to speak of
(the correlation of one column) is 0, and so is the accuracy on a row without others.
"""

import jax
import jax.numpy as jnp

from metajax.checks import check_integers, check_parts
from metajax.descriptions.landmarkers import landmarks
from metajax.descriptions.prepared import Table, mean_and_sd, mean_where, prepare, ratio
from metajax.types import Array, Examples

__all__ = ["META_FEATURES", "meta_features"]

META_FEATURES = (
    "log_rows",
    "log_columns",
    "log_rows_per_column",
    "log_classes",
    "smallest_class",
    "largest_class",
    "constant_columns",
    "categorical_columns",
    "distinct_values",
    "skewness_mean",
    "skewness_sd",
    "kurtosis_mean",
    "kurtosis_sd",
    "spread",
    "correlation",
    "first_component",
    "effective_columns",
    "class_entropy",
    "column_entropy",
    "mutual_information_mean",
    "mutual_information_max",
    "log_equivalent_columns",
    "log_noise_to_signal",
    "nearest_neighbor",
    "nearest_centroid",
    "naive_bayes",
    "ridge",
    "stump",
)

# The least mutual information that others are divided by, in nats.
LEAST_INFORMATION = 1e-3


def meta_features(
    examples: Examples,
    *,
    num_classes: int,
    column_mask: Array | None = None,
    is_categorical: Array | None = None,
    num_bins: int = 5,
) -> Array:
    """Describes a classification task by its support set.

    A pure function for `jit` and, with tables padded to one shape, for `vmap`. It does
    not depend on the order of rows, of columns or of classes, nor on the units of a
    column: x and a x + b give the same for every a > 0. Time is of order n^2 N D,
    memory of n^2 + n N (N + D).

    Args:
      examples: `x`, finite numbers `[n, D]`, and `y`, labels `[n]` in [0, N). Rows that
        `mask` hides change nothing; at least one must be real. The range of a column
        must be finite too, which 1e38 and more would not be in 32 bits.
      num_classes: N, at least 1. Classes without a row change nothing.
      column_mask: None, or bool `[D]`: columns where it is False change nothing.
      is_categorical: None, or bool `[D]`: the numbers of these columns are names. They
        are left out of skewness, kurtosis and spread, and each value is a bin of its
        own. Correlations and landmarks take them as numbers; give every value a column
        if this is wrong.
      num_bins: into how many bins numeric columns are cut, at least 2. Equal values are
        never parted.

    Returns:
      `[len(META_FEATURES)]`, finite, in the order of `META_FEATURES`.

    Raises:
      ValueError: if `num_classes` or `num_bins` is out of range.
      AssertionError: at trace time, if shapes disagree.

    Example:
      >>> import jax
      >>> from metajax.tasks import synthetic_table
      >>> from metajax.descriptions import META_FEATURES, meta_features
      >>> support = synthetic_table(way=2, shot=16)(jax.random.key(0)).support
      >>> features = jax.jit(meta_features, static_argnames="num_classes")(
      ...     support, num_classes=2
      ... )
      >>> round(float(features[META_FEATURES.index("class_entropy")]), 2)
      0.69
    """
    check_parts(examples=examples)
    check_integers(1, num_classes=num_classes)
    check_integers(2, num_bins=num_bins)
    table = prepare(examples, num_classes, column_mask, is_categorical)
    codes = _cut(table, num_bins)
    # One decomposition for two purposes. Two of them in one program, under `vmap` on a
    # CPU with few cores, have been seen to wait for one another forever (jax 0.10.2).
    correlations = table.standard.T @ table.standard / table.num_rows
    spectrum = jnp.linalg.eigh(correlations)
    values = (
        _simple(table)
        | _shapes(table)
        | _correlation(table, correlations, spectrum.eigenvalues)
        | _information(table, codes)
        | landmarks(table, spectrum)
    )
    return jnp.stack([values[name] for name in META_FEATURES])


def _simple(table: Table) -> dict[str, Array]:
    counts = jnp.sum(table.labels, axis=0)
    num_columns = jnp.maximum(jnp.sum(table.columns), 1).astype(counts.dtype)
    num_varying = jnp.sum(table.varying)
    smallest = jnp.min(jnp.where(counts > 0, counts, table.num_rows))
    return {
        "log_rows": jnp.log(table.num_rows),
        "log_columns": jnp.log(num_columns),
        "log_rows_per_column": jnp.log(table.num_rows / num_columns),
        "log_classes": jnp.log(
            jnp.maximum(jnp.sum(counts > 0), 1).astype(counts.dtype)
        ),
        "smallest_class": smallest / table.num_rows,
        "largest_class": jnp.max(counts) / table.num_rows,
        "constant_columns": (jnp.sum(table.columns) - num_varying) / num_columns,
        "categorical_columns": jnp.sum(table.categorical) / num_columns,
    }


def _shapes(table: Table) -> dict[str, Array]:
    skewness = jnp.sum(table.standard**3, axis=0) / table.num_rows
    kurtosis = jnp.sum(table.standard**4, axis=0) / table.num_rows - 3
    skewness_mean, skewness_sd = mean_and_sd(jnp.abs(skewness), table.numeric)
    kurtosis_mean, kurtosis_sd = mean_and_sd(kurtosis, table.numeric)
    return {
        "skewness_mean": skewness_mean,
        "skewness_sd": skewness_sd,
        "kurtosis_mean": kurtosis_mean,
        "kurtosis_sd": kurtosis_sd,
        "spread": mean_where(table.deviations, table.numeric),
    }


def _correlation(
    table: Table, correlations: Array, eigenvalues: Array
) -> dict[str, Array]:
    count = jnp.sum(table.varying)
    absolute = jnp.sum(jnp.abs(correlations)) - jnp.trace(correlations)
    return {
        "correlation": ratio(absolute, count * (count - 1)),
        "first_component": ratio(eigenvalues[-1], count),
        "effective_columns": ratio(count, jnp.sum(jnp.square(correlations))),
    }


def _cut(table: Table, num_bins: int) -> Array:
    """Numbers of bins `[n, D]`; the values themselves in categorical columns.

    A row's bin is that of the middle of the rows with its value, as a share of all
    rows. Integers, so that no rounding moves a row over a border.
    """
    num = jnp.sum(table.rows)

    def cut(column: Array) -> Array:
        below = jnp.sum(
            (column[None, :] < column[:, None]) & table.rows[None, :], axis=1
        )
        equal = jnp.sum(
            (column[None, :] == column[:, None]) & table.rows[None, :], axis=1
        )
        return num_bins * (2 * below + equal) // (2 * jnp.maximum(num, 1))

    bins = jax.lax.map(cut, table.unit.T).T
    return jnp.where(
        table.categorical[None, :], table.unit, bins.astype(table.unit.dtype)
    )


def _information(table: Table, codes: Array) -> dict[str, Array]:
    """Entropies as means over rows: -log of the share of rows that agree with a row."""
    pairs = table.rows[:, None] & table.rows[None, :]
    same_class = (table.labels @ table.labels.T > 0) & pairs

    def mean_log(shares: Array) -> Array:
        logs = jnp.log(jnp.where(table.rows, shares, 1))
        return jnp.sum(logs) / table.num_rows

    def count(agree: Array) -> Array:
        return jnp.sum(agree, axis=1) / table.num_rows

    class_entropy = -mean_log(count(same_class))

    def describe(columns: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        values, codes = columns
        same_value = (values[:, None] == values[None, :]) & pairs
        same_code = (codes[:, None] == codes[None, :]) & pairs
        copies = jnp.maximum(jnp.sum(same_value, axis=1), 1)
        distinct = jnp.sum(jnp.where(table.rows, 1 / copies, 0)) / table.num_rows
        entropy = -mean_log(count(same_code))
        joint_entropy = -mean_log(count(same_code & same_class))
        information = entropy + class_entropy - joint_entropy
        return distinct, entropy, jnp.maximum(information, 0)

    distinct, entropies, informations = jax.lax.map(describe, (table.unit.T, codes.T))
    entropy = mean_where(entropies, table.columns)
    information = mean_where(informations, table.columns)
    divisor = jnp.maximum(information, LEAST_INFORMATION)
    noise = jnp.maximum(entropy - information, 0)
    return {
        "distinct_values": mean_where(distinct, table.columns),
        "class_entropy": class_entropy,
        "column_entropy": entropy,
        "mutual_information_mean": information,
        "mutual_information_max": jnp.max(jnp.where(table.columns, informations, 0)),
        "log_equivalent_columns": jnp.log1p(class_entropy / divisor),
        "log_noise_to_signal": jnp.log1p(noise / divisor),
    }
