"""Logistic regression as the head: LR-D2.

L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi, "Meta-learning with differentiable
closed-form solvers", ICLR 2019, https://arxiv.org/abs/1805.08136, section 3.2.

    w_k = argmin of  sum over i of log(1 + exp(-y_ik x_i . w)) + lambda / 2 ||w||^2
    logits(x)_k = alpha f(x) . w_k

y_ik is 1 if i is of class k, and -1 if not: one against the rest. X are the support
embeddings with a column of ones; lambda and alpha are learned.

Differs from the paper: it differentiates through its Newton steps, this at the
solution, which has the gradient of the solution and not that of an approximation.
`coefficient_error`, which the loss reports, says how good that approximation was: as no
direction has a curvature below lambda, w is at most ||gradient|| / lambda away from the
solution.
"""

import jax
import jax.numpy as jnp

from metajax.builders.heads import Embedded, head_learner, solved_head
from metajax.checks import check_flags, check_integers, check_parts
from metajax.inner.solvers import logistic_dual, relative_error
from metajax.types import Array, Embedding, Learner, Metrics, Way

__all__ = ["logistic"]


def logistic(
    model: Embedding,
    *,
    way: Way = "support",
    strength: float = 1.0,
    learn_strength: bool = True,
    scale: float = 1.0,
    iterations: int = 10,
) -> Learner:
    """Builds LR-D2.

    Choose it over `ridge` where outliers among embeddings matter, as its loss does not
    punish those that are far on the right side; it solves N systems for every step.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples: give it where there is more than one shot.
      strength: lambda at first, above 0.
      learn_strength: whether lambda is learned, through its logarithm.
      scale: alpha at first, above 0; it is learned through its logarithm.
      iterations: of Newton's method, at least 1; the paper has 5 to 10.

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams` and whose `adapted` holds
      the weights `[D + 1, N]` as `fitted`; `predict` gives logits `[n, N]`, minus
      infinity for classes without a support example. Its loss reports
      `solver_residual`, the largest error of a dual variable's equation, and
      `coefficient_error`, a bound on the distance of the weights of a class from the
      solution, relative to their norm, with what rounding may add, and for the class
      where it is largest: at 0.01 all are within 1 %. Above that, give it more
      iterations or a higher strength; far below a strength of 1 the bound is many
      times the error. Training reports means over tasks, of which some may be larger.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import logistic
      >>> from metajax.models import conv4
      >>> learner = logistic(conv4(normalization="calibrated"), way=5)
    """
    check_flags(learn_strength=learn_strength)
    check_parts(model=model)
    check_integers(1, iterations=iterations)

    def solve(support: Embedded, strength: Array) -> tuple[Array, Metrics]:
        rows = support.with_ones
        signs = jnp.where(support.is_real[:, None], 2 * support.one_hot - 1, 0)
        found = logistic_dual(rows @ rows.T, signs, strength, iterations=iterations)
        weights = rows.T @ found.value
        return weights, {
            "solver_residual": found.residual,
            "coefficient_error": _coefficient_error(rows, signs, weights, strength),
        }

    head = solved_head(
        solve, scale=scale, learn=learn_strength, name="strength", value=strength
    )
    return head_learner(model, head, way=way)


def _coefficient_error(
    rows: Array, signs: Array, weights: Array, strength: Array
) -> Array:
    """The largest of the classes' ||gradient|| / lambda / ||w||, with rounding."""
    wrong = jax.nn.sigmoid(-signs * (rows @ weights))  # 1/2 for padding, whose x is 0
    away = weights - rows.T @ (signs * wrong) / strength
    # What is rounded in x . w changes sigmoids, and sigmoids and sums are rounded.
    norms = jnp.linalg.norm(weights, axis=0)
    lengths = jnp.linalg.norm(rows, axis=1)[:, None]
    changes = wrong * (1 + (1 - wrong) * lengths * norms[None, :])
    rounded = norms + jnp.sum(lengths * changes, axis=0) / strength
    rounding = jnp.finfo(weights.dtype).eps * rounded
    errors = jnp.linalg.norm(away, axis=0) + rounding
    return jnp.max(relative_error(errors, norms))
