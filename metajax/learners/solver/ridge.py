"""Ridge regression as the head: R2-D2, and the ridge twin of MetaOptNet.

L. Bertinetto, J. Henriques, P. Torr, A. Vedaldi, "Meta-learning with differentiable
closed-form solvers", ICLR 2019, https://arxiv.org/abs/1805.08136.

    W = argmin ||X W - Y||^2 + lambda ||W||^2                                   Eq. (4)
      = X^T (X X^T + lambda I)^-1 Y                                             Eq. (5)
    logits(x) = alpha f(x) W + beta                                             Eq. (6)

X are the support embeddings with a column of ones, Y their labels as one-hot rows.
lambda, alpha and beta are learned; beta is one number for all classes and changes no
answer of a softmax, so it is left out. The system is solved in whichever form is
smaller. K. Lee, S. Maji, A. Ravichandran, S. Soatto, "Meta-Learning with Differentiable
Convex Optimization", CVPR 2019, https://arxiv.org/abs/1904.03758, have the same head
with lambda = 50, not learned: `ridge(model, learn_strength=False)`.
"""

from metajax.builders.heads import Embedded, head_learner, solved_head
from metajax.checks import check_flags, check_parts
from metajax.inner import solvers
from metajax.types import Array, Embedding, Learner, Metrics, Way

__all__ = ["ridge"]


def ridge(
    model: Embedding,
    *,
    way: Way = "support",
    strength: float = 50.0,
    learn_strength: bool = True,
    scale: float = 10.0,
) -> Learner:
    """Builds R2-D2.

    Choose it over `prototypical` for more than one shot: the head is fitted to the
    task, at the cost of one small linear system.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples: give it where there is more than one shot.
      strength: lambda at first, above 0; 50 is of Lee et al.
      learn_strength: whether lambda is learned, through its logarithm.
      scale: alpha at first, above 0. It is learned through its logarithm, which 1,000
        steps of Adam at 1e-3 move by 1 at most; from 1, a short training ends with
        probabilities that are too even.

    Returns:
      A learner whose `meta_params` are `HeadLearnerParams` and whose `adapted` holds
      the weights `[D + 1, N]` as `fitted`; `predict` gives logits `[n, N]`, minus
      infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import ridge
      >>> from metajax.models import conv4
      >>> learner = ridge(conv4(normalization="calibrated"), way=5)
    """
    check_flags(learn_strength=learn_strength)
    check_parts(model=model)

    def solve(support: Embedded, strength: Array) -> tuple[Array, Metrics]:
        return solvers.ridge(support.with_ones, support.one_hot, strength), {}

    head = solved_head(
        solve, scale=scale, learn=learn_strength, name="strength", value=strength
    )
    return head_learner(model, head, way=way)
