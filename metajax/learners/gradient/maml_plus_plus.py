"""MAML++: five remedies that make MAML train stably, each a switch.

A. Antoniou, H. Edwards, A. Storkey, "How to train your MAML", ICLR 2019,
https://arxiv.org/abs/1810.09502, section 4.

* Multi-step loss with annealing (MSL): the outer loss is a weighted sum of the query
  losses after every inner step. The weights are equal at first and move to the last
  step; after `multi_step_until` outer steps only that one counts.
* Derivative-order annealing (DA): first order for `first_order_until` outer steps.
* Learned rates per layer and per step (LSLR): `per_step_rates`.
* Weights of the normalisation layers per step (BNWB): `per_step_normalization`. They
  are learned by the outer loop alone, as in the official code.
* Statistics per step (BNRS). Nothing to switch here: statistics are those of the batch
  under the parameters of each step, or with `normalization="support"` those of the
  support set; averages over steps, which BNRS mends, do not exist.

The sixth, a cosine schedule of the outer rate, is the outer optimizer's:
`optax.adam(optax.cosine_decay_schedule(1e-3, steps))`. Differs from the official code:
annealing counts outer steps, not epochs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.builders.descent import (
    check_descent,
    score,
    support_curve,
    support_loss_fn,
)
from metajax.checks import check_flags, check_integers, check_parts, check_positive
from metajax.filters import combine, everything, partition, path_names
from metajax.inner.learned_optimizer import HyperParameter, learned
from metajax.inner.unroll import GradientMode, Unrolled, unroll
from metajax.models.normalization import freeze_support_statistics
from metajax.objectives import cross_entropy, split_key
from metajax.types import (
    Array,
    Examples,
    Learner,
    Metrics,
    Model,
    Objective,
    PyTree,
    Task,
)

__all__ = ["MAMLPlusPlusParams", "is_normalization", "maml_plus_plus", "step_weights"]

# The official code lets no weight but the last fall below this share of an equal one.
_LEAST_SHARE = 0.03


class MAMLPlusPlusParams(NamedTuple):
    """What MAML++ learns.

    Attributes:
      params: parameters of the model, without the normalisation weights if these are
        per step.
      per_step: the normalisation weights with a leading axis `[inner_steps]`, or None.
      optimizer: `{"learning_rate": ...}`, a rate `[inner_steps]` for each array of
        `params`; or None.
    """

    params: PyTree
    per_step: PyTree
    optimizer: PyTree


def is_normalization(path: str) -> bool:
    """Says whether a leaf belongs to a layer whose name starts with `Normalize`."""
    return any(part.startswith("Normalize") for part in path.split("/"))


def maml_plus_plus(
    model: Model,
    *,
    rate: float = 0.1,
    inner_steps: int = 5,
    multi_step_until: int = 0,
    first_order_until: int = 0,
    per_step_rates: bool = True,
    per_step_normalization: bool = True,
    objective: Objective = cross_entropy,
    gradient: GradientMode = "remat",
) -> Learner:
    """Builds MAML++.

    Choose it over MAML where several inner steps are taken, or training is unstable.
    Each part can be switched off; with all of them off it is MAML.

    Args:
      model: the network.
      rate: inner learning rates at first, above 0.
      inner_steps: inner steps, at least 1, in training and testing.
      multi_step_until: outer steps over which the multi-step loss anneals; 0 switches
        it off. The paper: the first 15 of 150 epochs of 500 steps.
      first_order_until: outer steps without second derivatives; 0 switches it off. The
        paper: 50 epochs.
      per_step_rates: whether each array of parameters has a learned rate per step.
      per_step_normalization: whether normalisation weights are per step. They are those
        of layers whose name starts with `Normalize`, as Linen names ours.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      gradient: how the outer gradient passes the inner loop; see
        `metajax.inner.unroll`.

    Returns:
      A learner with `scheduled_loss`, whose `meta_params` are `MAMLPlusPlusParams` and
      whose `adapted` are parameters of `model`. Its loss reports `support_loss_t` for
      up to 11 inner steps t.

    Raises:
      ValueError: if a number is out of range; in `init`, if normalisation weights are
        to be per step and the model has none.

    Example:
      >>> from metajax.learners import maml_plus_plus
      >>> from metajax.models import conv4
      >>> model = conv4(5, pooling="stride")
      >>> learner = maml_plus_plus(model, multi_step_until=1000)
    """
    check_flags(
        per_step_rates=per_step_rates, per_step_normalization=per_step_normalization
    )
    check_parts(model=model, objective=objective)
    check_integers(
        0, multi_step_until=multi_step_until, first_order_until=first_order_until
    )
    check_integers(1, inner_steps=inner_steps)
    check_positive(rate=rate)
    check_descent(optax.sgd(rate), gradient, inner_steps, None)
    rates = HyperParameter(rate, per="leaf", inner_steps=inner_steps)
    optimizer = learned(optax.sgd, learning_rate=rates)
    support_loss = support_loss_fn(model, objective)

    def split(params: PyTree) -> tuple[PyTree, PyTree]:
        """Splits the parameters into those that adapt, and those that are per step."""
        if not per_step_normalization:
            return params, None
        if not any(map(is_normalization, path_names(params))):
            raise ValueError(
                "`per_step_normalization` needs normalisation layers with weights, "
                f"named Normalize..., and the model has only {path_names(params)}; "
                "choose a `normalization` for the model, or "
                "per_step_normalization=False."
            )
        per_step, others = partition(params, is_normalization)
        return others, per_step

    def join(params: PyTree, row: PyTree) -> PyTree:
        return combine(params, row) if per_step_normalization else params

    def run(
        meta_params: MAMLPlusPlusParams,
        support: Examples,
        key: Array | None,
        gradient: GradientMode,
        *,
        keep_path: bool = False,
    ) -> Unrolled:
        def loss(params: PyTree, args: PyTree, key: Array | None) -> Array:
            if not per_step_normalization:
                return support_loss(params, args, key)
            support, row = args
            return support_loss(join(params, row), support, key)

        return unroll(
            loss,
            optimizer.build(meta_params.optimizer)
            if per_step_rates
            else optax.sgd(rate),
            meta_params.params,
            support,
            inner_steps=inner_steps,
            gradient=gradient,
            key=key,
            step_args=meta_params.per_step,
            keep_path=keep_path,
        )

    def last_row(per_step: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[-1], per_step)

    def finish(
        meta_params: MAMLPlusPlusParams, params: PyTree, support: Examples
    ) -> PyTree:
        joined = join(params, last_row(meta_params.per_step))
        return freeze_support_statistics(model, joined, support)

    def init(key: Array, task: Task) -> MAMLPlusPlusParams:
        params, per_step = split(model.init(key, task.support.x))
        per_step = jax.tree.map(lambda leaf: jnp.stack([leaf] * inner_steps), per_step)
        learned_rates = optimizer.init(key, partition(params, everything)[0])
        return MAMLPlusPlusParams(
            params, per_step, learned_rates if per_step_rates else None
        )

    def adapt(
        meta_params: MAMLPlusPlusParams, support: Examples, *, key: Array | None = None
    ) -> PyTree:
        result = run(meta_params, support, key, gradient)
        return finish(meta_params, result.params, support)

    def adapt_steps(
        meta_params: MAMLPlusPlusParams, support: Examples, *, key: Array | None = None
    ) -> PyTree:
        path = run(meta_params, support, key, gradient, keep_path=True).path
        # The answer after step t is given under the normalisation weights of step t.
        rows = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf[:1], leaf]), meta_params.per_step
        )
        return jax.vmap(
            lambda p, row: freeze_support_statistics(model, join(p, row), support)
        )(path, rows)

    def predict(
        adapted: PyTree,
        inputs: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        return model.apply(adapted, inputs, mask=mask, key=key)

    def loss_of(
        meta_params: MAMLPlusPlusParams,
        task: Task,
        key: Array | None,
        gradient: GradientMode,
        weights: Array | None,
    ) -> tuple[Array, Metrics]:
        """Gives the query loss after the last step, or its weighted sum over steps."""
        key_adapt, key_predict = split_key(key, 2)
        result = run(
            meta_params,
            task.support,
            key_adapt,
            gradient,
            keep_path=weights is not None,
        )
        params = join(result.params, last_row(meta_params.per_step))
        value, metrics = score(model, objective, params, task, key_predict)
        if weights is not None:

            def judge(params: PyTree, row: PyTree) -> Array:
                joined = join(params, row)
                return score(model, objective, joined, task, key_predict)[0]

            earlier = jax.tree.map(lambda leaf: leaf[1:-1], result.path)
            rows = jax.tree.map(lambda leaf: leaf[:-1], meta_params.per_step)
            losses = jax.lax.map(lambda pair: judge(*pair), (earlier, rows))
            value = jnp.sum(weights[:-1] * losses) + weights[-1] * value
        return value, metrics | support_curve(result.losses)

    def loss(
        meta_params: MAMLPlusPlusParams, task: Task, *, key: Array | None = None
    ) -> tuple[Array, Metrics]:
        return loss_of(meta_params, task, key, gradient, None)

    def scheduled_loss(
        outer_step: Array,
        meta_params: MAMLPlusPlusParams,
        task: Task,
        *,
        key: Array | None = None,
    ) -> tuple[Array, Metrics]:
        # One program for each stretch of training in which nothing is switched.
        switches = sorted({multi_step_until, first_order_until} - {0})

        def stretch(start: int) -> Callable[..., tuple[Array, Metrics]]:
            mode = "first_order" if start < first_order_until else gradient

            def run_stretch(meta_params: MAMLPlusPlusParams) -> tuple[Array, Metrics]:
                weights = None
                if start < multi_step_until:
                    weights = step_weights(outer_step, inner_steps, multi_step_until)
                return loss_of(meta_params, task, key, mode, weights)

            return run_stretch

        stretches = [stretch(start) for start in (0, *switches)]
        index = jnp.sum(jnp.array(switches, jnp.int32) <= outer_step)
        return jax.lax.switch(index, stretches, meta_params)

    learner = Learner(init, adapt, predict, loss, adapt_steps)
    if multi_step_until or first_order_until:
        learner = learner._replace(scheduled_loss=scheduled_loss)
    return learner


def step_weights(outer_step: Array, inner_steps: int, until: int) -> Array:
    """Gives weights `[inner_steps]` of query losses after each step; their sum is 1.

    Args:
      outer_step: outer steps taken.
      inner_steps: inner steps.
      until: outer steps after which only the last one would count.
    """
    left = 1 - outer_step / until
    others = jnp.maximum(left, _LEAST_SHARE) / inner_steps
    return jnp.full(inner_steps, others).at[-1].set(1 - (inner_steps - 1) * others)
