"""Strict settings for every test, and the fixtures they share."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def data_dir() -> pathlib.Path:
    """The folder of real data, or a skip where there is none."""
    path = os.environ.get("METAJAX_DATA_DIR")
    if not path:
        pytest.skip("METAJAX_DATA_DIR is not set: no real data on this machine")
    return pathlib.Path(path)
