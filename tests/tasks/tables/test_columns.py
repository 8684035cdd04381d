"""What a column of text means: the notations of numbers, odd cells, and new rows."""

import re
import warnings

import numpy as np
import pytest

from metajax.tasks.tables.tables import Table, from_table, read_rows

ROWS = 12
KIND = ["lo", "hi"] * (ROWS // 2)


def column(cells, **options):
    """The table of one column and a target."""
    cells = list(cells)
    kind = (KIND * len(cells))[: len(cells)]
    return from_table({"a": cells, "kind": kind}, target="kind", **options)


def test_plain_numbers_are_silent():
    cells = [1, "2.5", "-3e2", "+4", ".5", "6.", None, "?", "N/A", "null", "#N/A", 7]
    table = column(cells)
    assert table.column_names == ("a", "a is missing")
    np.testing.assert_array_equal(table.x[:6, 0], [1, 2.5, -300, 4, 0.5, 6])
    np.testing.assert_array_equal(np.flatnonzero(table.x[:, 1]), [6, 7, 8, 9, 10])


# Cells, and what they are; each is said in a warning that shows the first odd one.
READ = {
    "decimal commas": (["20,14", "3", "-0,5", "1,25e2"], [20.14, 3, -0.5, 125]),
    "a leading comma": ([",5", "1,5"], [0.5, 1.5]),
    "thousands and decimals": (["1,234.5", "12", "1,234,567"], [1234.5, 12, 1234567]),
    "points for thousands": (["1.234,5", "12"], [1234.5, 12]),
    "blanks for thousands": (["1 234", "12", "1 234 567"], [1234, 12, 1234567]),
    "narrow blanks": (["1\u202f234", "12\u00a0345"], [1234, 12345]),
    "apostrophes": (["1'234.5", "12"], [1234.5, 12]),
    "two groups": (["1,234,567", "12"], [1234567, 12]),
    "percent": (["5%", "12.5 %", "-1%"], [5, 12.5, -1]),
    "a unit": (["5 kg", "7.5kg", "10 kg"], [5, 7.5, 10]),
    "a unit with a digit": (["5 m2", "7 m2"], [5, 7]),
    "a currency before": (["$5", "-$7.50", "$1,234.50"], [5, -7.5, 1234.5]),
    "a currency by its code": (["EUR 5", "EUR7.50"], [5, 7.5]),
    "a currency behind": (["5,50 €", "1.234,00 €"], [5.5, 1234]),
    "minus of Unicode": (["\u22125", "7"], [-5, 7]),
}


@pytest.mark.parametrize("name", READ)
def test_numbers_in_another_notation_are_read_and_said(name):
    cells, numbers = READ[name]
    # So often that no class is alone.
    with pytest.warns(UserWarning, match=r"Column 'a' .* is read as numbers") as said:
        table = column(cells * 4)
    assert len(said) == 1
    assert table.column_names == ("a",)
    np.testing.assert_allclose(table.x[:, 0], numbers * 4, rtol=1e-6)


def test_gaps_are_gaps_in_any_notation():
    with pytest.warns(UserWarning, match=r"'a' of table 'table' is read as numbers"):
        table = column(["5 kg", None, "7 kg", "NA", "9 kg", "9 kg"])
    np.testing.assert_array_equal(table.x[:, 0], [5, 8, 7, 8, 9, 9])


def test_two_readings_are_refused_unless_the_file_says_which():
    cells = ["1,037", "999", "2,074", "1,111"]
    message = r"'a' .* holds '1,037' at row 0: may be 1037 or 1.037. Say `decimal='.'`"
    with pytest.raises(ValueError, match=message):
        column(cells)
    english = column(cells, decimal=".")
    np.testing.assert_array_equal(english.x[:, 0], [1037, 999, 2074, 1111])
    german = column(cells, decimal=",")
    np.testing.assert_allclose(german.x[:, 0], [1.037, 999, 2.074, 1.111], rtol=1e-6)
    # A point then groups thousands, everywhere.
    np.testing.assert_array_equal(
        column(["1.037", "2.074"] * 2, decimal=",").x[:, 0], [1037, 2074] * 2
    )
    with pytest.raises(ValueError, match=r"'2,5' at row 1: no notation reads all"):
        column(["1.5", "2,5"] * 2)


def test_dates_are_days_since_the_earliest():
    cells = ["2020-03-01", "2020-02-28", "2020-02-28 12:00:00", "2020-02-29T06:00Z"]
    with pytest.warns(UserWarning, match=r"Column 'a' .* holds dates, .*'2020-03-01'"):
        table = column([*cells, None, *cells])
    assert table.column_names == ("a", "a is missing")
    np.testing.assert_allclose(table.x[:4, 0], [2, 0, 0.5, 1.25])
    with pytest.warns(UserWarning, match="holds dates"):
        days = column(np.asarray(["2020-01-01", "2021-01-01"] * 2, "datetime64[ns]"))
    np.testing.assert_array_equal(days.x[:, 0], [0, 366] * 2)
    # The zone counts: these are three hours apart.
    with pytest.warns(UserWarning, match="holds dates"):
        zones = column(["2020-01-01T00:00+02:00", "2020-01-01T00:00-01:00"] * 2)
    np.testing.assert_allclose(zones.x[:, 0], [0, 0.125] * 2)


# A column of numbers with odd cells, and the odd one that is named.
ODD = {
    "below a limit": ([*range(9), "<5"], "<5"),
    "a word": ([*range(9), "unknown"], "unknown"),
    "a dash": ([*range(9), "-"], "-"),
    "half the values": (["2", "4", "more", "many"] * 3, "more"),
    "Python's underscore": ([*range(9), "1_0"], "1_0"),
    "percent here and there": (["5%", "6%", "7%", "8"] * 3, "8"),
    "two units": (["5 kg", "6 kg", "7 kg", "300 g"] * 3, "300 g"),
    "a date among numbers": ([*range(9), "2020-01-01"], "2020-01-01"),
    "a word among dates": ([f"2020-01-{day:02}" for day in range(1, 9)] + ["?!"], "?!"),
    "no such day": ([f"2021-02-{day}" for day in range(20, 30)], "2021-02-29"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_cells_are_named(name):
    cells, odd = ODD[name]
    place = [str(cell) for cell in cells].index(odd)
    message = (
        rf"Column 'a' of table 'table' holds .*{re.escape(odd)!s}' at row {place}, and "
        r".*`missing`.*`categories`.*`drop`"
    )
    with pytest.raises(ValueError, match=message):
        column(cells)
    # What the message offers.
    declared = column(cells, categories=["a"])
    assert f"a={odd}" in declared.column_names
    np.testing.assert_array_equal(declared.x.sum(axis=1), 1)
    if name in ("below a limit", "a word", "a dash"):
        table = column(cells, missing=[odd])
        assert table.column_names == ("a", "a is missing")


LOOK_ALIKES = {
    "ranges": ["40-49", "50-59", "60-69"],
    "limits": ["<5", ">=7", "~9"],
    "dates of other orders": ["31.01.2020", "01.02.2020"],
    "slashes": ["1/31/2020", "2/1/2020"],
    "times": ["12:30", "13:45"],
    "names of months": ["Jan 3, 2020", "Feb. 5 2020", "March 5"],
    "halves": ["5½", "6½"],
    "quotes": ["'5'", "'6'"],
    "negative ones of accounts": ["(5)", "(6)"],
    "versions": ["1.2.3", "1.10.0"],
    "ordinals": ["1st", "2nd", "3rd"],
    "units of all kinds": ["5 kg", "300 g", "2 t"],
    "one word among them": ["5-6", "7-8", "9-10", "unknown"],
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_begins_as_a_number_becomes_categories_with_a_word(name):
    cells = LOOK_ALIKES[name] * 4
    with pytest.warns(UserWarning, match=r"Column 'a' .* begins as a number") as said:
        table = column(cells)
    assert len(said) == 1
    assert len(table.column_names) == len(set(cells))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = column(cells, categories=["a"])
    np.testing.assert_array_equal(same.x, table.x)


def test_words_are_silent():
    for cells in (["red", "blue"], ["A1", "B2"], ["10th", "Bachelors", "Masters", "x"]):
        table = column(cells * 4)
        assert set(table.column_names) == {f"a={cell}" for cell in cells}
    assert column([b"red", b"blue"] * 2).column_names == ("a=blue", "a=red")
    np.testing.assert_array_equal(column([b"5", b"6"] * 2).x[:2, 0], [5, 6])
    assert column([True, False] * 2).column_names == ("a=False", "a=True")


def test_declared_categories_are_no_numbers():
    table = column([10, 20, None, 10], categories=["a"])
    assert table.column_names == ("a=10", "a=20", "a is missing")


class Declared(list):
    """A column as pandas has it: with a type that knows its categories."""

    class dtype:  # noqa: N801
        categories = (30, 20, 10)


def test_declared_categories_of_a_data_frame():
    source = {"a": Declared([10, 20, 10, 20]), "kind": KIND[:4]}
    table = from_table(source, target="kind")
    # All of them, in their order.
    assert table.column_names == ("a=30", "a=20", "a=10")
    np.testing.assert_array_equal(table.x[:2], [[0, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize("make", ["from_table", "arrays"])
def test_what_float32_loses_is_said(make):
    def table(cells):
        if make == "from_table":
            return column(cells)
        kind = [0, 1] * (len(cells) // 2)
        return Table(np.asarray(cells)[:, None], kind, ["a"], ["lo", "hi"])

    odd = [2**24 + 1, 2**24 + 3, 5, 7]
    with pytest.warns(
        UserWarning, match=r"'a' of table .* 16777217.* becomes 16777216"
    ):
        table(odd)
    stamps = [1_600_000_000.5 + second for second in range(4)]
    with pytest.warns(UserWarning, match=r"of 4 different numbers 1 are left"):
        table(stamps)
    # These are not changed, or only as float32 rounds anything.
    np.testing.assert_array_equal(table([2**24, 2**25, 5, 7]).x[:2, 0], [2**24, 2**25])
    table([0.1, 0.2, 1e29, 0.3])


def test_classes_are_whole_numbers_of_any_size():
    cells = ["9007199254740993", "9007199254740992"] * 2
    table = from_table({"x": range(4), "kind": cells}, target="kind")
    assert table.class_names == ("9007199254740992", "9007199254740993")
    np.testing.assert_array_equal(table.y, [1, 0, 1, 0])


def write(folder, text, name="t.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_files_without_a_header(tmp_path):
    lines = [f"{5 + i / 10:.1f},3.5,1.{i},flower {'ab'[i % 2]}\n" for i in range(10)]
    path = write(tmp_path, "".join(lines))
    with pytest.warns(UserWarning, match=r"first line of .* '5.0', .* `column_names`"):
        from_table(path, target="flower a")
    names = ["length", "width", "petal", "kind"]
    table = from_table(path, target="kind", column_names=names)
    assert table.x.shape == (10, 3)
    np.testing.assert_allclose(table.x[0], [5, 3.5, 1], rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"3 columns by `column_names`, but line 1 has"
    ):
        from_table(path, target="c", column_names=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"'4' occurs 2 .* first line .* no header"):
        from_table(write(tmp_path, "4,4,a,b\n5,6,c,d\n"), target="a")
    with pytest.raises(ValueError, match=r"`target` must .*`column_names` if the file"):
        from_table(write(tmp_path, "4,5,a,b\n4,6,c,d\n"), target="kind")
    # Columns that are numbered have a header all the same, and so have words.
    numbered = write(tmp_path, ",0,1,2,kind\n" + "7,1,2,3,a\n8,2,3,1,b\n" * 3)
    assert from_table(numbered, target="kind", drop=[""]).x.shape == (6, 3)


def test_repeated_names_can_be_dropped(tmp_path):
    path = write(tmp_path, "x,kind,x,kind\n" + "1,p,2,a\n3,q,4,b\n" * 3)
    with pytest.raises(ValueError, match=r"must be distinct, but 'x' occurs 2 times"):
        from_table(path, target="kind", drop=["kind.1"])
    first = from_table(path, target="kind", drop=["kind.1", "x.1"])
    np.testing.assert_array_equal(first.x[:2, 0], [1, 3])
    assert first.class_names == ("p", "q")
    # The name that columns share stands for all of them but the target.
    last = from_table(path, target="kind.1", drop=["kind", "x.1"])
    assert (last.class_names, last.column_names) == (("a", "b"), ("x",))
    with pytest.raises(ValueError, match="no column besides the target"):
        from_table(path, target="kind", drop=["kind.1", "x"])


def mixed(folder):
    """A first file, with a gap, categories, dates, decimal commas and a unit."""
    lines = [
        "size;colour;day;price;kind",
        *("1;red;2020-01-01;5,5 €;b", ";blue;2020-01-03;6,5 €;a"),
        *("3;;2020-01-02;7,5 €;a", "4;red;2020-01-01;8,5 €;b"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_table(write(folder, "\n".join(lines)), target="kind")


def test_a_second_file_is_read_as_the_first_was(tmp_path):
    table = mixed(tmp_path)
    # Others come first, one is new, and there is no target.
    text = (
        "note;price;day;colour;size\nx;1.000,5 €;2020-01-11;blue;\ny;2 €;2019-12-31;;9"
    )
    rows = read_rows(write(tmp_path, text, "new.csv"), table)
    assert rows.y is None
    names = table.column_names
    assert names == (
        *("size", "size is missing", "colour=blue", "colour=red", "colour is missing"),
        *("day", "price"),
    )
    np.testing.assert_array_equal(
        rows.x, [[3, 1, 1, 0, 0, 10, 1000.5], [9, 0, 0, 0, 1, -1, 2]]
    )
    assert rows.x.dtype == np.float32
    # The rows of the first file are what they were, with their classes.
    source = tmp_path / "t.csv"
    again = read_rows(source, table)
    np.testing.assert_array_equal(again.x, table.x)
    np.testing.assert_array_equal(again.y, table.y)
    assert again.y.dtype == np.int32
    assert "2 rows, 7 columns, no targets" in repr(rows)


ROW_ERRORS = {
    "column": ({"drop": "size"}, r"columns of table 't', but has no 'size'; its"),
    "text": ({"size": "big"}, r"'size' of table .* holds 'big' at row 1"),
    "notation": (
        {"price": "6.5"},
        r"'price' .*'6.5' at row 1, and the first table has",
    ),
    "infinite": ({"size": "inf"}, r"'size' of table .* holds inf at row 1"),
    "class": (
        {"kind": "c"},
        r"target 'kind' .* is 'c' at row 1, .* 't'; these are 'a'",
    ),
    "gap": ({"kind": ""}, r"target 'kind' of table .* missing at row 1, and in 1 of 2"),
}


@pytest.mark.parametrize("case", ROW_ERRORS)
def test_errors_of_new_rows(case, tmp_path):
    changes, message = ROW_ERRORS[case]
    good = {"size": 1, "colour": "red", "day": "2020-01-01", "price": "5,5 €"}
    good["kind"] = "a"
    dropped = changes.get("drop")
    source = {
        name: [cell, changes.get(name, cell)]
        for name, cell in good.items()
        if name != dropped
    }
    table = mixed(tmp_path)
    read_rows({name: [cell] for name, cell in good.items()}, table)
    with pytest.raises(ValueError, match=message):
        read_rows(source, table)


def test_what_the_first_file_never_had_is_said(tmp_path):
    table = mixed(tmp_path)
    source = {"size": [1], "colour": ["green"], "day": ["2020-01-01"], "price": ["1 €"]}
    with pytest.warns(
        UserWarning, match=r"'colour' .* 'green' at row 0, .* 0 for each"
    ):
        rows = read_rows(source, table)
    np.testing.assert_array_equal(rows.x[0, 2:5], [0, 0, 0])
    source = {**source, "colour": ["red"], "price": [None]}
    with pytest.warns(UserWarning, match=r"'price' .* is missing at row 0, .* get 7.0"):
        rows = read_rows(source, table)
    assert rows.x[0, -1] == 7
    with pytest.raises(ValueError, match=r"what `from_table` gave, but 'own' was made"):
        read_rows(source, Table([[1], [2]], [0, 1], ["x"], ["a", "b"], "own"))
    with pytest.raises(ValueError, match=r"`table` must be a `Table` .* got dict"):
        read_rows(source, source)
    with pytest.raises(ValueError, match=r"has column names but no rows"):
        read_rows({name: [] for name in source}, table)


def test_classes_of_new_rows_are_found_by_number():
    table = from_table({"x": range(4), "kind": ["10", "9", "10", "9"]}, target="kind")
    rows = read_rows({"x": [5, 6], "kind": [9.0, "10"]}, table)
    np.testing.assert_array_equal(rows.y, [0, 1])


def test_regression_tables():
    source = {"x": range(6), "y": ["1.5", "-2", "3", "4e1", "5", "6"]}
    table = from_table(source, target="y", regression=True)
    assert (table.y.dtype, table.class_names) == (np.float32, ())
    np.testing.assert_array_equal(table.y, [1.5, -2, 3, 40, 5, 6])
    assert repr(table) == "Table('table', 6 rows, 1 columns, a real target)"
    rows = read_rows({"x": [1], "y": [7.5]}, table)
    np.testing.assert_array_equal(rows.y, np.float32([7.5]))
    assert read_rows({"x": [1]}, table).y is None
    with pytest.warns(UserWarning, match="'y' .* is read as numbers"):
        prices = from_table({**source, "y": ["$5"] * 6}, target="y", regression=True)
    np.testing.assert_array_equal(prices.y, [5] * 6)
    own = Table(np.zeros((2, 1)), [0.5, 2], ["x"], ())
    np.testing.assert_array_equal(own.y, np.float32([0.5, 2]))


REGRESSION_ERRORS = {
    "words": ([*"abcabc"], r"'y' .* must be numbers for `regression=True`, .*'a' at"),
    "odd": ([1, 2, 3, 4, 5, "<6"], r"Column 'y' .*'<6' at row 5"),
    "gap": ([1, 2, 3, 4, 5, None], r"target 'y' .* is missing at row 5"),
    "infinite": ([1, 2, 3, 4, 5, "inf"], r"'y' of table 'table' holds inf at row 5"),
}


@pytest.mark.parametrize("case", REGRESSION_ERRORS)
def test_errors_of_real_targets(case):
    cells, message = REGRESSION_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        from_table({"x": range(6), "y": cells}, target="y", regression=True)
    with pytest.raises(ValueError, match=r"`y` .* must be numbers \[2\]"):
        Table(np.zeros((2, 1)), ["a", "b"], ["x"], ())
    with pytest.raises(ValueError, match=r"looks like .* by `regression=True`"):
        from_table({"x": range(6), "y": range(6)}, target="y")
