"""All entries of the battery: what the test files of learners hold as `ENTRIES`."""

import importlib
import pathlib

from learners.entry import Entry

HERE = pathlib.Path(__file__).parent


def _entries() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for path in sorted(HERE.rglob("test_*.py")):
        place = ".".join(path.relative_to(HERE.parent).with_suffix("").parts)
        if "ENTRIES = {" not in path.read_text():
            continue
        for name, entry in importlib.import_module(place).ENTRIES.items():
            assert name not in found, f"{name} has two entries"
            found[name] = entry
    return found


REGISTRY = _entries()
