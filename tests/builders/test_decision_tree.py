"""A small tree by hand: what it answers, says of itself, and refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.builders.decision_tree import DecisionTree, decide, depth_of, leaf_of

# A root, a split to its left, a leaf to its right; what is below the leaf is nonsense.
TREE = DecisionTree(
    column=jnp.asarray([2, 0, 1]),
    threshold=jnp.asarray([0.5, -1.0, 7.0]),
    is_split=jnp.asarray([True, True, False]),
    probabilities=jnp.asarray(
        [[0.5, 0.5], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0, 1], [0, 1]]
    ),
    mass=jnp.asarray([8.0, 5.0, 3.0, 4.0, 1.0, 0.0, 0.0]),
)
ROWS = jnp.asarray([[-1.0, 0, 0.5], [-0.9, 0, 0.5], [-5.0, 9.0, 0.6], [5.0, -9.0, 9.0]])
TEXT = """\
column 2 <= 0.5?
  yes: column 0 <= -1?
    yes: class 1 (0.80, 4 rows)
    no:  class 0 (0.70, 1 row)
  no:  class 0 (0.90, 3 rows)"""


def test_rows_go_left_up_to_the_threshold_and_stop_in_leaves():
    np.testing.assert_array_equal(leaf_of(TREE, ROWS), [3, 4, 2, 2])
    expected = [[0.2, 0.8], [0.7, 0.3], [0.9, 0.1], [0.9, 0.1]]
    np.testing.assert_allclose(jax.jit(decide)(TREE, ROWS), expected)


@pytest.mark.parametrize(
    ("is_split", "expected"),
    [
        ([True, True, False], 2),
        ([True, False, True], 2),
        ([True, False, False], 1),
        # A split below a leaf is not reached.
        ([False, True, True], 0),
    ],
)
def test_depth_is_that_of_the_deepest_leaf(is_split, expected):
    assert depth_of(TREE._replace(is_split=jnp.asarray(is_split))) == expected


def test_it_prints_itself():
    assert str(TREE) == TEXT
    named = TREE.text(["length", "width", "height"], ["small", "large"])
    assert named.splitlines()[:3] == [
        "height <= 0.5?",
        "  yes: length <= -1?",
        "    yes: large (0.80, 4 rows)",
    ]
    leaf = TREE._replace(is_split=jnp.zeros(3, bool))
    assert str(leaf) == "class 0 (0.50, 8 rows)"


def test_units_of_the_rows_before_standardisation():
    """Thresholds move with the rows, so answers stay."""
    center, scale = np.asarray([1.0, 2.0, -3.0]), np.asarray([10.0, 0.1, 4.0])
    tree = TREE.in_units(center, scale)
    np.testing.assert_allclose(tree.threshold, [-1.0, -9.0, 2.7])
    rows = np.asarray(ROWS) * scale + center
    np.testing.assert_array_equal(leaf_of(tree, rows.astype(np.float32)), [3, 4, 2, 2])


def test_missing_names_are_explained():
    with pytest.raises(ValueError, match="column 2 is used, but there are 2; give"):
        TREE.text(["length", "width"])
    with pytest.raises(ValueError, match="2 classes that the tree knows, got 1"):
        TREE.text(None, ["a"])


def test_classes_that_were_not_there_need_no_name():
    wide = TREE._replace(probabilities=jnp.pad(TREE.probabilities, ((0, 0), (0, 3))))
    assert wide.text(None, ["a", "b"]) == TREE.text(None, ["a", "b"])
