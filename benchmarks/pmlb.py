"""Classification tables of PMLB, but for `schizo`, which has two columns `target`."""

import os
import pathlib

from metajax.tasks.tables.tables import Table, from_table

__all__ = ["group_of", "read_tables"]

_COPIES = (("monk1", "monk2", "monk3"), ("spect", "spectf"))
_GROUPS = {name: "+".join(copies) for copies in _COPIES for name in copies}


def read_tables(count: int | None) -> list[Table]:
    """The first tables, or all, in order of name."""
    folder = pathlib.Path(os.environ["METAJAX_DATA_DIR"], "tabular", "classification")
    paths = [
        path for path in sorted(folder.glob("*.tsv.gz")) if path.name != "schizo.tsv.gz"
    ]
    return [from_table(path, target="target") for path in paths[:count]]


def group_of(name: str) -> str:
    """A name that a table and its near copies share: none may help to judge another."""
    return _GROUPS.get(name, name)
