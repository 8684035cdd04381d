"""Reptile: move the initialisation towards where each task's descent ends.

A. Nichol, J. Achiam, J. Schulman, "On First-Order Meta-Learning Algorithms", arXiv
2018, https://arxiv.org/abs/1803.02999, Algorithms 1 and 2.

    phi_0 = theta,  phi_{t+1} = phi_t + u_t(grad L_batch_t(phi_t)),  t = 0 .. T - 1
    theta <- theta + epsilon * mean over tasks of (phi_T - theta)

The outer gradient is theta - phi_T: that of the surrogate ||theta - phi_T||^2 / 2 with
phi_T held constant, so that `optax.sgd(epsilon)` as outer optimizer is the algorithm.
Nothing is differentiated twice, and nothing through the inner loop; no query set is
needed to learn. It is not first-order MAML, whose gradient is that of the query loss at
phi_T alone.

Tasks of its own in training: more shots than in testing (the paper: 15 for 1-shot,
transductive), read in batches of `batch_size` from passes over the support set in
random order. `optax.adam(1e-3, b1=0.0)` inside and a rate falling linearly from 1 to 0
outside are the paper's. So is `keeps_state`: the official code never resets Adam, and
its second moments go on from task to task, also in testing. There tasks come one after
the other; here all tasks of an outer step start from the same state, and the next one
from the mean of theirs, by the same outer gradient: s - s_T.
"""

import math

import jax
import jax.numpy as jnp
import optax

from metajax.builders.descent import (
    DescentParams,
    Run,
    check_descent,
    learner_of_run,
    params_of,
    support_loss_fn,
)
from metajax.checks import check_flags, check_integers, check_parts
from metajax.filters import everything, partition
from metajax.inner.unroll import Unrolled, unroll
from metajax.objectives import cross_entropy, split_key
from metajax.types import (
    Array,
    Examples,
    Filter,
    Learner,
    Model,
    Objective,
    PyTree,
    Task,
)

__all__ = ["draw_batches", "reptile"]


def reptile(
    model: Model,
    inner_optimizer: optax.GradientTransformation,
    *,
    inner_steps: int = 5,
    eval_inner_steps: int | None = 50,
    keeps_state: bool = False,
    batch_size: int | None = None,
    eval_batch_size: int | None = None,
    objective: Objective = cross_entropy,
    adapts: Filter = everything,
) -> Learner:
    """Builds Reptile.

    Choose it where many inner steps are wanted and memory or time forbids second
    derivatives. With few inner steps MAML is more accurate.

    Args:
      model: the network.
      inner_optimizer: what adapts it, such as `optax.adam(1e-3, b1=0.0)`.
      inner_steps: inner steps in training, at least 2; with one, Reptile is joint
        training.
      eval_inner_steps: inner steps of `adapt`; None means `inner_steps`.
      keeps_state: whether the numbers in the inner optimizer's state, such as moments
        and counts, go on from task to task instead of starting afresh. They are then
        part of `meta_params`, for an outer `optax.sgd` with a rate of at most 1: others
        may make second moments negative.
      batch_size: support examples of each inner step in training, see `draw_batches`;
        None takes all.
      eval_batch_size: the same for `adapt`.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      adapts: which parameters adapt; the others are learned by nobody.

    Returns:
      A learner whose `adapted` are parameters of `model`, and so are its `meta_params`,
      or `DescentParams(params, optimizer)` with the kept state as `optimizer`. The
      value of its loss is the query loss after adapting, its gradient Reptile's.

    Raises:
      ValueError: if a number is out of range.
      TypeError: if `inner_optimizer` is not an Optax transformation.

    Example:
      >>> import optax
      >>> from metajax.learners import reptile
      >>> from metajax.models import conv4
      >>> inner_optimizer = optax.adam(1e-3, b1=0.0)
      >>> learner = reptile(conv4(5, pooling="stride"), inner_optimizer, batch_size=10)
    """
    check_flags(keeps_state=keeps_state)
    check_parts(model=model, objective=objective, adapts=adapts)
    check_descent(inner_optimizer, "first_order", inner_steps, eval_inner_steps)
    if inner_steps < 2:
        raise ValueError(
            f"`inner_steps` must be at least 2, got {inner_steps}: after a single "
            "inner step Reptile's gradient is that of training on all tasks jointly."
        )
    sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
    check_integers(1, **{k: size for k, size in sizes.items() if size is not None})
    support_loss = support_loss_fn(model, objective)

    def run(
        meta_params: PyTree, support: Examples, key: Array | None, how: Run
    ) -> Unrolled:
        key_batches, key_loss = split_key(key, 2)
        size = batch_size if how.is_training else eval_batch_size
        batches = None
        if size is not None:
            batches = draw_batches(key_batches, support, how.inner_steps, size)

        def loss(params: PyTree, args: PyTree, key: Array | None) -> Array:
            return support_loss(params, args if size is None else args[1], key)

        start = jax.lax.stop_gradient(meta_params)
        opt_state = None
        if keeps_state:
            adapting, _ = partition(start.params, adapts)
            opt_state = _restored(start.optimizer, inner_optimizer.init(adapting))
        return unroll(
            loss,
            inner_optimizer,
            params_of(start),
            support,
            inner_steps=how.inner_steps,
            gradient="first_order",
            adapts=adapts,
            key=key_loss,
            step_args=batches,
            opt_state=opt_state,
            keep_path=how.keep_path,
        )

    def surrogate(meta_params: PyTree, result: Unrolled) -> Array:
        """Its value is 0, its gradient theta - phi_T, and s - s_T for the state."""
        start, _ = partition(params_of(meta_params), adapts)
        end, _ = partition(result.params, adapts)
        moved = [optax.tree.sub(start, end)]
        if keeps_state:
            kept = _kept(result.opt_state)
            moved.append(optax.tree.sub(meta_params.optimizer, kept))
        half = 0.5 * optax.tree.norm(moved, squared=True)
        return half - jax.lax.stop_gradient(half)

    def init(key: Array, task: Task) -> PyTree:
        params = model.init(key, task.support.x)
        if not keeps_state:
            return params
        adapting, _ = partition(params, adapts)
        return DescentParams(params, _kept(inner_optimizer.init(adapting)))

    return learner_of_run(
        model,
        init,
        run,
        objective,
        inner_steps=inner_steps,
        eval_inner_steps=eval_inner_steps,
        surrogate=surrogate,
    )


def _is_kept(leaf: Array) -> bool:
    """Whether a leaf of an optimizer's state is a number, and no random key or flag."""
    kinds = (jnp.floating, jnp.integer)
    return any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds)


def _kept(opt_state: PyTree) -> list[Array]:
    """What goes on of a state, in floating point, as `meta_params` have to be."""
    leaves = [leaf for leaf in jax.tree.leaves(opt_state) if _is_kept(leaf)]
    return [leaf.astype(jnp.result_type(leaf, jnp.float32)) for leaf in leaves]


def _restored(kept: list[Array], fresh: PyTree) -> PyTree:
    """A fresh state with its numbers replaced by those that were kept."""
    values = iter(kept)

    def restored(leaf: Array) -> Array:
        if not _is_kept(leaf):
            return leaf
        value = next(values)
        is_count = jnp.issubdtype(leaf.dtype, jnp.integer)
        return (jnp.round(value) if is_count else value).astype(leaf.dtype)

    return jax.tree.map(restored, fresh)


def draw_batches(
    key: Array | None, examples: Examples, inner_steps: int, batch_size: int
) -> Examples:
    """Draws batches from passes over the real examples, each in a new random order.

    As in the official code, a batch goes on in the next pass where one ends, so that
    examples repeat within a batch only there.

    Args:
      key: the key is consumed; None takes the same batches every time.
      examples: `[n, ...]`.
      inner_steps: number of batches.
      batch_size: examples of a batch; it may be above the number of real ones.

    Returns:
      Examples `[steps, batch_size, ...]`, without a mask if `examples` have none. If
      none of them is real, neither is what is drawn.
    """
    num, total = len(jax.tree.leaves(examples.y)[0]), inner_steps * batch_size
    is_real = examples.is_real
    num_real = jnp.maximum(jnp.sum(is_real), 1)
    # How many of padded examples are real is not known here; one is the worst case.
    passes = math.ceil(total / (num if examples.mask is None else 1))

    def real_first(key: Array) -> Array:
        return jnp.argsort(jax.random.uniform(key, (num,)) + ~is_real)

    keys = jax.random.split(jax.random.key(0) if key is None else key, passes)
    position = jnp.arange(total).reshape(inner_steps, batch_size)
    rows = jax.vmap(real_first)(keys)[position // num_real, position % num_real]
    x, y = jax.tree.map(lambda leaf: leaf[rows], (examples.x, examples.y))
    if examples.mask is None:
        return Examples(x, y)
    return Examples(x, y, jnp.full(rows.shape, jnp.any(is_real)))
