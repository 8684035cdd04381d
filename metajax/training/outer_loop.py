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

from metajax.checks import check_fits, check_integers
from metajax.compute import devices
from metajax.compute.devices import (
    COPIED,
    TASK_AXIS,
    constrain,
    mean_over_devices,
    on_each_device,
)
from metajax.evaluation.contract import checked_loss
from metajax.filters import keep_types, path_names
from metajax.types import (
    Array,
    Learner,
    Loss,
    Metrics,
    OuterGradient,
    PyTree,
    Task,
    TaskDistribution,
)

__all__ = [
    "TrainState",
    "init_state",
    "outer_step",
    "reverse_mode",
    "run_steps_fn",
    "sample_tasks",
    "select_tasks",
    "task_keys",
    "tasks_at",
]


class TrainState(NamedTuple):
    """What one outer step hands to the next.

    Attributes:
      step: int32 scalar, the number of steps taken.
      meta_params: what the learner has learned, see `Learner.init`.
      opt_state: state of the Optax optimizer.
      gradient_state: state of the `OuterGradient`.
    """

    step: Array
    meta_params: PyTree
    opt_state: PyTree
    gradient_state: PyTree


class Draw(Protocol):
    """Gets the tasks `[B]` of a step from its source."""

    def __call__(
        self, source: PyTree, step: Array, index: Array, keys: Array, /
    ) -> Task:
        """Draws them.

        Args:
          source: what `metajax.training.task_source` gives.
          step: outer steps taken before this one.
          index: number of the step within a dispatch.
          keys: `[B]`, the sampling keys of the step.
        """


def task_keys(key: Array, step: Array | int, tasks_per_step: int) -> Array:
    """Makes the random keys of one outer step.

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
    outer_gradient: OuterGradient,
) -> TrainState:
    """Makes the state before the first step; the key is consumed.

    Every array is a copy, so that the state may be donated: what `learner.init` returns
    (pretrained parameters, say) stays valid, and no two leaves share memory.

    Raises:
      ValueError: if meta-parameters are larger than the memory.
    """
    key_learner, key_gradient = jax.random.split(key)
    check_fits(
        "The meta-parameters of `learner`",
        jax.eval_shape(learner.init, key_learner, task),
        "lower a size of its model, or of its own",
        limit=devices.memory_limit(),
    )
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
        gradient_state=outer_gradient.init(key_gradient, meta_params, task),
    )
    return jax.jit(_copied)(state)


def _copied(tree: PyTree) -> PyTree:
    """With explicit dtypes: weak types would cost a second compilation."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.asarray(x).dtype, copy=True), tree)


def reverse_mode(*, tasks_per_block: int | None = None) -> OuterGradient:
    """Builds the default outer gradient: reverse mode through the mean loss over tasks.

    Args:
      tasks_per_block: the B tasks are taken in blocks of this size, one block after the
        other, with sums of losses and gradients carried along; it must divide B. None
        takes all at once under one `vmap`, the best choice for dense nets. Memory grows
        with the block. On CPU, networks with convolutions are fastest with blocks of 1,
        where nothing is vmapped.

    Returns:
      A stateless `OuterGradient`. The block size changes its results by rounding only.
    """
    if tasks_per_block is not None:
        check_integers(1, tasks_per_block=tasks_per_block)

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

    return OuterGradient(init=lambda key, meta_params, task: (), gradient=gradient)


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
    outer_gradient: OuterGradient,
    state: TrainState,
    tasks: Task,
    keys: Array,
    *,
    updates_per_step: int = 1,
) -> tuple[TrainState, Metrics]:
    """Takes one outer step: an update of the meta-parameters, or several on its tasks.

    Args:
      learner: gives the loss of one task, and may collect its experience first.
      optimizer: any Optax optimizer; those that ask for the loss get it as `value`.
      outer_gradient: gives the gradient.
      state: as it is now.
      tasks: with a leading axis `[B]` on every leaf.
      keys: `[B]`, the learner's randomness in each task.
      updates_per_step: how many updates are made on these tasks, one after the other.

    Returns:
      The new state, and metrics: `loss`, `gradient_norm` (Euclidean, over all
      meta-parameters), the learner's own as means over tasks (and over updates), and
      the bool `is_finite`. If that is False (loss, gradient or updated meta-parameters
      hold an infinity or NaN), the state returned is the old one, step and all.
    """
    tasks, keys = _collect(learner, state.meta_params, tasks, keys)
    differentiate = functools.partial(_differentiate, learner, outer_gradient)
    return _update(optimizer, differentiate, state, tasks, keys, updates_per_step)


def _collect(
    learner: Learner, meta_params: PyTree, tasks: Task, keys: Array
) -> tuple[Task, Array]:
    """Gives the tasks as `loss` sees them, and the keys that are left for it."""
    collect = learner.collect
    if collect is None:
        return tasks, keys
    both = jax.vmap(jax.random.split)(keys)
    tasks = jax.vmap(lambda task, key: collect(meta_params, task, key=key))(
        tasks, both[:, 0]
    )
    return tasks, both[:, 1]


def _differentiate(
    learner: Learner,
    outer_gradient: OuterGradient,
    meta_params: PyTree,
    gradient_state: PyTree,
    step: Array,
    tasks: Task,
    keys: Array,
) -> tuple[PyTree, Array, Metrics, PyTree]:
    loss: Loss = learner.loss
    if learner.scheduled_loss is not None:
        loss = functools.partial(learner.scheduled_loss, step)
    loss = checked_loss(loss)
    return outer_gradient.gradient(loss, meta_params, tasks, keys, gradient_state)


def _update(
    optimizer: optax.GradientTransformation,
    differentiate: Callable[..., tuple[PyTree, Array, Metrics, PyTree]],
    state: TrainState,
    tasks: Task,
    keys: Array,
    updates_per_step: int,
) -> tuple[TrainState, Metrics]:
    """The updates of a step; the old state if one of them is not finite."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(state: TrainState, keys: Array) -> tuple[TrainState, Metrics]:
        gradient, loss, metrics, gradient_state = differentiate(
            state.meta_params, state.gradient_state, state.step, tasks, keys
        )
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.meta_params, value=loss
        )
        opt_state = keep_types(opt_state, state.opt_state)
        meta_params = optax.apply_updates(state.meta_params, updates)
        metrics = metrics | {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradient),
            "is_finite": _is_finite((loss, gradient, meta_params)),
        }
        return TrainState(state.step, meta_params, opt_state, gradient_state), metrics

    if updates_per_step == 1:
        proposed, metrics = update(state, keys)
    else:
        fold_in = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
        keys = fold_in(keys, jnp.arange(updates_per_step))
        proposed, metrics = jax.lax.scan(update, state, keys)
        is_finite = jnp.all(metrics.pop("is_finite"))
        metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        metrics["is_finite"] = is_finite
    proposed = proposed._replace(step=state.step + 1)
    return optax.tree.where(metrics["is_finite"], proposed, state), metrics


def tasks_at(tasks: TaskDistribution, step: Array | int) -> TaskDistribution:
    """Gives the distribution of the tasks of an outer step; see `TaskDistribution`."""
    at = getattr(getattr(tasks, "func", tasks), "at", None)  # `Partial` has a `func`
    return tasks if at is None else at(step)


def sample_tasks(source: PyTree, step: Array, index: Array, keys: Array) -> Task:
    """Draws one task for each key from a distribution that is a pytree, as a `Draw`."""
    del index
    return jax.vmap(tasks_at(source, step))(keys)


def select_tasks(source: PyTree, step: Array, index: Array, keys: Array) -> Task:
    """Takes batch `index` of stacked `[steps_per_dispatch, B, ...]`, as a `Draw`."""
    del step, keys
    return jax.tree.map(lambda x: x[index], source)


def run_steps_fn(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    outer_gradient: OuterGradient,
    draw: Draw,
    *,
    tasks_per_step: int,
    steps_per_dispatch: int,
    updates_per_step: int = 1,
    mesh: Mesh | None = None,
    source_spec: PartitionSpec = COPIED,
) -> jax.stages.Wrapped:
    """Builds the compiled program that takes up to `steps_per_dispatch` outer steps.

    Args:
      learner: gives the loss of one task.
      optimizer: of the outer loop.
      outer_gradient: gives the gradient. On a mesh, each device sees its share of the
        tasks, and floating-point state is averaged as the gradient is; other state must
        not depend on the tasks.
      draw: gets the tasks of a step.
      tasks_per_step: B.
      steps_per_dispatch: steps of one call at most.
      updates_per_step: see `outer_step`.
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

    def draw_tasks(
        meta_params: PyTree,
        step: Array,
        source: PyTree,
        index: Array,
        sample_keys: Array,
        loss_keys: Array,
    ) -> tuple[Task, Array]:
        tasks = draw(source, step, index, sample_keys)
        return _collect(learner, meta_params, tasks, loss_keys)

    drawn: Callable[..., tuple[Task, Array]] = draw_tasks
    differentiate: Callable[..., tuple[PyTree, Array, Metrics, PyTree]]
    differentiate = functools.partial(_differentiate, learner, outer_gradient)
    if mesh is not None:
        cut = PartitionSpec(TASK_AXIS)
        of_draw = (COPIED, COPIED, source_spec, COPIED, cut, cut)
        drawn = on_each_device(draw_tasks, mesh, of_draw, cut)
        of_gradient = (COPIED, COPIED, COPIED, cut, cut)
        differentiate = mean_over_devices(differentiate, mesh, of_gradient)

    def step(
        state: TrainState, source: PyTree, key: Array, index: Array
    ) -> tuple[TrainState, Metrics]:
        tasks, keys = drawn(
            state.meta_params,
            state.step,
            source,
            index,
            *task_keys(key, state.step, tasks_per_step),
        )
        state, metrics = _update(
            optimizer, differentiate, state, tasks, keys, updates_per_step
        )
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
