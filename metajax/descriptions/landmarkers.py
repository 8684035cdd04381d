"""Landmarkers: how well quick classifiers do on a table, leaving one row out.

Each gives the chance, of every row, that it is given its class by a classifier fitted
to the other rows, in closed form rather than by fitting n times.
"""

from typing import Any

import jax
import jax.numpy as jnp

from metajax.descriptions.prepared import TIE, Table, mean_where, ratio
from metajax.types import Array

__all__ = ["landmarks"]


def landmarks(table: Table, spectrum: Any) -> dict[str, Array]:
    """Gives the accuracy of each landmarker, in [0, 1], by name.

    Args:
      table: the support set.
      spectrum: eigenvalues and eigenvectors of the correlations of its columns.
    """
    credits = {
        "nearest_neighbor": _nearest_neighbor(table),
        "nearest_centroid": _nearest_centroid(table),
        "naive_bayes": _naive_bayes(table),
        "ridge": _ridge(table, *spectrum),
        "stump": _stump(table),
    }
    return {name: mean_where(credit, table.rows) for name, credit in credits.items()}


def _credit(table: Table, scores: Array) -> Array:
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
    return ratio(jnp.sum(is_best * table.labels, axis=1), jnp.sum(is_best, axis=1))


def _nearest_neighbor(table: Table) -> Array:
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
    return ratio(jnp.sum(is_nearest * same_class, axis=1), jnp.sum(is_nearest, axis=1))


def _moments(table: Table) -> tuple[Array, Array, Array]:
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


def _nearest_centroid(table: Table) -> Array:
    sizes, differences, _ = _moments(table)
    # Without row i, the mean of its class of c rows is c / (c - 1) times as far away.
    growth = sizes / jnp.maximum(sizes - 1, 1)
    factors = jnp.where(table.labels > 0, growth[None, :], 1)
    distances = jnp.sum(jnp.square(differences), axis=2) * jnp.square(factors)
    return _credit(table, -distances)


def _naive_bayes(table: Table) -> Array:
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


def _ridge(table: Table, eigenvalues: Array, eigenvectors: Array) -> Array:
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


def _stump(table: Table) -> Array:
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
        """Finds the largest share `[n, N]` of other classes, and how many have it."""
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
        # Rows with one value are one split. That after the last value, the only one of
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
    return jnp.where(rest > 0, ratio(credit, weight), 0)


def _is_close(first: Array, second: Array) -> Array:
    """Whether shares of rows are equal but for rounding."""
    return jnp.abs(first - second) < 1e-5
