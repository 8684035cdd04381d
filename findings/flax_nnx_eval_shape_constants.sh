#!/usr/bin/env bash
# flax 0.12.8: `nnx.eval_shape` gives shapes of parameters, and tracers of constants.
#
# `nnx.eval_shape(lambda: Net())` is the way to look at a module without computing it.
# What is an `nnx.Param` becomes a `jax.ShapeDtypeStruct`, and so does a NumPy array that
# the module keeps as an attribute (a table of positions, a mean of pixels). A JAX array
# in its place is left as the tracer that stood for it, and the first use of it, far from
# here, is an UnexpectedTracerError. Build the module itself to look at its constants.
#
# Seen with flax 0.12.8 and jax 0.10.2:
#   nnx.Param: ShapeDtypeStruct
#   numpy array: ShapeDtypeStruct
#   jax array: DynamicJaxprTracer, and its use: UnexpectedTracerError
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'flax==0.12.8' 'jax==0.10.2'
"$folder/venv/bin/python" - << 'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Net(nnx.Module):
    def __init__(self):
        self.weight = nnx.Param(jnp.ones(3))
        self.mean = np.ones(3)
        self.scale = jnp.ones(3)


net = nnx.eval_shape(lambda: Net())
weight = type(net.weight.get_value()).__name__
mean, scale = type(net.mean).__name__, type(net.scale).__name__
try:
    net.scale + 1
    use = "works"
except jax.errors.UnexpectedTracerError as error:
    use = type(error).__name__
print(f"nnx.Param: {weight}")
print(f"numpy array: {mean}")
print(f"jax array: {scale}, and its use: {use}")
assert weight == mean == "ShapeDtypeStruct"
assert use == "UnexpectedTracerError", "it changed"
PYTHON
