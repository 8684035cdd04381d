"""Numbers that users pass: what is accepted, and what the error says."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metajax.checks import (
    as_array,
    as_numbers,
    check_choice,
    check_dtype,
    check_functions,
    check_instances,
    check_integers,
    check_lists,
    check_mappings,
    check_not_negative,
    check_optimizer,
    check_parts,
    check_paths,
    check_positive,
    check_ranges,
    check_same_shapes,
    check_seed,
    check_shapes,
    check_sizes,
    check_way,
    check_words,
    named_if_other,
)
from metajax.types import Examples, Task


def test_what_is_allowed_passes():
    """Bounds belong to it, and integers may be NumPy's."""
    check_integers(2, way=2, shot=np.int64(3))
    check_positive(rate=1e-30)
    check_not_negative(noise=0)
    check_ranges(amplitude=(0, 0.0), phase=(-1, 2))
    check_sizes(hidden=(), size=[28, np.int64(28)])
    check_seed(2**32 - 1)


@pytest.mark.parametrize("value", [1, True, 2.0, "2", None])
def test_integers(value):
    """Too small, or no integer."""
    with pytest.raises(ValueError, match="`way` must be an integer of at least 2, got"):
        check_integers(2, shot=5, way=value)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_positive(value):
    """0, below, and what is not finite."""
    with pytest.raises(ValueError, match="`rate` must be above 0 and finite, got"):
        check_positive(rate=value)


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_not_negative(value):
    """Below 0, and what is not finite."""
    with pytest.raises(ValueError, match="`noise` must be at least 0 and finite, got"):
        check_not_negative(noise=value)


@pytest.mark.parametrize("value", [(1, 0), (0, math.inf), (0,), (math.nan, 1)])
def test_ranges(value):
    """In the wrong order, not finite, or no pair."""
    with pytest.raises(ValueError, match="`phase` must be two finite numbers"):
        check_ranges(phase=value)


@pytest.mark.parametrize("value", ["0.1", True, None, np.array([0.1, 0.2])])
def test_no_numbers(value):
    """Text, a bool, nothing, several."""
    for check in (check_positive, check_not_negative):
        with pytest.raises(ValueError, match="`rate` must be .* finite, got"):
            check(rate=value)


def test_scalars_of_jax_are_numbers():
    """As they come out of a computation."""
    check_positive(rate=jnp.float32(0.1))
    check_not_negative(noise=np.float64(0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (40, r"`hidden` must be a sequence of sizes, such as \(64, 64\), got 40"),
        ("40", "`hidden` must be a sequence of sizes"),
        ((), r"`hidden` must hold at least 1 size, got \(\)"),
        ((8, 0), r"`hidden\[1\]` must be an integer of at least 1, got 0"),
        ((True,), r"`hidden\[0\]` must be an integer of at least 1, got True"),
    ],
)
def test_sizes(value, message):
    """No sequence, an empty one, or with something else in it."""
    with pytest.raises(ValueError, match=message):
        check_sizes(fewest=1, hidden=value)


@pytest.mark.parametrize("value", [-1, 2**32, 1.0, "0", True])
def test_seed(value):
    """Out of range, or no integer."""
    with pytest.raises(ValueError, match="`seed` must be an integer from 0 to"):
        check_seed(value)


def test_optimizers():
    check_optimizer(inner_optimizer=optax.sgd(0.1), optimizer=optax.adam(0.1))
    for wrong, said in ((0.1, "got 0.1."), (optax.sgd, "got <function sgd.*; call it")):
        with pytest.raises(TypeError, match=f"`optimizer` must be an optax.*{said}"):
            check_optimizer(optimizer=wrong)


@pytest.mark.parametrize("value", [2**31, 10**12])
def test_integers_of_more_than_32_bits(value):
    """JAX would take them for others; as numbers they are to be written 1e12."""
    check_integers(1, way=2**31 - 1)
    check_positive(rate=1e12)
    with pytest.raises(ValueError, match="`way` must be an integer of at most"):
        check_integers(1, way=value)
    with pytest.raises(ValueError, match="`way` must be an integer of at most"):
        check_way(value)
    with pytest.raises(ValueError, match="`rate` must be above 0 and finite, got"):
        check_positive(rate=value)


@pytest.mark.parametrize("value", [[], np.array(["a", "b"]), jnp.arange(2), {}, None])
def test_no_words(value):
    """Of an array `==` gives an array."""
    with pytest.raises(ValueError, match="`head` must be one of linear, cosine, got"):
        check_choice(("linear", "cosine"), head=value)
    with pytest.raises(ValueError, match="`way` must be an integer"):
        check_way(value)


@pytest.mark.parametrize("value", [3, None, "ab", {1: 2, 3: 4}, ("a", "b"), int])
def test_no_ranges(value):
    """Of what has no length, or holds no numbers."""
    with pytest.raises(ValueError, match="`phase` must be two finite numbers"):
        check_ranges(phase=value)


TASK = Task(Examples(jnp.ones((1, 2)), jnp.zeros(1, int)), ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", TASK.support),
        ("examples", TASK),
        ("support", jnp.ones(3)),
        ("query", None),
        ("embedding", TASK),
        ("tasks", "abc"),
        ("validation", lambda: TASK),
        ("objective", lambda outputs: outputs),
    ],
)
def test_parts(name, value):
    """Something else than what arguments of a name must be."""
    check_parts(task=TASK, examples=TASK.support, tasks=lambda key: TASK)
    with pytest.raises(ValueError, match=rf"^`{name}` must be .*, got "):
        check_parts(**{name: value})


def test_instances():
    """One of several, and what to do if it is none."""
    check_instances((int, str), "count", thing=3)
    with pytest.raises(ValueError, match="`thing` must be a `int` or `str`, got .*; c"):
        check_instances((int, str), "count", thing=3.5)


@pytest.mark.parametrize(
    "function", [None, 3, lambda: 0, lambda a, b: 0, lambda a, *, other: 0]
)
def test_functions(function):
    """None, and those of other arguments."""
    check_functions(("a",), "`f`", keywords=("key",), make=lambda a, key: 0)
    check_functions(("a",), "`f`", keywords=("key",), make=lambda a, **more: 0)
    with pytest.raises(
        ValueError, match=r"`make` must be a function of \(a, key=...\)"
    ):
        check_functions(("a",), "`f`", keywords=("key",), make=function)


@pytest.mark.parametrize("value", [None, 3, b"abc", ["a"], int])
def test_paths(value):
    check_paths(path="a", run_dir=pathlib.Path("b"))
    with pytest.raises(ValueError, match="`run_dir` must be a path"):
        check_paths(path="a", run_dir=value)


@pytest.mark.parametrize("value", [None, "abc", 0, int, {"a"}, [-1, "a"], jnp.ones(2)])
def test_dtype(value):
    check_dtype(jnp.bfloat16)
    check_dtype("float32")
    with pytest.raises(ValueError, match="`dtype` must be a floating type, such as"):
        check_dtype(value)


@pytest.mark.parametrize("value", [None, 3, "ab", {1}, jnp.float32(1), int])
def test_lists(value):
    """No list of anything; an array is one of its rows."""
    check_lists(maps=[], tasks=(1,), scores=np.ones(2))
    with pytest.raises(ValueError, match="`maps` must be a list"):
        check_lists(maps=value)


@pytest.mark.parametrize("value", [None, 3, [("a", 1)], {"a"}])
def test_mappings(value):
    check_mappings(levels={})
    with pytest.raises(ValueError, match="`levels` must be a dict"):
        check_mappings(levels=value)


@pytest.mark.parametrize("value", ["a", object(), [[1], [2, 3]], 10**12, {"a": 1}])
def test_arrays(value):
    """Of numbers, which a tracer is too."""
    assert as_array(scores=[1, 2]).shape == (2,)
    assert jax.jit(lambda x: as_array(scores=x))(jnp.ones(2)).shape == (2,)
    with pytest.raises(ValueError, match="`scores` must be an array of numbers, got"):
        as_array(scores=value)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (3, ValueError, r"`labels` must be an array \[n\], got 3"),
        ([1, 2], ValueError, r"`labels` must be an array \[n\]"),
        (np.array(["a", "b"]), ValueError, r"`labels` must be an array \[n\]"),
        (jnp.ones(()), AssertionError, r"`labels` must be of rank 1 and shape \[n\]"),
        (jnp.ones(3), AssertionError, r"shape \[n\] with n = 2, got \[3\]"),
    ],
)
def test_shapes(labels, error, message):
    """No array, another rank, another size."""
    check_shapes(logits=(jnp.ones((2, 3)), "n C"), labels=(jnp.ones(2), "n"))
    check_shapes(x=(jnp.ones((2, 3, 4)), "n ..."), y=(jnp.ones(2), "n ..."))
    with pytest.raises(error, match=message):
        check_shapes(logits=(jnp.ones((2, 3)), "n C"), labels=(labels, "n"))


def test_same_shapes():
    check_same_shapes(mean=jnp.ones((2, 3)), scale=jnp.ones((2, 3)))
    with pytest.raises(AssertionError, match=r"`y` must have the shape of `mean`, \[2"):
        check_same_shapes(mean=jnp.ones((2, 3)), y=jnp.ones(2))
    with pytest.raises(ValueError, match="`mean` must be an array"):
        check_same_shapes(mean=None, y=jnp.ones(2))


@pytest.mark.parametrize("value", ["a", object(), [[1], [2, 3]], 1j, {"a": 1}])
def test_numbers_of_numpy(value):
    assert as_numbers(ranks=[1, 2]).tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="`ranks` must be numbers, got"):
        as_numbers(ranks=value)


@pytest.mark.parametrize("params", [(1, 2), {"b": 1}, {"a": jnp.ones(3)}, None])
def test_other_parameters_are_named(params):
    """Where they are the reason, and only there."""

    def used(params):
        with named_if_other(lambda key, x: {"a": x}, jnp.ones(2), w=params):
            raise KeyError("something")

    with pytest.raises(ValueError, match="`w` must be as `init` draws them, .*someth"):
        used(params)
    with pytest.raises(KeyError, match="something"):
        used({"a": jnp.zeros(2)})
    with named_if_other(None, None, w=params):
        pass
    with pytest.raises(KeyError, match="other"), named_if_other(None, None, w=params):
        raise KeyError("other")


@pytest.mark.parametrize("value", [None, "ab", b"ab", 3, np.array("ab"), jnp.int32(2)])
def test_words(value):
    """One word, none, or an array without axes, which has a method to iterate."""
    check_words(missing=[], drop=("a",), names=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="`missing` must be a list of words, got"):
        check_words(missing=value)
