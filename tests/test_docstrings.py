"""Examples in docstrings: what a reader copies runs, and gives what is shown.

`tables` stands for the reader's own; what needs a file is skipped.
"""

import doctest
import importlib
import inspect
import pkgutil

import jax
import numpy as np
import optax
import pytest
from docstring_parser import ParseError, google

import metajax

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(metajax.__path__, "metajax.")
    if not module.name.endswith("__main__")
)


def tables():
    """Two of them, with three classes, and four and six columns."""
    generator = np.random.default_rng(0)
    made = []
    for columns in (4, 6):
        values = generator.normal(size=(120, columns))
        table = {f"x{i}": column.tolist() for i, column in enumerate(values.T)}
        table["kind"] = [str(i % 3) for i in range(120)]
        made.append(metajax.tasks.from_table(table, target="kind"))
    return made


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        module = importlib.import_module(name)
        for test in finder.find(module, name):
            if test.examples:
                yield pytest.param(test, id=test.name)


def documented():
    """Functions and classes where they are defined."""
    for name in MODULES:
        for value in vars(importlib.import_module(name)).values():
            is_own = getattr(value, "__module__", None) == name
            if is_own and (inspect.isfunction(value) or inspect.isclass(value)):
                yield value


def test_docstrings_are_read_as_they_are_meant():
    """The help of the command line is made of them."""
    for value in documented():
        text = inspect.getdoc(value) or ""
        try:
            google.parse(text)
        except ParseError as error:
            pytest.fail(f"{value.__module__}.{value.__name__}: {error}")


@pytest.mark.parametrize("test", list(examples()))
def test_examples_run_and_give_what_is_shown(test):
    test.globs |= {"jax": jax, "np": np, "optax": optax}
    if any("tables" in example.source for example in test.examples):
        test.globs["tables"] = tables()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said = []
    assert runner.run(test, out=said.append).failed == 0, "".join(said)
