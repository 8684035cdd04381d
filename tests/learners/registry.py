"""All entries of the battery: what the test files of learners hold as `ENTRIES`."""

import importlib
import pathlib

from learners.entry import ANSWERS, LAWS, Entry

HERE = pathlib.Path(__file__).parent


def _usual_laws(name: str) -> tuple[str, ...]:
    """All of them; of a variant its answers, and padding where it has statistics."""
    if "," not in name:
        return LAWS
    return ("batch", *ANSWERS) if "statistics" in name else ANSWERS


def _entries() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for path in sorted(HERE.rglob("test_*.py")):
        place = ".".join(path.relative_to(HERE.parent).with_suffix("").parts)
        if "ENTRIES = {" not in path.read_text():
            continue
        for name, entry in importlib.import_module(place).ENTRIES.items():
            assert name not in found, f"{name} has two entries"
            laws = entry.laws or _usual_laws(name)
            found[name] = entry._replace(laws=laws)
    return found


REGISTRY = _entries()
