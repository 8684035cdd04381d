"""This library, by its public parts: a learner, the outer loop, the sampler."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from benchmarks.peers.items import Item, data_of, images_of, parts_of, weights_of
from benchmarks.peers.worker import THREADS, Step
from benchmarks.peers.worker_jax import compiled
from metajax.compute.cores import use_cores
from metajax.compute.devices import TASK_AXIS, place, spread, task_mesh
from metajax.learners.gradient.maml import maml
from metajax.learners.metric.prototypical import prototypical
from metajax.models.convolution import convolve
from metajax.models.networks import conv4, mlp
from metajax.objectives import cross_entropy, squared_error
from metajax.tasks.images.class_table import class_table
from metajax.tasks.images.few_shot import ClassTableTasks, few_shot
from metajax.training.outer_loop import init_state, reverse_mode, run_steps_fn
from metajax.types import Array, Examples, Learner, OuterGradient, PyTree, Task

STEPS_PER_DISPATCH = 100


def prepare(item: Item, variant: str) -> tuple[Step, dict[str, Any]]:
    """See `benchmarks.peers.worker.prepare`."""
    use_cores(THREADS)
    if item.kind == "sampling":
        return sampling_in_a_program(item) if variant else sampling(item)
    if item.kind in ("product", "convolution"):
        return part(item)
    return training(item, variant)


def gradient_for(item: Item) -> OuterGradient:
    """How the tasks of a step are batched."""
    return reverse_mode(tasks_per_block=None if item.kind == "sinusoid" else 1)


def training(item: Item, variant: str) -> tuple[Step, dict[str, Any]]:
    """Outer steps, `STEPS_PER_DISPATCH` at a time for the variant `"dispatch"`."""
    per_dispatch = STEPS_PER_DISPATCH if variant == "dispatch" else 1
    gradient = "" if variant == "dispatch" else variant
    jitted, state, tasks, key = training_program(item, gradient, per_dispatch)
    zero = np.int32(0)
    program, facts = compiled(jitted, state, tasks, key, zero, zero)
    taken = 0

    def step(count: int) -> float:
        nonlocal state, taken
        while count:
            now = min(count, per_dispatch)
            state, metrics = program(state, tasks, key, np.int32(taken), np.int32(now))
            taken, count = taken + now, count - now
        return float(metrics["loss"][now - 1])

    return step, facts


def training_program(
    item: Item, gradient: str, steps_per_dispatch: int
) -> tuple[jax.stages.Wrapped, PyTree, Task, Array]:
    """What takes `steps_per_dispatch` outer steps, and the first of its arguments.

    `program(state, tasks, key, step, steps)` gives the next state and the metrics.
    """
    learner = make_learner(item, gradient)
    optimizer, outer_gradient = optax.adam(1e-3), gradient_for(item)
    arrays = data_of(item)
    tasks = Task(
        Examples(arrays["support_x"], arrays["support_y"]),
        Examples(arrays["query_x"], arrays["query_y"]),
    )
    mesh = task_mesh("auto", item.tasks)
    one = jax.tree.map(lambda x: x[0], tasks)
    state = init_state(jax.random.key(0), learner, one, optimizer, outer_gradient)
    state = state._replace(meta_params=make_params(item, state.meta_params))
    state = place(state, mesh)
    key = spread(jax.random.key(0), mesh)
    cut = PartitionSpec(TASK_AXIS)
    tasks = spread(tasks, mesh, cut)

    def draw(source: PyTree, step: Array, index: Array, keys: Array) -> Task:
        del step, index, keys
        return source

    jitted = run_steps_fn(
        learner,
        optimizer,
        outer_gradient,
        draw,
        tasks_per_step=item.tasks,
        steps_per_dispatch=steps_per_dispatch,
        mesh=mesh,
        source_spec=cut,
    )
    return jitted, state, tasks, key


def make_learner(item: Item, gradient: str) -> Learner:
    """The learner of an item; its gradient mode is the default unless given."""
    chosen: dict[str, Any] = {"gradient": gradient} if gradient else {}
    if item.kind == "prototypical":
        return prototypical(conv4(), way=item.way)
    is_sinusoid = item.kind == "sinusoid"
    pooling: Any = item.pooling
    return maml(
        mlp(1) if is_sinusoid else conv4(item.way, pooling=pooling),
        optax.sgd(item.inner_rate),
        inner_steps=item.inner_steps,
        objective=squared_error if is_sinusoid else cross_entropy,
        **chosen,
    )


def make_params(item: Item, params: PyTree) -> PyTree:
    """`params` with the kernels that all contenders start from."""
    layers = dict(params["params"])
    for name, kernel in weights_of(item).items():
        layer = name.replace("conv", "Conv_").replace("dense", "Dense_")
        if layers[layer]["kernel"].shape != kernel.shape:
            raise ValueError(f"{name} has another shape in this network.")
        layers[layer] = layers[layer] | {"kernel": jnp.asarray(kernel)}
    return {"params": layers}


def part(item: Item) -> tuple[Step, dict[str, Any]]:
    """Products, or a convolution and its gradients; devices share the tasks."""
    mesh, cut = task_mesh("auto", item.tasks), PartitionSpec(TASK_AXIS)
    own, shared = parts_of(item)
    arrays = spread(own, mesh, cut), spread(shared, mesh)

    def convolution(kernel: Array, images: Array) -> Array:
        return jnp.mean(jnp.square(convolve(images, kernel))) / 2

    def of_tasks(own: Array, shared: Array) -> PyTree:
        def of_task(x: Array) -> PyTree:
            if item.kind == "convolution":
                return jax.value_and_grad(convolution, (0, 1))(shared, x)
            product = x @ shared
            return jnp.mean(jnp.square(product)), product

        return jax.lax.map(of_task, own)

    function = of_tasks
    if mesh is not None:
        function = jax.shard_map(
            of_tasks,
            mesh=mesh,
            in_specs=(cut, PartitionSpec()),
            out_specs=cut,
            check_vma=False,
        )
    jitted = jax.jit(function)
    program, facts = compiled(jitted, *arrays)

    def step(count: int) -> float:
        for _ in range(count):
            values, _ = program(*arrays)
        return float(jnp.mean(values))

    return step, facts


def sampling(item: Item) -> tuple[Step, dict[str, Any]]:
    """Tasks with images, from bytes on the device."""
    tasks, key = tasks_to_sample(item), jax.random.key(0)

    def sample(tasks: PyTree, key: Array, index: Array) -> Task:
        return draw_batch(tasks, key, index, item)

    program, facts = compiled(jax.jit(sample), tasks, key, np.int32(0))
    taken = 0

    def step(count: int) -> None:
        nonlocal taken
        for _ in range(count):
            batch = program(tasks, key, np.int32(taken))
            taken += 1
        jax.block_until_ready(batch)

    return step, facts


def sampling_in_a_program(item: Item) -> tuple[Step, dict[str, Any]]:
    """As in training: a batch is drawn, made whole, and used up within the program."""
    tasks, key = tasks_to_sample(item), jax.random.key(0)

    def sample(tasks: PyTree, key: Array, first: Array, last: Array) -> Array:
        def use(index: Array, total: Array) -> Array:
            batch = jax.lax.optimization_barrier(draw_batch(tasks, key, index, item))
            sums = jax.tree.map(lambda a: jnp.sum(a, dtype=jnp.float32), batch)
            return sum(jax.tree.leaves(sums), total)

        return jax.lax.fori_loop(first, last, use, jnp.float32(0))

    zero = np.int32(0)
    program, facts = compiled(jax.jit(sample), tasks, key, zero, zero)
    taken = 0

    def step(count: int) -> None:
        nonlocal taken
        end = taken + count
        while taken < end:
            last = min(taken + STEPS_PER_DISPATCH, end)
            total = program(tasks, key, np.int32(taken), np.int32(last))
            taken = last
        jax.block_until_ready(total)

    return step, facts


def tasks_to_sample(item: Item) -> ClassTableTasks:
    """The distribution of a sampling item."""
    return few_shot(
        class_table(images_of()),
        way=item.way,
        shot=item.shot,
        num_queries=item.num_queries,
    )


def draw_batch(tasks: PyTree, key: Array, index: Array, item: Item) -> Task:
    """All tasks of a step."""
    keys = jax.random.split(jax.random.fold_in(key, index), item.tasks)
    return jax.vmap(tasks)(keys)
