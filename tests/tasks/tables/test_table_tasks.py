"""Tasks from tables: which rows they hold, as what, and the errors on the way."""

import chex
import jax
import numpy as np
import pytest

from metajax.tasks.tables.table_tasks import row_tasks, table_tasks
from metajax.tasks.tables.tables import Table, from_table
from metajax.tasks.task_checks import check_task


def numbered(name, counts, columns=3):
    """A table whose rows tell their number from 1 on, their class, and its size."""
    y = np.random.default_rng(len(name)).permutation(
        np.repeat(range(len(counts)), counts)
    )
    rows = np.arange(1, len(y) + 1)
    x = np.full((len(y), columns), 1.0 + len(y))
    x[:, 0], x[:, 1] = rows, y
    names = [f"column {i}" for i in range(columns)]
    return Table(x, y, names, [f"{name}{i}" for i in range(len(counts))], name)


@jax.jit
def draw_all(tasks, keys):
    return jax.vmap(lambda key: (tasks(key), tasks.rows(key)))(keys)


def draw(tasks, num, seed=0):
    """Tasks and their rows, `[num, ...]`, as NumPy arrays."""
    keys = jax.random.split(jax.random.key(seed), num)
    return jax.tree.map(np.asarray, draw_all(tasks, keys))


def real(examples, task):
    """Inputs and labels of one of a batch of tasks, without padding."""
    mask = ... if examples.mask is None else examples.mask[task]
    return examples.x[task][mask], examples.y[task][mask]


def assert_share(hits, share):
    """Of boolean or counted `hits` within six standard errors of `share`."""
    error = np.sqrt(share * (1 - share) / len(hits))
    assert abs(np.mean(hits) - share) < 6 * error


TABLES = [
    numbered("a", [9, 6]),
    numbered("bb", [7, 5, 8], columns=5),
    numbered("ccc", [5, 6, 7, 8, 9], columns=4),
]


def test_a_task_holds_what_it_says():
    tasks = table_tasks(
        TABLES, way=(2, 4), shot=(1, 3), num_queries=2, standardize=None
    )
    drawn, rows = draw(tasks, 400)
    assert drawn.support.x.shape == (400, 4 * 3, 5)
    assert drawn.query.x.shape == (400, 4 * 2, 5)
    assert drawn.support.x.dtype == np.float32
    assert drawn.support.y.dtype == np.int32
    assert np.all(drawn.support.x[~drawn.support.mask] == 0)
    assert np.all(drawn.query.x[~drawn.query.mask] == 0)
    sizes = []
    for task in range(400):
        table = TABLES[rows.table[task]]
        (x, y), (x_query, y_query) = real(drawn.support, task), real(drawn.query, task)
        way = len(np.unique(y))
        shot = len(y) // way
        np.testing.assert_array_equal(y, np.repeat(range(way), shot))
        np.testing.assert_array_equal(y_query, np.repeat(range(way), 2))
        taken = np.concatenate([x, x_query])
        numbers = taken[:, 0].astype(int) - 1
        assert len(set(numbers)) == len(numbers)
        # Columns of the table are there, and those beyond it are 0.
        width = table.x.shape[1]
        np.testing.assert_array_equal(taken[:, :width], table.x[numbers])
        assert np.all(taken[:, width:] == 0)
        # A label is one class, and a class one label.
        pairs = set(zip(np.concatenate([y, y_query]), table.y[numbers], strict=True))
        assert len(pairs) == way == len({own for _, own in pairs})
        told = np.concatenate(
            [
                rows.support[task][rows.support_mask[task]],
                rows.query[task][rows.query_mask[task]],
            ]
        )
        np.testing.assert_array_equal(told, numbers)
        sizes.append((rows.table[task], way, shot))
    sizes = np.asarray(sizes)
    for table in range(3):
        assert_share(sizes[:, 0] == table, 1 / 3)
    assert np.all(sizes[sizes[:, 0] == 0, 1] == 2)
    of_three = sizes[sizes[:, 0] == 1, 1]
    # Ways of 3 and 4 both give all three classes.
    assert_share(of_three == 2, 1 / 3)
    assert_share(of_three == 3, 2 / 3)
    of_five = sizes[sizes[:, 0] == 2, 1]
    for way in (2, 3, 4):
        assert_share(of_five == way, 1 / 3)
    for shot in (1, 2, 3):
        assert_share(sizes[:, 2] == shot, 1 / 3)


def test_classes_and_rows_are_uniform():
    table = numbered("t", [4, 5, 6])
    tasks = table_tasks(table, way=2, shot=1, num_queries=1, standardize=None)
    drawn, rows = draw(tasks, 3000)
    assert drawn.support.mask is None
    assert drawn.query.mask is None
    chosen = drawn.support.x[:, :, 1]
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            hits = (chosen[:, 0] == first) & (chosen[:, 1] == second)
            assert_share(hits, 1 / 6)
    for row, own in enumerate(table.y):
        for part in (rows.support, rows.query):
            # The class is drawn in two of three tasks, and the row among its rows.
            assert_share((part == row).any(axis=1), 2 / 3 / [4, 5, 6][own])


def test_small_classes_can_be_left_out():
    tables = [numbered("a", [2, 9, 3, 8]), numbered("bb", [6, 5, 2])]
    tasks = table_tasks(
        tables, way=2, shot=2, num_queries=3, standardize=None, small_classes="drop"
    )
    _, rows = draw(tasks, 200)
    for table, kept in ((0, {1, 3}), (1, {0, 1})):
        held = np.concatenate([rows.support, rows.query], axis=1)[rows.table == table]
        assert set(tables[table].y[held].ravel()) == kept


def scaled_table():
    """Columns that are hard to standardise: constant, far from 0, huge and tiny."""
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 6))
    x[:, 1] = 0.1
    x[:, 2] = 1990 + 5 * x[:, 2]
    x[:, 3] *= 1e29
    x[:, 4] *= 1e-30
    # Constant over most support sets, and not in the table.
    x[:, 5] = np.arange(60) == 7
    return Table(x, np.arange(60) % 3, [*"abcdef"], [*"uvw"], "scaled")


def standardized(x, of):
    deviation = of.astype(np.float64).std(axis=0)
    deviation[np.ptp(of, axis=0) == 0] = np.inf
    return (x - of.astype(np.float64).mean(axis=0)) / deviation


@pytest.mark.parametrize("rows_or_shots", ["rows", "shots"])
def test_columns_are_standardized_by_support(rows_or_shots):
    table = scaled_table()
    if rows_or_shots == "shots":
        tasks = table_tasks(table, way=(2, 3), shot=(2, 6), num_queries=5)
    else:
        tasks = row_tasks(table, rows=(4, 12), num_queries=20)
    drawn, rows = draw(tasks, 50)
    for task in range(50):
        support_rows = rows.support[task][rows.support_mask[task]]
        is_query = ... if rows.query_mask is None else rows.query_mask[task]
        query_rows = rows.query[task][is_query]
        support = table.x[support_rows]
        for examples, raw in (
            (drawn.support, support),
            (drawn.query, table.x[query_rows]),
        ):
            expected = standardized(raw, support)
            np.testing.assert_allclose(
                real(examples, task)[0], expected, rtol=2e-3, atol=2e-3
            )
            assert np.all(real(examples, task)[0][:, 1] == 0)
    assert np.all(drawn.support.x[~drawn.support.mask] == 0)
    # Some supports hold the one row that is different, most do not.
    is_constant = np.all(drawn.query.x[:, :, 5] == 0, axis=1)
    assert 0 < is_constant.sum() < 50


def test_columns_are_standardized_by_table_or_not_at_all():
    table = scaled_table()
    expected = {"table": standardized(table.x, table.x), None: table.x}
    for standardize, values in expected.items():
        tasks = table_tasks(
            [table, TABLES[1]],
            way=3,
            shot=2,
            num_queries=1,
            num_columns=8,
            standardize=standardize,
        )
        drawn, rows = draw(tasks.only(0), 5)
        np.testing.assert_allclose(
            drawn.query.x[:, :, :6], values[rows.query], rtol=1e-5, atol=1e-5
        )
        assert np.all(drawn.query.x[:, :, 6:] == 0)


def webster(counts, num_seats):
    """Seats of each class by handing them out one after the other."""
    seats = [1] * len(counts)
    for _ in range(num_seats - len(counts)):
        worth = [count / (s + 0.5) for count, s in zip(counts, seats, strict=True)]
        seats[int(np.argmax(worth))] += 1
    return seats


def test_small_samples_keep_classes_and_proportions():
    # No two classes tie for a seat.
    tables = [numbered("a", [31, 2, 10]), numbered("bb", [29, 17], columns=4)]
    tasks = row_tasks(tables, rows=(3, 20), num_queries=7, standardize=None)
    drawn, rows = draw(tasks, 300)
    assert drawn.support.x.shape == (300, 20, 4)
    assert drawn.query.x.shape == (300, 7, 4)
    assert drawn.query.mask is None
    assert np.all(drawn.support.x[~drawn.support.mask] == 0)
    sizes = []
    for task in range(300):
        table = tables[rows.table[task]]
        (x, y), (x_query, y_query) = real(drawn.support, task), real(drawn.query, task)
        numbers = np.concatenate([x, x_query])[:, 0].astype(int) - 1
        assert len(set(numbers)) == len(numbers)
        np.testing.assert_array_equal(np.concatenate([y, y_query]), table.y[numbers])
        np.testing.assert_array_equal(rows.query[task], numbers[len(x) :])
        assert list(np.bincount(y)) == webster(np.bincount(table.y), len(y))
        sizes.append(len(y))
    assert set(sizes) == set(range(3, 21))
    for size in range(3, 21):
        assert_share(np.asarray(sizes) == size, 1 / 18)
    assert_share(rows.table == 0, 1 / 2)


def test_rows_of_small_samples_are_uniform():
    counts = np.asarray([6, 2, 3])
    table = numbered("t", counts)
    _, rows = draw(row_tasks(table, rows=(4, 5), num_queries=4), 6000)
    # The first three seats are one for each class, the next go by 6 / 1.5 and then, of
    # 6 / 2.5, 2 / 1.5 and 3 / 1.5, by the first again.
    for size, seats in ((4, [2, 1, 1]), (5, [3, 1, 1])):
        is_own = rows.support_mask.sum(axis=1) == size
        assert_share(is_own, 1 / 2)
        for row, own in enumerate(table.y):
            in_support = (rows.support == row) & rows.support_mask
            share = seats[own] / counts[own]
            assert_share(in_support[is_own].any(axis=1), share)
            # Four of the rows that support leaves.
            in_query = (rows.query == row).any(axis=1)
            assert_share(in_query[is_own], (1 - share) * 4 / (11 - size))


def test_ties_are_for_every_class_to_win():
    _, rows = draw(row_tasks(numbered("t", [20, 20]), rows=5, num_queries=1), 500)
    labels = numbered("t", [20, 20]).y[rows.support]
    assert_share(labels.sum(axis=1) == 2, 1 / 2)
    assert_share(labels.sum(axis=1) == 3, 1 / 2)


def test_a_table_can_be_used_up():
    table = numbered("t", [5, 1, 4])
    _, rows = draw(row_tasks(table, rows=(3, 8), num_queries=2), 100)
    full = rows.support_mask.all(axis=1)
    held = np.concatenate([rows.support, rows.query], axis=1)[full]
    assert full.any()
    np.testing.assert_array_equal(np.sort(held, axis=1), [range(10)] * len(held))


TASKS = {
    "classes": lambda: table_tasks(TABLES, way=(2, 3), shot=2, num_queries=1),
    "rows": lambda: row_tasks(TABLES, rows=(5, 8), num_queries=3),
}


@pytest.mark.parametrize("name", TASKS)
def test_keys_decide_and_jit_does_not(name, key):
    tasks = TASKS[name]()
    task = tasks(key)
    check_task(task, "tasks")
    chex.assert_trees_all_close(jax.jit(lambda t, k: t(k))(tasks, key), task, atol=1e-6)
    chex.assert_trees_all_equal(tasks(key), task)
    assert not np.array_equal(tasks(jax.random.key(1)).support.x, task.support.x)


@pytest.mark.parametrize("name", TASKS)
def test_each_table_alone_by_one_program(name, key):
    tasks, traces = TASKS[name](), []

    @jax.jit
    def tables(tasks, keys):
        traces.append(keys)
        return jax.vmap(tasks.rows)(keys).table

    for place in range(3):
        assert np.all(tables(tasks.only(place), jax.random.split(key, 20)) == place)
    assert len(traces) == 1
    for place in (3, -1, 0.0, True):
        with pytest.raises(ValueError, match=r"`table` must be .* in \[0, 3\)"):
            tasks.only(place)


SMALL = numbered("small", [1, 9, 3])
CLASS_ERRORS = {
    "way": ({"way": 0}, r"`way` must be .* got 0"),
    "shot": ({"shot": (3, 2)}, r"`shot` must be .*low <= high, got \(3, 2\)"),
    "queries": ({"num_queries": 0}, r"`num_queries` must be .* got 0"),
    "none": ({"tables": []}, r"non-empty list of them, got none"),
    "type": ({"tables": [TABLES[0], 3]}, r"`Table` or .* got Table, int; `from_table`"),
    "small word": ({"small_classes": "skip"}, "one of error, drop, got 'skip'"),
    "standardize": ({"standardize": "rows"}, r"'support', 'table' or None, got 'rows'"),
    "columns": (
        {"num_columns": 4},
        r"`num_columns` is 4, and table 'bb' has 5",
    ),
    "no columns": ({"num_columns": 0}, r"`num_columns` must be .* got 0"),
    "small": (
        {"tables": [TABLES[0], SMALL]},
        r"needs 4 rows of every class, but class 'small0' of 'small' has 1, class "
        r"'small2' of 'small' has 3; lower",
    ),
    "few classes": (
        {"way": (3, 4)},
        r"`way` needs 3 classes in every table, but 'a' has 2; lower",
    ),
    "few large": (
        {"tables": [SMALL], "small_classes": "drop"},
        r"`way` needs 2 classes of at least 4 rows in every table, but 'small' has 1",
    ),
    "way of all": ({"way": (2, 6)}, r"up to 6 classes, but no table has more than 5"),
}


@pytest.mark.parametrize("case", CLASS_ERRORS)
def test_errors_of_classes(case):
    arguments, message = CLASS_ERRORS[case]
    good = {"tables": TABLES, "way": 2, "shot": 3, "num_queries": 1}
    with pytest.raises(ValueError, match=message):
        table_tasks(**{**good, **arguments})


ROW_ERRORS = {
    "rows": ({"rows": (4, 3)}, r"`rows` must be .* got \(4, 3\)"),
    "queries": ({"num_queries": 0}, r"`num_queries` must be .* got 0"),
    "classes": (
        {"rows": (4, 6)},
        r"number of classes of every table, but it may be 4, and 'ccc' has 5; raise",
    ),
    "used up": (
        {"num_queries": 10},
        r"`rows \+ num_queries` needs 16 rows of every table, but 'a' has 15; lower",
    ),
    "columns": ({"num_columns": 4}, r"`num_columns` is 4, and table 'bb' has 5"),
    "standardize": ({"standardize": "z"}, r"'support', 'table' or None, got 'z'"),
    "type": ({"tables": ["a"]}, r"got str; `from_table` makes them"),
}


@pytest.mark.parametrize("case", ROW_ERRORS)
def test_errors_of_rows(case):
    arguments, message = ROW_ERRORS[case]
    good = {"tables": TABLES, "rows": (5, 6), "num_queries": 9}
    row_tasks(**good)
    with pytest.raises(ValueError, match=message):
        row_tasks(**{**good, **arguments})


def test_tasks_of_pmlb(data_dir):
    tables = [
        from_table(path, target="target")
        for path in sorted((data_dir / "tabular" / "classification").glob("*.tsv.gz"))
        if path.name != "schizo.tsv.gz"
    ]
    assert len(tables) == 50
    tasks = table_tasks(tables, way=(2, 5), shot=5, num_queries=5, small_classes="drop")
    drawn, rows = draw(tasks, 200)
    assert drawn.support.x.shape == (200, 25, 70)
    assert np.isfinite(drawn.query.x).all()
    assert len(set(rows.table)) > 40
    for task in range(200):
        of_class = tables[rows.table[task]].y
        labels = np.repeat(range(5), 5)[rows.query_mask[task]]
        own = of_class[rows.query[task][rows.query_mask[task]]]
        assert len(set(zip(labels, own, strict=True))) == len(set(own))
