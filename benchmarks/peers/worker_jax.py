"""The JAX peers: jax-meta, and the program that one writes first.

The latter keeps to `jax.lax.conv_general_dilated`, `reduce_window` and automatic
differentiation, and maps over tasks by `vmap`, or one after the other by `lax.map`.
"""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers.items import FEATURES, Item, data_of, weights_of
from benchmarks.peers.worker import Step

Params = dict[str, dict[str, jax.Array]]


class Examples(NamedTuple):
    """What jax-meta takes."""

    inputs: jax.Array
    targets: jax.Array


def prepare(item: Item, variant: str) -> tuple[Step, dict[str, Any]]:
    """See `benchmarks.peers.worker.prepare`."""
    build = jax_meta if variant == "jax-meta" else partial(naive, variant=variant)
    data = {k: jnp.asarray(v) for k, v in data_of(item).items()}
    update, state = build(item, data)
    jitted = jax.jit(update, donate_argnums=0)
    program, facts = compiled(jitted, state, data)

    def step(count: int) -> float:
        nonlocal state
        for _ in range(count):
            state, loss = program(state, data)
        return float(loss)

    return step, facts


def compiled(
    jitted: jax.stages.Wrapped, *arguments: Any
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """The program for these arguments, and what there is to know of it."""
    start = time.perf_counter()
    program = jitted.lower(*arguments).compile()
    facts: dict[str, Any] = {"compile_seconds": time.perf_counter() - start}
    memory = program.memory_analysis()
    if memory is not None:
        facts["temporary_mib"] = memory.temp_size_in_bytes / 2**20
    return program, facts | {"versions": {"jax": jax.__version__}}


def naive(item: Item, data: dict[str, jax.Array], *, variant: str) -> tuple:
    """The update of the obvious program, and its state."""
    del data
    params = make_params(item)
    optimizer = optax.adam(1e-3)
    task_loss = partial(prototypical if item.kind == "prototypical" else maml, item)

    def mean_loss(params: Params, data: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(jax.vmap(task_loss, (None, 0))(params, data))

    def update(state: tuple, data: dict[str, jax.Array]) -> tuple:
        params, opt_state = state
        if variant == "vmap":
            loss, grads = jax.value_and_grad(mean_loss)(params, data)
        else:
            results = jax.lax.map(
                lambda task: jax.value_and_grad(task_loss)(params, task), data
            )
            loss, grads = jax.tree.map(lambda x: jnp.mean(x, 0), results)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), loss

    return update, (params, optimizer.init(params))


def make_params(item: Item) -> Params:
    """The weights that all contenders start from."""
    params: Params = {}
    for name, kernel in weights_of(item).items():
        layer = {"kernel": kernel, "bias": np.zeros(kernel.shape[-1], np.float32)}
        if kernel.ndim == 4:
            layer["scale"] = np.ones(FEATURES, np.float32)
            layer["shift"] = np.zeros(FEATURES, np.float32)
        params[name] = {k: jnp.asarray(v) for k, v in layer.items()}
    return params


def network(item: Item, params: Params, x: jax.Array) -> jax.Array:
    """Conv-4, or the MLP of sinusoids."""
    stride = 2 if item.pooling == "stride" else 1
    for name, layer in params.items():
        if name.startswith("conv"):
            x = jax.lax.conv_general_dilated(
                x,
                layer["kernel"],
                (stride, stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = x + layer["bias"]
            mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            x = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
            x = jax.nn.relu(x * layer["scale"] + layer["shift"])
            if item.pooling == "max":
                window = (1, 2, 2, 1)
                x = jax.lax.reduce_window(
                    x, -jnp.inf, jax.lax.max, window, window, "VALID"
                )
        elif name.startswith("dense"):
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    x = x if item.kind == "sinusoid" else jnp.mean(x, (1, 2))
    if "head" not in params:
        return x
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def objective(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Squared error for real targets, cross entropy for labels."""
    if jnp.issubdtype(y.dtype, jnp.floating):
        return jnp.mean(jnp.square(outputs - y))
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
    return jnp.mean(losses)


def maml(item: Item, params: Params, task: dict[str, jax.Array]) -> jax.Array:
    """The loss of one task after the inner steps."""

    def inner(params: Params, _: None) -> tuple[Params, None]:
        grads = jax.grad(
            lambda p: objective(network(item, p, task["support_x"]), task["support_y"])
        )(params)
        return jax.tree.map(lambda p, g: p - item.inner_rate * g, params, grads), None

    params, _ = jax.lax.scan(inner, params, length=item.inner_steps)
    return objective(network(item, params, task["query_x"]), task["query_y"])


def prototypical(item: Item, params: Params, task: dict[str, jax.Array]) -> jax.Array:
    """The loss of one task by distances to class means."""
    support, query = (
        network(item, params, task[f"{part}_x"]) for part in ("support", "query")
    )
    one_hot = jax.nn.one_hot(task["support_y"], item.way)
    centers = one_hot.T @ support / item.shot
    distances = jnp.sum(jnp.square(query[:, None] - centers), -1)
    return objective(-distances, task["query_y"])


def jax_meta(item: Item, data: dict[str, jax.Array]) -> tuple:
    """The update of jax-meta's MAML, with its network's parts, and its state."""
    import haiku as hk
    from jax_meta.metalearners import MAML

    is_strided = item.pooling == "stride"

    def forward(x: jax.Array) -> jax.Array:
        for index in range(4):
            conv = hk.Conv2D(FEATURES, 3, 2 if is_strided else 1, name=f"conv{index}")
            x = conv(x)
            norm = hk.BatchNorm(
                create_scale=True,
                create_offset=True,
                decay_rate=0.9,
                name=f"norm{index}",
            )
            x = jax.nn.relu(norm(x, is_training=True))
            x = x if is_strided else hk.max_pool(x, 2, 2, padding="VALID")
        return hk.Linear(item.way, name="head")(jnp.mean(x, (1, 2)))

    model = hk.without_apply_rng(hk.transform_with_state(forward))
    learner = MAML(model, num_steps=item.inner_steps, alpha=item.inner_rate)
    key = jax.random.key(0)
    params, state = learner.init(key, optax.adam(1e-3), data["support_x"][0])
    for name, kernel in weights_of(item).items():
        params[name] = params[name] | {"w": jnp.asarray(kernel)}

    def update(state: tuple, data: dict[str, jax.Array]) -> tuple:
        support, query = (
            Examples(data[f"{part}_x"], data[f"{part}_y"])
            for part in ("support", "query")
        )
        *new, logs = learner.train_step(*state, support, query, ())
        # It averages its counters over tasks, which makes floats of them.
        new = jax.tree.map(lambda a, b: a.astype(b.dtype), tuple(new), state)
        return new, jnp.mean(logs["outer/loss"])

    return update, (params, state)
