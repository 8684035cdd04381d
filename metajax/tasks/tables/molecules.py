"""Few-shot tasks from assays of molecules: is this one active, after a few that were?

The setting is that of H. Altae-Tran, B. Ramsundar, A. S. Pappu, V. Pande, "Low Data
Drug Discovery with One-Shot Learning", ACS Central Science 2017,
https://doi.org/10.1021/acscentsci.6b00367: a data set measures many molecules in some
assays, with gaps; an assay is a task with two classes, and whole assays are held out.

Molecules are vectors of bits, computed once from their SMILES, the usual notation of a
molecule as a line of text (`CCO` is ethanol):

* `"ngrams"`: which short pieces the text has, each hashed to a bit. It needs no
  chemistry package, but one molecule has many SMILES, and so many such vectors, unless
  RDKit brings them to its canonical form first.
* `"morgan"`: which neighbourhoods of atoms the molecule has (D. Rogers, M. Hahn,
  "Extended-Connectivity Fingerprints", Journal of Chemical Information and Modeling
  2010, https://doi.org/10.1021/ci100050t), computed by RDKit.

A molecule that is there twice would be learned from in the support set and asked for in
the query set, so repeats are merged.

Bits stay packed on the device, 8 to a byte, and become floats when a task is drawn.
"""

import dataclasses
import functools
import os
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import (
    as_numbers,
    check_choice,
    check_fits,
    check_flags,
    check_instances,
    check_integers,
    check_paths,
    check_words,
)
from metajax.tasks.images.few_shot import distinct
from metajax.tasks.sizes import as_range, check_num_queries, size_masks
from metajax.tasks.summaries import summary
from metajax.tasks.tables.columns import plain_number
from metajax.tasks.tables.delimited import (
    MISSING,
    check_distinct,
    listing,
    number_repeats,
    read_delimited,
)
from metajax.types import Array, Examples, Task

__all__ = [
    "MoleculeRows",
    "MoleculeTable",
    "MoleculeTasks",
    "Molecules",
    "from_molecules",
    "molecule_tasks",
    "read_molecules",
]

_CLASSES = ("inactive", "active")


class Molecules(NamedTuple):
    """A file of molecules; `from_molecules(*molecules)` makes a table of it.

    Attributes:
      smiles: M texts.
      assays: float64 `[M, T]`, NaN where not measured.
      assay_names: T names.
    """

    smiles: tuple[str, ...]
    assays: np.ndarray
    assay_names: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Molecules({len(self.smiles)} SMILES, {len(self.assay_names)} assays)"


@dataclasses.dataclass(frozen=True, eq=False)
class MoleculeTable:
    """Molecules and what assays say of them; build it with `from_molecules`.

    Attributes:
      fingerprints: uint8 `[M, size / 8]`, bits packed as by `numpy.packbits`.
      labels: int8 `[M, T]`, 1 active, 0 inactive, -1 not measured.
      assay_names: T names.
      rows: int32 `[M]`, which of the SMILES given each molecule is, the first of those
        that were merged.
    """

    fingerprints: np.ndarray
    labels: np.ndarray
    assay_names: tuple[str, ...]
    rows: np.ndarray

    def __repr__(self) -> str:
        return (
            f"MoleculeTable({len(self.fingerprints)} molecules of "
            f"{8 * self.fingerprints.shape[1]} bits, {len(self.assay_names)} assays)"
        )


class MoleculeRows(NamedTuple):
    """Which molecules make up a task.

    Attributes:
      assay: int32 scalar, place of the assay among those of the distribution.
      support: int32 `[2 * K]`, numbers of molecules in the table, inactive ones first.
      query: int32 `[2 * Q]`, likewise; none of them is in the support.
      support_mask: bool `[2 * K]`, or None where shot is fixed.
    """

    assay: Array
    support: Array
    query: Array
    support_mask: Array | None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["fingerprints", "by_class", "starts", "counts"],
    meta_fields=["shot", "num_queries"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class MoleculeTasks:
    """A `TaskDistribution` over assays; build it with `molecule_tasks`.

    It is a pytree: hand it to `jit` as an argument, so that fingerprints are not copied
    into the compiled program. Of A assays, `by_class`, int32 `[measurements]`, lists
    for each in turn its inactive and then its active molecules; `starts`, int32 `[A]`,
    says where each begins, and `counts`, int32 `[A, 2]`, how many these are. `shot` is
    an inclusive range.
    """

    fingerprints: Any
    by_class: Any
    starts: Any
    counts: Any
    shot: tuple[int, int]
    num_queries: int

    __repr__ = summary

    def __call__(self, key: Array) -> Task:
        """Draws one task; the key is consumed. Shapes are in `molecule_tasks`."""
        rows = jax.lax.optimization_barrier(self.rows(key))
        labels = jnp.arange(len(_CLASSES), dtype=jnp.int32)
        support = self._inputs(rows.support)
        if rows.support_mask is not None:
            support = jnp.where(rows.support_mask[:, None], support, 0.0)
        return Task(
            Examples(support, jnp.repeat(labels, self.shot[1]), rows.support_mask),
            Examples(self._inputs(rows.query), jnp.repeat(labels, self.num_queries)),
        )

    def rows(self, key: Array) -> MoleculeRows:
        """Tells which molecules the task of this key is made of."""
        key_assay, key_row, key_size = jax.random.split(key, 3)
        assay = jax.random.randint(key_assay, (), 0, self.starts.shape[0])
        counts, shot = self.counts[assay], self.shot[1]
        places = distinct(key_row, counts, shot + self.num_queries)
        places += self.starts[assay] + (jnp.cumsum(counts) - counts)[:, None]
        rows = self.by_class[places]
        way = (len(_CLASSES),) * 2
        support_mask, _ = size_masks(key_size, way, self.shot, self.num_queries)
        return MoleculeRows(
            assay, rows[:, :shot].reshape(-1), rows[:, shot:].reshape(-1), support_mask
        )

    def _inputs(self, rows: Array) -> Array:
        bits = jnp.unpackbits(self.fingerprints[rows], axis=1)
        return bits.astype(jnp.float32)


def read_molecules(
    path: str | os.PathLike[str],
    *,
    smiles: str = "smiles",
    drop: Sequence[str] = ("mol_id",),
    missing: Sequence[str] = MISSING,
) -> Molecules:
    """Reads a CSV file as those of MoleculeNet: SMILES, and a column for each assay.

    Args:
      path: of a CSV or TSV file with a header, gzipped or not, in UTF-8. A name that
        repeats is `name.1` the second time, then `name.2`.
      smiles: name of the column of SMILES.
      drop: names of columns that are no assays; they need not be there.
      missing: cells of assays that are not measured, besides NaN, as for `from_table`.

    Returns:
      `Molecules`, whose values may be any numbers: `from_molecules` wants 0 and 1.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is malformed or has no rows, no column of SMILES or no
        assay, names of assays repeat, or a cell of an assay is not a number.

    Example:
      >>> molecules = read_molecules("tox21.csv.gz")  # doctest: +SKIP
      >>> table = from_molecules(*molecules, invalid="drop")  # doctest: +SKIP
    """
    check_paths(path=path)
    check_words(drop=drop, missing=missing)
    original, rows, lines = read_delimited(path)
    names = number_repeats(original)
    if smiles not in names:
        raise ValueError(
            f"`smiles` must be one of the columns of {str(path)!r}, "
            f"{listing([repr(name) for name in names])}, got {smiles!r}."
        )
    columns = [
        place
        for place, (name, shared) in enumerate(zip(names, original, strict=True))
        if name != smiles and not {name, shared} & set(drop)
    ]
    assay_names = tuple(original[column] for column in columns)
    check_distinct((smiles, *assay_names), repr(str(path)))
    if not assay_names or not rows:
        raise ValueError(
            f"{str(path)!r} has {len(assay_names)} columns of assays, besides SMILES "
            f"and `drop`, and {len(rows)} rows; both must be at least 1."
        )
    assays = np.full((len(rows), len(columns)), np.nan)
    for number, row in enumerate(rows):
        for place, column in enumerate(columns):
            if row[column] in missing:
                continue
            value = plain_number(row[column])
            if value is None:
                raise ValueError(
                    f"Assay {names[column]!r} of {str(path)!r} holds "
                    f"{row[column]!r} at line {lines[number]}, not a number; "
                    "repair it, name it in `missing` if that means not measured, or, "
                    "if the column is no assay, name it in `drop`."
                )
            assays[number, place] = value
    place = names.index(smiles)
    return Molecules(tuple(row[place] for row in rows), assays, assay_names)


def from_molecules(
    smiles: Sequence[str],
    assays: Any,
    assay_names: Sequence[str] | None = None,
    *,
    fingerprint: str = "ngrams",
    size: int = 1024,
    ngrams: int | tuple[int, int] = (1, 4),
    radius: int = 2,
    canonical: bool = False,
    chirality: bool = False,
    invalid: str = "error",
    repeats: Literal["merge", "keep", "error"] = "merge",
) -> MoleculeTable:
    """Makes a vector of bits of each molecule.

    Two SMILES are of one molecule if they are the same text, and, for `"morgan"` or
    with `canonical`, if RDKit's canonical SMILES of both are the same.

    Args:
      smiles: M texts.
      assays: numbers `[M, T]`: 1 active, 0 inactive, NaN not measured.
      assay_names: T names; None for `"assay 0"` and so on.
      fingerprint: `"ngrams"`: bit `crc32(piece) % size` is set for each piece of
        `ngrams` characters; `"morgan"`: the Morgan fingerprint of RDKit, which needs
        the extra `molecules`.
      size: bits of a molecule, a positive multiple of 8. Pieces that share a bit cannot
        be told apart.
      ngrams: length of pieces, or an inclusive `(low, high)`; for `"ngrams"`.
      radius: bonds to the border of a neighbourhood, at least 0; for `"morgan"`.
      canonical: for `"ngrams"`, whether to take the pieces of RDKit's canonical SMILES,
        which needs the extra `molecules`. Without it, where RDKit is installed, a
        warning tells of molecules that are written in several ways.
      chirality: whether molecules that differ in space alone (mirror images, and cis
        and trans) are different ones, with different bits; for `"morgan"` and
        `canonical`. As is usual, they are not.
      invalid: of SMILES that are not text, are empty, hold blanks, or, for `"morgan"`,
        that RDKit cannot read. `"error"` refuses them and says which; `"drop"` leaves
        these molecules out.
      repeats: of SMILES of a molecule that was there before. `"merge"` makes one
        molecule of them and warns; where they disagree in an assay, it counts as not
        measured. `"keep"` keeps them, so that a molecule may be in the support and in
        the query of a task; `"error"` refuses them and says which.

    Returns:
      The molecules in their order, as a `MoleculeTable`.

    Raises:
      ValueError: if a number or word is out of range, shapes do not fit, assays hold
        other numbers or have equal names, SMILES are invalid (with `"drop"`: all), or
        repeat, with `"error"`.
      ImportError: for `"morgan"` or `canonical` without RDKit.

    Example:
      >>> table = from_molecules(["CCO", "c1ccccc1"], [[0, 1], [float("nan"), 0]])
      >>> table.fingerprints.shape, table.labels.tolist()
      ((2, 128), [[0, 1], [-1, 0]])

      Potencies become classes by the median of each assay, gaps stay gaps:

      >>> smiles = ["CCO", "c1ccccc1", "CCN"]
      >>> values = np.array([[5.1, np.nan], [6.3, 4.0], [7.7, 6.1]])
      >>> is_active = values > np.nanmedian(values, axis=0)
      >>> table = from_molecules(smiles, np.where(np.isnan(values), values, is_active))
      >>> table.labels.tolist()
      [[0, -1], [0, 0], [1, 1]]
    """
    if not isinstance(smiles, str):
        check_words(smiles=smiles)
    if assay_names is not None and not isinstance(assay_names, str):
        check_words(assay_names=assay_names)
    check_flags(canonical=canonical, chirality=chirality)
    read = _reader(
        fingerprint,
        size,
        as_range("ngrams", ngrams),
        radius,
        canonical=canonical,
        chirality=chirality,
    )
    check_choice(("merge", "keep", "error"), repeats=repeats)
    if invalid not in ("error", "drop"):
        raise ValueError(f"`invalid` must be 'error' or 'drop', got {invalid!r}.")
    if isinstance(smiles, str):
        raise ValueError(
            f"`smiles` must be a list of texts, got one text; write [{smiles!r}]."
        )
    smiles, values = list(smiles), as_numbers(assays=assays)
    if values.ndim != 2 or values.size == 0 or len(values) != len(smiles):
        raise ValueError(
            f"`assays` must be [M, T], a row for each of the {len(smiles)} SMILES and "
            f"at least one column, got {list(values.shape)}; `smiles` has one each."
        )
    num_assays = values.shape[1]
    if assay_names is None:
        assay_names = [f"assay {number}" for number in range(num_assays)]
    if isinstance(assay_names, str) or len(assay_names) != num_assays:
        raise ValueError(
            f"`assay_names` must have one name for each of the {num_assays} columns of "
            f"`assays`, got {assay_names!r}."
        )
    check_distinct(assay_names, "`assay_names`")
    check_fits(
        f"Fingerprints of `size` = {size}",
        jax.ShapeDtypeStruct((len(smiles), size // 8), "uint8"),
        "lower `size`",
    )
    is_measured = ~np.isnan(values)
    is_other = is_measured & (values != 0) & (values != 1)
    if is_other.any():
        row, column = np.argwhere(is_other)[0]
        raise ValueError(
            f"`assays` must be 0, 1 or NaN, but {assay_names[column]!r} holds "
            f"{values[row, column]} at row {row}; make two classes of it first, as by "
            "`values > numpy.nanmedian(values, axis=0)` where it is measured."
        )
    kept, fingerprints, identities, bad = [], [], [], []
    with _quiet():
        for row, text in enumerate(smiles):
            found = read(text) if _is_smiles(text) else None
            if found is None:
                bad.append(f"row {row} ({text!r})")
            else:
                kept.append(row)
                identities.append(found[0])
                fingerprints.append(found[1])
    if bad and (invalid == "error" or not kept):
        raise ValueError(
            f"{len(bad)} of {len(smiles)} SMILES cannot be read: {listing(bad, 5)}; "
            "repair them, or leave them out by `invalid='drop'`."
        )
    labels = np.where(is_measured, values, -1).astype(np.int8)[kept]
    bits, rows = np.stack(fingerprints), np.asarray(kept, np.int32)
    if fingerprint == "ngrams" and not canonical and repeats != "keep":
        _warn_of_synonyms([smiles[row] for row in kept], rows)
    first, places = _first_places(identities)
    if len(first) < len(identities) and repeats != "keep":
        told = _pairs(first, places, rows, smiles)
        if repeats == "error":
            raise ValueError(
                f"{len(identities) - len(first)} of {len(smiles)} SMILES repeat a "
                f"molecule: {told}; remove them, or use `repeats='merge'`."
            )
        labels, disagree = _merged(labels, places, len(first))
        warnings.warn(
            f"{len(identities) - len(first)} of {len(smiles)} SMILES repeat a "
            f"molecule, {told}, and are merged; {disagree} measurements that disagree "
            "count as not measured. `repeats='keep'` keeps all apart.",
            UserWarning,
            stacklevel=2,
        )
        bits, rows = bits[first], rows[first]
    return MoleculeTable(bits, labels, tuple(assay_names), rows)


def molecule_tasks(
    table: MoleculeTable,
    *,
    assays: Sequence[str] | None = None,
    shot: int | tuple[int, int] = 10,
    num_queries: int = 16,
) -> MoleculeTasks:
    """Draws tasks of one assay each: active or not.

    The assay of a task is uniform over `assays`; molecules are uniform over its active
    and over its inactive ones, and support and query share none. Meta-training and
    meta-test should be different assays of one table; they share molecules, as in the
    paper.

    Args:
      table: molecules and their labels.
      assays: names of the assays to draw from, different ones; None for all.
      shot: K, active and likewise inactive molecules in the support; or an inclusive
        `(low, high)`, uniform over the range, with masks.
      num_queries: Q, active and likewise inactive molecules in the query, at least 1.

    Returns:
      A callable `(key) -> Task`, itself a pytree: support `x` float32 `[2 * K, size]`,
      0 and 1, and `y` int32 `[2 * K]`, first the inactive (0), then the active (1);
      query the same with Q. `mask` is None but for the support of a range. `rows(key)`
      tells which molecules the task of a key holds.

    Raises:
      ValueError: if a number is out of range, an assay is unknown, repeated, or has
        fewer active or inactive molecules than `shot + num_queries`; it is named.

    Example:
      >>> table = from_molecules(*read_molecules("tox21.csv.gz"))  # doctest: +SKIP
      >>> names = table.assay_names  # doctest: +SKIP
      >>> train_tasks = molecule_tasks(table, assays=names[:9])  # doctest: +SKIP
      >>> test_tasks = molecule_tasks(table, assays=names[9:])  # doctest: +SKIP
    """
    check_instances(
        MoleculeTable, "`metajax.tasks.from_molecules` makes one", table=table
    )
    shot_range = as_range("shot", shot)
    check_num_queries(num_queries)
    if assays is None:
        assays = table.assay_names
    if not isinstance(assays, str):
        check_words(assays=assays)
    assays = assays if isinstance(assays, str) else list(assays)
    known = listing([repr(name) for name in table.assay_names])
    are_names = all(isinstance(name, str) for name in assays)
    if isinstance(assays, str) or not are_names or set(assays) - {*table.assay_names}:
        raise ValueError(f"`assays` must be a list of names of {known}, got {assays}.")
    if not assays or len(set(assays)) != len(assays):
        raise ValueError(
            f"`assays` must be at least one, and each only once, got {assays}."
        )
    columns = [table.assay_names.index(name) for name in assays]
    # Rows of each assay, inactive and active.
    members = [
        [np.flatnonzero(table.labels[:, column] == label) for label in (0, 1)]
        for column in columns
    ]
    counts = np.asarray([[len(rows) for rows in pair] for pair in members])
    needed = shot_range[1] + num_queries
    few = [
        f"{name!r} has {active} active and {inactive} inactive"
        for name, (inactive, active) in zip(assays, counts, strict=True)
        if min(active, inactive) < needed
    ]
    if few:
        raise ValueError(
            f"`shot + num_queries` needs {needed} active and as many inactive "
            f"molecules in every assay, but {listing(few, 5)}; lower `shot` or "
            "`num_queries`, or leave these out of `assays`."
        )
    totals = counts.sum(axis=1)
    return MoleculeTasks(
        jnp.asarray(table.fingerprints),
        jnp.asarray(np.concatenate([r for pair in members for r in pair]), jnp.int32),
        jnp.asarray(np.cumsum(totals) - totals, jnp.int32),
        jnp.asarray(counts, jnp.int32),
        shot_range,
        num_queries,
    )


def _is_smiles(text: Any) -> bool:
    return isinstance(text, str) and len(text.split()) == 1 and text.strip() == text


def _reader(
    fingerprint: str,
    size: int,
    ngrams: tuple[int, int],
    radius: int,
    *,
    canonical: bool,
    chirality: bool,
) -> Callable[[str], tuple[str, np.ndarray] | None]:
    """`smiles -> (identity, uint8 [size / 8])`, or None for what is no molecule."""
    check_integers(8, size=size)
    check_integers(0, radius=radius)
    if size % 8:
        raise ValueError(f"`size` must be a multiple of 8, got {size}.")
    if fingerprint not in ("ngrams", "morgan"):
        raise ValueError(
            f"`fingerprint` must be 'ngrams' or 'morgan', got {fingerprint!r}."
        )
    if fingerprint == "ngrams" and not canonical:
        return lambda text: (text, _ngram_bits(text, size, ngrams))
    what = (
        "Morgan fingerprints need" if fingerprint == "morgan" else "`canonical` needs"
    )
    chem, generators = _import_rdkit(what)
    generator = generators.GetMorganGenerator(
        radius=radius, fpSize=size, includeChirality=chirality
    )

    def read(text: str) -> tuple[str, np.ndarray] | None:
        molecule = _molecule(chem, text, chirality=chirality)
        if molecule is None:
            return None
        identity = chem.MolToSmiles(molecule)
        if fingerprint == "ngrams":
            return identity, _ngram_bits(identity, size, ngrams)
        return identity, np.packbits(generator.GetFingerprintAsNumPy(molecule))

    return read


def _molecule(chem: Any, smiles: str, *, chirality: bool) -> Any:
    """RDKit's molecule of a text, flat unless chirality counts; None if it is none."""
    molecule = chem.MolFromSmiles(smiles)
    if molecule is not None and not chirality:
        chem.RemoveStereochemistry(molecule)
    return molecule


def _warn_of_synonyms(smiles: Sequence[str], rows: np.ndarray) -> None:
    """Warns of molecules written in several ways, if RDKit is there to tell."""
    try:
        chem, _ = _import_rdkit("This needs")
    except ImportError:
        return
    texts = list(dict.fromkeys(smiles))
    with _quiet():
        # Mirror images are written differently on purpose.
        found = [_molecule(chem, text, chirality=True) for text in texts]
    identities = [
        text if molecule is None else chem.MolToSmiles(molecule)
        for text, molecule in zip(texts, found, strict=True)
    ]
    first, places = _first_places(identities)
    if len(first) < len(texts):
        numbers = [smiles.index(text) for text in texts]
        told = _pairs(
            first, places, rows[numbers], dict(zip(rows, smiles, strict=True))
        )
        warnings.warn(
            f"{len(texts) - len(first)} of {len(smiles)} SMILES are of a molecule that "
            f"is there in another way of writing, {told}, and n-grams take these for "
            "different ones. `canonical=True` does not.",
            UserWarning,
            stacklevel=3,
        )


def _first_places(identities: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """Where each identity stands first, and which of these every place is."""
    number_of: dict[str, int] = {}
    first: list[int] = []
    for place, identity in enumerate(identities):
        if identity not in number_of:
            number_of[identity] = len(first)
            first.append(place)
    return first, np.asarray([number_of[identity] for identity in identities])


def _pairs(first: list[int], places: np.ndarray, rows: np.ndarray, smiles: Any) -> str:
    """The first few repeats, each with what it repeats."""
    again = [place for place in range(len(places)) if first[places[place]] != place]
    return listing(
        [
            f"row {rows[place]} ({smiles[rows[place]]!r}) that of row "
            f"{rows[first[places[place]]]} ({smiles[rows[first[places[place]]]]!r})"
            for place in again
        ],
        3,
    )


def _merged(labels: np.ndarray, places: np.ndarray, num: int) -> tuple[np.ndarray, int]:
    """Labels `[num, T]` of merged molecules, and how many of them disagree."""
    seen = np.zeros((2, num, labels.shape[1]), bool)
    for label in (0, 1):
        np.logical_or.at(seen[label], places, labels == label)
    inactive, active = seen
    merged = np.where(active == inactive, -1, active).astype(np.int8)
    return merged, int((active & inactive).sum())


def _ngram_bits(smiles: str, size: int, lengths: tuple[int, int]) -> np.ndarray:
    bits = np.zeros(size, np.uint8)
    pieces = {
        smiles[start : start + length]
        for length in range(lengths[0], lengths[1] + 1)
        for start in range(len(smiles) - length + 1)
    }
    # The hash of Python itself differs from one process to the next.
    bits[[zlib.crc32(piece.encode()) % size for piece in pieces]] = 1
    return np.packbits(bits)


def _import_rdkit(what: str) -> tuple[Any, Any]:
    try:
        from rdkit import Chem
        from rdkit.Chem import rdFingerprintGenerator
    except ImportError as error:
        raise ImportError(
            f"{what} RDKit; install it by `pip install 'metajax[molecules]'`, or use "
            "`fingerprint='ngrams'` without `canonical`."
        ) from error
    return Chem, rdFingerprintGenerator


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps RDKit from printing what it cannot read, which errors say anyway."""
    if "rdkit" in sys.modules:
        from rdkit import rdBase

        with rdBase.BlockLogs():
            yield
    else:
        yield
