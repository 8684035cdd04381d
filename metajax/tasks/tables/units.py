"""Real targets in standard units, and how predictions come back to those of the table.

`d` are the numbers of a target, 1 for a table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.checks import check_fits, check_integers
from metajax.distributions import Gaussian, Mixture
from metajax.tasks.tables.stacked_tables import by_support, column_scales
from metajax.types import Array, Examples, Task

__all__ = ["Units", "standard_task", "target_units"]


class Units(NamedTuple):
    """The center and scale that targets of a task were standardised by.

    Attributes:
      center: float32 `[d]`, 0 in standard units.
      scale: float32 `[d]`, above 0, the length of a standard unit.
    """

    center: Array
    scale: Array

    def standardize(self, y: Array) -> Array:
        """Brings targets `[n, d]` to standard units."""
        return (y - self.center[None, :]) / self.scale[None, :]

    def restore(
        self, outputs: Array | Gaussian | Mixture
    ) -> Array | Gaussian | Mixture:
        """Brings predictions `[n, d]` back; of distributions the scale as well."""
        if isinstance(outputs, Mixture):  # `[n, S, d]`
            mean, scale = outputs.components
            center, unit = self.center[None, None, :], self.scale[None, None, :]
            return Mixture(Gaussian(mean * unit + center, scale * unit))
        center, unit = self.center[None, :], self.scale[None, :]
        if isinstance(outputs, Gaussian):
            return Gaussian(outputs.mean * unit + center, outputs.scale * unit)
        return outputs * unit + center


def target_units(y: Array, mask: Array | None = None) -> Units:
    """Computes mean and standard deviation of the real ones of targets `[n, d]`.

    Targets that are all the same, as a single one is, have a scale of 1.
    """
    center, scale, is_constant = column_scales(y, mask)
    return Units(center, jnp.where(is_constant, 1.0, scale))


def standard_task(
    support: Examples, query: Examples, *, num_columns: int | None = None
) -> tuple[Task, Units]:
    """Makes a task of your own rows as `row_tasks` makes one of a table.

    Args:
      support: `x` `[n, D]` and real targets `y` `[n]` or `[n, d]`, in any units, and a
        mask or None.
      query: likewise; `y` may be zeros where nothing is known.
      num_columns: columns of the tasks that the learner was trained on, at least D;
        None for D.

    Returns:
      The task, its columns and targets standardised by the real support rows, and the
      `Units` whose `restore` brings predictions back.

    Raises:
      ValueError: if `x` is no matrix, both sets differ in columns, or there are more
        than `num_columns`.

    Example:
      >>> import jax.numpy as jnp
      >>> from metajax import Examples
      >>> support = Examples(jnp.asarray([[1.0], [2.0], [3.0]]), jnp.asarray([5, 7, 9]))
      >>> query = Examples(jnp.asarray([[4.0]]), jnp.zeros(1))
      >>> task, units = standard_task(support, query)
      >>> units.restore(task.support.y)[:, 0].tolist()
      [5.0, 7.0, 9.0]
    """
    for name, examples in (("support", support), ("query", query)):
        if not isinstance(examples, Examples):
            raise ValueError(
                f"`{name}` must be `Examples(x, y)`, got {type(examples).__name__}."
            )
    if num_columns is not None:
        check_integers(1, num_columns=num_columns)
    shapes = [jnp.shape(examples.x) for examples in (support, query)]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            "`support.x` and `query.x` must be [n, D] with the same D, got "
            f"{shapes[0]} and {shapes[1]}."
        )
    width = shapes[0][1] if num_columns is None else num_columns
    if width < shapes[0][1]:
        raise ValueError(
            f"`num_columns` is {num_columns}, and `support.x` has {shapes[0][1]}; give "
            "the number of columns that the learner was trained on."
        )
    check_fits(
        f"Rows of `num_columns` = {num_columns}",
        [jax.ShapeDtypeStruct((shape[0], width), "float32") for shape in shapes],
        "lower `num_columns`",
    )

    def targets(examples: Examples) -> Array:
        y = jnp.asarray(examples.y, jnp.float32)
        return y[:, None] if y.ndim == 1 else y

    def columns(examples: Examples) -> Array:
        x = jnp.asarray(examples.x, jnp.float32)
        return jnp.pad(x, ((0, 0), (0, width - x.shape[1])))

    xs = by_support(columns(support), columns(query), support.mask)
    units = target_units(targets(support), support.mask)
    sets = (
        Examples(x, units.standardize(targets(examples)), examples.mask)
        for x, examples in zip(xs, (support, query), strict=True)
    )
    return Task(*sets), units
