"""The inner loop: an Optax optimizer under `scan`, and how to differentiate through it.

    phi_0 = theta,   u_t, s_{t+1} = optimizer(grad L(phi_t, args), s_t, phi_t),
    phi_{t+1} = phi_t + u_t,   t = 0 .. steps - 1

Every gradient mode returns the same phi; they differ in what the outer gradient costs.

* `"reverse"` differentiates the backward pass of L in reverse. The reference; memory
  grows by all intermediates of a gradient evaluation for every step.
* `"remat"` does the same but recomputes each step, so that only phi_t and s_t stay.
* `"mixed"` gives the inner gradient g(phi, args) = grad_phi L its own rule: as the
  Hessian is symmetric, the cotangent v of g is pulled back by one forward-mode product
  through the gradient, (H v, d/dargs <g, v>) = jvp(phi -> grad_(phi, args) L)(v), and
  no tape of the backward pass is kept (Kemaev et al., "Scalable Meta-Learning via
  Mixed-Mode Differentiation", ICML 2025, https://arxiv.org/abs/2505.00793). Steps are
  recomputed too, except that the inner gradients are saved.
* `"first_order"` treats inner gradients as constants (Finn et al. 2017, section 5.2).

Traps. `"mixed"` is wrong when L contains a `custom_vjp` whose backward pass is not the
true transpose (gradient reversal, clipping inside the loss): where there is a rule, one
product is compared with that of reverse mode when the program is traced. It cannot be
differentiated in forward mode. The square root in Adam has no finite derivative where
an inner gradient is exactly 0: without `eps_root > 0` it is refused, as is every
optimizer that `metajax.inner.differentiable` finds a fault in. So is a line search, but
for `"first_order"`, where all that it finds is a constant.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxpr_as_fun

from metajax.checks import check_choice, check_integers, check_parts
from metajax.compute.program_costs import has_custom_vjp
from metajax.filters import combine, everything, keep_types, partition
from metajax.inner.differentiable import is_search, lacks_derivative, parts_of
from metajax.types import Array, Filter, PyTree

__all__ = ["GRADIENT_MODES", "Unrolled", "check_inner_loop", "unroll"]

GradientMode = Literal["reverse", "remat", "mixed", "first_order"]
GRADIENT_MODES: tuple[GradientMode, ...] = get_args(GradientMode)


class Unrolled(NamedTuple):
    """What an inner loop gives.

    Attributes:
      params: phi_T, with the structure and dtypes of the parameters it started from.
      losses: `[inner_steps]`, L at phi_0 .. phi_{T-1}: the value each step's gradient
        is of, so that the curve costs no further forward pass.
      path: None, or every phi_0 .. phi_T with a leading axis `[inner_steps + 1, ...]`.
      opt_state: of the optimizer after the last step, to go on from.
    """

    params: PyTree
    losses: Array
    path: PyTree
    opt_state: PyTree


def check_inner_loop(
    optimizer: optax.GradientTransformation,
    inner_steps: int,
    gradient: GradientMode,
    *,
    name: str = "inner_optimizer",
) -> None:
    """Checks what a learner's constructor was given for its inner loop.

    Args:
      optimizer: as for `unroll`.
      inner_steps: as for `unroll`.
      gradient: as for `unroll`.
      name: of the argument that the optimizer was.

    Raises:
      ValueError: if `inner_steps` is not an integer of at least 0, `gradient` is
        unknown, or the updates of the optimizer have no finite derivative, or a wrong
        one, where gradients or parameters are 0, or none at all.
      TypeError: if `optimizer` is not an Optax gradient transformation.
    """
    check_integers(0, inner_steps=inner_steps)
    check_choice(GRADIENT_MODES, gradient=gradient)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"`{name}` must be an optax.GradientTransformation, such as "
            f"optax.sgd(0.01), got {optimizer!r}."
        )
    if gradient == "first_order" or not inner_steps:
        return
    if is_search(optimizer):
        raise ValueError(
            f"`{name}` ({parts_of(optimizer)}) has a loop of unknown length, as a line "
            "search has, and no derivative in reverse mode; choose "
            "gradient='first_order', or `imaml`, which does not differentiate inner "
            "steps."
        )
    where = lacks_derivative(optimizer)
    if where is not None:
        parts = parts_of(optimizer)
        remedy = "Choose another, such as optax.sgd, or gradient='first_order'."
        if "clip_by_global_norm" in parts:
            remedy += " Clip by `metajax.optimizers.clip_by_global_norm`."
        if where.startswith("a gradient"):
            remedy += (
                " Optimizers that divide by the root of a squared gradient, such as "
                "optax.adam, need eps_root=1e-8."
            )
        raise ValueError(
            f"`{name}` ({parts}) has no finite derivative, or a wrong one, where "
            f"{where}; the outer gradient would be NaN or wrong. {remedy}"
        )


def unroll(
    loss_fn: Callable[[PyTree, PyTree, Array | None], Array],
    optimizer: optax.GradientTransformation,
    params: PyTree,
    args: PyTree,
    *,
    inner_steps: int,
    gradient: GradientMode = "remat",
    adapts: Filter = everything,
    key: Array | None = None,
    step_args: PyTree = None,
    opt_state: PyTree = None,
    keep_path: bool = False,
    check_mixed: bool = True,
) -> Unrolled:
    """Runs `inner_steps` optimizer steps on `loss_fn`, differentiably.

    Args:
      loss_fn: `(params, args, key) -> loss`, a scalar.
      optimizer: any Optax transformation; its hyper-parameters may be traced values. If
        its `update` takes extra arguments, it is given the loss as `value`, its
        gradient as `grad` and the function of the parameters as `value_fn`.
      params: pytree phi_0.
      args: pytree of everything else that the loss depends on: the support set, other
        meta-parameters. Outer gradients reach its floating-point leaves.
      inner_steps: number of steps, at least 0.
      gradient: one of `GRADIENT_MODES`.
      adapts: predicate on leaf paths (`metajax.filters`): which leaves are optimised.
      key: split into one key a step for `loss_fn`, or None.
      step_args: None, or a pytree of arrays `[steps, ...]` with a row for each step;
        the loss is then given the pair `(args, row)` in place of `args`.
      opt_state: None to start the optimizer afresh, or the state to go on from.
      keep_path: whether to return every phi_t.
      check_mixed: whether to compare `"mixed"` with `"reverse"` if the loss holds a
        `jax.custom_vjp`: one product with the Hessian, at random values, once for each
        compilation.

    Returns:
      `Unrolled(params, losses, path, opt_state)`.

    Raises:
      ValueError: as `check_inner_loop`, if `adapts` accepts no leaf, `step_args` has
        not a row for each step, or `"mixed"` differs from `"reverse"`.
    """
    check_parts(adapts=adapts)
    check_inner_loop(optimizer, inner_steps, gradient, name="optimizer")
    for leaf in jax.tree.leaves(step_args):
        if len(leaf) != inner_steps:
            raise ValueError(
                f"`step_args` must have a row for each of the {inner_steps} steps, got "
                f"{len(leaf)} rows."
            )
    optimizer = optax.with_extra_args_support(optimizer)
    adapted, frozen = partition(params, adapts)

    # What does not adapt travels as an argument: `mixed` differentiates arguments only.
    def others(row: PyTree) -> tuple[PyTree, PyTree]:
        return frozen, args if step_args is None else (args, row)

    is_constant_search = gradient == "first_order" and is_search(optimizer)
    row = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), step_args)
    everything_else = others(row)

    def inner_loss(
        adapted: PyTree, everything_else: PyTree, key: Array | None
    ) -> Array:
        frozen, args = everything_else
        return loss_fn(combine(adapted, frozen), args, key)

    if gradient == "mixed":
        inner_loss, closed_over = _hoist(inner_loss, adapted, everything_else, key)
        if check_mixed:
            _compare_modes(inner_loss, adapted, everything_else, key, *closed_over)
        value_and_grad = _mixed_value_and_grad(inner_loss)
    else:
        closed_over = []
        value_and_grad = jax.value_and_grad(inner_loss)

    def step(carry: tuple, key_and_row: tuple) -> tuple:
        adapted, opt_state = carry
        key, row = key_and_row
        around = others(row)
        loss, grad = value_and_grad(adapted, around, key, *closed_over)
        grad = checkpoint_name(grad, "inner_gradient")
        if gradient == "first_order":
            loss, grad, around = jax.lax.stop_gradient((loss, grad, around))
        try:
            updates, new_state = optimizer.update(
                grad,
                opt_state,
                jax.lax.stop_gradient(adapted) if is_constant_search else adapted,
                value=loss,
                grad=grad,
                value_fn=lambda params: inner_loss(params, around, key, *closed_over),
            )
        except Exception as error:
            error.add_note(f"In the inner optimizer: {parts_of(optimizer)}.")
            raise
        adapted = optax.apply_updates(adapted, updates)
        opt_state = keep_types(new_state, opt_state)
        return (adapted, opt_state), (loss, adapted if keep_path else None)

    if gradient in ("remat", "mixed"):
        policy = jax.checkpoint_policies.save_only_these_names("inner_gradient")
        # Inside scan no common subexpressions can undo the recomputation; a single step
        # is not inside one, and then takes what `"reverse"` takes.
        step = jax.checkpoint(
            step, prevent_cse=False, policy=policy if gradient == "mixed" else None
        )
    keys = None if key is None else jax.random.split(key, inner_steps)
    start = (adapted, optimizer.init(adapted) if opt_state is None else opt_state)
    rows = (keys, step_args)
    if inner_steps == 1:
        # Without a loop, `vmap` over tasks sees that all start from the same values.
        (final, opt_state), output = step(start, jax.tree.map(lambda x: x[0], rows))
        losses, later = jax.tree.map(lambda leaf: leaf[None], output)
    else:
        (final, opt_state), (losses, later) = jax.lax.scan(
            step, start, rows, length=inner_steps
        )
    path = None
    if keep_path:
        path = jax.tree.map(
            lambda first, rest: jnp.concatenate([first[None], rest]), adapted, later
        )
        repeated = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (inner_steps + 1, *jnp.shape(leaf))),
            frozen,
        )
        path = combine(path, repeated)
    return Unrolled(combine(final, frozen), losses, path, opt_state)


def _mixed_value_and_grad(loss_fn: Callable[..., Array]) -> Callable[..., tuple]:
    """`jax.value_and_grad(loss_fn)` whose own derivative is forward over reverse."""

    @jax.custom_vjp
    def value_and_grad(params: PyTree, *args: PyTree) -> tuple[Array, PyTree]:
        return jax.value_and_grad(loss_fn)(params, *args)

    def forward(params: PyTree, *args: PyTree) -> tuple:
        return value_and_grad(params, *args), (params, args)

    def backward(residuals: tuple, cotangents: tuple) -> tuple:
        params, args = residuals
        loss_bar, grad_bar = cotangents
        # Integers and keys have no cotangent: they stay None in what is returned.
        has_floats = any(
            jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            for leaf in jax.tree.leaves(args)
        )
        floats, others = partition(args) if has_floats else ((None,) * len(args), args)
        both = jax.grad(
            lambda params, floats: loss_fn(params, *combine(floats, others)), (0, 1)
        )
        gradient, product = jax.jvp(lambda p: both(p, floats), (params,), (grad_bar,))
        params_bar, args_bar = jax.tree.map(
            lambda grad, hv: (loss_bar * grad + hv).astype(grad.dtype),
            gradient,
            product,
        )
        return params_bar, *args_bar

    value_and_grad.defvjp(forward, backward)
    return value_and_grad


def _hoist(
    loss_fn: Callable[..., Array], *args: PyTree
) -> tuple[Callable[..., Array], list[Array]]:
    """`loss_fn` with all traced values in its closure as further arguments, and these.

    `jax.closure_convert` leaves integers and keys behind, which then escape the trace.
    """
    traced = jax.make_jaxpr(loss_fn)(*args)
    is_traced = [isinstance(const, jax.core.Tracer) for const in traced.consts]

    def hoisted(*args_and_values: PyTree) -> Array:
        own, values = args_and_values[: len(args)], iter(args_and_values[len(args) :])
        consts = [
            next(values) if moves else const
            for const, moves in zip(traced.consts, is_traced, strict=True)
        ]
        return jaxpr_as_fun(traced.replace(consts=consts))(*jax.tree.leaves(own))[0]

    moved = [c for c, moves in zip(traced.consts, is_traced, strict=True) if moves]
    return hoisted, moved


def _compare_modes(loss_fn: Callable[..., Array], *args: PyTree) -> None:
    """Raises ValueError if custom rules in the loss make `mixed` differ from `reverse`.

    There is nothing to compare without such rules: what JAX derives is symmetric.
    `loss_fn` has no traced values in its closure.
    """
    if not has_custom_vjp(jax.make_jaxpr(loss_fn)(*args).jaxpr):
        return
    with jax.ensure_compile_time_eval():
        key_value, key_direction = jax.random.split(jax.random.key(0))
        floats, others = partition(_like(args, key_value))
        gradient = jax.grad(lambda floats: loss_fn(*combine(floats, others)))
        direction = _like(floats, key_direction)

        def products(floats: PyTree, direction: PyTree) -> tuple[PyTree, PyTree]:
            mixed = jax.jvp(gradient, (floats,), (direction,))[1]
            return mixed, jax.vjp(gradient, floats)[1](direction)[0]

        mixed, reverse = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(product)])
            for product in jax.jit(products)(floats, direction)
        )
    difference = float(np.linalg.norm(mixed - reverse))
    size = max(float(np.linalg.norm(product)) for product in (mixed, reverse))
    if not (np.isfinite(difference) and size > 0):
        warnings.warn(
            "The loss holds a custom VJP rule, and it could not be found out whether "
            "gradient='mixed' is right for it: at random values its second derivatives "
            f"are {'0' if size == 0 else 'not finite'}; compare gradient='reverse'.",
            stacklevel=3,
        )
    elif difference > 1e-3 * size:
        raise ValueError(
            "gradient='mixed' is wrong for this loss: at random values its product "
            f"with the Hessian is {100 * difference / size:.2g} % off that of "
            "gradient='reverse'. The loss holds a custom VJP rule that is not the "
            "transpose of the derivative, such as a reversal or clipping of gradients. "
            "Use gradient='remat', or check_mixed=False if you want it so."
        )


def _like(tree: PyTree, key: Array) -> PyTree:
    """Random floats of the size of initial weights, ones, and keys, of these shapes."""

    def like(leaf: Any, key: Array) -> Array:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(key, shape)
        if not jnp.issubdtype(dtype, jnp.floating):
            return jnp.ones(shape, dtype)
        rows = np.prod(shape[:-1], dtype=float)
        return jax.random.normal(key, shape, dtype) / max(rows, 1.0) ** 0.5

    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, map(like, leaves, keys))
