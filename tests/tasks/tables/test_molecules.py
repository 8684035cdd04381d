"""Molecules: bits of SMILES, tasks of assays, and the errors on the way."""

import builtins
import sys
import zlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.tasks.tables.delimited import MISSING
from metajax.tasks.tables.molecules import (
    MoleculeTable,
    from_molecules,
    molecule_tasks,
    read_molecules,
)
from metajax.tasks.task_checks import check_task

NAN = float("nan")
ETHANOL, BENZENE, BROKEN = "CCO", "c1ccccc1", "C1CC("


def bits(table):
    return np.unpackbits(table.fingerprints, axis=1)


def test_bits_are_hashes_of_pieces():
    table = from_molecules(["CCO", "CO"], [[0], [1]], size=64, ngrams=(1, 2))
    assert (table.fingerprints.dtype, table.fingerprints.shape) == (np.uint8, (2, 8))
    for row, pieces in enumerate([["C", "O", "CC", "CO"], ["C", "O", "CO"]]):
        expected = {zlib.crc32(piece.encode()) % 64 for piece in pieces}
        assert set(np.flatnonzero(bits(table)[row])) == expected
    # The check value that CRC-32 is published with: 0xCBF43926.
    check = from_molecules(["123456789"], [[0]], size=256, ngrams=9)
    assert np.flatnonzero(bits(check)[0]).tolist() == [0x26]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text("CNOcn1()=[]@+é", min_size=1, max_size=9), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([8, 24, 1024]),
)
def test_a_molecule_has_the_bits_of_its_parts(smiles, low, more, size):
    def fingerprints(texts, ngrams):
        return bits(
            from_molecules(
                texts,
                np.zeros((len(texts), 1)),
                size=size,
                ngrams=ngrams,
                repeats="keep",
            )
        )

    both = fingerprints(smiles, (low, low + more))
    each = [fingerprints(smiles, length) for length in range(low, low + more + 1)]
    np.testing.assert_array_equal(both, np.max(each, axis=0))
    for text, row in zip(smiles, both, strict=True):
        np.testing.assert_array_equal(fingerprints([text], (low, low + more))[0], row)
        assert np.all(row <= fingerprints([f"C{text}N"], (low, low + more))[0])


def test_labels_and_dropped_molecules():
    smiles = ["CCO", "", "CO", None, "C N", " C", "N"]
    assays = [[0, 1], [1, 1], [NAN, 0], [1, 1], [1, 1], [1, 1], [1, NAN]]
    table = from_molecules(smiles, assays, ["a", "b"], invalid="drop")
    assert table.labels.tolist() == [[0, 1], [-1, 0], [1, -1]]
    assert table.labels.dtype == np.int8
    assert table.rows.tolist() == [0, 2, 6]
    assert table.assay_names == ("a", "b")
    kept = from_molecules(["CCO", "CO", "N"], np.zeros((3, 2)))
    np.testing.assert_array_equal(table.fingerprints, kept.fingerprints)
    assert kept.assay_names == ("assay 0", "assay 1")
    message = (
        r"4 of 7 SMILES cannot be read: row 1 \(''\), row 3 \(None\), row 4 \('C N"
    )
    with pytest.raises(ValueError, match=message):
        from_molecules(smiles, assays)
    with pytest.raises(ValueError, match=r"1 of 1 SMILES cannot be read: row 0 \(3\)"):
        from_molecules([3], [[1]], invalid="drop")


def measured(counts, seed=0):
    """A table with so many `(inactive, active)` molecules in each assay, and gaps.

    The bits of a molecule are those of its number.
    """
    num = max(map(sum, counts)) + 5
    random = np.random.default_rng(seed)
    labels = np.full((num, len(counts)), -1, np.int8)
    for assay, (inactive, active) in enumerate(counts):
        rows = random.permutation(num)
        labels[rows[:inactive], assay] = 0
        labels[rows[inactive : inactive + active], assay] = 1
    numbers = np.arange(num, dtype=np.uint8)[:, None]
    names = tuple(f"assay {assay}" for assay in range(len(counts)))
    return MoleculeTable(numbers, labels, names, np.arange(num, dtype=np.int32))


@jax.jit
def draw_all(tasks, keys):
    return jax.vmap(lambda key: (tasks(key), tasks.rows(key)))(keys)


def draw(tasks, num, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    return jax.tree.map(np.asarray, draw_all(tasks, keys))


def numbers_of(x):
    return np.packbits(x.astype(np.uint8), axis=-1)[..., 0]


def assert_share(hits, share):
    error = np.sqrt(share * (1 - share) / len(hits))
    assert abs(np.mean(hits) - share) < 6 * error


def test_a_task_is_an_assay():
    table = measured([(9, 5), (30, 4), (4, 8)])
    chosen = ["assay 2", "assay 0"]
    drawn, rows = draw(molecule_tasks(table, assays=chosen, shot=3, num_queries=1), 900)
    assert drawn.support.x.shape == (900, 6, 8)
    assert drawn.query.x.shape == (900, 2, 8)
    assert drawn.support.x.dtype == np.float32
    assert drawn.support.mask is None
    np.testing.assert_array_equal(drawn.support.y[0], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(drawn.query.y[0], [0, 1])
    assert_share(rows.assay == 0, 1 / 2)
    held = np.concatenate([rows.support, rows.query], axis=1)
    np.testing.assert_array_equal(numbers_of(drawn.support.x), rows.support)
    np.testing.assert_array_equal(numbers_of(drawn.query.x), rows.query)
    labels = np.concatenate([drawn.support.y, drawn.query.y], axis=1)
    assert all(len(set(row)) == 8 for row in held)
    for place, column in ((0, 2), (1, 0)):
        is_own = rows.assay == place
        np.testing.assert_array_equal(
            table.labels[held[is_own], column], labels[is_own]
        )
        for label in (0, 1):
            members = np.flatnonzero(table.labels[:, column] == label)
            for row in members:
                hits = (rows.support[is_own] == row).any(axis=1)
                assert_share(hits, 3 / len(members))


def test_shots_in_a_range():
    table = measured([(9, 8)])
    drawn, rows = draw(molecule_tasks(table, shot=(1, 4), num_queries=2), 400)
    shots = drawn.support.mask.reshape(400, 2, 4).sum(axis=2)
    np.testing.assert_array_equal(shots[:, 0], shots[:, 1])
    for shot in range(1, 5):
        assert_share(shots[:, 0] == shot, 1 / 4)
    assert np.all(drawn.support.x[~drawn.support.mask] == 0)
    real = drawn.support.mask
    np.testing.assert_array_equal(numbers_of(drawn.support.x)[real], rows.support[real])
    assert drawn.query.mask is None


def test_keys_decide_and_jit_does_not(key):
    tasks = molecule_tasks(measured([(9, 8), (7, 7)]), shot=(2, 3), num_queries=2)
    task = tasks(key)
    check_task(task, "tasks")
    compiled = jax.jit(lambda tasks, key: tasks(key))
    for other in (tasks(key), compiled(tasks, key)):
        jax.tree.map(np.testing.assert_array_equal, other, task)
    other = compiled(tasks, jax.random.key(1))
    assert not np.array_equal(other.support.x, task.support.x)


GOOD = {"smiles": ["CCO", "N"], "assays": [[0, 1], [1, NAN]]}
TABLE_ERRORS = {
    "fingerprint": ({"fingerprint": "maccs"}, r"'ngrams' or 'morgan', got 'maccs'"),
    "size": ({"size": 0}, r"`size` must be .* at least 8, got 0"),
    "bytes": ({"size": 100}, r"`size` must be a multiple of 8, got 100"),
    "ngrams": ({"ngrams": (3, 2)}, r"`ngrams` must be .* got \(3, 2\)"),
    "radius": ({"radius": -1}, r"`radius` must be .* got -1"),
    "invalid": (
        {"invalid": "skip"},
        r"`invalid` must be 'error' or 'drop', got 'skip'",
    ),
    "repeats": (
        {"repeats": "drop"},
        r"`repeats` must be one of merge, keep, error, got 'drop'",
    ),
    "flag": ({"chirality": "yes"}, r"`chirality` must be True or False, got 'yes'"),
    "one text": (
        {"smiles": "CC"},
        r"must be a list of texts, got one text; .*\['CC'\]",
    ),
    "rank": ({"assays": [0, 1]}, r"must be \[M, T\], a row for .* 2 SMILES.*got \[2\]"),
    "length": ({"smiles": ["C"]}, r"each of the 1 SMILES.*got \[2, 2\]"),
    "names": ({"assay_names": ["a"]}, r"each of the 2 columns.*got \['a'\]"),
    "name": ({"assay_names": "ab"}, r"one name for each of the 2 columns.*got 'ab'"),
    "same": ({"assay_names": ["a", "a"]}, r"must be distinct, but 'a' occurs 2"),
    "values": (
        {"assays": [[0, 1], [7.5, NAN]]},
        r"must be 0, 1 or NaN, but 'assay 0' holds 7.5 at row 1; make two classes",
    ),
}


@pytest.mark.parametrize("case", TABLE_ERRORS)
def test_errors_of_tables(case):
    arguments, message = TABLE_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        from_molecules(**{**GOOD, **arguments})


TASK_ERRORS = {
    "shot": ({"shot": 0}, r"`shot` must be .* got 0"),
    "queries": ({"num_queries": 0}, r"`num_queries` must be .* got 0"),
    "unknown": (
        {"assays": ["assay 0", "b"]},
        r"list of names of 'assay 0', 'assay 1', got \['assay 0', 'b'\]",
    ),
    "one": ({"assays": "assay 0"}, r"must be a list of names .* got assay 0"),
    "none": ({"assays": []}, r"must be at least one, and each only once, got \[\]"),
    "twice": ({"assays": ["assay 1"] * 2}, r"at least one, and each only once"),
    "few": (
        {"num_queries": 3},
        r"needs 5 active and as many inactive .* but 'assay 1' has 4 active and 7 in",
    ),
    "few inactive": (
        {"assays": ["assay 0"], "shot": (1, 6)},
        r"needs 8 .* but 'assay 0' has 9 active and 5 inactive; lower",
    ),
}


@pytest.mark.parametrize("case", TASK_ERRORS)
def test_errors_of_tasks(case):
    arguments, message = TASK_ERRORS[case]
    table, good = measured([(5, 9), (7, 4)]), {"shot": 2, "num_queries": 2}
    molecule_tasks(table, **good)
    with pytest.raises(ValueError, match=message):
        molecule_tasks(table, **{**good, **arguments})


def test_files_of_molecules(tmp_path):
    path = tmp_path / "assays.csv"
    path.write_text('tox,mol_id,smiles,"eyes, ears"\n1,m1,CCO,\n,m2,N,0.5\n')
    smiles, assays, names = read_molecules(path)
    assert (smiles, names) == (("CCO", "N"), ("tox", "eyes, ears"))
    np.testing.assert_array_equal(assays, [[1, NAN], [NAN, 0.5]])
    assert read_molecules(path, smiles="mol_id", drop=["smiles"])[0] == ("m1", "m2")


FILE_ERRORS = {
    "column": (
        {"smiles": "SMILES"},
        r"`smiles` must be one .*, 'mol_id', 'smiles', .*",
    ),
    "drop": ({"drop": "tox"}, r"`drop` must be a list of words, got 'tox'"),
    "no assay": ({"drop": ["tox", "mol_id"]}, r"has 0 columns of assays.* and 1 rows"),
    "number": (
        {"drop": ()},
        r"'mol_id' of '.*a\.csv' holds 'm1' at line 3, not a number; .* in `drop`",
    ),
}


@pytest.mark.parametrize("case", FILE_ERRORS)
def test_errors_of_files(tmp_path, case):
    arguments, message = FILE_ERRORS[case]
    path = tmp_path / "a.csv"
    path.write_text("tox,mol_id,smiles\n\n1,m1,C\n")
    with pytest.raises(ValueError, match=message):
        read_molecules(path, **arguments)
    path.write_text("tox,mol_id,smiles\n")
    with pytest.raises(ValueError, match=r"has 1 columns of assays.* and 0 rows"):
        read_molecules(path)


def test_cells_that_are_no_number(tmp_path):
    """The same as in tables: gaps of the usual spellings, and a name for the others."""
    path = tmp_path / "a.csv"
    gaps = [*MISSING, "nan", "NaN"]
    rows = [f"{'C' * n},{cell},0\n" for n, cell in enumerate(["1", *gaps], 1)]
    path.write_text("smiles,hit,tox\n" + "".join(rows))
    assays = read_molecules(path).assays
    np.testing.assert_array_equal(assays[:, 0], [1] + [NAN] * len(gaps))
    for cell in ("active", "<5", "1_0"):
        path.write_text(f"smiles,hit\nC,1\nCC,{cell}\n")
        with pytest.raises(
            ValueError, match=rf"'hit' .* holds '{cell}' at line 3, not"
        ):
            read_molecules(path)
        assert np.isnan(read_molecules(path, missing=[cell]).assays[1, 0])
    with pytest.raises(
        ValueError, match=r"`missing` must be a list of words, got 'NA'"
    ):
        read_molecules(path, missing="NA")


def test_repeated_columns_of_files(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("smiles,hit,hit,smiles\nC,1,0,CC\n")
    with pytest.raises(ValueError, match=r"must be distinct, but 'hit' occurs 2 times"):
        read_molecules(path, drop=["smiles.1"])
    first = read_molecules(path, drop=["smiles.1", "hit.1"])
    assert (first.smiles, first.assays.tolist()) == (("C",), [[1]])
    second = read_molecules(path, smiles="smiles.1", drop=["smiles", "hit.1"])
    assert second.smiles == ("CC",)


SYNONYMS = ["CCO", "C", "OCC", "CC", "C(O)C"]
ASSAYS = [[1, NAN, 0], [0, 0, 0], [1, 1, 1], [1, NAN, 1], [NAN, 1, 1]]


@pytest.mark.parametrize("fingerprint", ["morgan", "ngrams"])
def test_one_molecule_written_in_several_ways_is_merged(fingerprint):
    pytest.importorskip("rdkit")
    options = {"fingerprint": fingerprint, "canonical": True}
    told = r"2 of 5 SMILES repeat .* row 2 \('OCC'\) that of row 0 \('CCO'\), row 4 "
    with pytest.warns(UserWarning, match=told + r".*; 1 measurements that disagree"):
        table = from_molecules(SYNONYMS, ASSAYS, **options)
    # Where all agree, where one alone was measured, and where they disagree.
    assert table.labels.tolist() == [[1, 1, -1], [0, 0, 0], [1, -1, 1]]
    assert table.rows.tolist() == [0, 1, 3]
    kept = from_molecules(SYNONYMS, ASSAYS, repeats="keep", **options)
    assert kept.rows.tolist() == [*range(5)]
    for row in (2, 4):
        np.testing.assert_array_equal(kept.fingerprints[row], kept.fingerprints[0])
    np.testing.assert_array_equal(table.fingerprints, kept.fingerprints[[0, 1, 3]])
    with pytest.raises(ValueError, match=told):
        from_molecules(SYNONYMS, ASSAYS, repeats="error", **options)


def test_the_same_text_is_the_same_molecule():
    smiles, assays = ["zz", "y", "zz"], [[1], [0], [1]]
    with pytest.warns(UserWarning, match=r"row 2 \('zz'\) that of row 0 \('zz'\), and"):
        table = from_molecules(smiles, assays)
    assert (table.rows.tolist(), table.labels.tolist()) == ([0, 1], [[1], [0]])
    # And so none is in support and query alike.
    numbers = ["a" * n for n in range(1, 9)] * 2
    with pytest.warns(UserWarning, match="8 of 16 SMILES repeat"):
        table = from_molecules(numbers, [[n % 2] for n in range(8)] * 2)
    _, rows = draw(molecule_tasks(table, shot=2, num_queries=2), 20)
    for held in np.concatenate([rows.support, rows.query], axis=1):
        assert len({numbers[row] for row in table.rows[held]}) == 8


def test_ngrams_tell_of_other_ways_of_writing(monkeypatch):
    pytest.importorskip("rdkit")
    message = (
        r"2 of 5 SMILES are of a molecule .* row 2 \('OCC'\) that of row 0 .*`cano"
    )
    with pytest.warns(UserWarning, match=message):
        table = from_molecules(SYNONYMS, ASSAYS)
    assert table.rows.tolist() == [*range(5)]
    from_molecules(SYNONYMS, ASSAYS, repeats="keep")
    # Mirror images are no synonyms, nor is what RDKit cannot read; and without it there
    # is nothing to tell.
    texts = ["zz", "yy", "C[C@H](N)O", "C[C@@H](N)O"]
    assert len(from_molecules(texts, [[0], [1], [0], [1]]).rows) == 4
    without_rdkit(monkeypatch)
    from_molecules(SYNONYMS, ASSAYS)


@pytest.mark.parametrize("fingerprint", ["morgan", "ngrams"])
def test_mirror_images_are_one_unless_asked(fingerprint):
    pytest.importorskip("rdkit")
    alanine = ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "CC(N)C(=O)O"]
    butene = ["C/C=C/C", "C/C=C\\C"]
    isotopes = ["[2H]C", "C"]
    smiles = alanine + butene + isotopes
    assays = [[1], [0], [1], [1], [1], [0], [1]]
    options = {"fingerprint": fingerprint, "canonical": True}
    with pytest.warns(UserWarning, match=r"3 of 7 SMILES repeat .*; 1 measurements"):
        flat = from_molecules(smiles, assays, **options)
    assert flat.rows.tolist() == [0, 3, 5, 6]
    assert flat.labels[:2].tolist() == [[-1], [1]]
    table = from_molecules(smiles, assays, chirality=True, **options)
    assert table.labels[:, 0].tolist() == [1, 0, 1, 1, 1, 0, 1]
    for one, other in ((0, 1), (0, 2)):
        assert np.any(table.fingerprints[one] != table.fingerprints[other])
    np.testing.assert_array_equal(
        flat.fingerprints[0],
        from_molecules(alanine[2:], [[1]], **options).fingerprints[0],
    )


def without_rdkit(monkeypatch):
    original = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.split(".")[0] == "rdkit":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "rdkit", raising=False)
    monkeypatch.setattr(builtins, "__import__", fake)


def test_missing_rdkit_names_the_extra(monkeypatch):
    without_rdkit(monkeypatch)
    with pytest.raises(ImportError, match=r"`canonical` needs RDKit.*\[molecules\]"):
        from_molecules(**GOOD, canonical=True)
    with pytest.raises(ImportError, match=r"metajax\[molecules\].*'ngrams'"):
        from_molecules(**GOOD, fingerprint="morgan")


def test_morgan_fingerprints_are_of_molecules(capfd):
    chem = pytest.importorskip("rdkit.Chem")
    generators = pytest.importorskip("rdkit.Chem.rdFingerprintGenerator")
    smiles = [ETHANOL, BROKEN, "OCC", BENZENE]
    options = {"size": 512, "radius": 1}
    with pytest.raises(ValueError, match=r"1 of 4 SMILES .*: row 1 \('C1CC\('\)"):
        from_molecules(smiles, np.zeros((4, 1)), fingerprint="morgan", **options)
    options |= {"repeats": "keep", "invalid": "drop"}
    table = from_molecules(smiles, np.zeros((4, 1)), fingerprint="morgan", **options)
    assert table.rows.tolist() == [0, 2, 3]
    # One molecule, written in two ways.
    np.testing.assert_array_equal(table.fingerprints[0], table.fingerprints[1])
    assert not np.array_equal(table.fingerprints[0], table.fingerprints[2])
    # As many bits as RDKit finds neighbourhoods, of this radius.
    generator = generators.GetMorganGenerator(radius=1)
    for row, text in enumerate([ETHANOL, ETHANOL, BENZENE]):
        found = generator.GetSparseFingerprint(chem.MolFromSmiles(text))
        assert bits(table)[row].sum() == found.GetNumOnBits()
    assert capfd.readouterr().err == ""


def test_assays_of_moleculenet(data_dir):
    smiles, assays, names = read_molecules(data_dir / "molecules" / "tox21.csv.gz")
    assert assays.shape == (8014, 12)
    assert names[0] == "NR-AR"
    assert set(np.unique(assays[~np.isnan(assays)])) == {0, 1}
    measurements = (~np.isnan(assays)).sum(axis=0)
    assert 5500 < measurements.min() < measurements.max() < 7500
    # The file has repeats, letter by letter, and some of them disagree.
    with pytest.warns(UserWarning, match=r"183 of 8014 SMILES .*; 64 measurements"):
        table = from_molecules(smiles, assays, names, size=256)
    assert len(table.rows) == len(set(smiles)) == 8014 - 183
    train = molecule_tasks(table, assays=names[:9], shot=5, num_queries=5)
    drawn, rows = draw(train, 50)
    assert np.isfinite(drawn.support.x).all()
    for task in range(50):
        own = table.labels[rows.support[task], rows.assay[task]]
        np.testing.assert_array_equal(own, drawn.support.y[task])


def test_complete_assays_of_moleculenet(data_dir):
    molecules = read_molecules(data_dir / "molecules" / "sider.csv.gz")
    table = from_molecules(*molecules, size=64)
    assert table.labels.shape == (1427, 27)
    assert table.labels.min() == 0
    assert "Neoplasms benign, malignant and unspecified (incl cysts and polyps)" in (
        table.assay_names
    )
    assert len(np.unique(table.fingerprints, axis=0)) > 1300
