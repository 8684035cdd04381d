"""A decision tree with one column and one threshold at each node, to read and to use.

It is a complete binary tree in the order of levels: node i has the children 2i + 1,
where rows with x[column] <= threshold go, and 2i + 2. L levels of splits make
M = 2^L - 1 places for them and 2M + 1 nodes; a node that does not split is a leaf, and
all below it is unused. D columns, N classes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from metajax.types import Array

__all__ = ["DecisionTree", "decide", "depth_of", "leaf_of", "level_slices"]


class DecisionTree(NamedTuple):
    """A tree as arrays; `print` shows it, `metajax.plots.plot_tree` draws it.

    Attributes:
      column: int `[M]`, in [0, D).
      threshold: `[M]`, in the units of the rows that it was fitted to.
      is_split: bool `[M]`; False makes a leaf of the node.
      probabilities: `[2M + 1, N]`, of the classes in each node, leaf or not.
      mass: `[2M + 1]`, support rows in each node.
    """

    column: Any
    threshold: Any
    is_split: Any
    probabilities: Any
    mass: Any

    def on_host(self) -> "DecisionTree":
        """Gives the same tree in NumPy arrays, for reading one number after another."""
        return DecisionTree(*map(np.asarray, self))

    def in_units(self, center: Any, scale: Any) -> "DecisionTree":
        """Converts the tree to one for rows before they were standardised.

        Args:
          center: `[D]`, what was subtracted from each column.
          scale: `[D]`, what it was then divided by, above 0.
        """
        center, scale = jnp.asarray(center), jnp.asarray(scale)
        threshold = self.threshold * scale[self.column] + center[self.column]
        return self._replace(threshold=threshold)

    def text(
        self,
        column_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> str:
        """Puts the tree into words, a line for each split and each leaf.

        Args:
          column_names: D of them; None for `column 0` and so on.
          class_names: of all classes up to the last that the support set had; None
            for `class 0` and so on.

        Raises:
          ValueError: if a column that is used, or such a class, has no name.

        Example:
          >>> tree = harden(adapted)  # doctest: +SKIP
          >>> print(tree.text(table.column_names, table.class_names))  # doctest: +SKIP
          petal-width <= 0.8?
            yes: 0 (0.97, 10 rows)
            no:  petal-length <= 4.95?
              yes: 1 (0.89, 11 rows)
              no:  2 (0.90, 9 rows)
        """
        column_name, class_name = self.namers(column_names, class_names)
        tree = self.on_host()

        def lines(node: int, indent: str, answer: str) -> list[str]:
            if node < len(tree.column) and tree.is_split[node]:
                name = column_name(int(tree.column[node]))
                return [
                    f"{indent}{answer}{name} <= {tree.threshold[node]:.4g}?",
                    *lines(2 * node + 1, indent + "  ", "yes: "),
                    *lines(2 * node + 2, indent + "  ", "no:  "),
                ]
            best = int(np.argmax(tree.probabilities[node]))
            share, mass = tree.probabilities[node][best], tree.mass[node]
            rows = f"{mass:.4g} row{'' if mass == 1 else 's'}"
            return [f"{indent}{answer}{class_name(best)} ({share:.2f}, {rows})"]

        return "\n".join(lines(0, "", ""))

    def namers(
        self, column_names: Sequence[str] | None, class_names: Sequence[str] | None
    ) -> tuple[Callable[[int], str], Callable[[int], str]]:
        """Makes what names a column and a class, as in `text`; it raises the same."""
        used = np.asarray(self.column)[np.asarray(self.is_split)]
        most = int(used.max(initial=-1))
        is_known = np.asarray(self.probabilities)[0] > 0
        num_classes = int(np.flatnonzero(is_known).max(initial=-1)) + 1
        if column_names is not None and len(column_names) <= most:
            raise ValueError(
                f"`column_names` must have a name for each column, and column {most} "
                f"is used, but there are {len(column_names)}; give those of all columns"
                " that the tree was fitted to."
            )
        if class_names is not None and len(class_names) < num_classes:
            raise ValueError(
                f"`class_names` must have a name for each of the {num_classes} "
                f"classes that the tree knows, got {len(class_names)}."
            )

        def name(kind: str, names: Sequence[str] | None) -> Callable[[int], str]:
            return lambda i: f"{kind} {i}" if names is None else str(names[i])

        return name("column", column_names), name("class", class_names)

    def __str__(self) -> str:
        return self.text()


def level_slices(num_levels: int) -> list[slice]:
    """Tells where the nodes of each of so many levels stand."""
    return [slice(2**level - 1, 2 ** (level + 1) - 1) for level in range(num_levels)]


def leaf_of(tree: DecisionTree, rows: Array) -> Array:
    """Finds the leaf, int `[n]`, in which each of the rows `[n, D]` ends."""
    num_splits = tree.column.shape[0]
    node = jnp.zeros(rows.shape[0], jnp.int32)
    for _ in range(num_splits.bit_length()):
        place = jnp.minimum(node, num_splits - 1)
        value = jnp.take_along_axis(rows, tree.column[place][:, None], axis=1)[:, 0]
        child = 2 * node + 1 + (value > tree.threshold[place])
        goes_on = (node < num_splits) & tree.is_split[place]
        node = jnp.where(goes_on, child, node)
    return node


def decide(tree: DecisionTree, rows: Array) -> Array:
    """Class probabilities `[n, N]` of rows `[n, D]`."""
    return tree.probabilities[leaf_of(tree, rows)]


def depth_of(tree: DecisionTree) -> Array:
    """Splits on the longest way from the root to a leaf, an int32 scalar."""
    num_levels = tree.column.shape[0].bit_length()
    is_reached, depth = jnp.ones(1, bool), jnp.int32(0)
    for level, place in enumerate(level_slices(num_levels)):
        splits = is_reached & tree.is_split[place]
        depth = jnp.where(jnp.any(splits), level + 1, depth)
        is_reached = jnp.repeat(splits, 2)
    return depth
