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

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from metajax.checks import check_integers
from metajax.objectives import class_vectors
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

# What counts as a tie, relative to the size of what is compared: above rounding.
TIE = 1e-4
# The least mutual information that others are divided by, in nats.
LEAST_INFORMATION = 1e-3


class _Table(NamedTuple):
    """A support set, ready to be described.

    Attributes:
      rows: bool `[n]`, real rows; below, `n` is also their number, `num_rows`.
      columns: bool `[D]`, real columns.
      varying: bool `[D]`, real columns with two values or more.
      numeric: bool `[D]`, varying columns that are not categorical.
      categorical: bool `[D]`, real columns that are.
      unit: `[n, D]`, columns scaled to [0, 1]; 0 in constant columns and in padding.
      standard: `[n, D]`, columns with mean 0 and variance 1, likewise.
      deviations: `[D]`, standard deviations of `unit`, 1 for constant columns.
      labels: one-hot `[n, N]`, 0 in padding.
      num_rows: scalar, at least 1.
    """

    rows: Array
    columns: Array
    varying: Array
    numeric: Array
    categorical: Array
    unit: Array
    standard: Array
    deviations: Array
    labels: Array
    num_rows: Array


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
      >>> from metajax import synthetic_table
      >>> from metajax.descriptions.table_features import META_FEATURES, meta_features
      >>> support = synthetic_table(way=2, shot=16)(jax.random.key(0)).support
      >>> features = jax.jit(meta_features, static_argnames="num_classes")(
      ...     support, num_classes=2
      ... )
      >>> round(float(features[META_FEATURES.index("class_entropy")]), 2)
      0.69
    """
    check_integers(1, num_classes=num_classes)
    check_integers(2, num_bins=num_bins)
    table = _prepare(examples, num_classes, column_mask, is_categorical)
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
        | _landmarks(table, spectrum)
    )
    return jnp.stack([values[name] for name in META_FEATURES])


def _prepare(
    examples: Examples, num_classes: int, column_mask: Any, is_categorical: Any
) -> _Table:
    x, y = jnp.asarray(examples.x), jnp.asarray(examples.y)
    chex.assert_rank([x, y], [2, 1])
    chex.assert_equal_shape_prefix([x, y], 1)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float32)
    num, size = x.shape
    rows = _mask(examples.mask, num)
    columns = _mask(column_mask, size)
    categorical = columns & _mask(is_categorical, size, default=False)
    is_real = rows[:, None] & columns[None, :]
    low = jnp.min(jnp.where(is_real, x, jnp.inf), axis=0)
    high = jnp.max(jnp.where(is_real, x, -jnp.inf), axis=0)
    # A range, not a variance: in 32 bits, that of a constant column may not be 0. For
    # hidden columns it is minus infinity.
    varying = high - low >= jnp.finfo(x.dtype).tiny
    extent = jnp.where(varying, high - low, 1)
    is_used = rows[:, None] & varying[None, :]
    unit = jnp.where(is_used, (x - low[None, :]) / extent[None, :], 0)
    num_rows = jnp.maximum(jnp.sum(rows), 1).astype(x.dtype)
    means = jnp.sum(unit, axis=0) / num_rows
    centered = jnp.where(is_used, unit - means[None, :], 0)
    variances = jnp.sum(jnp.square(centered), axis=0) / num_rows
    deviations = jnp.sqrt(jnp.where(varying, variances, 1))
    labels = class_vectors(y, num_classes, x.dtype)
    return _Table(
        rows=rows,
        columns=columns,
        varying=varying,
        numeric=varying & ~categorical,
        categorical=categorical,
        unit=unit,
        standard=centered / deviations[None, :],
        deviations=deviations,
        labels=jnp.where(rows[:, None], labels, 0),
        num_rows=num_rows,
    )


def _mask(mask: Any, size: int, *, default: bool = True) -> Array:
    if mask is None:
        return jnp.full(size, default)
    mask = jnp.asarray(mask, bool)
    chex.assert_shape(mask, (size,))
    return mask


def _mean(values: Array, where: Array) -> Array:
    """Mean of `values` `[D]` where `where` is True, 0 if it nowhere is."""
    count = jnp.maximum(jnp.sum(where), 1)
    return jnp.sum(jnp.where(where, values, 0)) / count


def _mean_and_sd(values: Array, where: Array) -> tuple[Array, Array]:
    mean = _mean(values, where)
    return mean, jnp.sqrt(_mean(jnp.square(values - mean), where))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient, 0 where the denominator is not positive."""
    is_positive = denominator > 0
    return jnp.where(is_positive, numerator / jnp.where(is_positive, denominator, 1), 0)


def _simple(table: _Table) -> dict[str, Array]:
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


def _shapes(table: _Table) -> dict[str, Array]:
    skewness = jnp.sum(table.standard**3, axis=0) / table.num_rows
    kurtosis = jnp.sum(table.standard**4, axis=0) / table.num_rows - 3
    skewness_mean, skewness_sd = _mean_and_sd(jnp.abs(skewness), table.numeric)
    kurtosis_mean, kurtosis_sd = _mean_and_sd(kurtosis, table.numeric)
    return {
        "skewness_mean": skewness_mean,
        "skewness_sd": skewness_sd,
        "kurtosis_mean": kurtosis_mean,
        "kurtosis_sd": kurtosis_sd,
        "spread": _mean(table.deviations, table.numeric),
    }


def _correlation(
    table: _Table, correlations: Array, eigenvalues: Array
) -> dict[str, Array]:
    count = jnp.sum(table.varying)
    absolute = jnp.sum(jnp.abs(correlations)) - jnp.trace(correlations)
    return {
        "correlation": _ratio(absolute, count * (count - 1)),
        "first_component": _ratio(eigenvalues[-1], count),
        "effective_columns": _ratio(count, jnp.sum(jnp.square(correlations))),
    }


def _cut(table: _Table, num_bins: int) -> Array:
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


def _information(table: _Table, codes: Array) -> dict[str, Array]:
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
    entropy = _mean(entropies, table.columns)
    information = _mean(informations, table.columns)
    divisor = jnp.maximum(information, LEAST_INFORMATION)
    noise = jnp.maximum(entropy - information, 0)
    return {
        "distinct_values": _mean(distinct, table.columns),
        "class_entropy": class_entropy,
        "column_entropy": entropy,
        "mutual_information_mean": information,
        "mutual_information_max": jnp.max(jnp.where(table.columns, informations, 0)),
        "log_equivalent_columns": jnp.log1p(class_entropy / divisor),
        "log_noise_to_signal": jnp.log1p(noise / divisor),
    }


def _landmarks(table: _Table, spectrum: Any) -> dict[str, Array]:
    credits = {
        "nearest_neighbor": _nearest_neighbor(table),
        "nearest_centroid": _nearest_centroid(table),
        "naive_bayes": _naive_bayes(table),
        "ridge": _ridge(table, *spectrum),
        "stump": _stump(table),
    }
    return {name: _mean(credit, table.rows) for name, credit in credits.items()}


def _credit(table: _Table, scores: Array) -> Array:
    """Chance `[n]` that a row's class is drawn from those with the highest score.

    Args:
      table: the support set.
      scores: `[n, N]`, of each class for each row. Classes without another row do not
        stand for election.
    """
    others = jnp.sum(table.labels, axis=0)[None, :] - table.labels
    scores = jnp.where(others > 0, scores, -jnp.inf)
    best = jnp.max(scores, axis=1, keepdims=True)
    is_best = (others > 0) & (scores >= best - TIE * (1 + jnp.abs(best)))
    return _ratio(jnp.sum(is_best * table.labels, axis=1), jnp.sum(is_best, axis=1))


def _nearest_neighbor(table: _Table) -> Array:
    num = len(table.rows)

    def add(total: Array, column: Array) -> tuple[Array, None]:
        # Differences rather than products, so that those of equal rows are 0.
        return total + jnp.square(column[:, None] - column[None, :]), None

    columns = (table.unit / table.deviations[None, :]).T
    squares, _ = jax.lax.scan(add, jnp.zeros((num, num), columns.dtype), columns)
    is_other = table.rows[None, :] & ~jnp.eye(num, dtype=bool)
    squares = jnp.where(is_other, squares, jnp.inf)
    nearest = jnp.min(squares, axis=1, keepdims=True)
    is_nearest = is_other & (squares <= nearest * (1 + TIE))
    same_class = table.labels @ table.labels.T
    return _ratio(jnp.sum(is_nearest * same_class, axis=1), jnp.sum(is_nearest, axis=1))


def _moments(table: _Table) -> tuple[Array, Array, Array]:
    """How rows lie around the means of the classes, in standardised columns.

    Returns:
      Sizes of classes `[N]`; differences `[n, N, D]` of all rows from all means; sums
      of their squares `[N, D]` over the rows of the class.
    """
    sizes = jnp.sum(table.labels, axis=0)
    means = table.labels.T @ table.standard / jnp.maximum(sizes, 1)[:, None]
    differences = table.standard[:, None, :] - means[None, :, :]
    squares = jnp.sum(table.labels[:, :, None] * jnp.square(differences), axis=0)
    return sizes, differences, squares


def _nearest_centroid(table: _Table) -> Array:
    sizes, differences, _ = _moments(table)
    # Without row i, the mean of its class of c rows is c / (c - 1) times as far away.
    growth = sizes / jnp.maximum(sizes - 1, 1)
    factors = jnp.where(table.labels > 0, growth[None, :], 1)
    distances = jnp.sum(jnp.square(differences), axis=2) * jnp.square(factors)
    return _credit(table, -distances)


def _naive_bayes(table: _Table) -> Array:
    sizes, differences, squares = _moments(table)
    is_own = table.labels[:, :, None] > 0
    rest = sizes[None, :, None] - is_own  # sizes without row i, [n, N, 1]
    growth = sizes / jnp.maximum(sizes - 1, 1)
    growth = growth[None, :, None]
    # Without row i, the sum of squares of its class falls by this much.
    own_squares = squares[None, :, :] - growth * jnp.square(differences)
    left_squares = jnp.where(is_own, jnp.maximum(own_squares, 0), squares[None, :, :])
    variances = (left_squares + 1) / (rest + 1)  # one pseudo-row of variance 1
    distances = jnp.where(is_own, growth, 1) * differences
    logs = -0.5 * (jnp.log(variances) + jnp.square(distances) / variances)
    # In constant columns, only the number of rows would speak.
    evidence = jnp.sum(jnp.where(table.varying[None, None, :], logs, 0), axis=2)
    prior = jnp.log(jnp.maximum(rest[:, :, 0], 1))
    return _credit(table, prior + evidence)


def _ridge(table: _Table, eigenvalues: Array, eigenvectors: Array) -> Array:
    """Least squares on one-hot labels, an intercept without penalty, penalty 1.

    In the coordinates of the eigenvectors, the columns are uncorrelated, and their sums
    of squares are n times the eigenvalues of the correlation matrix.
    """
    coordinates = table.standard @ eigenvectors
    shrunk = coordinates / (table.num_rows * eigenvalues + 1)[None, :]
    shares = jnp.sum(table.labels, axis=0) / table.num_rows
    fitted = shares[None, :] + coordinates @ (shrunk.T @ table.labels)
    leverage = jnp.sum(coordinates * shrunk, axis=1) + 1 / table.num_rows
    # The prediction for a row of the fit without it.
    left = jnp.maximum(1 - leverage, jnp.finfo(fitted.dtype).eps)
    predicted = (fitted - leverage[:, None] * table.labels) / left[:, None]
    return _credit(table, predicted)


def _stump(table: _Table) -> Array:
    """The best split of one column into two sides, each of which says one class.

    Splits are between the values of a column, row i's own included. On its side, each
    class has a share of its rows; a side says the class with the largest share, and the
    best split is the one with the largest sum of the two (balanced accuracy).
    """
    labels = table.labels
    sizes = jnp.sum(labels, axis=0)
    rest = labels @ sizes - 1  # rows of row i's class without it
    not_own = jnp.where(jnp.eye(len(sizes), dtype=bool), -jnp.inf, 0)

    def rivals(counts: Array) -> tuple[Array, Array]:
        """Largest share `[n, N]` among the other classes, and how many have it."""
        shares = jnp.where(sizes > 0, counts / jnp.maximum(sizes, 1)[None, :], -1)
        shares = shares[:, None, :] + not_own[None, :, :]
        most = jnp.max(shares, axis=2)
        return most, jnp.sum(_is_close(shares, most[:, :, None]), axis=2)

    def visit(
        state: tuple[Array, Array, Array], column: Array
    ) -> tuple[tuple[Array, Array, Array], None]:
        best, weight, credit = state
        is_left = column[None, :] <= column[:, None]  # [split, row]
        left = (is_left & table.rows[None, :]) @ labels
        right = sizes[None, :] - left
        (left_most, left_ties), (right_most, right_ties) = rivals(left), rivals(right)
        # What concerns row i: its own class without it, and the others, on both sides.
        own_left = (left @ labels.T - is_left) / jnp.maximum(rest, 1)[None, :]
        own_right = (right @ labels.T - ~is_left) / jnp.maximum(rest, 1)[None, :]
        left_most, right_most = left_most @ labels.T, right_most @ labels.T
        value = jnp.maximum(own_left, left_most) + jnp.maximum(own_right, right_most)
        own = jnp.where(is_left, own_left, own_right)
        most = jnp.where(is_left, left_most, right_most)
        ties = jnp.where(is_left, left_ties @ labels.T, right_ties @ labels.T)
        says = jnp.where(_is_close(own, most), 1 / (1 + ties), own > most)
        # Rows with one value are one split. That behind the last value, the only one of
        # a constant column, is as good as a guess, and so are those it can tie with.
        copies = jnp.sum(
            (column[None, :] == column[:, None]) & table.rows[None, :], axis=1
        )
        value = jnp.where(table.rows[:, None], value, 0)
        share = 1 / jnp.maximum(copies, 1)
        new_best = jnp.maximum(best, jnp.max(value, axis=0))
        is_best = _is_close(value, new_best[None, :]) * share[:, None]
        stays = _is_close(best, new_best)
        weight = jnp.where(stays, weight, 0) + jnp.sum(is_best, axis=0)
        credit = jnp.where(stays, credit, 0) + jnp.sum(is_best * says, axis=0)
        return (new_best, weight, credit), None

    none = jnp.zeros(len(table.rows), labels.dtype)
    (_, weight, credit), _ = jax.lax.scan(visit, (none, none, none), table.unit.T)
    return jnp.where(rest > 0, _ratio(credit, weight), 0)


def _is_close(first: Array, second: Array) -> Array:
    """Whether shares of rows are equal but for rounding."""
    return jnp.abs(first - second) < 1e-5
