"""Every optimizer of Optax in the inner loop: is its outer gradient the right one?

    python -m benchmarks.inner_optimizers

Each transformation of `optax` and `optax.contrib` takes steps on the support loss of a
small network. The derivative of the query loss with respect to the parameters that the
steps began with is compared with finite differences, in double precision: where no
gradient is 0, where a unit of the network is off, where a whole array has no part in
the loss, and where the support set is fitted exactly. It must be right, or the
optimizer must be refused.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import tyro

from benchmarks.pages import Named, markdown
from benchmarks.record import write_result
from metajax.inner.unroll import unroll
from metajax.types import Array, PyTree

TITLE, FILES = "Optimizers in the inner loop", "inner_optimizers"
"""Of its part of the page of results, and the result that it shows."""

RATE = 1e-4
"""So small that the way that the steps go is smooth at the scale of differences."""
STEPS = (1e-5, 1e-6, 1e-7, 1e-8)
"""Of finite differences. One of them must be right: too long ones leave the 1e-4 on
which the root of a sum with 1e-8 is smooth, too short ones drown in rounding."""
TOLERANCE = 1e-4
"""Of a derivative, in parts of its size."""

MOVES = (
    "args",
    "learning_rate",
    "max_learning_rate",
    "step_size",
    "step_size_fn",
    "inner",
    "inner_factory",
    "optimizer",
    "fast_optimizer",
    "base_optimizer",
    "tx",
    "transforms",
)
"""Arguments of optimizers that need no rate behind them."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of the comparison."""

    seed: int = 0
    inner_steps: int = 7


def arguments(name: str) -> dict[str, Any]:
    """What is given for arguments without a default, by their names."""
    sgd = optax.sgd(RATE)
    args = (("sgd", sgd),) if name == "named_chain" else (optax.trace(0.9), sgd)
    return {
        "args": args,
        "learning_rate": RATE,
        "step_size": -RATE,
        "step_size_fn": lambda count: -RATE / (1 + count),
        "clipping": 0.01,
        "max_delta": 0.1,
        "threshold": 0.1,
        "max_norm": 0.1,
        "eta": 0.01,
        "gamma": 0.5,
        "key": jax.random.key(0),
        "decay": 0.9,
        "inner": sgd,
        "optimizer": sgd,
        "fast_optimizer": sgd,
        "base_optimizer": sgd,
        "tx": sgd,
        "adv_optimizer": optax.chain(optax.contrib.normalize(), optax.sgd(RATE)),
        "mask": lambda tree: jax.tree.map(lambda _: name != "freeze", tree),
        "freeze_mask": lambda tree: jax.tree.map(lambda _: False, tree),
        "max_consecutive_errors": 2,
        "should_transform_fn": lambda *_: jnp.bool_(1),
        "inner_factory": lambda learning_rate: sgd,
        "sync_period": 2,
        "slow_step_size": 0.5,
        "transforms": {"all": sgd},
        "param_labels": lambda tree: jax.tree.map(lambda _: "all", tree),
        "max_backtracking_steps": 5,
        "max_linesearch_steps": 5,
        "measure_name": "norm",
        "measure": lambda updates, *_: jnp.sum(updates["c"]),
        "f": lambda updates, params: updates,
        "l2_norm_clip": 1.0,
        "noise_multiplier": 0.1,
        "seed": 0,
    }


def optimizers() -> Iterator[tuple[str, Callable[[], optax.GradientTransformation]]]:
    """Names, and what makes the optimizers: all that the two modules have.

    Those that know `eps_root` come a second time with 1e-8. What has neither a rate nor
    another optimizer inside is followed by a rate.
    """
    for module in (optax, optax.contrib):
        for name, make in sorted(vars(module).items()):
            if name.startswith("_") or not inspect.isfunction(make):
                continue
            signature = inspect.signature(make)
            if "GradientTransformation" not in str(signature.return_annotation):
                continue
            given = {
                key: arguments(name)[key]
                for key, parameter in signature.parameters.items()
                if parameter.kind is not parameter.VAR_KEYWORD
                and (
                    parameter.default is parameter.empty
                    or (key in ("learning_rate", "key") and parameter.default is None)
                )
            }
            more: list[dict[str, Any]] = [{}]
            if "eps_root" in signature.parameters:
                more.append({"eps_root": 1e-8})
            needs_rate = not set(MOVES) & set(signature.parameters)
            for extra in more:
                shown = ", ".join(f"{key}={value}" for key, value in extra.items())
                yield (
                    f"{module.__name__}.{name}({shown})",
                    functools.partial(_made, make, {**given, **extra}, needs_rate),
                )


def _made(
    make: Callable, given: dict[str, Any], needs_rate: Any
) -> optax.GradientTransformation:
    made = make(*given.pop("args", ()), **given)
    if not isinstance(made, optax.GradientTransformation):  # of `inject_hyperparams`
        made = made(learning_rate=RATE)
    return optax.chain(made, optax.scale(-RATE)) if needs_rate else made


# The problem.


class Places(NamedTuple):
    """Parameters to begin at, and a support set, where something is so."""

    params: PyTree
    support: tuple[Array, Array]


def network(params: PyTree, x: Array) -> Array:
    """A layer of ReLUs and one without."""
    hidden = jax.nn.relu(x @ params["w"] + params["b"][None])
    return hidden @ params["v"] + params["c"][None]


def loss(params: PyTree, examples: tuple[Array, Array], key: Array | None) -> Array:
    """The mean squared error."""
    x, y = examples
    return jnp.mean(jnp.square(network(params, x) - y))


def places(seed: int) -> dict[str, Places]:
    """Where derivatives are compared."""
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        return jnp.asarray(generator.normal(size=shape))

    params = {"w": draw(3, 4), "b": draw(4), "v": draw(4, 2), "c": draw(2)}
    support = draw(9, 3), draw(9, 2)
    unit_off = {**params, "b": params["b"].at[0].set(-20.0)}
    layer_off = {**params, "b": params["b"] - 20.0}
    fitted = (support[0], network(params, support[0]))
    biases = {"b": jnp.zeros(4), "c": jnp.zeros(2)}
    return {
        "no gradient is 0": Places(params, support),
        "biases are 0": Places({**params, **biases}, support),
        "a unit is off": Places(unit_off, support),
        "a layer is off": Places(layer_off, support),
        "all gradients are 0": Places(params, fitted),
    }


def outcomes(
    optimizer: optax.GradientTransformation, settings: Settings
) -> dict[str, str]:
    """What the derivative of the steps is, by place."""
    everywhere = places(settings.seed)
    flat, unravel = jax.flatten_util.ravel_pytree(everywhere["a unit is off"].params)
    generator = np.random.default_rng(settings.seed)
    directions = generator.normal(size=(4, len(flat)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = jnp.asarray(generator.normal(size=len(flat)))

    def way(flat: Array, support: tuple) -> Array:
        """A weighted sum of the way that the steps go, in units of the rate."""
        found = unroll(
            loss,
            optimizer,
            unravel(flat),
            support,
            inner_steps=settings.inner_steps,
            gradient="reverse",
        )
        moved = jax.flatten_util.ravel_pytree(found.params)[0]
        return weights @ (moved - flat) / RATE

    @jax.jit
    def slopes(flat: Array, support: tuple) -> tuple[Array, Array]:
        gradient = jax.grad(way)(flat, support)
        steps = np.array(STEPS)[:, None]
        moves = (steps[..., None] * directions[None]).reshape(-1, len(flat))
        ahead, behind = (
            jax.lax.map(lambda at: way(at, support), points)
            for points in (flat[None] + moves, flat[None] - moves)
        )
        return gradient, (ahead - behind).reshape(len(steps), -1) / (2 * steps)

    found = {}
    for name, place in everywhere.items():
        flat, _ = jax.flatten_util.ravel_pytree(place.params)
        gradient, differences = slopes(flat, place.support)
        size = 1e-3 + np.max(np.abs(differences[-1]))
        exact = (directions @ gradient)[None]
        errors = np.max(np.abs(exact - differences), axis=1) / size
        changes = np.max(np.abs(np.diff(differences, axis=0)), axis=1) / size
        if not np.all(np.isfinite(gradient)):
            found[name] = "not finite"
        elif min(errors) < TOLERANCE:
            found[name] = "right"
        elif min(changes) < TOLERANCE:
            found[name] = f"wrong by {min(errors):.1g}"
        else:
            found[name] = "finite, differences do not settle"
    return found


def main(settings: Settings) -> None:
    """Compares all of them, and writes the result."""
    jax.config.update("jax_enable_x64", True)  # noqa: FBT003
    rows = []
    for name, make in optimizers():
        try:
            found = outcomes(make(), settings)
        except (ValueError, TypeError, AttributeError) as error:
            found = {"refused": str(error).splitlines()[0]}
        rows.append({"optimizer": name} | found)
        print(rows[-1], flush=True)
    write_result("inner_optimizers", dataclasses.asdict(settings), rows)


def section(records: Named) -> str:
    """Its part of the page of results."""
    [(_, record)] = records
    rows = record["results"]
    names = [name for name in rows[0] if name != "optimizer"]
    accepted = [row for row in rows if "refused" not in row]
    table = [
        [f"`{row['optimizer'].removesuffix('()')}`", *(row[name] for name in names)]
        for row in accepted
    ]
    refused = [
        [f"`{row['optimizer'].removesuffix('()')}`", row["refused"].split(";")[0]]
        for row in rows
        if "refused" in row
    ]
    return (
        f"{record['settings']['inner_steps']} steps of every transformation of Optax "
        "and its `contrib`, differentiated in double precision and compared with "
        "finite differences (four directions, parts of 10,000). Where an update "
        "jumps or is very steep, as a sign is, differences do not settle, and a finite "
        "number is all that can be asked for.\n\n"
        + markdown(["optimizer", *names], table)
        + "\n\nRefused, with the beginning of the message:\n\n"
        + markdown(["optimizer", "why"], refused)
        + "\n\nSee `benchmarks/inner_optimizers.py`."
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
