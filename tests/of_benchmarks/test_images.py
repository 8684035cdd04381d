"""Runs from its settings to a JSON file, and its part of the page."""

import numpy as np
import pytest

from benchmarks import images


@pytest.mark.usefixtures("data_dir")
def test_images_are_grey_and_of_one_size():
    tables = images.read(images.READERS)
    classes = {name: len(table.counts) for name, table in tables.items()}
    assert classes == {
        "omniglot": 423,
        "devanagari": 46,
        "mnist": 10,
        "sign digits": 10,
        "clothing": 10,
        "cifar-10": 10,
    }
    assert {table.images.shape[2:] for table in tables.values()} == {(28, 28, 1)}
    few = images.at_most(tables["clothing"], 300)
    np.testing.assert_array_equal(
        few.counts, np.minimum(tables["clothing"].counts, 300)
    )
    assert few.images.shape[1] == 300
    assert images.at_most(tables["sign digits"], 500).images.shape[1] == 500
