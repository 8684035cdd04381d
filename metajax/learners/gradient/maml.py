"""Model-Agnostic Meta-Learning (MAML): an initialisation that adapts in a few steps.

C. Finn, P. Abbeel, S. Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks", ICML 2017, https://arxiv.org/abs/1703.03400, Algorithm 2.

    inner   phi_0 = theta,  phi_{t+1} = phi_t - alpha * grad L_support(phi_t)
    outer   min over theta of the mean over tasks of L_query(phi_T)

theta is `meta_params`, phi_T what `adapt` returns, T `inner_steps`; alpha belongs to
the inner optimizer. Differs from the paper: tasks are averaged, not summed, and any
Optax optimizer may stand inside. The official code also adapts no normalisation
parameters, which here adapt with the rest unless `adapts` leaves them out.

Checked against the paper's sinusoid and Omniglot results; see the README's table.
First-order MAML is `gradient="first_order"`, and is not Reptile.
"""

from metajax.builders.descent import InnerOptimizer, descent
from metajax.checks import check_parts
from metajax.filters import everything
from metajax.inner.unroll import GradientMode
from metajax.objectives import cross_entropy
from metajax.types import Filter, Learner, Model, Objective

__all__ = ["maml"]


def maml(
    model: Model,
    inner_optimizer: InnerOptimizer,
    *,
    inner_steps: int,
    eval_inner_steps: int | None = None,
    objective: Objective = cross_entropy,
    gradient: GradientMode = "remat",
    adapts: Filter = everything,
    check_mixed: bool = True,
) -> Learner:
    """Builds MAML.

    Choose it when a task needs the whole network to move, for any kind of output:
    regression, classification, policies. For few-shot classification alone,
    `prototypical` is simpler, faster and usually at least as accurate.

    Args:
      model: the network.
      inner_optimizer: what adapts it, such as `optax.sgd(0.4)`. Adam needs
        `eps_root > 0` to be differentiated. A `LearnedOptimizer` is learned too, see
        `metajax.inner.learned_optimizer`.
      inner_steps: inner steps in training, at least 0; 0 is ordinary joint training.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`.
      adapts: which parameters adapt; see `metajax.filters`. `only("head")` is ANIL,
        `all_but("head")` is BOIL.
      check_mixed: whether a loss with custom derivatives is checked for `"mixed"`; see
        `metajax.inner.unroll.unroll`.

    Returns:
      A learner whose `meta_params` and `adapted` are parameters of `model`; with a
      `LearnedOptimizer`, `meta_params` are `DescentParams(params, optimizer)`. The
      metrics of its loss hold `support_loss_t` for up to 11 inner steps t.

    Raises:
      ValueError: if `inner_steps`, `eval_inner_steps` or `gradient` is out of range, or
        the optimizer cannot be differentiated; when traced, if `"mixed"` is wrong for
        the loss.
      TypeError: if `inner_optimizer` is not an Optax transformation.

    Example:
      >>> import optax
      >>> from metajax.learners import maml
      >>> from metajax.models import conv4
      >>> model = conv4(5, pooling="stride")
      >>> learner = maml(model, optax.sgd(0.4), inner_steps=1, eval_inner_steps=3)
    """
    check_parts(model=model, objective=objective, adapts=adapts)
    return descent(
        model,
        inner_optimizer,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        objective=objective,
        gradient=gradient,
        adapts=adapts,
        check_mixed=check_mixed,
    )
