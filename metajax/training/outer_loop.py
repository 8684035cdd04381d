"""The outer loop as pure functions: one outer step, and many of them in one program.

    theta' = optimizer(theta, mean over tasks b of  grad_theta loss(theta, task_b))

`theta` is `TrainState.meta_params`. Everything random in step `s` comes from
`task_keys(key, s, ...)`, so tasks are a pure function of `(key, s)`: a run that resumes
at `s` needs nothing but the state. This module owns the axis of tasks `[B]` and is the
only one that does; `metajax.training.trainer` adds files, validation and a display.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from metajax.compute.devices import COPIED, TASK_AXIS, constrain, mean_over_devices
from metajax.filters import path_names
from metajax.types import Array, Estimator, Learner, Metrics, PyTree, Task

__all__ = [
    "TrainState",
    "init_state",
    "outer_step",
    "reverse_mode",
    "run_steps_fn",
    "sample_tasks",
    "select_tasks",
    "task_keys",
]


class TrainState(NamedTuple):
    """What one outer step hands to the next.

    Attributes:
      step: int32 scalar, the number of steps taken.
      meta_params: what the learner has learned, see `Learner.init`.
      opt_state: state of the Optax optimizer.
      estimator_state: state of the `Estimator`.
    """

    step: Array
    meta_params: PyTree
    opt_state: PyTree
    estimator_state: PyTree


class Draw(Protocol):
    """Gets the tasks `[B]` of step number `index` of a dispatch from its source."""

    def __call__(self, source: PyTree, index: Array, keys: Array, /) -> Task:
        """`keys` `[B]` are the sampling keys of the step."""


def task_keys(key: Array, step: Array | int, tasks_per_step: int) -> Array:
    """The random keys of one outer step.

    Args:
      key: key of the whole run.
      step: the number of steps taken before this one.
      tasks_per_step: B.

    Returns:
      Keys `[2, B]`: row 0 samples the tasks, row 1 is the learner's own randomness.
    """
    return jax.random.split(jax.random.fold_in(key, step), (2, tasks_per_step))


def init_state(
    key: Array,
    learner: Learner,
    task: Task,
    optimizer: optax.GradientTransformation,
    estimator: Estimator,
) -> TrainState:
    """The state before the first step; the key is consumed.

    Every array is a copy, so that the state may be donated: what `learner.init` returns
    (pretrained parameters, say) stays valid, and no two leaves share memory.
    """
    key_learner, key_estimator = jax.random.split(key)
    # As one program each: operation by operation takes seconds to compile. On CPU most
    # of that goes into making a program fast, which one that runs once need not be.
    # Within another program it is no program of its own, and takes no options.
    is_program = not isinstance(key_learner, jax.core.Tracer)
    quick = {"xla_backend_optimization_level": 0}
    options = quick if is_program and jax.default_backend() == "cpu" else None
    meta_params = jax.jit(learner.init, compiler_options=options)(key_learner, task)
    state = TrainState(
        step=jnp.int32(0),
        meta_params=meta_params,
        opt_state=jax.jit(optimizer.init)(meta_params),
        estimator_state=estimator.init(key_estimator, meta_params, task),
    )
    return jax.jit(_copied)(state)


def _copied(tree: PyTree) -> PyTree:
    """With explicit dtypes: weak types would cost a second compilation."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.asarray(x).dtype, copy=True), tree)


def reverse_mode(*, tasks_per_block: int | None = None) -> Estimator:
    """The default estimator: reverse mode through the mean loss over tasks.

    Args:
      tasks_per_block: the B tasks are taken in blocks of this size, one block after the
        other, with sums of losses and gradients carried along; it must divide B. None
        takes all at once under one `vmap`, the best choice for dense nets. Memory grows
        with the block. On CPU, networks with convolutions are fastest with blocks of 1,
        where nothing is vmapped.

    Returns:
      A stateless `Estimator`. The block size changes its results by rounding only.
    """

    def gradient(
        loss: Callable[..., tuple[Array, Metrics]],
        meta_params: PyTree,
        tasks: Task,
        keys: Array,
        state: PyTree,
    ) -> tuple[PyTree, Array, dict[str, Array], PyTree]:
        _check_real(meta_params)
        num_tasks = keys.shape[0]
        size = num_tasks if tasks_per_block is None else tasks_per_block
        if num_tasks % size:
            raise ValueError(
                f"`tasks_per_block` must divide the number of tasks of a step, got "
                f"blocks of {size} for {num_tasks} tasks."
            )

        def block_loss(
            meta_params: PyTree, block: tuple[Task, Array]
        ) -> tuple[Array, Metrics]:
            def task_loss(task: Task, key: Array) -> tuple[Array, Metrics]:
                return loss(meta_params, task, key=key)

            if size == 1:
                task, key = jax.tree.map(lambda x: x[0], block)
                losses = jax.tree.map(lambda x: x[None], task_loss(task, key))
            else:
                losses = jax.vmap(task_loss)(*block)
            return jax.tree.map(lambda x: jnp.sum(x, axis=0), losses)

        # `jit` remembers the program, which is traced once for its shapes and its use.
        block_gradient = jax.jit(
            jax.value_and_grad(block_loss, has_aux=True), inline=True
        )

        def add_block(total: PyTree, block: tuple[Task, Array]) -> tuple[PyTree, None]:
            new = block_gradient(meta_params, block)
            return jax.tree.map(jnp.add, total, new), None

        if size == num_tasks:
            total = block_gradient(meta_params, (tasks, keys))
        else:
            blocks = jax.tree.map(
                lambda x: x.reshape(num_tasks // size, size, *x.shape[1:]),
                (tasks, keys),
            )
            first = jax.tree.map(lambda x: x[0], blocks)
            shapes = jax.eval_shape(block_gradient, meta_params, first)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            total, _ = jax.lax.scan(add_block, zeros, blocks)
        (loss_mean, metrics), gradient_mean = jax.tree.map(
            lambda x: x / num_tasks, total
        )
        return gradient_mean, loss_mean, metrics, state

    return Estimator(init=lambda key, meta_params, task: (), gradient=gradient)


def _check_real(meta_params: PyTree) -> None:
    leaves = zip(path_names(meta_params), jax.tree.leaves(meta_params), strict=True)
    wrong = {
        path: str(jnp.result_type(leaf))
        for path, leaf in leaves
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }
    if wrong:
        raise ValueError(
            "Meta-parameters must be real floating-point arrays to be differentiated, "
            f"got {wrong}; split complex numbers into two, and keep integers where the "
            "learner is built."
        )


def outer_step(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    estimator: Estimator,
    state: TrainState,
    tasks: Task,
    keys: Array,
) -> tuple[TrainState, dict[str, Array]]:
    """One update of the meta-parameters.

    Args:
      learner: gives the loss of one task.
      optimizer: any Optax optimizer; those that ask for the loss get it as `value`.
      estimator: gives the gradient.
      state: as it is now.
      tasks: with a leading axis `[B]` on every leaf.
      keys: `[B]`, the learner's randomness in each task.

    Returns:
      The new state, and metrics: `loss`, `gradient_norm` (Euclidean, over all
      meta-parameters), the learner's own as means over tasks, and the bool `is_finite`.
      If that is False (loss, gradient or updated meta-parameters hold an infinity or
      NaN), the state returned is the old one, step and all.
    """
    loss = _loss_at(learner, state.step)
    result = estimator.gradient(
        loss, state.meta_params, tasks, keys, state.estimator_state
    )
    return _apply_gradient(optimizer, state, *result)


def _loss_at(learner: Learner, step: Array) -> Callable[..., tuple]:
    """The learner's objective after `step` outer steps."""
    if learner.scheduled_loss is None:
        return learner.loss
    return functools.partial(learner.scheduled_loss, step)


def _apply_gradient(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradient: PyTree,
    loss: Array,
    metrics: dict[str, Array],
    estimator_state: PyTree,
) -> tuple[TrainState, dict[str, Array]]:
    """The rest of a step, from what an estimator returns."""
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        gradient, state.opt_state, state.meta_params, value=loss
    )
    meta_params = optax.apply_updates(state.meta_params, updates)
    proposed = TrainState(state.step + 1, meta_params, opt_state, estimator_state)
    is_finite = _is_finite((loss, gradient, meta_params))
    metrics = metrics | {
        "loss": loss,
        "gradient_norm": optax.tree.norm(gradient),
        "is_finite": is_finite,
    }
    return optax.tree.where(is_finite, proposed, state), metrics


def sample_tasks(source: PyTree, index: Array, keys: Array) -> Task:
    """`Draw` for a task distribution that is a pytree: one task for each key."""
    del index
    return jax.vmap(source)(keys)


def select_tasks(source: PyTree, index: Array, keys: Array) -> Task:
    """`Draw` for stacked batches `[steps_per_dispatch, B, ...]`: the one at `index`."""
    del keys
    return jax.tree.map(lambda x: x[index], source)


def run_steps_fn(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    estimator: Estimator,
    draw: Draw,
    *,
    tasks_per_step: int,
    steps_per_dispatch: int,
    mesh: Mesh | None = None,
    source_spec: PartitionSpec = COPIED,
) -> jax.stages.Wrapped:
    """Builds the compiled program that takes up to `steps_per_dispatch` outer steps.

    Args:
      learner: gives the loss of one task.
      optimizer: of the outer loop.
      estimator: gives the gradient. On a mesh, each device sees its share of the tasks,
        and floating-point state is averaged as the gradient is; other state must not
        depend on the tasks.
      draw: gets the tasks of a step.
      tasks_per_step: B.
      steps_per_dispatch: the most steps of one call.
      mesh: from `metajax.compute.devices.task_mesh`; the state must be `place`d on it.
      source_spec: how the leaves of the source lie on the mesh.

    Returns:
      A jitted function `(state, source, key, start, num_steps) -> (state, metrics)`,
      which donates `state`. It takes steps `start` to `start + num_steps`, with
      `num_steps` at most `steps_per_dispatch`; the count is an argument, so that one
      compilation serves every count. `source` is what `draw` understands. Metrics have
      a leading axis `[steps_per_dispatch]` of which the first `num_steps` count. At the
      first non-finite step it stops and returns the last good state; a state whose
      `step` is not `start` (left by an earlier such stop) comes back as it went in.
    """

    def draw_and_differentiate(
        meta_params: PyTree,
        estimator_state: PyTree,
        step: Array,
        source: PyTree,
        index: Array,
        sample_keys: Array,
        loss_keys: Array,
    ) -> tuple[PyTree, Array, dict[str, Array], PyTree]:
        tasks = draw(source, index, sample_keys)
        loss = _loss_at(learner, step)
        return estimator.gradient(loss, meta_params, tasks, loss_keys, estimator_state)

    if mesh is not None:
        cut = PartitionSpec(TASK_AXIS)
        specs = (COPIED, COPIED, COPIED, source_spec, COPIED, cut, cut)
        draw_and_differentiate = mean_over_devices(draw_and_differentiate, mesh, specs)

    def step(
        state: TrainState, source: PyTree, key: Array, index: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        result = draw_and_differentiate(
            state.meta_params,
            state.estimator_state,
            state.step,
            source,
            index,
            *task_keys(key, state.step, tasks_per_step),
        )
        state, metrics = _apply_gradient(optimizer, state, *result)
        return constrain(state, mesh), metrics

    def run_one(
        state: TrainState, source: PyTree, key: Array, start: Array, num_steps: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        del num_steps
        new_state, metrics = step(state, source, key, jnp.int32(0))
        new_state = optax.tree.where(state.step == start, new_state, state)
        return new_state, jax.tree.map(lambda x: x[None], metrics)

    def run_many(
        state: TrainState, source: PyTree, key: Array, start: Array, num_steps: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        _, shapes = jax.eval_shape(step, state, source, key, start)
        history = jax.tree.map(
            lambda x: jnp.zeros((steps_per_dispatch, *x.shape), x.dtype), shapes
        )

        def is_running(carry: tuple[Array, TrainState, PyTree]) -> Array:
            index, state, _ = carry
            return (index < num_steps) & (state.step == start + index)

        def body(
            carry: tuple[Array, TrainState, PyTree],
        ) -> tuple[Array, TrainState, PyTree]:
            index, state, history = carry
            state, metrics = step(state, source, key, index)
            history = jax.tree.map(lambda h, m: h.at[index].set(m), history, metrics)
            return index + 1, state, history

        # Not `scan`: its length would be part of the program, and the last steps before
        # a validation, or after a resume, would need programs of their own.
        carry = jax.lax.while_loop(is_running, body, (jnp.int32(0), state, history))
        return carry[1], carry[2]

    # XLA's CPU backend runs some convolutions tens of times slower inside any loop.
    return jax.jit(run_one if steps_per_dispatch == 1 else run_many, donate_argnums=0)


def _is_finite(tree: PyTree) -> Array:
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))
