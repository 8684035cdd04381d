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
is added to the kernel, where the paper's code adds the identity. `duality_gap`, which
the loss reports, is the gap between primal and dual relative to the primal.
"""

import jax.numpy as jnp

from metajax.builders.heads import Embedded, head_learner, solved_head
from metajax.checks import check_integers, check_parts
from metajax.inner.solvers import box_program
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
      infinity for classes without a support example. Its loss reports `duality_gap`:
      above 0.01, say, give it more steps or a lower penalty.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import svm
      >>> from metajax.models import conv4
      >>> learner = svm(conv4(normalization="calibrated"), way=5)
    """
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
        return rows.T @ a, {"duality_gap": duality_gap(kernel, a, support, penalty)}

    head = solved_head(
        solve, scale=scale, learn=learn_penalty, name="penalty", value=penalty
    )
    return head_learner(model, head, way=way)


def duality_gap(kernel: Array, a: Array, support: Embedded, penalty: Array) -> Array:
    """Measures how far duals `[n, N]` are from optimal: (primal - dual) / primal."""
    scores = kernel @ a
    of_label = jnp.sum(scores * support.one_hot, axis=1)
    margins = scores + 1 - support.one_hot - of_label[:, None]
    margins = jnp.where(support.is_present[None, :], margins, -jnp.inf)
    slack = jnp.where(support.is_real, jnp.max(margins, axis=1), 0)
    size = jnp.vdot(a, scores) / 2
    primal = size + penalty * jnp.sum(slack)  # Eq. (5)
    dual = jnp.vdot(a, support.one_hot) - size  # Eq. (8)
    # There is nothing to solve if all rows are of one class, or none is real.
    return (primal - dual) / jnp.where(primal > 0, primal, 1)
