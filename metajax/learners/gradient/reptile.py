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

Tasks of its own in training: more shots than in testing (the paper: 10 for 1-shot),
read in batches of `batch_size` drawn anew for each step, and many more inner steps in
testing (50). `optax.adam(1e-3, b1=0.0)` inside and a rate falling linearly from 1 to 0
outside are the paper's. Differs from the official code: Adam starts afresh on each
task, where that code keeps its second moments across tasks.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from metajax.filters import everything, partition
from metajax.learners.gradient.descent import (
    Run,
    check_descent,
    learner_of_run,
    support_loss_fn,
)
from metajax.objectives import cross_entropy, split_key
from metajax.types import Array, Examples, Learner, Model, PyTree, Task
from metajax.unroll import Unrolled, unroll

__all__ = ["draw_batches", "reptile"]


def reptile(
    model: Model,
    inner_optimizer: optax.GradientTransformation,
    *,
    steps: int = 5,
    eval_steps: int | None = 50,
    batch_size: int | None = None,
    eval_batch_size: int | None = None,
    objective: Callable[[PyTree, PyTree], Array] = cross_entropy,
    adapts: Callable[[str], bool] = everything,
) -> Learner:
    """Builds Reptile.

    Choose it where many inner steps are wanted and memory or time forbids second
    derivatives. With few inner steps MAML is more accurate.

    Args:
      model: the network.
      inner_optimizer: what adapts it, such as `optax.adam(1e-3, b1=0.0)`.
      steps: inner steps in training, at least 2; with one, Reptile is joint training.
      eval_steps: inner steps of `adapt`; None means `steps`.
      batch_size: support examples of each inner step in training, drawn without
        repetition; None takes all.
      eval_batch_size: the same for `adapt`.
      objective: `(outputs, y) -> [n]`, the loss of every example.
      adapts: which parameters adapt; the others are learned by nobody.

    Returns:
      A learner whose `meta_params` and `adapted` are parameters of `model`. The value
      of its loss is the query loss after adapting, its gradient Reptile's.

    Raises:
      ValueError: if a number is out of range.
      TypeError: if `inner_optimizer` is not an Optax transformation.

    Example:
      >>> import optax
      >>> from metajax import conv4, reptile
      >>> inner_optimizer = optax.adam(1e-3, b1=0.0)
      >>> learner = reptile(conv4(5, pooling="stride"), inner_optimizer, batch_size=10)
    """
    check_descent(inner_optimizer, "first_order", steps, eval_steps)
    if steps < 2:
        raise ValueError(
            f"`steps` must be at least 2, got {steps}: after a single inner step "
            "Reptile's gradient is that of training on all tasks jointly."
        )
    sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
    for name, size in sizes.items():
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(
                f"`{name}` must be None or an integer of at least 1, got {size!r}."
            )
    support_loss = support_loss_fn(model, objective)

    def run(
        meta_params: PyTree, support: Examples, key: Array | None, how: Run
    ) -> Unrolled:
        key_batches, key_loss = split_key(key, 2)
        size = batch_size if how.is_training else eval_batch_size
        batches = None
        if size is not None:
            batches = draw_batches(key_batches, support, how.steps, size)

        def loss(params: PyTree, args: PyTree, key: Array | None) -> Array:
            return support_loss(params, args if size is None else args[1], key)

        return unroll(
            loss,
            inner_optimizer,
            jax.lax.stop_gradient(meta_params),
            support,
            steps=how.steps,
            gradient="first_order",
            adapts=adapts,
            key=key_loss,
            step_args=batches,
            keep_path=how.keep_path,
        )

    def surrogate(meta_params: PyTree, result: Unrolled) -> Array:
        """Its value is 0, its gradient theta - phi_T."""
        start, _ = partition(meta_params, adapts)
        end, _ = partition(result.params, adapts)
        half = 0.5 * optax.tree.norm(optax.tree.sub(start, end), squared=True)
        return half - jax.lax.stop_gradient(half)

    def init(key: Array, task: Task) -> PyTree:
        return model.init(key, task.support.x)

    return learner_of_run(
        model,
        init,
        run,
        objective,
        steps=steps,
        eval_steps=eval_steps,
        surrogate=surrogate,
    )


def draw_batches(
    key: Array | None, examples: Examples, steps: int, batch_size: int
) -> Examples:
    """Draws a batch of real examples for each step, each without repetition.

    Args:
      key: the key is consumed; None takes the same batches every time.
      examples: `[n, ...]`.
      steps: number of batches.
      batch_size: examples of a batch; those above the number of real ones repeat.

    Returns:
      Examples `[steps, batch_size, ...]` without a mask.
    """
    num = len(jax.tree.leaves(examples.y)[0])
    is_real = examples.is_real

    def indices(key: Array) -> Array:
        # Real examples first, in random order.
        order = jnp.argsort(jax.random.uniform(key, (num,)) + ~is_real)
        return order[jnp.arange(batch_size) % jnp.maximum(jnp.sum(is_real), 1)]

    keys = jax.random.split(jax.random.key(0) if key is None else key, steps)
    rows = jax.vmap(indices)(keys)
    x, y = jax.tree.map(lambda leaf: leaf[rows], (examples.x, examples.y))
    return Examples(x, y)
