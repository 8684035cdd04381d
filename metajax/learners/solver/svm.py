"""A support vector machine as the head: MetaOptNet.

K. Lee, S. Maji, A. Ravichandran, S. Soatto, "Meta-Learning with Differentiable Convex
Optimization", CVPR 2019, https://arxiv.org/abs/1904.03758. The multi-class machine is
K. Crammer's and Y. Singer's, JMLR 2001:

    minimise over W, xi   1/2 ||W||^2 + C sum over i of xi_i                    Eq. (5)
    with   w_(y_i) . x_i - w_k . x_i >= [k != y_i] - xi_i   for all i and k

    dual: W = X^T a,  minimise  1/2 <a, X X^T a> - sum over i of a_(i, y_i)     Eq. (8)
    with   a_ik <= C [k = y_i]  and  sum over k of a_ik = 0

    logits(x) = alpha f(x) W                                                   Eq. (12)

X are the support embeddings with a column of ones; alpha is learned, and C if asked.

Differs from the paper: instead of an interior-point method, accelerated projected
gradients with a fixed number of steps, which `vmap` and accelerators run well; nothing
is added to the kernel, where the paper's code adds the identity.

The loss reports how far that is from the solution W*. The gap between primal and dual
is, as both are quadratic in W and slopes at W* point away from better values, at least
||W - W*||^2. `duality_gap` is the gap relative to the primal, which slack may make much
larger than ||W||^2: a small one says little of W. `coefficient_error`, the square root
of the gap over ||W||, does.
"""

import jax.numpy as jnp

from metajax.builders.heads import Embedded, head_learner, solved_head
from metajax.checks import check_flags, check_integers, check_parts
from metajax.inner.solvers import box_program, from_gap, relative_error
from metajax.types import Array, Embedding, Learner, Metrics, Way

__all__ = ["svm"]


def svm(
    model: Embedding,
    *,
    way: Way = "support",
    penalty: float = 0.1,
    learn_penalty: bool = False,
    scale: float = 10.0,
    iterations: int = 200,
) -> Learner:
    """Builds MetaOptNet with its support vector machine.

    Choose it over `ridge` for many shots of high-dimensional embeddings, where few
    examples decide; it costs `iterations` products with the kernel.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples: give it where there is more than one shot.
      penalty: C at first, above 0; 0.1 is the paper's.
      learn_penalty: whether C is learned, through its logarithm.
      scale: alpha at first, above 0; it is learned through its logarithm, as in
        `ridge`.
      iterations: iterations of the solver, at least 1.

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams` and whose `adapted` holds
      the weights `[D + 1, N]` as `fitted`; `predict` gives logits `[n, N]`, minus
      infinity for classes without a support example. Its loss reports `duality_gap`,
      (primal - dual) / primal, and `coefficient_error`, a bound on the distance of the
      weights from the solution, relative to their norm and with what rounding may add:
      at 0.01 they are within 1 %. Above that, give it more iterations or a lower
      penalty. Training reports means over tasks, of which some may be larger.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import svm
      >>> from metajax.models import conv4
      >>> learner = svm(conv4(normalization="calibrated"), way=5)
    """
    check_flags(learn_penalty=learn_penalty)
    check_parts(model=model)
    check_integers(1, iterations=iterations)

    def solve(support: Embedded, penalty: Array) -> tuple[Array, Metrics]:
        rows, one_hot = support.with_ones, support.one_hot
        kernel = rows @ rows.T
        # In units of C the box is that of the labels, and C is a factor of the kernel.
        is_free = support.is_real[:, None] & support.is_present[None, :]
        lower = jnp.where(is_free, -jnp.inf, 0)
        a = penalty * box_program(  # Eq. (8)
            penalty * kernel, one_hot, lower, one_hot, axis=1, iterations=iterations
        )
        weights = rows.T @ a
        return weights, _distances(rows, a, weights, support, penalty)

    head = solved_head(
        solve, scale=scale, learn=learn_penalty, name="penalty", value=penalty
    )
    return head_learner(model, head, way=way)


def _distances(
    rows: Array, a: Array, weights: Array, support: Embedded, penalty: Array
) -> Metrics:
    """Measures how far duals `[n, N]` and weights `[D + 1, N]` are from the solution.

    The gap is, as a row's duals sum to 0 and its margin is 0 at its label, the sum of
    (C [k = y_i] - a_ik) (xi_i - margin_ik), in which no term is negative.
    """
    scores = rows @ weights
    of_label = jnp.sum(scores * support.one_hot, axis=1)
    margins = scores + 1 - support.one_hot - of_label[:, None]
    is_open = support.is_real[:, None] & support.is_present[None, :]
    slack = jnp.max(jnp.where(is_open, margins, -jnp.inf), axis=1, keepdims=True)
    slack = jnp.where(support.is_real[:, None], slack, 0)
    room = jnp.maximum(penalty * support.one_hot - a, 0)
    gap = jnp.sum(jnp.where(is_open, room * (slack - margins), 0))
    primal = jnp.sum(jnp.square(weights)) / 2 + penalty * jnp.sum(slack)  # Eq. (5)
    # A margin is a difference of sums of products, each rounded.
    norm = jnp.linalg.norm(weights)
    sizes = jnp.where(support.is_real, 1 + jnp.linalg.norm(rows, axis=1) * norm, 0)
    rounding = jnp.finfo(a.dtype).eps * penalty * jnp.sum(sizes)
    return {
        # There is nothing to solve if all rows are of one class, or none is real.
        "duality_gap": gap / jnp.where(primal > 0, primal, 1),
        "coefficient_error": relative_error(from_gap(gap, rounding), norm),
    }
