"""What holds for every task distribution: `jit` takes it as a function, print is short.

A distribution of the library that is missing here fails `test_none_is_missing`.
"""

import importlib
import inspect
import pkgutil

import chex
import jax
import numpy as np
import pytest

from metajax import tasks
from metajax.tasks.images.class_table import ClassTable
from metajax.tasks.images.grain_source import HostClassTableTasks

RNG = np.random.default_rng(0)
IMAGES = tasks.from_arrays(
    RNG.integers(0, 256, (240, 8, 8, 3), dtype=np.uint8),
    np.repeat(np.arange(12), 20),
    rotations=4,
)
ON_HOST = ClassTable(np.asarray(IMAGES.images), np.asarray(IMAGES.counts))
TABLE = tasks.from_table(
    {"size": range(60), "weight": range(60, 0, -1), "kind": ["a", "b"] * 30},
    target="kind",
)
MOLECULES = tasks.from_molecules(
    ["C" * length for length in range(1, 41)], [[length % 2] for length in range(40)]
)
SIZES = {"way": 2, "shot": 1, "num_queries": 1}
MAKE = {
    "few_shot": lambda: tasks.few_shot(IMAGES, **SIZES),
    "few_shot of NumPy arrays": lambda: tasks.few_shot(ON_HOST, **SIZES),
    "whole_classes": lambda: tasks.whole_classes(IMAGES, batch_size=3),
    "whole_classes of NumPy arrays": lambda: tasks.whole_classes(ON_HOST, batch_size=3),
    "meta_dataset_tasks": lambda: tasks.meta_dataset_tasks(
        ON_HOST, max_support=12, num_queries=2
    ),
    "image_completion": lambda: tasks.image_completion(
        ON_HOST, shot=(1, 5), num_queries=4
    ),
    "glyphs": lambda: tasks.glyphs(**SIZES),
    "table_tasks": lambda: tasks.table_tasks(TABLE, **SIZES),
    "row_tasks": lambda: tasks.row_tasks([TABLE] * 9, rows=4, num_queries=2),
    "only": lambda: tasks.row_tasks([TABLE] * 2, rows=4, num_queries=2).only(1),
    "table_pairs": lambda: tasks.table_pairs([TABLE] * 40, rows=(2, 4)),
    "molecule_tasks": lambda: tasks.molecule_tasks(MOLECULES, shot=2, num_queries=2),
    "synthetic_table": lambda: tasks.synthetic_table(way=2, shot=2),
    "tabular_prior": lambda: tasks.tabular_prior(rows=(5, 9), num_queries=3),
    "sinusoid": lambda: tasks.sinusoid(shot=3, amplitude=[0.1, 5.0]),
    "regression_families": lambda: tasks.regression_families(shot=3),
    "gaussian_process": lambda: tasks.gaussian_process(shot=3),
    "sequence_sinusoid": lambda: tasks.sequence_sinusoid(shot=3),
    "quadratic": lambda: importlib.import_module(
        "metajax.tasks.functions.quadratic"
    ).Quadratic(dim=3),
    "mixture": lambda: tasks.mixture(
        [tasks.few_shot(IMAGES, **SIZES), tasks.few_shot(IMAGES, **SIZES)]
    ),
}


@pytest.mark.parametrize("name", MAKE)
def test_jit_takes_it_as_a_function(name, key):
    draw = MAKE[name]()
    hash(draw)
    by_argument = jax.jit(lambda draw, key: draw(key))(draw, key)
    chex.assert_trees_all_close(jax.jit(draw)(key), by_argument, atol=1e-5)
    # As jit looks programs up by the function, the same one must be found again.
    assert draw == draw  # noqa: PLR0124


@pytest.mark.parametrize("name", MAKE)
def test_print_is_one_short_line(name, key):
    draw = MAKE[name]()
    for shown in (draw, jax.eval_shape(lambda: draw(key))):
        assert "\n" not in repr(shown)
        assert len(repr(shown)) < 500
        assert type(shown).__name__ in repr(shown)


def test_none_is_missing():
    made = {type(make()) for make in MAKE.values()}
    defined = set()
    for module in pkgutil.walk_packages(tasks.__path__, "metajax.tasks."):
        for value in vars(importlib.import_module(module.name)).values():
            is_own = getattr(value, "__module__", None) == module.name
            if is_own and inspect.isclass(value) and "__call__" in vars(value):
                defined.add(value)
    assert defined == made


def test_tables_say_what_they_hold(key):
    shown = {
        "ClassTable(12 classes, up to 20 images of 8 x 8 x 3 each, uint8, 4 rotations "
        "each)": IMAGES,
        "Table('table', 60 rows, 2 columns, 2 classes)": TABLE,
        "MoleculeTable(40 molecules of 1024 bits, 1 assays)": MOLECULES,
        "Molecules(2 SMILES, 3 assays)": tasks.tables.molecules.Molecules(
            ("C", "N"), np.zeros((2, 3)), ("a", "b", "c")
        ),
        "Task(support=Examples(x=float32[2, 8, 8, 3], y=int32[2]), "
        "query=Examples(x=float32[2, 8, 8, 3], y=int32[2]))": (
            jax.jit(MAKE["few_shot"]())(key)
        ),
    }
    for text, value in shown.items():
        assert repr(value) == text
    source = tasks.on_host(tasks.few_shot(ON_HOST, **SIZES))
    assert isinstance(source, HostClassTableTasks)
    assert len(repr(source)) < 500
    # What `jax.tree.map` makes of a table is shown, too.
    assert "ClassTable" in repr(jax.tree.map(lambda leaf: None, IMAGES))
