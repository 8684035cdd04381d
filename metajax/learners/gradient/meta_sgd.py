"""Meta-SGD: an initialisation, and a learning rate for every parameter.

Z. Li, F. Zhou, F. Chen, H. Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot
Learning", arXiv 2017, https://arxiv.org/abs/1707.09835, Algorithm 1.

    inner   phi_{t+1} = phi_t - alpha * grad L_support(phi_t),  elementwise      Eq. (4)
    outer   min over theta and alpha of the mean over tasks of  L_query(phi_T)   Eq. (5)

theta is `meta_params.params`, alpha `meta_params.optimizer["learning_rate"]`, of the
same shapes. alpha is not constrained: rates may become negative, and do. Differs from
the paper: all rates start from one value, not from random ones, and more than one inner
step may be taken, all with the same alpha.

It is `maml` with `learned(optax.sgd, learning_rate=HyperParameter(rate,
per="parameter"))`, see `metajax.inner.learned_optimizer`. Checked against the sinusoid
and Omniglot results; see the README's table.
"""

import optax

from metajax.builders.descent import descent
from metajax.checks import check_integers, check_parts
from metajax.filters import everything
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.inner.unroll import GradientMode
from metajax.objectives import cross_entropy
from metajax.types import Filter, Learner, Model, Objective

__all__ = ["meta_sgd"]


def meta_sgd(
    model: Model,
    *,
    rate: float = 0.1,
    inner_steps: int = 1,
    eval_inner_steps: int | None = None,
    objective: Objective = cross_entropy,
    gradient: GradientMode = "remat",
    adapts: Filter = everything,
) -> Learner:
    """Builds Meta-SGD.

    Choose it where MAML works: it takes the same time a step and twice the
    meta-parameters, and needs no search for the inner rate. With few tasks to learn
    from, the rates may fit these tasks only.

    Args:
      model: the network.
      rate: every learning rate at first, above 0.
      inner_steps: inner steps in training, at least 1.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`. The rates
        belong to the number of steps they were learned for: with more, tasks may
        diverge.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`. First order still learns the rates.
      adapts: which parameters adapt; see `metajax.filters`.

    Returns:
      A learner whose `meta_params` are `DescentParams(params, optimizer)` and whose
      `adapted` are parameters of `model`. Its loss reports `support_loss_t` for up to
      11 inner steps t.

    Raises:
      ValueError: if `rate`, `inner_steps`, `eval_inner_steps` or `gradient` is out of
        range.

    Example:
      >>> from metajax.learners import meta_sgd
      >>> from metajax.models import conv4
      >>> learner = meta_sgd(conv4(5, pooling="stride"), rate=0.4)
    """
    check_parts(model=model, objective=objective, adapts=adapts)
    check_integers(1, inner_steps=inner_steps)
    rates = HyperParameter(rate, per="parameter")
    try:
        inner_optimizer = learned(optax.sgd, learning_rate=rates)
    except ValueError as error:
        raise ValueError(f"`rate` is out of range: {error}") from error
    return descent(
        model,
        inner_optimizer,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        objective=objective,
        gradient=gradient,
        adapts=adapts,
    )
