"""Where the outer gradient comes from, other than reverse mode through the whole loss.

* `evolution_strategies` needs values of the loss only: of any learner, and of losses
  that have no derivative, or one that is of no use. T. Salimans et al., "Evolution
  Strategies as a Scalable Alternative to Reinforcement Learning", arXiv 2017,
  https://arxiv.org/abs/1703.03864, with antithetic pairs:

      g = mean of (L(theta + sigma e) - L(theta - sigma e)) / (2 sigma) * e, e ~ N(0, I)

* `truncated` takes a piece of the inner loop at each outer step and differentiates
  through that piece alone; the next outer step goes on from where it ended. Cheap, and
  biased: what an early step does to the end is not seen. P. Werbos, "Backpropagation
  Through Time", Proceedings of the IEEE 1990.

* `pes` takes pieces too, and is unbiased. P. Vicol, L. Metz, J. Sohl-Dickstein,
  "Unbiased Gradient Estimation in Unrolled Computation Graphs with Persistent Evolution
  Strategies", ICML 2021, https://arxiv.org/abs/2112.13835, Algorithm 2:

      xi_b <- xi_b + e_b  (xi_b <- e_b where a loop starts),   e_b ~ N(0, sigma^2 I)
      g = mean over b of  (L_b(theta + e_b) - L_b(theta - e_b)) / (2 sigma^2) * xi_b

The last two keep the inner loops of all tasks of a step, each at another place, and so
need `metajax.types.Learner.segments`. A task is drawn when a loop starts.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metajax.checks import check_integers, check_positive
from metajax.filters import combine, partition
from metajax.types import Array, Learner, Metrics, OuterGradient, PyTree, Segments, Task

__all__ = ["evolution_strategies", "pes", "truncated"]

LossFn = Callable[..., tuple[Array, Metrics]]
Estimate = tuple[PyTree, Array, dict[str, Array], PyTree]


class _Loops(NamedTuple):
    """Inner loops on their way, one for each task `[B]`.

    Attributes:
      tasks: what each works on.
      inner: state of the loop; for `pes` the pair under either sign.
      taken: inner steps; those of the first loops start at different numbers, so that
        loops do not all end at once.
      is_new: bool, whether the loop is to start.
      sum_of_noise: for `pes`, what moved the meta-parameters so far; else ().
    """

    tasks: Task
    inner: PyTree
    taken: Array
    is_new: Array
    sum_of_noise: PyTree


def evolution_strategies(*, sigma: float = 0.01, num_pairs: int = 1) -> OuterGradient:
    """Builds the antithetic estimator of the gradient, for any learner.

    Args:
      sigma: standard deviation of the noise on every meta-parameter, above 0. The
        gradient is that of the loss smoothed by this noise.
      num_pairs: pairs for each task, at least 1; the variance is inverse to it.

    Returns:
      A stateless estimator. Loss and metrics are means over all that was evaluated.

    Raises:
      ValueError: if a number is out of range.
    """
    check_positive(sigma=sigma)
    check_integers(1, num_pairs=num_pairs)

    def gradient(
        loss: LossFn, meta_params: PyTree, tasks: Task, keys: Array, state: PyTree
    ) -> Estimate:
        floats, others = partition(meta_params)

        def one(task: Task, key: Array) -> tuple:
            key_noise, key_loss = jax.random.split(key)
            noise = _noise(key_noise, floats, 1.0)

            def at(step: float) -> tuple[Array, Metrics]:
                moved = optax.tree.add_scale(floats, step, noise)
                return loss(combine(moved, others), task, key=key_loss)

            (plus, metrics_plus), (minus, metrics_minus) = at(sigma), at(-sigma)
            slope = (plus - minus) / (2 * sigma)
            metrics = jax.tree.map(_middle, metrics_plus, metrics_minus)
            return optax.tree.scale(slope, noise), _middle(plus, minus), metrics

        def pairs(task: Task, key: Array) -> tuple:
            return jax.vmap(one, (None, 0))(task, jax.random.split(key, num_pairs))

        grad, value, metrics = jax.tree.map(
            lambda leaf: jnp.mean(leaf, axis=(0, 1)), jax.vmap(pairs)(tasks, keys)
        )
        zeros = jax.tree.map(jnp.zeros_like, others)
        return combine(grad, zeros), value, metrics, state

    return OuterGradient(lambda key, meta_params, task: (), gradient)


def truncated(learner: Learner, *, inner_steps: int, num_tasks: int) -> OuterGradient:
    """Takes reverse mode through one piece of the inner loop at each outer step.

    An initialisation is learned from the first piece of a loop alone, and not at all
    if only its end is judged, as by `maml`, of which a warning tells: use `pes` for
    such learners.

    Args:
      learner: the one that is trained; it must have `segments`.
      inner_steps: inner steps of a piece, a divisor of those of the loop.
      num_tasks: the number of tasks of an outer step.

    Returns:
      An estimator whose state are the inner loops. Pass `mesh=None` to `train`: the
      loops stay on one device.

    Raises:
      ValueError: if the learner has no segments or a number is out of range.
    """
    segments = _segments(learner, inner_steps, num_tasks)
    if segments.learns_start and inner_steps < segments.inner_steps:
        warnings.warn(
            f"This learner learns where its {segments.inner_steps} inner steps start, "
            f"and pieces of {inner_steps} give the start no gradient, but for the "
            "first piece; use `pes` instead of `truncated`.",
            stacklevel=2,
        )

    def gradient(
        loss: LossFn, meta_params: PyTree, tasks: Task, keys: Array, state: _Loops
    ) -> Estimate:
        del loss  # its pieces are taken from the learner
        _check_num_tasks(keys, num_tasks)

        def one(task: Task, key: Array, loop: _Loops) -> tuple:
            key_start, key_advance = jax.random.split(key)
            task = optax.tree.where(loop.is_new, task, loop.tasks)

            def piece(meta_params: PyTree) -> tuple[Array, PyTree]:
                start = segments.start(meta_params, task, key_start)
                inner = optax.tree.where(loop.is_new, start, loop.inner)
                inner, value = segments.advance(
                    meta_params, task, inner, key_advance, inner_steps
                )
                return value, inner

            (value, inner), grad = jax.value_and_grad(piece, has_aux=True)(meta_params)
            return (
                grad,
                value,
                _next(loop, task, inner, inner_steps, segments.inner_steps, ()),
            )

        grads, values, state = jax.vmap(one)(tasks, keys, state)
        grad = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads)
        return grad, jnp.mean(values), {}, state

    def init(key: Array, meta_params: PyTree, task: Task) -> _Loops:
        inner = segments.start(meta_params, task, key)
        return _first_loops(
            task, inner, (), inner_steps, segments.inner_steps, num_tasks
        )

    return OuterGradient(init, gradient)


def pes(
    learner: Learner, *, inner_steps: int, num_tasks: int, sigma: float = 0.01
) -> OuterGradient:
    """Runs persistent evolution strategies: a piece of the inner loop each outer step.

    Args:
      learner: the one that is trained; it must have `segments`.
      inner_steps: inner steps of a piece, a divisor of those of the loop.
      num_tasks: the number of tasks of an outer step, each with one antithetic pair.
      sigma: standard deviation of the noise on every meta-parameter, above 0.

    Returns:
      An estimator whose state are the inner loops. Pass `mesh=None` to `train`: the
      loops stay on one device.

    Raises:
      ValueError: if the learner has no segments or a number is out of range.
    """
    check_positive(sigma=sigma)
    segments = _segments(learner, inner_steps, num_tasks)

    def gradient(
        loss: LossFn, meta_params: PyTree, tasks: Task, keys: Array, state: _Loops
    ) -> Estimate:
        del loss  # its pieces are taken from the learner
        _check_num_tasks(keys, num_tasks)
        floats, others = partition(meta_params)

        def one(task: Task, key: Array, loop: _Loops) -> tuple:
            key_noise, key_start, key_advance = jax.random.split(key, 3)
            task = optax.tree.where(loop.is_new, task, loop.tasks)
            noise = _noise(key_noise, floats, sigma)
            is_old = 1.0 - loop.is_new
            total = optax.tree.add_scale(noise, is_old, loop.sum_of_noise)

            def at(sign: float, inner: PyTree) -> tuple[PyTree, Array]:
                moved = optax.tree.add_scale(floats, sign, noise)
                params = combine(moved, others)
                start = segments.start(params, task, key_start)
                inner = optax.tree.where(loop.is_new, start, inner)
                return segments.advance(params, task, inner, key_advance, inner_steps)

            inner_plus, plus = at(1.0, loop.inner[0])
            inner_minus, minus = at(-1.0, loop.inner[1])
            slope = (plus - minus) / (2 * sigma**2)
            inner = (inner_plus, inner_minus)
            loop = _next(loop, task, inner, inner_steps, segments.inner_steps, total)
            return optax.tree.scale(slope, total), _middle(plus, minus), loop

        grads, values, state = jax.vmap(one)(tasks, keys, state)
        grad = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads)
        zeros = jax.tree.map(jnp.zeros_like, others)
        return combine(grad, zeros), jnp.mean(values), {}, state

    def init(key: Array, meta_params: PyTree, task: Task) -> _Loops:
        inner = segments.start(meta_params, task, key)
        zeros = jax.tree.map(jnp.zeros_like, partition(meta_params)[0])
        inner = (inner, inner)
        return _first_loops(
            task, inner, zeros, inner_steps, segments.inner_steps, num_tasks
        )

    return OuterGradient(init, gradient)


def _first_loops(
    task: Task,
    inner: PyTree,
    noise: PyTree,
    inner_steps: int,
    length: int,
    num_tasks: int,
) -> _Loops:
    def repeat(leaf: Any) -> Array:
        return jnp.broadcast_to(leaf, (num_tasks, *jnp.shape(leaf)))

    return _Loops(
        jax.tree.map(repeat, task),
        jax.tree.map(repeat, inner),
        inner_steps * jnp.arange(num_tasks, dtype=jnp.int32) % length,
        jnp.ones(num_tasks, bool),
        jax.tree.map(repeat, noise),
    )


def _next(
    loop: _Loops,
    task: Task,
    inner: PyTree,
    inner_steps: int,
    length: int,
    noise: PyTree,
) -> _Loops:
    taken = loop.taken + inner_steps
    ends = taken >= length
    return _Loops(task, inner, jnp.where(ends, 0, taken), ends, noise)


def _noise(key: Array, like: PyTree, scale: float) -> PyTree:
    return optax.tree.scale(
        scale, optax.tree.random_like(key, like, sampler=jax.random.normal)
    )


def _middle(first: Array, second: Array) -> Array:
    return (first + second) / 2


def _segments(learner: Learner, inner_steps: int, num_tasks: int) -> Segments:
    if not isinstance(learner, Learner):
        raise TypeError(
            f"`learner` must be a metajax Learner, got {type(learner).__name__}."
        )
    segments = learner.segments
    if segments is None:
        raise ValueError(
            "This estimator takes the inner loop in pieces, and the learner has no "
            "`segments`; use evolution_strategies, which needs the loss only, or a "
            "learner that has them, such as `optimizer_learner`, or `maml` for `pes`."
        )
    check_integers(1, inner_steps=inner_steps, num_tasks=num_tasks)
    if inner_steps > segments.inner_steps:
        raise ValueError(
            f"`inner_steps` must be at most {segments.inner_steps}, those of the "
            f"learner, got {inner_steps}: a piece cannot be longer than the whole."
        )
    if segments.inner_steps % inner_steps:
        divisors = [
            d
            for d in range(1, segments.inner_steps + 1)
            if segments.inner_steps % d == 0
        ]
        raise ValueError(
            f"`inner_steps` must divide the {segments.inner_steps} of the learner, got "
            f"{inner_steps}; it can be one of {divisors}."
        )
    return segments


def _check_num_tasks(keys: Array, num_tasks: int) -> None:
    if keys.shape[0] != num_tasks:
        raise ValueError(
            f"The estimator was made for {num_tasks} tasks a step and got "
            f"{keys.shape[0]}; give it as `num_tasks` the `tasks_per_step` of `train`, "
            "and `train` mesh=None, as its inner loops stay on one device."
        )
