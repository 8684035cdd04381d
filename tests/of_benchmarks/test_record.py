"""Runs from its settings to a JSON file, and its part of the page."""

import numpy as np

from benchmarks import record


def test_what_was_made_for_the_same_settings_is_kept(tmp_path):
    path, made = tmp_path / "run" / "numbers.pickle", []

    def make():
        made.append(len(made))
        return {"numbers": np.full(3, len(made))}

    first, again = (record.kept(path, {"steps": 5}, make) for _ in range(2))
    np.testing.assert_array_equal(first["numbers"], again["numbers"])
    assert made == [0]
    other = record.kept(path, {"steps": 6}, make)
    np.testing.assert_array_equal(other["numbers"], 2)
    assert [file.name for file in path.parent.iterdir()] == ["numbers.pickle"]
