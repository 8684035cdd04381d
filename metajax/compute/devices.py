"""Many devices: the axis of tasks over a mesh, and the one sum between its devices.

A mesh has an axis `"tasks"`. Each device along it draws its own share of a step's tasks
from their keys, adapts to them and averages their gradients; then one all-reduce makes
the mean over all tasks, and every device takes the same outer step. Nothing else is
sent. The result is that of one device but for the rounding of one sum.

Meta-parameters and the optimizer's state are copied to every device along `"tasks"`. If
the mesh has further axes, each array is also cut along them, in its largest dimension
that they divide, and XLA gathers what it needs: for models too large for one device.

The cores of a host are devices too after `metajax.use_cores()`, the fastest way to use
them: see `metajax.compute.cores`.
Several hosts, or processes, join their devices by `jax.distributed.initialize()`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metajax import checks
from metajax.types import PyTree

__all__ = [
    "COPIED",
    "TASK_AXIS",
    "constrain",
    "mean_over_devices",
    "on_each_device",
    "memory_limit",
    "place",
    "spread",
    "task_mesh",
]

TASK_AXIS = "tasks"
COPIED = PartitionSpec()


def task_mesh(
    mesh: Mesh | Literal["auto"] | None, num_tasks: int | None = None
) -> Mesh | None:
    """Chooses the mesh to work on.

    Args:
      mesh: one with an axis `"tasks"`; None, for JAX's default device alone; or
        `"auto"`, for as many devices as divide the tasks evenly. With several processes
        None and `"auto"` are the same, all devices.
      num_tasks: tasks that work at the same time; None if any number can be had.

    Returns:
      A mesh, or None if one device does it all.

    Raises:
      ValueError: `mesh` is something else, has no axis `"tasks"`, or its size does not
        divide the tasks.
    """
    is_auto = isinstance(mesh, str) and mesh == "auto"
    if mesh is not None and not is_auto and not isinstance(mesh, Mesh):
        raise ValueError(
            f"`mesh` must be a jax.sharding.Mesh, 'auto' or None, got {mesh!r}."
        )
    if not isinstance(mesh, Mesh):
        if jax.process_count() == 1 and mesh is None:
            return None
        devices = jax.devices()
        if jax.process_count() == 1:
            devices = devices[: math.gcd(len(devices), num_tasks or 0)]
            if len(devices) == 1:
                return None
        mesh = Mesh(np.array(devices), (TASK_AXIS,))
    if TASK_AXIS not in mesh.shape:
        raise ValueError(
            f"`mesh` must have an axis {TASK_AXIS!r}, got axes {mesh.axis_names}; make "
            f"one by jax.make_mesh((jax.device_count(),), ({TASK_AXIS!r},))."
        )
    size = mesh.shape[TASK_AXIS]
    if num_tasks is not None and num_tasks % size:
        raise ValueError(
            f"The tasks of a step must be a multiple of {size}, the size of the axis "
            f"{TASK_AXIS!r} of the mesh, got {num_tasks}; give "
            f"{_near(num_tasks, size)} tasks, or a mesh of {math.gcd(num_tasks, size)}."
        )
    # Whatever the types of its axes are, XLA shall propagate shardings by itself.
    return Mesh(mesh.devices, mesh.axis_names)


def memory_limit() -> int | None:
    """Reads how many bytes a device may use; None if it does not tell.

    On CPU these are all that the machine has.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return checks.host_memory()
    return (device.memory_stats() or {}).get("bytes_limit")


def mean_over_devices(
    fn: Callable[..., PyTree], mesh: Mesh, in_specs: tuple[PartitionSpec, ...]
) -> Callable[..., PyTree]:
    """Makes `fn` run on each device's share of its arguments, and averages its results.

    Args:
      fn: returns a pytree. Floating-point leaves are averaged, all of them in a single
        all-reduce; others must be the same on every device.
      mesh: from `task_mesh`.
      in_specs: for each argument, how its leaves lie along `"tasks"`.

    Returns:
      A function of the same arguments.
    """

    def share(*args: Any) -> PyTree:
        results = fn(*args)
        leaves, structure = jax.tree.flatten(results)
        is_mean = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
        means = [leaf for leaf, yes in zip(leaves, is_mean, strict=True) if yes]
        if len(mesh.shape) == 1:
            # One vector is one message of any size; XLA would join small ones only.
            vector, unravel = ravel_pytree(means)
            means = unravel(jax.lax.pmean(vector, TASK_AXIS))
        else:  # a vector would gather what is cut along the other axes
            means = jax.lax.pmean(means, TASK_AXIS)
        rest = iter(means)
        leaves = [
            next(rest) if yes else leaf
            for leaf, yes in zip(leaves, is_mean, strict=True)
        ]
        return jax.tree.unflatten(structure, leaves)

    return on_each_device(share, mesh, in_specs, COPIED)


def on_each_device(
    fn: Callable[..., PyTree],
    mesh: Mesh,
    in_specs: tuple[PartitionSpec, ...],
    out_specs: PartitionSpec,
) -> Callable[..., PyTree]:
    """Makes `fn` run on each device's share of its arguments.

    Args:
      fn: returns a pytree.
      mesh: from `task_mesh`.
      in_specs: for each argument, how its leaves lie along `"tasks"`.
      out_specs: how those of the result lie.

    Returns:
      A function of the same arguments.
    """
    return jax.shard_map(
        fn,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names={TASK_AXIS},
        check_vma=False,
    )


def place(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts arrays, equal in all processes, where a run on the mesh wants them."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: _put(x, _sharding(x, mesh)), tree)


def spread(tree: PyTree, mesh: Mesh | None, spec: PartitionSpec = COPIED) -> PyTree:
    """Puts arrays, equal in all processes, on the mesh: copied, or cut as `spec`."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda x: _put(x, NamedSharding(mesh, spec)), tree)


def constrain(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Does as `place`, within a compiled program."""
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, _sharding(x, mesh)), tree
    )


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if sharding.is_fully_addressable or is_global:
        return jax.device_put(leaf, sharding)
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # Of several processes each has the whole, and gives its devices their parts.
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)


def _sharding(leaf: Any, mesh: Mesh) -> NamedSharding:
    """Cut along the mesh's other axes in the largest dimension that they divide."""
    axes = tuple(name for name in mesh.axis_names if name != TASK_AXIS)
    count = math.prod(mesh.shape[name] for name in axes)
    shape = np.shape(leaf)
    fitting = [size for size in shape if count > 1 and size and size % count == 0]
    if not fitting:
        return NamedSharding(mesh, COPIED)
    cut = shape.index(max(fitting))
    return NamedSharding(mesh, PartitionSpec(*(None,) * cut, axes))


def _near(number: int, divisor: int) -> int:
    return max(1, round(number / divisor)) * divisor
