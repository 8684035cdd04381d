#!/usr/bin/env bash
# flax 0.12.8: `linen.RNN` carries float32, whatever it reads.
#
# Under `jax_enable_x64`, `Dense` takes float64 inputs and gives float64. `RNN` of an LSTM
# cell starts its carry in the cell's `param_dtype` (float32), the cell promotes it to the
# type of its inputs (float64), and the scan refuses a carry that changes its type. Start
# from a carry of the inputs' type (`initial_carry=`), or give the cell and its parameters
# that type.
#
# Seen with flax 0.12.8 and jax 0.10.2, JAX_ENABLE_X64=1:
#   Dense: float64
#   RNN: TypeError: scan body function carry input and carry output must have equal types
#   RNN from a carry of float64: float64
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'flax==0.12.8' 'jax==0.10.2'
JAX_ENABLE_X64=1 "$folder/venv/bin/python" - << 'PYTHON'
import jax
import jax.numpy as jnp
from flax import linen as nn

x = jnp.ones((2, 5, 3))
assert x.dtype == jnp.float64
key = jax.random.key(0)


def outcome(model, **more):
    try:
        params = model.init(key, jnp.float32(x))
        return str(model.apply(params, x, **more).dtype)
    except TypeError as error:
        return f"TypeError: {str(error).splitlines()[0]}"


cell = nn.OptimizedLSTMCell(4)
carry = (jnp.zeros((2, 4)), jnp.zeros((2, 4)))
found = {
    "Dense": outcome(nn.Dense(4)),
    "RNN": outcome(nn.RNN(cell)),
    "RNN from a carry of float64": outcome(nn.RNN(cell), initial_carry=carry),
}
for name, what in found.items():
    print(f"{name}: {what}")
assert found["Dense"] == "float64"
assert found["RNN"].startswith("TypeError"), "it changed"
assert found["RNN from a carry of float64"] == "float64"
PYTHON
