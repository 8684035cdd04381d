#!/usr/bin/env bash
# optax 0.2.8: `radam` has no derivative from its third step on, whatever `eps_root` is.
#
# Meta-learning differentiates through an inner optimizer. With Adam that works if
# `eps_root` is above 0. `radam` has the argument, too, but after three steps its
# derivative is NaN at every gradient, also where none is 0: in the third and fourth step
# it takes the root of a negative number, and then selects the other branch by `where`,
# which drops the value of that branch but not the NaN of its derivative. The updates
# themselves are finite.
#
# Seen with optax 0.2.8 and jax 0.10.2, d(sum of updates)/d(gradient) at [3, 1]:
#   adam, 1 to 7 steps: finite
#   radam, 1 and 2 steps: finite
#   radam, 3 to 7 steps: NaN
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'optax==0.2.8' 'jax==0.10.2'
"$folder/venv/bin/python" - << 'PYTHON'
import jax
import jax.numpy as jnp
import optax


def moved(gradient, optimizer, steps):
    state, total = optimizer.init(gradient), 0.0
    for _ in range(steps):
        updates, state = optimizer.update(gradient, state, gradient)
        total += jnp.sum(updates)
    return total


found = {}
for name in ("adam", "radam"):
    optimizer = getattr(optax, name)(0.1, eps_root=1e-8)
    for steps in range(1, 8):
        slope = jax.grad(moved)(jnp.array([3.0, 1.0]), optimizer, steps)
        found[name, steps] = bool(jnp.all(jnp.isfinite(slope)))
        print(f"{name}, steps {steps}:", "finite" if found[name, steps] else "NaN")
        assert jnp.isfinite(moved(jnp.array([3.0, 1.0]), optimizer, steps))
assert all(found["adam", steps] for steps in range(1, 8))
assert found["radam", 1] and found["radam", 2]
assert not any(found["radam", steps] for steps in range(3, 8)), "it changed"
PYTHON
