"""BD-CSPN: prototypes that the queries rectify, and cosines to them.

J. Liu, L. Song, Y. Qin, "Prototype Rectification for Few-Shot Learning", ECCV 2020,
https://arxiv.org/abs/1911.10713, section 3.

    xi   = mean of f over the support set - mean of f over the queries
    X'   = support embeddings with their labels, and f(x) + xi of every query x with the
           class of the largest cosine to the class means c_k
    w_i  = exp(epsilon cos(X'_i, c_k)) / sum of the same over the members of class k
    c'_k = sum of w_i X'_i over the members i of class k
    logits(x)_k = scale cos(f(x), c'_k)

The shift xi removes the bias between the sets, the weights that of few examples.
epsilon = `sharpness`.

Differs from the paper, as easyfsl 1.5 does: all queries are members of the class that
they are guessed to be of, and not the surest 8; epsilon is 1 by default, where the
paper has 10; and queries are classified where they are, without xi. Guesses are
constants to the outer gradient, which passes everything else.
"""

from metajax.builders.heads import Embedded, cosines
from metajax.builders.transductive import rectified_prototypes, transductive_learner
from metajax.checks import check_not_negative, check_positive
from metajax.types import Array, Embedding, Learner, Way

__all__ = ["bd_cspn"]


def bd_cspn(
    model: Embedding,
    *,
    way: Way = "support",
    sharpness: float = 1.0,
    scale: float = 1.0,
) -> Learner:
    """Builds BD-CSPN.

    Choose it where queries arrive together and are of all classes about alike: it costs
    hardly more than prototypes. With queries of few of the classes the shift misleads.

    Args:
      model: an embedding, inputs `[n, ...]` to `[n, D]`.
      way: the most classes a task may have, N; labels are below it. "support" takes the
        number of support examples, which always suffices.
      sharpness: epsilon, at least 0; 0 weights all members alike.
      scale: factor of the cosines, above 0; about 10 lets them express certainty.

    Returns:
      A transductive learner whose `meta_params` are parameters of `model`; `predict`
      gives logits `[n, N]`, minus infinity for classes without a support example.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> from metajax.learners import bd_cspn
      >>> from metajax.models import identity
      >>> learner = bd_cspn(identity(), way=5)
    """
    check_not_negative(sharpness=sharpness)
    check_positive(scale=scale)

    def answer(support: Embedded, queries: Array, is_real: Array) -> Array:
        centers = rectified_prototypes(support, queries, is_real, sharpness=sharpness)
        return scale * cosines(queries, centers)

    return transductive_learner(model, answer, way=way)
