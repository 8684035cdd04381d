"""A support vector machine on the columns of a table, whose numbers are learned.

C. Cortes, V. Vapnik, "Support-Vector Networks", Machine Learning 1995; its dual for the
numbers y_i = 1 or -1 and a kernel k is, with the sign of y_i in a_i,

    minimise over a   1/2 <a, K a> - <a, y>
    with              0 <= y_i a_i <= C,   sum of a = 0
    f(x) = sum over i of a_i k(x_i, x) + b

    k(x, x') = sum over m of beta_m k_m(z_m, z_m'),   beta above 0 with sum 1
    k_m(z, z') = exp(-|z - z'|^2)  or  <z, z'>,   z_m = u_m (x - mean)
    u_m = s r^p_m / (width_m sqrt(V_m)),   r = eta^2 + 1/n

V_m is the sum over columns of the variance of s r^p_m x in the support set, so that a
width of 1 is that of scikit-learn's `gamma="scale"` on centred columns. It makes one
width, and one C, fit tables of any number of columns, and columns of 0 change nothing.
eta^2 is the correlation ratio of a column in the support set, the share of its variance
that lies between classes, and 1/n of n rows what chance gives to about that: with a
power p above 0, columns that tell classes apart count for more. One kernel (m = 1) with
p = 0 is the textbook's machine; several are multiple kernel learning, and hold where
some tables want a narrow kernel, or all columns alike, and others do not.

C, widths, powers p, weights beta, the scale of each column s and that of the logits are
learned over tasks, most through their logarithms, by the gradient of the query loss
through the solution of the dual, as S. Keerthi, V. Sindhwani, O. Chapelle, NIPS 2006,
"An Efficient Method for Gradient-Based Adaptation of Hyperparameters in SVM Models", do
for one data set.

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
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from metajax.builders.heads import Embedded, Head, head_learner, table_rows
from metajax.checks import (
    as_numbers,
    check_choice,
    check_integers,
    check_positive,
    check_words,
)
from metajax.inner.solvers import box_program, from_gap, relative_error
from metajax.types import Array, Learner, Metrics, PyTree, Way

__all__ = ["KERNELS", "LEARNED", "Machine", "kernel_svm"]

Kernel = Literal["rbf", "linear"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
Learned = Literal["penalty", "width", "relevance", "weights", "scales", "scale"]
LEARNED: tuple[Learned, ...] = get_args(Learned)

# A variable is free if it is so far, in units of C, from both ends. More than rounding,
# and harmless: if only variables that are hardly free are left, both ends of the
# interval where b then lies are theirs, and are equal.
_MARGIN = 1e-3


class Machine(NamedTuple):
    """A fitted machine; D columns, N classes, M kernels.

    Attributes:
      center: `[D]`, mean of the support rows.
      factors: u `[M, D]`.
      rows: `[M, n, D]`, z of the support rows; 0 for padding.
      mixture: beta `[M]`.
      weights: a `[n, N]`, one machine for each class; 0 for padding.
      bias: b `[N]`.
    """

    center: Array
    factors: Array
    rows: Array
    mixture: Array
    weights: Array
    bias: Array


def kernel_svm(
    *,
    way: Way,
    kernel: Kernel = "rbf",
    penalty: float = 1.0,
    width: float | Sequence[float] = 1.0,
    relevance: float | Sequence[float] = 0.0,
    scale: float = 1.0,
    learn: tuple[Learned, ...] = LEARNED,
    iterations: int = 300,
) -> Learner:
    """Builds a support vector machine with learned numbers.

    Choose it for tasks that are small tables. With `scales`, all tasks must have the
    same columns in the same order; leave them out for tables of different meaning,
    padded to one width by columns of 0. There, a mix such as `width=(0.7, 1.4, 0.7,
    1.4), relevance=(0, 0, 0.5, 0.5), penalty=3` did better on PMLB's tables than one
    kernel, see `benchmarks/kernel_svm.py`. Columns should be standardised, as
    `metajax.tasks.table_tasks` does. Tables of text, gaps and files:
    `metajax.tasks.from_table`.

    Args:
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples: give it where there is more than one shot.
      kernel: `"rbf"` or `"linear"`.
      penalty: C at first, above 0: the price of a row inside the margin.
      width: of the kernel at first, above 0, in units of the root mean square distance
        of support rows from their mean: gamma is 1 / (width^2 V). 1 is the default of
        scikit-learn. A linear kernel is divided by its square, as if C were. Several
        are those of a mix of kernels with equal weights at first.
      relevance: power p at first, 0 for columns that all count alike, finite; one, or
        one for each width.
      scale: factor of the logits at first, above 0, the inverse of a temperature.
      learn: which of `"penalty"`, `"width"`, `"relevance"`, `"weights"` (beta),
        `"scales"` and `"scale"` the outer loop learns; the others stay, scales at 1. A
        common factor of all scales changes nothing, as V takes it up.
      iterations: iterations of the solver, at least 1. A high C or a large width needs
        more.

    Returns:
      A learner whose `meta_params` are `metajax.builders.heads.HeadLearnerParams`:
      `head` is a dict of `log_penalty`, `log_scale` (scalars), `log_width`,
      `relevance`, `log_weights` `[M]` (of which the softmax is beta) and `log_scales`
      `[D]`, of those that are learned, and `embedding` is empty. `adapted` holds a
      `Machine` as `fitted`; `predict` takes rows `[n, D]` and gives logits `[n, N]`,
      scale f(x), minus infinity for classes without a support example. Its loss reports
      `duality_gap`, (primal - dual) / primal over the machines of all classes, and
      `coefficient_error`, a bound on the distance of f without its bias from the
      solution, in the norm of the kernel, relative to its own and with what rounding
      may add: at 0.01 all of f(x) - b is within 1 % of ||f|| sqrt(k(x, x)). Above that,
      give it more iterations. Training reports means over tasks, of which some may be
      larger.

    Raises:
      ValueError: if an argument is out of range; in its functions, if inputs are not
        rows `[n, D]`, or not of as many columns as there are scales.

    Example:
      >>> from metajax.learners import kernel_svm
      >>> from metajax.tasks import row_tasks
      >>> tasks = row_tasks(tables, rows=(20, 40), num_queries=30)
      >>> learner = kernel_svm(way=3, width=(0.5, 2), learn=("penalty", "weights"))
      >>> key = jax.random.key(0)
      >>> meta_params = learner.init(key, tasks(key))
    """
    check_choice(KERNELS, kernel=kernel)
    widths = np.atleast_1d(as_numbers(width=width))
    powers = np.atleast_1d(as_numbers(relevance=relevance))
    if not widths.size:
        raise ValueError("`width` must have at least one number, got none.")
    for one in widths.tolist():
        check_positive(width=one)
    check_positive(penalty=penalty, scale=scale)
    if powers.shape not in ((1,), widths.shape) or not np.isfinite(powers).all():
        raise ValueError(
            "`relevance` must be one finite number, or one for each of the "
            f"{widths.size} widths, got {relevance!r}."
        )
    check_integers(1, iterations=iterations)
    if isinstance(learn, str):
        raise ValueError(
            f"`learn` must be a list of names, got the one word {learn!r}; write "
            f"`({learn!r},)`."
        )
    check_words(learn=learn)
    for name in learn:
        check_choice(LEARNED, learn=name)

    def start(num_columns: int) -> dict[str, Array]:
        numbers = {
            "penalty": penalty,
            "width": widths,
            "relevance": np.broadcast_to(powers, widths.shape),
            "weights": np.ones(widths.shape),
            "scales": np.ones(num_columns),
            "scale": scale,
        }
        return {name: jnp.asarray(v, jnp.float32) for name, v in numbers.items()}

    def current(head_params: PyTree, num_columns: int) -> dict[str, Array]:
        learned = {name: _read(head_params, name) for name in learn}
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
        return dict(_entry(name, numbers[name]) for name in learn)

    def fit(
        head_params: PyTree, support: Embedded, key: Array | None
    ) -> tuple[Machine, dict[str, Array]]:
        del key
        numbers = current(head_params, support.features.shape[1])
        is_real = support.is_real[:, None]
        center, factors = _ruler(support, numbers)
        rows = jnp.where(is_real[None], _scaled(support.features, center, factors), 0)
        mixture = numbers["weights"] / jnp.sum(numbers["weights"])
        gram = _kernel(kernel, mixture, rows, rows)
        signs = jnp.where(is_real, 2 * support.one_hot - 1, 0)
        lower, upper = jnp.minimum(signs, 0), jnp.maximum(signs, 0)
        # In units of C the box is that of the signs, and C is a factor of the kernel.
        share = box_program(
            numbers["penalty"] * _centred(gram, support.is_real),
            signs,
            lower,
            upper,
            axis=0,
            iterations=iterations,
        )
        weights = numbers["penalty"] * share
        outputs = gram @ weights
        bias = _bias(signs - outputs, share, lower, upper)
        machine = Machine(center, factors, rows, mixture, weights, bias)
        return machine, _distances(gram, outputs, machine, signs, numbers["penalty"])

    def classify(
        head_params: PyTree,
        machine: Machine,
        features: Array,
        mask: Array | None,
        key: Array | None,
    ) -> Array:
        del mask, key
        scale = current(head_params, features.shape[1])["scale"]
        rows = _scaled(features, machine.center, machine.factors)
        gram = _kernel(kernel, machine.mixture, rows, machine.rows)
        return scale * (gram @ machine.weights + machine.bias[None, :])

    return head_learner(table_rows("kernel_svm"), Head(fit, classify, init), way=way)


def _entry(name: str, number: Array) -> tuple[str, Array]:
    """How a number is learned: powers as they are, the others by their logarithms."""
    is_power = name == "relevance"
    return (name, number) if is_power else (f"log_{name}", jnp.log(number))


def _read(head_params: PyTree, name: str) -> Array:
    """Undoes `_entry`."""
    is_power = name == "relevance"
    return head_params[name] if is_power else jnp.exp(head_params[f"log_{name}"])


def _ruler(support: Embedded, numbers: dict[str, Array]) -> tuple[Array, Array]:
    """Mean of the support rows `[D]`, and factors of the columns u `[M, D]`."""
    # An integer of 64 bits would make its inverse a double.
    num = jnp.maximum(jnp.sum(support.is_real), 1).astype(support.features.dtype)
    center = jnp.sum(support.features, axis=0) / num
    centred = support.features - center[None, :]
    centred = jnp.where(support.is_real[:, None], centred, 0)
    total = jnp.sum(jnp.square(centred), axis=0)
    count = jnp.sum(support.one_hot, axis=0)[:, None]
    sums = support.one_hot.T @ centred
    between = jnp.sum(jnp.square(sums) / jnp.maximum(count, 1), axis=0)
    ratio = jnp.where(total > 0, between / jnp.where(total > 0, total, 1), 0)
    powers = numbers["relevance"][:, None]
    scales = numbers["scales"][None, :] * (ratio + 1 / num)[None, :] ** powers
    spread = jnp.square(scales) @ total / num
    # Rows that all agree have no unit of their own.
    spread = jnp.where(spread > 0, spread, 1)
    units = jax.lax.rsqrt(spread) / numbers["width"]
    return center, scales * units[:, None]


def _scaled(rows: Array, center: Array, factors: Array) -> Array:
    """Rows `[n, D]` as the kernels see them, z `[M, n, D]`."""
    return (rows - center[None, :])[None] * factors[:, None, :]


def _kernel(kind: str, mixture: Array, rows: Array, others: Array) -> Array:
    """Mixed kernel `[n, m]` of rows `[M, n, D]` and `[M, m, D]`."""
    products = jnp.einsum("knd,kmd->knm", rows, others)
    if kind == "linear":
        return jnp.tensordot(mixture, products, 1)
    of_rows, of_others = (jnp.sum(jnp.square(r), axis=2) for r in (rows, others))
    squares = of_rows[:, :, None] + of_others[:, None, :] - 2 * products
    return jnp.tensordot(mixture, jnp.exp(-jnp.maximum(squares, 0)), 1)


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


def _distances(
    gram: Array, outputs: Array, machine: Machine, signs: Array, penalty: Array
) -> Metrics:
    """Measures how far the machines of all classes are from the solution f*.

    The gap between primal and dual is at least ||f - f*||^2, as both are quadratic in
    f. It is, as a sums to 0, the sum of C max(0, m) - y a m with the margins
    m = 1 - y f(x), in which no term is negative.

    Args:
      gram: K `[n, n]`.
      outputs: K a `[n, N]`.
      machine: what was fitted.
      signs: y `[n, N]`, 0 for padding.
      penalty: C.
    """
    margins = 1 - signs * (outputs + machine.bias[None, :])
    share = jnp.clip(signs * machine.weights, 0, penalty)
    slack, beyond = jnp.maximum(margins, 0), jnp.maximum(-margins, 0)
    is_real = signs != 0
    gap = jnp.sum(jnp.where(is_real, (penalty - share) * slack + share * beyond, 0))
    size = jnp.maximum(jnp.vdot(machine.weights, outputs), 0)
    primal = size / 2 + penalty * jnp.sum(jnp.where(is_real, slack, 0))
    # A margin is a difference of sums of products, each rounded.
    sums = jnp.abs(gram) @ jnp.abs(machine.weights) + jnp.abs(machine.bias)[None, :]
    rounded = penalty * jnp.sum(jnp.where(is_real, 1 + sums, 0))
    rounding = jnp.finfo(outputs.dtype).eps * rounded
    return {
        # There is nothing to solve if all rows are of one class, or none is real.
        "duality_gap": gap / jnp.where(primal > 0, primal, 1),
        "coefficient_error": relative_error(from_gap(gap, rounding), jnp.sqrt(size)),
    }
