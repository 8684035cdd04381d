"""PT-MAP: prototypes between which optimal transport divides the queries.

Y. Hu, V. Gripon, S. Pateux, "Leveraging the Feature Distribution in Transfer-based
Few-Shot Learning", ICANN 2021, https://arxiv.org/abs/2006.03806, Algorithm 1.

    z(x) = (max(f(x), 0) + 1e-6)^beta, scaled to length 1 if asked to           Eq. (1)
    P    = the plan that moves a mass of 1 from each query and m / N to each class at
           the cost ||z(x_q) - c_k||^2, with entropic weight 1 / lambda         Eq. (3)
    mu_k = mean of z over the support examples of class k and the queries, by P Eq. (6)
    c_k <- c_k + alpha (mu_k - c_k)

c starts at the class means and is moved `iterations` times; the last P is the answer.
beta = `power`, lambda = `sharpness`, alpha = `rate`; there are m queries. P is found by
Sinkhorn's algorithm, on logarithms, which ends once no query's mass changes by a
millionth (in single precision by a hundred thousandth) and none is off 1 by a
thousandth.

Differs from the paper: z is scaled to length 1 only if `normalize` is True, as easyfsl
1.5 does not; its 10 iterations and alpha = 0.2 are the defaults. easyfsl works on
exponentials, which vanish in single precision where costs exceed 10, so that it answers
NaN there; it rounds m / N down; and it ends where masses do not change for a while,
however far they are from 1. The factors by which Sinkhorn's algorithm scales
rows and columns are constants to the outer gradient; costs and means are not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from metajax.builders.heads import Embedded, squared_distances, unit
from metajax.builders.transductive import transductive_learner
from metajax.checks import check_flags, check_integers, check_positive
from metajax.types import Array, Embedding, Learner, Way

__all__ = ["pt_map", "transport_plan"]

MOST_OFF = 1e-3  # of a query's mass, before Sinkhorn's algorithm may end
BLOCK = 8  # of its iterations, between two looks at logarithms


class Scaling(NamedTuple):
    """Where Sinkhorn's algorithm is.

    Attributes:
      rows: `[1, m]`, logarithms of the factors of rows.
      columns: `[N, 1]`, those of columns.
      masses: `[1, m]`, what the rows of the plan sum to.
      is_done: whether it has ended.
      taken: iterations.
    """

    rows: Array
    columns: Array
    masses: Array
    is_done: Array
    taken: Array


def pt_map(
    model: Embedding,
    *,
    way: Way = "support",
    power: float = 0.5,
    normalize: bool = False,
    sharpness: float = 10.0,
    rate: float = 0.2,
    iterations: int = 10,
    sinkhorn_iterations: int = 1000,
) -> Learner:
    """Builds PT-MAP.

    Choose it where all classes have the same number of queries, which it takes for
    granted and which makes it strong; it misleads where they have not. Embeddings
    should not be negative, as those after a ReLU are.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`; what is below 0 counts as 0.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples, which always suffices.
      power: beta, above 0.
      normalize: whether transformed embeddings are scaled to length 1.
      sharpness: lambda, above 0.
      rate: alpha, above 0 and at most 1.
      iterations: of the prototypes, at least 0.
      sinkhorn_iterations: the most for each plan, at least 1.

    Returns:
      A transductive learner whose `meta_params` are parameters of `model`; `predict`
      gives the logarithms of P, `[n, N]`, minus infinity for classes without a support
      example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import pt_map
      >>> from metajax.models import identity
      >>> learner = pt_map(identity(), way=5)
    """
    check_flags(normalize=normalize)
    check_positive(power=power, sharpness=sharpness, rate=rate)
    if rate > 1:
        raise ValueError(f"`rate` must be above 0 and at most 1, got {rate!r}.")
    check_integers(0, iterations=iterations)
    check_integers(1, sinkhorn_iterations=sinkhorn_iterations)

    def transform(features: Array) -> Array:  # Eq. (1)
        powered = (jax.nn.relu(features) + 1e-6) ** power
        return unit(powered) if normalize else powered

    def answer(support: Embedded, queries: Array, is_real: Array) -> Array:
        seen = support._replace(features=transform(support.features))
        queries = transform(queries)
        sums = seen.one_hot.T @ seen.features
        counts = jnp.sum(seen.one_hot, axis=0)

        def plan(centers: Array) -> Array:  # Eq. (3)
            return transport_plan(
                -sharpness * squared_distances(queries, centers),
                is_real,
                seen.is_present,
                iterations=sinkhorn_iterations,
            )

        def move(centers: Array, _: None) -> tuple[Array, None]:
            masses = jnp.exp(plan(centers))
            totals = counts + jnp.sum(masses, axis=0)
            means = (sums + masses.T @ queries) / jnp.where(totals > 0, totals, 1)[
                :, None
            ]
            return centers + rate * (means - centers), None  # Eq. (6)

        centers, _ = jax.lax.scan(move, seen.means, length=iterations)
        return plan(centers)

    return transductive_learner(model, answer, way=way)


def transport_plan(
    scores: Array, is_real: Array, is_present: Array, *, iterations: int
) -> Array:
    """Scales exp(scores) `[m, N]` to rows of sum 1 and columns of equal sums.

    R. Sinkhorn, P. Knopp, "Concerning nonnegative matrices and doubly stochastic
    matrices", Pacific Journal of Mathematics 1967.

    Args:
      scores: any finite numbers; minus the costs, in units of the entropic weight.
      is_real: bool `[m]`, which rows there are.
      is_present: bool `[N]`, which columns there are.
      iterations: the most, at least 1.

    Returns:
      The logarithms of the plan `[m, N]`, minus infinity for what is not there. Columns
      are scaled last, so that their sums are exact.
    """
    is_there = is_real[:, None] & is_present[None, :]
    share = jnp.sum(is_real) / jnp.maximum(jnp.sum(is_present), 1)
    share = share.astype(scores.dtype)
    tolerance = max(1e-6, 100 * float(jnp.finfo(scores.dtype).eps))
    # The first scaling of rows takes away what all entries of a row share.
    tops = jnp.max(scores, axis=1, keepdims=True, where=is_there, initial=-jnp.inf)
    scores = scores - jax.lax.stop_gradient(jnp.where(is_real[:, None], tops, 0))
    # Classes are few: the long axis is the last, and all is of shape [N, m] from here.
    fixed, is_there = jax.lax.stop_gradient(scores).T, is_there.T
    is_row, is_column = is_real[None, :], is_present[:, None]

    def block(state: Scaling) -> Scaling:
        """Takes some iterations on factors, which then go into the logarithms.

        Products are cheaper than exponentials, and no factor changes by more than the
        number of rows in a step, so that none leaves the range of numbers in a block.
        """
        plan = jnp.where(is_there, jnp.exp(fixed + state.rows + state.columns), 0)

        def scale(_: int, carry: tuple) -> tuple:
            rows, columns, masses, is_done, count = carry
            sums = jnp.sum(plan * rows, axis=1, keepdims=True)
            new_columns = jnp.where(is_column, share / jnp.where(is_column, sums, 1), 1)
            sums = jnp.sum(plan * new_columns, axis=0, keepdims=True)
            # What the rows sum to, which scaling them takes away next.
            new_masses = jnp.where(is_row, rows * sums, 1)
            change = jnp.max(jnp.abs(new_masses - masses))
            # Masses may stand still for long while the factors still grow.
            is_off = jnp.max(jnp.abs(new_masses - 1)) > MOST_OFF
            ends = (change < tolerance) & ~is_off | (count + 1 >= iterations)
            # Rows stay a step behind columns where it ends.
            new_rows = jnp.where(is_row & ~ends, 1 / jnp.where(is_row, sums, 1), rows)
            new = new_rows, new_columns, new_masses, ends, count + 1
            return jax.tree.map(lambda a, b: jnp.where(is_done, a, b), carry, new)

        ones = jnp.ones_like(state.rows), jnp.ones_like(state.columns)
        carry = (*ones, state.masses, state.is_done, state.taken)
        rows, columns, *rest = jax.lax.fori_loop(0, BLOCK, scale, carry, unroll=True)
        return Scaling(
            state.rows + jnp.log(rows), state.columns + jnp.log(columns), *rest
        )

    rows = jnp.where(is_row, -logsumexp(fixed, 0, keepdims=True, where=is_there), 0)
    # The first scaling of columns, whose plan may be out of the range of numbers.
    sums = logsumexp(fixed + rows, 1, keepdims=True, where=is_there)
    columns = jnp.where(is_column, jnp.log(share) - sums, 0)
    start = Scaling(
        rows, columns, jnp.zeros_like(rows), jnp.zeros((), bool), jnp.int32(0)
    )
    end = jax.lax.while_loop(lambda state: ~state.is_done, block, start)
    plan = scores + end.rows.T + end.columns.T
    return jnp.where(is_there.T, plan, -jnp.inf)
