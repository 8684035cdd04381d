"""Pairs of samples: where rows and columns come from, sizes, and errors."""

import jax
import numpy as np
import pytest

from metajax.tasks.tables.table_pairs import table_pairs
from metajax.tasks.tables.tables import Table
from metajax.tasks.task_checks import check_task

SIZES, WIDTHS = (8, 30, 40), (2, 5, 3)


def make_table(number, rows, columns):
    """Each cell says its table, row and column."""
    x = 10_000 * (number + 1) + 10 * np.arange(rows)[:, None] + np.arange(columns)
    y = np.arange(rows) % 2
    names = tuple(f"c{i}" for i in range(columns))
    return Table(x.astype(np.float32), y, names, ("0", "1"), f"t{number}")


TABLES = [
    make_table(i, *sizes) for i, sizes in enumerate(zip(SIZES, WIDTHS, strict=True))
]


@pytest.fixture(scope="module")
def drawn():
    """200 tasks, as lists of (table, rows, columns, labels) for their three samples."""
    pairs = table_pairs(TABLES, rows=(3, 12), max_columns=4)
    keys = jax.random.split(jax.random.key(0), 200)
    tasks = jax.tree.map(np.asarray, jax.jit(jax.vmap(pairs))(keys))
    check_task(jax.tree.map(lambda leaf: leaf[0], tasks), "pairs")
    assert tasks.support.x.shape == (200, 12, 4)
    assert tasks.query.x.x.shape == (200, 2, 12, 4)
    assert tasks.query.y.tolist() == [[1, 0]] * 200

    def read(x, y, mask):
        assert np.all(x[~mask] == 0)
        is_column = x[0] != 0
        assert np.all(x[:, ~is_column] == 0)
        cells = x[mask][:, is_column].astype(int)
        (table,) = np.unique(cells // 10_000)
        rows, columns = cells[:, 0] % 10_000 // 10, cells[0] % 10
        expected = 10_000 * table + 10 * rows[:, None] + columns
        np.testing.assert_array_equal(cells, expected)
        return int(table) - 1, rows, columns, y[mask]

    found = []
    for index in range(200):
        query = [[leaf[index, i] for leaf in tasks.query.x] for i in range(2)]
        support = [leaf[index] for leaf in tasks.support]
        found.append([read(*sample) for sample in (support, *query)])
    return found


def test_samples_are_of_one_table_and_of_another_one(drawn):
    places = np.asarray([[sample[0] for sample in task] for task in drawn])
    assert np.all(places[:, 0] == places[:, 1])
    assert np.all(places[:, 0] != places[:, 2])
    counts = np.unique(places[:, [0, 2]], axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 200 / 6 - 4 * np.sqrt(200 / 6)  # four standard errors


def test_rows_are_distinct_and_not_shared(drawn):
    sizes = []
    for own, same, other in drawn:
        both = np.concatenate([own[1], same[1]])
        assert len(np.unique(both)) == len(both)
        assert len(np.unique(other[1])) == len(other[1])
        for table, rows, _, labels in (own, same, other):
            np.testing.assert_array_equal(labels, rows % 2)
            assert 3 <= len(rows) <= min(12, SIZES[table] // 2)
            sizes.append((table, len(rows)))
    for table, most in enumerate((4, 12, 12)):
        found = {size for place, size in sizes if place == table}
        assert found == set(range(3, most + 1))
    seen = np.concatenate([task[1][1] for task in drawn if task[1][0] == 2])
    assert set(seen) == set(range(40))


def test_columns_are_drawn_anew_and_padded(drawn):
    wide = []
    for task in drawn:
        for table, _, columns, _ in task:
            assert len(columns) == min(4, WIDTHS[table])
            assert len(set(columns)) == len(columns)
            if table == 1:
                wide.append(tuple(columns))
    assert {frozenset(range(5)) - set(columns) for columns in wide} == {
        frozenset([column]) for column in range(5)
    }


@pytest.mark.parametrize(
    ("tables", "changes", "message"),
    [
        (TABLES[:1], {}, "Pairs of tables need at least 2 of them, got 1"),
        ([], {}, "`tables` must be a `Table` or a non-empty list"),
        (TABLES, {"rows": 5}, "need 10 rows of every table, but 't0' has 8"),
        (TABLES, {"rows": (0, 3)}, "`rows`"),
        (TABLES, {"max_columns": 0}, "`max_columns` must be an integer of at least 1"),
    ],
)
def test_bad_input(tables, changes, message):
    with pytest.raises(ValueError, match=message):
        table_pairs(tables, **{"rows": 3} | changes)
