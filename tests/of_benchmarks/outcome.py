"""What tests of benchmarks share: the result that was written, and small data."""

import json

import metajax


def read_result(folder):
    (path,) = (folder / "results").glob("*.json")
    return json.loads(path.read_text())


def few_characters(split, **protocol):
    return metajax.tasks.omniglot(split, **protocol).take(range(8))
