#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: `StandardSave` takes any pytree but the smallest.
#
# To JAX a single array is a pytree like any other (`jax.tree.leaves` gives one leaf), and
# `StandardSave({"x": array})` works, also with a scalar array inside. `StandardSave` of
# the array itself raises a ValueError that asks for another handler, so that a generic
# "save this pytree" fails for models whose parameters are one array. `[array]` works.
#
# Seen with orbax-checkpoint 0.12.8 and jax 0.10.2:
#   dict: saved
#   list: saved
#   array: ValueError: StandardCheckpointHandler / StandardSave does not support single
#   arrays or scalars. Use ArrayCheckpointHandler / ArraySave
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'orbax-checkpoint==0.12.8' 'jax==0.10.2'
# The refused save leaves a thread behind that complains when Python ends.
"$folder/venv/bin/python" - "$folder" 2> "$folder/errors" << 'PYTHON' ||
import pathlib
import sys

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

folder = pathlib.Path(sys.argv[1])
array = jnp.float32(1)
assert jax.tree.leaves(array) == [array]
outcomes = {}
for name, tree in {"dict": {"x": array}, "list": [array], "array": array}.items():
    checkpointer = ocp.StandardCheckpointer()
    try:
        checkpointer.save(folder / name, tree)
        checkpointer.wait_until_finished()
        outcomes[name] = "saved"
    except ValueError as error:
        outcomes[name] = f"ValueError: {error}"
    print(f"{name}: {outcomes[name]}")
assert outcomes["dict"] == outcomes["list"] == "saved"
assert "does not support single" in outcomes["array"], "it changed"
PYTHON
{
  cat "$folder/errors"
  exit 1
}
