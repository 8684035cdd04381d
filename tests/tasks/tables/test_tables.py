"""Tables: numbers, text and gaps become columns, and bad data are named by place."""

import csv
import gzip
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.tasks.tables.tables import Table, from_table

KIND = ["a", "b", "a", "b", "a", "b"]
NUMBERS = [3, 1, 4, 1, 5, 9]

NAMES = ["größe", "漢字", 'say "a"', "b, c", "d;e", "f g"]
# Never a number and never a gap, as it starts with a letter of its own.
TEXT = st.text('ab",;\t\né漢=', max_size=4).map(lambda text: "x" + text)
NUMBER = st.floats(-1e30, 1e30, allow_subnormal=False) | st.integers(-99, 99)
GAP = st.sampled_from(["", "?", "NA", "NaN", "nan", " "])


def column_of(cells, rows):
    """Cells of which some are gaps, but not all."""
    column = st.lists(cells | GAP, min_size=rows, max_size=rows)
    return st.builds(lambda column, cell: [cell, *column[1:]], column, cells)


@st.composite
def columns(draw):
    """A mapping of text and number columns, and which of its columns are text."""
    rows = draw(st.integers(4, 12))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    is_text = {name: draw(st.booleans()) for name in names}
    table = {
        name: draw(column_of(TEXT if is_text[name] else NUMBER, rows)) for name in names
    }
    table["kind"] = ["no", "yes"] * 2 + draw(
        st.lists(st.sampled_from(["no", "yes"]), min_size=rows - 4, max_size=rows - 4)
    )
    return table, is_text


def is_gap(cell):
    return str(cell).strip() in ("", "?", "NA", "NaN", "nan")


def as_file(folder, table, delimiter, suffix):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    data = buffer.getvalue().encode()
    path = folder / f"odd.{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    return path


# Random numbers may have more digits than float32.
@pytest.mark.filterwarnings("ignore:Columns .* hold more digits")
@settings(deadline=None, max_examples=60)
@given(columns(), st.sampled_from([",", "\t", ";"]), st.sampled_from(["csv", "tsv.gz"]))
def test_every_cell_can_be_read_back(tmp_path_factory, drawn, delimiter, suffix):
    source, is_text = drawn
    path = as_file(tmp_path_factory.mktemp("odd"), source, delimiter, suffix)
    table = from_table(path, target="kind", delimiter=delimiter)
    same = from_table(source, target="kind")
    np.testing.assert_array_equal(table.x, same.x)
    np.testing.assert_array_equal(table.y, same.y)
    assert table.column_names == same.column_names
    assert (table.name, same.name) == ("odd", "table")
    assert [table.class_names[label] for label in table.y] == source["kind"]

    place = 0
    for name, cells in source.items():
        if name == "kind":
            continue
        gaps = np.asarray([is_gap(cell) for cell in cells])
        if is_text[name]:
            values = sorted({str(c).strip() for c in cells if not is_gap(c)})
            width = len(values) + gaps.any()
            block = table.x[:, place : place + width]
            assert np.all(block.sum(axis=1) == 1)
            for cell, row in zip(cells, block, strict=True):
                column = table.column_names[place + np.argmax(row)]
                missing = f"{name} is missing"
                text = str(cell).strip()
                assert column == (missing if is_gap(cell) else f"{name}={text}")
        else:
            width = 1 + gaps.any()
            known = [float(c) for c in cells if not is_gap(c)]
            expected = [np.median(known) if is_gap(c) else float(c) for c in cells]
            assert table.column_names[place] == name
            np.testing.assert_array_equal(table.x[:, place], np.float32(expected))
            if gaps.any():
                assert table.column_names[place + 1] == f"{name} is missing"
                np.testing.assert_array_equal(table.x[:, place + 1], gaps)
        place += width
    assert table.x.shape == (len(source["kind"]), place)


@pytest.mark.parametrize(
    ("target", "names", "labels"),
    [
        ([10, 9, 10, 9], ("9", "10"), [1, 0, 1, 0]),
        (["10", "9", "10", "b"] + ["b"] * 2, ("10", "9", "b"), [0, 1, 0, 2, 2, 2]),
        (["1", "1.0", "-2", "-2"], ("-2", "1"), [1, 1, 0, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
        (["a"] * 5 + ["only row"], ("a", "only row"), [0, 0, 0, 0, 0, 1]),
    ],
)
def test_classes_are_in_order(target, names, labels):
    table = from_table({"x": range(len(target)), "kind": target}, target="kind")
    assert table.class_names == names
    np.testing.assert_array_equal(table.y, labels)
    assert (table.x.dtype, table.y.dtype) == (np.float32, np.int32)


def test_constant_and_empty_columns_are_kept():
    source = {"same": [7] * 6, "gaps": [None] * 6, "word": ["w"] * 6, "kind": KIND}
    table = from_table(source, target="kind")
    assert table.column_names == ("same", "gaps", "gaps is missing", "word=w")
    np.testing.assert_array_equal(table.x, np.tile([7, 0, 1, 1], (6, 1)))


def test_what_counts_as_a_number_and_as_a_gap():
    source = {
        "spaced": [" 1 ", "2e1", "-.5", "+4", "0", ""],
        "coded": ["-9", "1", "2", "3", "-NaN", None],
        "kind": KIND,
    }
    # An empty cell is no gap where `missing` does not say so.
    table = from_table(source, target="kind", missing=["-9"], categories=["spaced"])
    assert table.column_names[:6] == (
        *("spaced=", "spaced=+4", "spaced=-.5", "spaced=0", "spaced=1", "spaced=2e1"),
    )
    assert table.column_names[-2:] == ("coded", "coded is missing")
    np.testing.assert_array_equal(table.x[:, -2], [2, 1, 2, 3, 2, 2])
    np.testing.assert_array_equal(table.x[:, -1], [1, 0, 0, 0, 1, 1])
    table = from_table(source, target="kind", missing=["", "-9"])
    np.testing.assert_array_equal(table.x[:, 0], [1, 20, -0.5, 4, 0, 1])


def test_wide_tables_and_dropped_columns():
    source = {f"c{i}": [i, 2, 3, 4, 5, 6] for i in range(300)}
    source |= {"": ["p", "q", "r", "s", "t", "u"], "kind": KIND}
    table = from_table(source, target="kind", drop=["", "c7"], name="wide")
    assert table.x.shape == (6, 299)
    assert "c7" not in table.column_names
    assert table.name == "wide"
    np.testing.assert_array_equal(table.x[0, :9], [0, 1, 2, 3, 4, 5, 6, 8, 9])


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_delimiter_and_quotes_are_found(tmp_path, delimiter):
    path = tmp_path / "a.b.data"
    lines = ['"size, cm"', "kind "], ["1", " yes"], ["", "", ""], ['"2"', ' "no"']
    lines += (["3", "yes"], ["4", "no"])
    text = "\r\n".join(delimiter.join(line) for line in lines if line[0]) + "\n\n"
    path.write_bytes(b"\xef\xbb\xbf\n" + text.encode())
    table = from_table(path, target="kind", delimiter=delimiter)
    assert table.column_names == ("size, cm",)
    np.testing.assert_array_equal(table.x[:, 0], [1, 2, 3, 4])
    assert table.class_names == ("no", "yes")
    assert table.name == "a"
    found = from_table(path, target="kind")
    assert found.column_names == table.column_names


class Frame:
    """As much of a data frame as `from_table` relies on."""

    def __init__(self, names, columns):
        self.columns, self.held = names, columns

    def __getitem__(self, name):
        return np.asarray(self.held[name], object)


# What pandas calls the types of its two missing values.
GAPS = [type(name, (), {})() for name in ("NAType", "NaTType")]


def test_data_frames():
    columns = {0: [1.5, None, np.nan, 2, 3, 4], 1: GAPS + [1, 2, 3, 4], "kind": KIND}
    frame = Frame([0, 1, "kind"], columns)
    table = from_table(frame, target="kind")
    assert table.column_names == ("0", "0 is missing", "1", "1 is missing")
    np.testing.assert_array_equal(table.x[:, 0], [1.5, 2.5, 2.5, 2, 3, 4])
    np.testing.assert_array_equal(table.x[:, 2], [2.5, 2.5, 1, 2, 3, 4])
    assert from_table(frame, target="kind", drop=[0]).x.shape == (6, 2)
    with pytest.raises(ValueError, match=r"`source` must be distinct, but 'a' occurs"):
        from_table(Frame(["a", "a"], {"a": [1]}), target="a")


def test_data_frames_of_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "whole": pandas.array([1, None, 3, 4, 5, 9], "Int64"),
            "color": pandas.Categorical(["red", "blue", None, "red", "red", "red"]),
            "day": pandas.to_datetime(["2020-01-01", None] * 3),
            "kind": KIND,
        },
        index=[5, 5, 7, 8, 9, 10],
    )
    with pytest.warns(UserWarning, match=r"Column 'day' .* holds dates"):
        table = from_table(frame, target="kind")
    assert table.column_names == (
        *("whole", "whole is missing", "color=blue", "color=red", "color is missing"),
        *("day", "day is missing"),
    )
    np.testing.assert_array_equal(table.x[:, 0], [1, 4, 3, 4, 5, 9])
    np.testing.assert_array_equal(table.x[:, 4], [0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(table.x[:, 6], [0, 1] * 3)
    # Declared categories are all there, in their order, whether they occur or not.
    codes = pandas.Categorical([10, 20, 10] * 2, categories=[30, 20, 10])
    frame = pandas.DataFrame({"code": codes, "kind": KIND})
    table = from_table(frame, target="kind")
    assert table.column_names == ("code=30", "code=20", "code=10")
    twice = pandas.DataFrame([[1, 2, kind] for kind in KIND], columns=["x", "x", "y"])
    assert from_table(twice, target="y", drop=["x.1"]).x.shape == (6, 1)


ERRORS = {
    "categorical": ({"categorical": "ordinal"}, r"'one_hot' or None, got 'ordinal'"),
    "categories": ({"max_categories": 0}, r"`max_categories` must be .* got 0"),
    "drop word": ({"drop": "x"}, r"`drop` must be a list of words, got 'x'; write"),
    "missing word": ({"missing": "?"}, r"`missing` must be a list of words"),
    "categories word": ({"categories": "x"}, r"`categories` must be a list of words"),
    "no list": ({"drop": None}, r"`drop` must be a list of words, got None"),
    "number of names": ({"column_names": 3}, r"`column_names` must be a list of words"),
    "flag": ({"regression": 1}, r"`regression` must be True or False, got 1"),
    "decimal": ({"decimal": "_"}, r"`decimal` must be '.', ',' or None, got '_'"),
    "category": (
        {"categories": ["kind"]},
        r"`categories` must name columns .* of 'x', 'kind', got \['kind'\]",
    ),
    "names": ({"column_names": ["x", "kind"]}, r"without a header, got dict; name"),
    "type": ({"source": 3}, r"path of a file, a pandas DataFrame or a map.*got int"),
    "array": ({"source": np.zeros((3, 2))}, r"got ndarray; for arrays use `Table`"),
    "target": (
        {"target": "sort"},
        r"`target` must be one of the columns of table 'table', 'x', 'kind', got 'so",
    ),
    "drop": ({"drop": ["y"]}, r"`drop` must name columns.*'kind', got \['y'\]"),
    "drop target": ({"drop": ["kind"]}, r"other than the target 'kind'"),
    "lonely": ({"drop": ["x"]}, r"no column besides the target 'kind'"),
    "unnamed": (
        {"source": {"": NUMBERS, "kind": KIND}},
        r"Column 0 of table 'table' has no name.*`drop=\[''\]`",
    ),
    "same text": (
        {"source": {1: NUMBERS, "1": NUMBERS, "kind": KIND}},
        r"must be distinct, but '1' occurs 2 times",
    ),
    "no rows": ({"source": {"x": [], "kind": []}}, r"has column names but no rows"),
    "lengths": (
        {"source": {"x": [1], "kind": KIND}},
        r"'x' has 1 cells and 'kind' has 6",
    ),
    "scalar": ({"source": {"x": 1, "kind": KIND}}, r"'x' must be a sequence.*got int"),
    "word": ({"source": {"x": "abcdef", "kind": KIND}}, r"'x' must be a .*got str"),
    "matrix": (
        {"source": {"x": np.zeros((6, 2)), "kind": KIND}},
        r"'x' must be a sequence of cells.*got ndarray",
    ),
    "no target": (
        {"source": {"x": NUMBERS, "kind": ["a", "b", "-nan", "a", None, "b"]}},
        r"'kind' of table 'table' is missing at row 2, and in 2 of 6 rows",
    ),
    "one class": (
        {"source": {"x": NUMBERS, "kind": ["a"] * 6}},
        r"has one class only, 'a'",
    ),
    "regression": (
        {"source": {"x": NUMBERS, "kind": [1, 2, 3, 4, 1, 2]}},
        r"'kind' of table 'table' has 4 values in 6 rows.*target of regression",
    ),
    "infinite": (
        {"source": {"x": [1, None, 3, "-inf", 5, 6], "kind": KIND}},
        r"'x' of table 'table' holds -inf at row 3, and 1 such",
    ),
    "large": (
        {"source": {"x": [1, 2, 3, 4, 1e31, 6], "kind": KIND}},
        r"holds 1e\+31 at row 4.*within 1e\+30",
    ),
    "text": (
        {"source": {"x": ["?", *"abcab"], "kind": KIND}, "categorical": None},
        r"'x' of table 'table' holds text, such as 'a' at row 1, which `cat",
    ),
    "values": (
        {"source": {"x": [*"abcde", None], "kind": KIND}, "max_categories": 4},
        r"'a' at row 0, with 5 different values, and `max_categories` allows 4",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    arguments, message = ERRORS[case]
    arguments = {
        "source": {"x": NUMBERS, "kind": KIND},
        "target": "kind",
        **arguments,
    }
    with pytest.raises(ValueError, match=message):
        from_table(arguments.pop("source"), **arguments)


def test_limits_are_inclusive():
    source = {"x": [*"abcdef"], "y": [-1e30] + [1e30] * 5, "kind": [1, 2, 3, 1, 2, 3]}
    table = from_table(source, target="kind", max_categories=6)
    assert table.x.shape == (6, 7)
    assert len(table.class_names) == 3


FILE_ERRORS = {
    "empty": (b"", r"bad\.csv' is empty; its first line"),
    "blank": (b"\n\n", r"bad\.csv' is empty"),
    "header": (b"x,kind\n", r"has column names but no rows"),
    "lengths": (
        b"x,kind\n1,a\n\n2\n",
        r"has 2 columns by its header, but line 4 has 1",
    ),
    "names": (
        b"x,kind,x\n1,a,2\n",
        r"'bad' must be distinct, but 'x' occurs 2 .* `drop`, .* 'x', 'x\.1'",
    ),
    "open quote": (b'x,kind\n1,"a\n2,b\n', r"bad\.csv' cannot be read .*check the quo"),
    "odd quote": (b'x,kind\n"1"2,a\n', r"near line 2 \(.*\); check the quotes"),
    "latin": ("x,kind\n1,ä\n".encode("latin-1"), r"is not UTF-8 text \(byte 9\)"),
    "gzip": (gzip.compress(b"x,kind\n")[:-6], r"bad\.csv' is a broken gzip file"),
    "target": (b"x,kind\n1,a\n1,\n", r"is missing at line 3"),
    "infinite": (b'"x\ny",kind\n1,a\n1,b\ninf,a\n2,b\n', r"holds inf at line 5"),
}


@pytest.mark.parametrize("case", FILE_ERRORS)
def test_file_errors(tmp_path, case):
    data, message = FILE_ERRORS[case]
    path = tmp_path / "bad.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        from_table(path, target="kind")


def test_other_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*none\.csv'"):
        from_table(tmp_path / "none.csv", target="kind")
    for delimiter in ("", ", ", "\n", '"'):
        with pytest.raises(ValueError, match=r"`delimiter` must be one character"):
            from_table(tmp_path, target="kind", delimiter=delimiter)


def test_own_arrays_are_converted():
    table = Table([[1], [2]], np.asarray([1, 0], np.uint8), ["x"], ["a", "b"])
    assert (table.x.dtype, table.y.dtype) == (np.float32, np.int32)
    assert (table.column_names, table.class_names) == (("x",), ("a", "b"))


ARRAY_ERRORS = {
    "rank": ({"x": [1, 2]}, r"`x` of table 't' must be numbers \[rows, D\].*\[2\]"),
    "rows": ({"x": np.zeros((0, 1))}, r"at least one of each, got float64 \[0, 1\]"),
    "text": ({"x": [["a"], ["b"]]}, r"must be numbers \[rows, D\]"),
    "length": ({"y": [0]}, r"must be integers \[2\].*got int64 \[1\]"),
    "floats": ({"y": [0.0, 1.0]}, r"`y` of table 't' must be integers.*float64"),
    "names": ({"column_names": "xy"}, r"each of the 1 columns of `x`, got 2"),
    "nan": ({"x": [[0], [np.nan]]}, r"'x' of table 't' holds nan at row 1"),
    "range": ({"y": [0, 2]}, r"must lie in \[0, 2\).*got values from 0 to 2"),
    "negative": ({"y": [0, -1]}, r"got values from -1 to 0"),
    "no row": ({"y": [1, 1]}, r"Class 'a' of table 't' has no row"),
}


@pytest.mark.parametrize("case", ARRAY_ERRORS)
def test_array_errors(case):
    arguments, message = ARRAY_ERRORS[case]
    good = {
        "x": [[0], [1]],
        "y": [0, 1],
        "column_names": ["x"],
        "class_names": ["a", "b"],
    }
    with pytest.raises(ValueError, match=message):
        Table(**{**good, **arguments}, name="t")


def test_tables_of_pmlb(data_dir):
    folder = data_dir / "tabular"
    with open(folder / "index.csv", newline="") as file:
        index = [row for row in csv.DictReader(file) if row["task"] == "classification"]
    assert len(index) == 51
    for row in index:
        path = folder / "classification" / f"{row['name']}.tsv.gz"
        if row["name"] == "schizo":
            # A defect of the benchmark: its class and one of its columns share a name.
            with pytest.raises(ValueError, match=r"'target' occurs 2 times"):
                from_table(path, target="target")
            table = from_table(path, target="target.1", drop=["target"])
            assert (table.x.shape, table.class_names) == ((340, 13), ("0", "1"))
            assert not any("target" in name for name in table.column_names)
            continue
        table = from_table(path, target="target", categorical=None)
        assert table.name == row["name"]
        assert table.x.shape == (int(row["rows"]), int(row["features"]))
        counts = np.bincount(table.y)
        assert len(counts) == len(table.class_names) == int(row["classes"])
        assert counts.min() == int(row["min_class_count_or_distinct_targets"])
