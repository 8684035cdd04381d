from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.filters import (
    all_but,
    combine,
    everything,
    float_type,
    keep_types,
    only,
    partition,
    path_names,
)

NAMES = ("head", "body", "kernel", "bias")

LEAVES = st.sampled_from(
    [np.float32(1.5), np.ones(2, np.float16), np.arange(3), np.array(True), 2.5, 7]
)
TREES = st.recursive(
    LEAVES | st.none(),
    lambda inner: (
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
        | st.lists(inner, max_size=2)
    ),
    max_leaves=8,
)
PREDICATES = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).flatmap(
    lambda names: st.sampled_from([everything, only(*names), all_but(*names)])
)


def is_float(leaf):
    return np.issubdtype(np.asarray(leaf).dtype, np.floating)


@settings(max_examples=100, deadline=None)
@given(TREES, PREDICATES)
def test_partition_splits_every_tree_and_combine_undoes_it(tree, predicate):
    leaves, paths = jax.tree.leaves(tree), path_names(tree)
    chosen = [
        is_float(leaf) and predicate(path)
        for leaf, path in zip(leaves, paths, strict=True)
    ]
    if leaves and not any(chosen):
        with pytest.raises(ValueError, match="accepts none"):
            partition(tree, predicate)
        return
    adapts, stays = partition(tree, predicate)
    # `is`: the leaves themselves, in their places, each in exactly one of the two.
    assert all(map(is_same, jax.tree.leaves(adapts), select(leaves, chosen)))
    is_left = [not choice for choice in chosen]
    assert all(map(is_same, jax.tree.leaves(stays), select(leaves, is_left)))
    assert len(jax.tree.leaves((adapts, stays))) == len(leaves)
    for whole in (combine(adapts, stays), combine(stays, adapts)):
        assert jax.tree.structure(whole) == jax.tree.structure(tree)
        assert all(map(is_same, jax.tree.leaves(whole), leaves))


def is_same(a, b):
    return a is b


def select(leaves, chosen):
    return [leaf for leaf, choice in zip(leaves, chosen, strict=True) if choice]


Pair = namedtuple("Pair", ["first", "second"])


def test_paths_join_keys_of_every_kind_by_slashes():
    tree = {"params": {"head": [1.0, Pair(2.0, {"kernel": 3.0})]}}
    assert path_names(tree) == [
        "params/head/0",
        "params/head/1/first",
        "params/head/1/second/kernel",
    ]


@pytest.mark.parametrize(
    ("predicate", "accepted"),
    [
        (everything, ["params/body/kernel", "params/head/kernel", "params/heading"]),
        (only("head"), ["params/head/kernel"]),
        (only("body", "head"), ["params/body/kernel", "params/head/kernel"]),
        (all_but("head"), ["params/body/kernel", "params/heading"]),
        (all_but("head", "kernel"), ["params/heading"]),
    ],
)
def test_predicates_look_at_whole_keys(predicate, accepted):
    """`heading` is no `head`."""
    tree = {
        "params": {
            "body": {"kernel": 1.0},
            "head": {"kernel": 2.0},
            "heading": 3.0,
        }
    }
    adapts, _ = partition(tree, predicate)
    assert path_names(adapts) == accepted


def test_what_is_not_a_real_float_never_adapts():
    tree = {
        "bool": jnp.array(True),
        "complex": jnp.array(1j),
        "count": jnp.array(3),
        "half": jnp.ones(1, jnp.bfloat16),
        "key": jax.random.key(0),
        "weight": jnp.ones(2),
    }
    adapts, stays = partition(tree)
    assert path_names(adapts) == ["half", "weight"]
    assert path_names(stays) == ["bool", "complex", "count", "key"]


def test_works_inside_jit_and_grad():
    tree = {"body": jnp.ones(2), "head": jnp.full(2, 3.0), "count": jnp.array(1)}

    @jax.jit
    def gradient(tree):
        adapts, stays = partition(tree, only("head"))
        return jax.grad(
            lambda adapts: jnp.sum(jnp.square(combine(adapts, stays)["head"]))
        )(adapts)

    result = gradient(tree)
    assert path_names(result) == ["head"]
    np.testing.assert_array_equal(result["head"], 6)


def test_nothing_to_split_is_no_error():
    assert partition({}, only("head")) == ({}, {})


@pytest.mark.parametrize(
    ("tree", "predicate"),
    [
        ({"body": {"kernel": jnp.float32(1)}}, only("haed")),
        ({"body": {"kernel": jnp.int32(1)}}, everything),
        ({"body": {"kernel": jnp.complex64(1)}}, everything),
        ({"body": {"kernel": jnp.float32(1)}}, only()),
    ],
)
def test_a_filter_that_accepts_nothing_names_the_leaves(tree, predicate):
    kind = tree["body"]["kernel"].dtype
    with pytest.raises(ValueError, match=rf"accepts none of .*body/kernel \({kind}\)"):
        partition(tree, predicate)


@pytest.mark.parametrize("part", ["params/head", "", ["head"], None])
@pytest.mark.parametrize("make", [only, all_but])
def test_what_is_no_key_is_refused(make, part):
    """`all_but("params/head")` would accept everything."""
    with pytest.raises(ValueError, match="takes single keys of paths.*got"):
        make("body", part)


@pytest.mark.parametrize("predicate", [int, lambda path: path.missing])
def test_a_filter_that_fails_is_named(predicate):
    """By what such arguments are called, and the path."""
    with pytest.raises(ValueError, match=r"A filter \(.*`adapts`.* fails on 'head'"):
        partition({"head": jnp.ones(2)}, predicate)


@pytest.mark.parametrize("predicate", [None, "head", lambda: True])
def test_what_is_no_filter_is_named(predicate):
    with pytest.raises(ValueError, match="`predicate` must be a function of"):
        partition({"head": jnp.ones(2)}, predicate)


@pytest.mark.parametrize(
    ("function", "arguments", "names"),
    [
        (combine, ({"a": None}, {"b": 1}), "`first` and `second`"),
        (keep_types, ({"a": 1.0}, {"b": 1.0}), "`new` and `old`"),
        (keep_types, (b"abc", 1.0), "`new` and `old`"),
        (float_type, (object(),), "`tree`"),
    ],
)
def test_other_trees_are_named(function, arguments, names):
    with pytest.raises(ValueError, match=names):
        function(*arguments)
