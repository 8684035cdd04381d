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

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from metajax.builders.heads import Embedded, unit
from metajax.builders.transductive import squared_distances, transductive_learner
from metajax.checks import check_integers, check_positive
from metajax.types import Array, Embedding, Learner, Way

__all__ = ["pt_map", "transport_plan"]

MOST_OFF = 1e-3  # of a query's mass, before Sinkhorn's algorithm may end


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
    log_share = jnp.log(share).astype(scores.dtype)
    tolerance = max(1e-6, 100 * float(jnp.finfo(scores.dtype).eps))
    # The first scaling of rows takes away what all entries of a row share.
    tops = jnp.max(scores, axis=1, keepdims=True, where=is_there, initial=-jnp.inf)
    scores = scores - jax.lax.stop_gradient(jnp.where(is_real[:, None], tops, 0))
    fixed = jax.lax.stop_gradient(scores)

    def scaled_rows(columns: Array) -> Array:
        sums = logsumexp(fixed + columns, axis=1, keepdims=True, where=is_there)
        return jnp.where(is_real[:, None], -sums, 0)

    def scaled_columns(rows: Array) -> Array:
        sums = logsumexp(fixed + rows, axis=0, keepdims=True, where=is_there)
        return jnp.where(is_present[None, :], log_share - sums, 0)

    def has_changed(state: tuple) -> Array:
        *_, masses, change, count = state
        # Masses may stand still for long while the factors still grow.
        is_off = jnp.any(is_real[:, None] & (jnp.abs(masses - 1) > MOST_OFF))
        return ((change >= tolerance) | is_off) & (count < iterations)

    def scale(state: tuple) -> tuple:
        next_rows, _, _, masses, _, count = state
        rows = next_rows
        columns = scaled_columns(rows)
        next_rows = scaled_rows(columns)
        # What the rows of this plan sum to, which the next scaling takes away.
        new_masses = jnp.where(is_real[:, None], jnp.exp(rows - next_rows), 0)
        change = jnp.max(jnp.abs(new_masses - masses))
        return next_rows, rows, columns, new_masses, change, count + 1

    rows = scaled_rows(jnp.zeros((1, scores.shape[1]), scores.dtype))
    columns = jnp.zeros((1, scores.shape[1]), scores.dtype)
    change = jnp.full((), jnp.inf, scores.dtype)
    start = rows, rows, columns, jnp.zeros_like(rows), change, 0
    _, rows, columns, *_ = jax.lax.while_loop(has_changed, scale, start)
    return jnp.where(is_there, scores + rows + columns, -jnp.inf)
