"""LaplacianShot: assignments of queries that agree between neighbours.

I. M. Ziko, J. Dolz, E. Granger, I. Ben Ayed, "Laplacian Regularized Few-Shot Learning",
ICML 2020, https://arxiv.org/abs/2006.15486, Algorithm 1.

    a_qk = ||f(x_q) - c'_k||^2,   c' the prototypes of BD-CSPN
    w_qp = 1 if p is among the nearest neighbours of q, else 0
    y_q  = softmax over k of -a_qk, then again and again
    y_q <- softmax over k of -a_qk + lambda sum over p of w_qp y_pk

Each update lowers a bound of the objective, Eq. (7); they end once it falls by less
than a millionth of its size, or after `iterations`. lambda = `strength`.

Differs from the paper: prototypes are rectified as in easyfsl 1.5, whose settings are
the defaults, and embeddings are taken as they are: centre and normalise them first, as
`simple_shot` does, to follow the paper. Its `knn` of 3 counts the query itself, which
is no neighbour here.
"""

import jax
import jax.numpy as jnp

from metajax.builders.heads import Embedded, squared_distances
from metajax.builders.transductive import (
    LEAST,
    rectified_prototypes,
    transductive_learner,
)
from metajax.checks import check_integers, check_not_negative
from metajax.types import Array, Embedding, Learner, Way

__all__ = ["laplacian_shot"]

TOLERANCE = 1e-6  # of the bound's change, relative; as in the authors' code


def laplacian_shot(
    model: Embedding,
    *,
    way: Way = "support",
    neighbors: int = 2,
    strength: float = 0.7,
    iterations: int = 20,
    sharpness: float = 1.0,
) -> Learner:
    """Builds LaplacianShot.

    Choose it over `bd_cspn` where queries of one class lie in chains or in several
    clusters, which a single prototype does not describe.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples, which always suffices.
      neighbors: of each query, among the other queries, at least 1; all of them if
        there are fewer.
      strength: lambda, at least 0; 0 leaves the nearest prototype.
      iterations: the most updates, at least 0.
      sharpness: of the weights in the prototypes, at least 0; see `bd_cspn`.

    Returns:
      A transductive learner whose `meta_params` are parameters of `model`; `predict`
      gives the logarithms of assignments, `[n, N]`, minus infinity for classes without
      a support example. The outer gradient passes all updates; which queries are
      neighbours is a constant to it.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import laplacian_shot
      >>> from metajax.models import identity
      >>> learner = laplacian_shot(identity(), way=5)
    """
    check_integers(1, neighbors=neighbors)
    check_integers(0, iterations=iterations)
    check_not_negative(strength=strength, sharpness=sharpness)

    def answer(support: Embedded, queries: Array, is_real: Array) -> Array:
        centers = rectified_prototypes(support, queries, is_real, sharpness=sharpness)
        distances = squared_distances(queries, centers)
        near, is_near = nearest_neighbors(queries, is_real, neighbors)
        is_present = support.is_present[None, :]

        def assign(scores: Array) -> Array:
            return jax.nn.log_softmax(jnp.where(is_present, scores, -jnp.inf), axis=1)

        def pull(logs: Array) -> Array:
            of_neighbors = jnp.where(is_near[:, :, None], jnp.exp(logs)[near], 0)
            return strength * jnp.sum(of_neighbors, axis=1)

        def bound(logs: Array, pulls: Array) -> Array:  # Eq. (7), without constants
            y = jnp.exp(logs)
            terms = y * (jnp.log(y + LEAST) + distances - pulls)
            return jnp.sum(jnp.where(is_real[:, None], terms, 0))

        def update(carry: tuple, step: Array) -> tuple[tuple, None]:
            logs, pulls, last, is_done = carry
            new = assign(pulls - distances)
            new_pulls = pull(new)
            value = jax.lax.stop_gradient(bound(new, new_pulls))
            has_settled = jnp.abs(value - last) <= TOLERANCE * jnp.abs(last)
            kept = (
                jnp.where(is_done, old, changed)
                for old, changed in ((logs, new), (pulls, new_pulls))
            )
            # The first two updates compare nothing.
            return (*kept, value, is_done | ((step > 1) & has_settled)), None

        first = assign(-distances)
        nothing = jnp.zeros((), distances.dtype), jnp.zeros((), bool)
        start = (first, pull(first), *nothing)
        (logs, *_), _ = jax.lax.scan(update, start, jnp.arange(iterations))
        return logs

    return transductive_learner(model, answer, way=way)


def nearest_neighbors(rows: Array, is_real: Array, count: int) -> tuple[Array, Array]:
    """Finds the nearest other real rows of each of `[n, D]`.

    Returns:
      Their places `[n, k]`, k = min(count, n - 1), and which of them are neighbours,
      bool `[n, k]`: fewer than k where fewer rows are real.
    """
    num = len(rows)
    is_other = is_real[:, None] & is_real[None, :] & ~jnp.eye(num, dtype=bool)
    closeness = jnp.where(is_other, -squared_distances(rows, rows), -jnp.inf)
    values, places = jax.lax.top_k(closeness, min(count, num - 1))
    return places, values > -jnp.inf
