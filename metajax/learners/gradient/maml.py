"""Model-Agnostic Meta-Learning (MAML): an initialisation that adapts in a few steps.

C. Finn, P. Abbeel, S. Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
Networks", ICML 2017, https://arxiv.org/abs/1703.03400, Algorithm 2.

    inner   phi_0 = theta,  phi_{t+1} = phi_t - alpha * grad L_support(phi_t)
    outer   min over theta of the mean over tasks of L_query(phi_T)

theta is `meta_params`, phi_T what `adapt` returns, T `steps`; alpha belongs to the
inner optimizer. Differs from the paper: tasks are averaged, not summed, and any Optax
optimizer may stand inside. The official code also adapts no normalisation parameters,
which here adapt with the rest unless `adapts` leaves them out.

Checked against the paper's sinusoid and Omniglot results; see the README's table.
First-order MAML is `gradient="first_order"`, and is not Reptile.
"""

from collections.abc import Callable

import jax
import optax

from metajax.filters import everything
from metajax.models.normalization import freeze_support_statistics
from metajax.objectives import cross_entropy, masked_mean, query_score, split_key
from metajax.types import Array, Examples, Learner, Model, PyTree, Task
from metajax.unroll import Unrolled, check_inner_loop, unroll

__all__ = ["maml"]


def maml(
    model: Model,
    inner_optimizer: optax.GradientTransformation,
    *,
    steps: int,
    eval_steps: int | None = None,
    objective: Callable[[PyTree, PyTree], Array] = cross_entropy,
    gradient: str = "remat",
    adapts: Callable[[str], bool] = everything,
    check_mixed: bool = True,
) -> Learner:
    """Builds MAML.

    Choose it when a task needs the whole network to move, for any kind of output:
    regression, classification, policies. For few-shot classification alone,
    `prototypical` is simpler, faster and usually at least as accurate.

    Args:
      model: the network.
      inner_optimizer: what adapts it, such as `optax.sgd(0.4)`. Adam needs
        `eps_root > 0` to be differentiated.
      steps: inner steps in training, at least 0; 0 is ordinary joint training.
      eval_steps: inner steps of `adapt`; None means `steps`.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      gradient: how the outer gradient passes the inner loop; see `metajax.unroll`.
      adapts: which parameters adapt; see `metajax.filters`.
      check_mixed: whether a loss with custom derivatives is checked for `"mixed"`; see
        `metajax.unroll.unroll`.

    Returns:
      A learner whose `meta_params` and `adapted` are parameters of `model`. The metrics
      of its loss hold `support_loss_t` for each inner step t.

    Raises:
      ValueError: if `steps`, `eval_steps` or `gradient` is out of range; when traced,
        if `"mixed"` is wrong for the loss.
      TypeError: if `inner_optimizer` is not an Optax transformation.

    Example:
      >>> import optax
      >>> from metajax import conv4, maml
      >>> model = conv4(5, pooling="stride")
      >>> learner = maml(model, optax.sgd(0.4), steps=1, eval_steps=3)
    """
    eval_steps = steps if eval_steps is None else eval_steps
    for count in (steps, eval_steps):
        check_inner_loop(inner_optimizer, count, gradient)

    def support_loss(params: PyTree, support: Examples, key: Array | None) -> Array:
        outputs = model.apply(params, support.x, mask=support.mask, key=key)
        return masked_mean(objective(outputs, support.y), support.mask)

    def run(
        meta_params: PyTree,
        support: Examples,
        key: Array | None,
        steps: int,
        *,
        keep_path: bool = False,
    ) -> Unrolled:
        return unroll(
            support_loss,
            inner_optimizer,
            meta_params,
            support,
            steps=steps,
            gradient=gradient,
            adapts=adapts,
            key=key,
            keep_path=keep_path,
            check_mixed=check_mixed,
        )

    def init(key: Array, task: Task) -> PyTree:
        return model.init(key, task.support.x)

    def adapt(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> PyTree:
        result = run(meta_params, support, key, eval_steps)
        return freeze_support_statistics(model, result.params, support)

    def adapt_steps(
        meta_params: PyTree, support: Examples, *, key: Array | None = None
    ) -> PyTree:
        path = run(meta_params, support, key, eval_steps, keep_path=True).path
        return jax.vmap(lambda p: freeze_support_statistics(model, p, support))(path)

    def predict(
        adapted: PyTree,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        return model.apply(adapted, inputs, mask=mask, key=key)

    def loss(
        meta_params: PyTree, task: Task, *, key: Array | None = None
    ) -> tuple[Array, dict[str, Array]]:
        key_adapt, key_predict = split_key(key, 2)
        result = run(meta_params, task.support, key_adapt, steps)
        adapted = freeze_support_statistics(model, result.params, task.support)
        value, metrics = query_score(
            predict, adapted, task.query, objective, key_predict
        )
        curve = {f"support_loss_{t}": result.losses[t] for t in range(steps)}
        return value, metrics | curve

    return Learner(init, adapt, predict, loss, adapt_steps)
