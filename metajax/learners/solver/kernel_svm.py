"""A support vector machine on the columns of a table, whose numbers are learned.

C. Cortes, V. Vapnik, "Support-Vector Networks", Machine Learning 1995; its dual for the
numbers y_i = 1 or -1 and a kernel k is, with the sign of y_i in a_i,

    minimise over a   1/2 <a, K a> - <a, y>
    with              0 <= y_i a_i <= C,   sum of a = 0
    f(x) = sum over i of a_i k(x_i, x) + b

    k(x, x') = exp(-|z - z'|^2)  or  <z, z'>,   z = s (x - mean) / (width sqrt(V))

V is the sum over columns of the variance of s x in the support set, so that a width of
1 is that of scikit-learn's `gamma="scale"` on centred columns. It makes one width, and
one C, fit tables of any number of columns, and columns of 0 change nothing.

C, the width, the scale of each column s and that of the logits are learned over tasks
through their logarithms, by the gradient of the query loss through the solution of the
dual, as S. Keerthi, V. Sindhwani, O. Chapelle, NIPS 2006, "An Efficient Method for
Gradient-Based Adaptation of Hyperparameters in SVM Models", do for one data set.

b is the multiplier of the sum. Where 0 < y_i a_i < C, y_i - (K a)_i is b, and its
derivative that of b, as the derivative of a keeps all these equal; a weighted mean over
such i, the weights held fixed, is therefore exact in both. It is weighted by the
distance from both ends, so that rounding of what has barely left an end counts little.
Where no i is free, b may lie in an interval: the middle is taken, as LIBSVM does, and
its derivative is that of the middle.

More than two classes are told apart one against the rest. This is the same machine as
above for two classes (f of one is -f of the other), gives every class a score of its
own, and all classes share one kernel, one box and one run of the solver. Crammer's and
Singer's machine (see `svm`) has no bias and is another one for two classes; one against
one, as in scikit-learn, votes, and votes have no gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metajax.arguments import check_choice, check_integers, check_positive
from metajax.heads import Embedded, Head, head_learner
from metajax.models.adapters import from_functions
from metajax.solvers import box_program
from metajax.types import Array, Learner, Model, PyTree

__all__ = ["KERNELS", "LEARNED", "Machine", "kernel_svm"]

KERNELS = ("rbf", "linear")
LEARNED = ("penalty", "width", "scales", "scale")

# A variable is free if it is so far, in units of C, from both ends. More than rounding,
# and harmless: if only variables that are hardly free are left, both ends of the
# interval where b then lies are theirs, and are equal.
_MARGIN = 1e-3


class Machine(NamedTuple):
    """A fitted machine; D columns, N classes.

    Attributes:
      center: `[D]`, mean of the support rows.
      factors: `[D]`, s / (width sqrt(V)).
      rows: `[n, D]`, z of the support rows; 0 for padding.
      weights: a `[n, N]`, one machine for each class; 0 for padding.
      bias: b `[N]`.
    """

    center: Array
    factors: Array
    rows: Array
    weights: Array
    bias: Array


def kernel_svm(
    *,
    way: int | None = None,
    kernel: str = "rbf",
    penalty: float = 1.0,
    width: float = 1.0,
    scale: float = 1.0,
    learn: Sequence[str] = LEARNED,
    steps: int = 300,
) -> Learner:
    """Builds a support vector machine with learned numbers.

    Choose it for tasks that are small tables. With `scales`, all tasks must have the
    same columns in the same order; leave them out for tables of different meaning,
    padded to one width by columns of 0. Columns should be standardised, as
    `metajax.table_tasks` does. Tables of text, gaps and files: `metajax.from_table`.

    Args:
      way: the most classes a task may have, N; labels are below it. None takes the
        number of support examples: give it where there is more than one shot.
      kernel: `"rbf"` or `"linear"`.
      penalty: C at first, above 0: the price of a row inside the margin.
      width: of the kernel at first, above 0, in units of the root mean square distance
        of support rows from their mean: gamma is 1 / (width^2 V). 1 is the default of
        scikit-learn. A linear kernel is divided by its square, as if C were.
      scale: factor of the logits at first, above 0, the inverse of a temperature.
      learn: which of `"penalty"`, `"width"`, `"scales"` and `"scale"` the outer loop
        learns; the others stay, scales at 1. A common factor of all scales changes
        nothing, as V takes it up.
      steps: iterations of the solver, at least 1. A high C or a large width needs more.

    Returns:
      A learner whose `meta_params` are `metajax.heads.MetaParams`: `head` is a dict of
      `log_penalty`, `log_width`, `log_scale` (scalars) and `log_scales` `[D]`, of those
      that are learned, and `embedding` is empty. `adapted` holds a `Machine` as
      `fitted`; `predict` takes rows `[n, D]` and gives logits `[n, N]`, scale f(x),
      minus infinity for classes without a support example. Its loss reports
      `duality_gap`, (primal - dual) / primal over the machines of all classes: above
      0.01, say, give it more steps.

    Raises:
      ValueError: if an argument is out of range; in its functions, if inputs are not
        rows `[n, D]`, or not of as many columns as there are scales.

    Example:
      >>> from metajax import kernel_svm, row_tasks
      >>> tasks = row_tasks(tables, rows=(20, 60), num_queries=100)
      >>> learner = kernel_svm(way=2, learn=("penalty", "width", "scale"))
      >>> meta_params = learner.init(key, tasks(key))
    """
    check_choice(KERNELS, kernel=kernel)
    check_positive(penalty=penalty, width=width, scale=scale)
    check_integers(1, steps=steps)
    if isinstance(learn, str):
        raise ValueError(
            f"`learn` must be a list of names, got the one word {learn!r}; write "
            f"`({learn!r},)`."
        )
    for name in learn:
        check_choice(LEARNED, learn=name)

    def start(num_columns: int) -> dict[str, Array]:
        ones = jnp.ones(num_columns, jnp.float32)
        numbers = {"penalty": penalty, "width": width, "scale": scale}
        return {k: jnp.float32(v) for k, v in numbers.items()} | {"scales": ones}

    def current(head_params: PyTree, num_columns: int) -> dict[str, Array]:
        learned = {name: jnp.exp(head_params[f"log_{name}"]) for name in learn}
        numbers = start(num_columns) | learned
        if numbers["scales"].shape != (num_columns,):
            raise ValueError(
                f"`scales` were made for {numbers['scales'].shape[0]} columns, and "
                f"these rows have {num_columns}; give all tasks the same columns, or "
                "leave 'scales' out of `learn`."
            )
        return numbers

    def init(key: Array, support: Embedded) -> dict[str, Array]:
        del key
        numbers = start(support.features.shape[1])
        return {f"log_{name}": jnp.log(numbers[name]) for name in learn}

    def fit(
        head_params: PyTree, support: Embedded, key: Array | None
    ) -> tuple[Machine, dict[str, Array]]:
        del key
        numbers = current(head_params, support.features.shape[1])
        is_real = support.is_real[:, None]
        center, factors = _ruler(support, numbers["scales"], numbers["width"])
        rows = (support.features - center[None, :]) * factors[None, :]
        rows = jnp.where(is_real, rows, 0)
        gram = _kernel(kernel, rows, rows)
        signs = jnp.where(is_real, 2 * support.one_hot - 1, 0)
        lower, upper = jnp.minimum(signs, 0), jnp.maximum(signs, 0)
        # In units of C the box is that of the signs, and C is a factor of the kernel.
        share = box_program(
            numbers["penalty"] * _centred(gram, support.is_real),
            signs,
            lower,
            upper,
            axis=0,
            steps=steps,
        )
        weights = numbers["penalty"] * share
        outputs = gram @ weights
        bias = _bias(signs - outputs, share, lower, upper)
        gap = _duality_gap(outputs, weights, bias, signs, numbers["penalty"])
        return Machine(center, factors, rows, weights, bias), {"duality_gap": gap}

    def classify(
        head_params: PyTree,
        machine: Machine,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del mask, key
        scale = current(head_params, features.shape[1])["scale"]
        rows = (features - machine.center[None, :]) * machine.factors[None, :]
        outputs = _kernel(kernel, rows, machine.rows) @ machine.weights
        return scale * (outputs + machine.bias[None, :])

    return head_learner(_columns(), Head(fit, classify, init), way=way)


def _columns() -> Model:
    """Gives back rows `[n, D]`, as floats of at least single precision."""

    def apply(params: PyTree, x: Array) -> Array:
        if x.ndim != 2 or x.shape[1] == 0:
            raise ValueError(
                "`kernel_svm` takes rows of a table, `[n, D]` with D of at least 1, "
                f"got inputs of shape {list(x.shape)}; flatten them, or use `svm` with "
                "a model."
            )
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    return from_functions(lambda key, x: {}, apply)


def _ruler(support: Embedded, scales: Array, width: Array) -> tuple[Array, Array]:
    """Mean of the support rows and factors of the columns, both `[D]`."""
    is_real = support.is_real[:, None]
    num = jnp.maximum(jnp.sum(is_real), 1)
    center = jnp.sum(support.features, axis=0) / num
    scaled = (support.features - center[None, :]) * scales[None, :]
    spread = jnp.sum(jnp.square(jnp.where(is_real, scaled, 0))) / num
    # Rows that all agree have no unit of their own.
    spread = jnp.where(spread > 0, spread, 1)
    return center, scales * jax.lax.rsqrt(spread) / width


def _kernel(kind: str, rows: Array, others: Array) -> Array:
    """Kernel `[n, m]` of rows `[n, D]` and `[m, D]`, in units of the width."""
    products = rows @ others.T
    if kind == "linear":
        return products
    of_rows, of_others = (jnp.sum(jnp.square(r), axis=1) for r in (rows, others))
    squares = of_rows[:, None] + of_others[None, :] - 2 * products
    return jnp.exp(-jnp.maximum(squares, 0))


def _centred(gram: Array, is_real: Array) -> Array:
    """The kernel `[n, n]` of features less their mean over real rows; padding is 0.

    For variables whose sum is 0 it is the same problem, and of a much smaller norm
    where the kernel is wide, so that the solver takes longer steps.
    """
    real = is_real.astype(gram.dtype)
    mean = gram @ real / jnp.maximum(jnp.sum(real), 1)
    both = mean[:, None] + mean[None, :]
    overall = jnp.sum(mean * real) / jnp.maximum(jnp.sum(real), 1)
    return jnp.where(is_real[:, None] & is_real[None, :], gram - both + overall, 0)


def _bias(residuals: Array, share: Array, lower: Array, upper: Array) -> Array:
    """Biases `[N]` from y - K a and a in units of C, both `[n, N]`; see the module."""
    can_rise, can_fall = share < upper - _MARGIN, share > lower + _MARGIN
    # The derivative needs no weights' own: all that are free have the same.
    room = jax.lax.stop_gradient((share - lower) * (upper - share))
    room = jnp.where(can_rise & can_fall, room, 0)
    total = jnp.sum(room, axis=0)
    mean = jnp.sum(room * residuals, axis=0) / jnp.where(total > 0, total, 1)

    # What could rise would, were b below its residual; what could fall, were b above.
    least = jnp.max(jnp.where(can_rise, residuals, -jnp.inf), axis=0)
    most = jnp.min(jnp.where(can_fall, residuals, jnp.inf), axis=0)
    # One end is missing if all rows are of one class, and both if there is no row.
    has_least, has_most = jnp.any(can_rise, axis=0), jnp.any(can_fall, axis=0)
    low = jnp.where(has_least, least, jnp.where(has_most, most, 0))
    high = jnp.where(has_most, most, low)
    return jnp.where(total > 0, mean, (low + high) / 2)


def _duality_gap(
    outputs: Array, weights: Array, bias: Array, signs: Array, penalty: Array
) -> Array:
    """(primal - dual) / primal, of the machines of all classes together; at least 0.

    Args:
      outputs: K a `[n, N]`.
      weights: a `[n, N]`.
      bias: b `[N]`.
      signs: y `[n, N]`, 0 for padding.
      penalty: C.
    """
    size = jnp.vdot(weights, outputs) / 2
    slack = jnp.maximum(1 - signs * (outputs + bias[None, :]), 0)
    primal = size + penalty * jnp.sum(jnp.where(signs != 0, slack, 0))
    dual = jnp.vdot(weights, signs) - size
    # There is nothing to solve if all rows are of one class, or none is real.
    return (primal - dual) / jnp.where(primal > 0, primal, 1)
