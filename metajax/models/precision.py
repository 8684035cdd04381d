"""Mixed precision: networks that compute in half precision and learn in full.

P. Micikevicius et al., "Mixed Precision Training", ICLR 2018,
https://arxiv.org/abs/1710.03740.

| what | type |
|---|---|
| parameters, in both loops, and their gradients | as given, float32 |
| products, convolutions, activations | `compute` |
| sums inside of these, on accelerators | float32 |
| normalisation statistics, frozen or not | float32 |
| outputs, so losses, prototypes and metrics | float32 |

The casts are part of `apply`, so that inner and outer gradients pass through them and
an inner step changes float32 parameters. bfloat16 has the range of float32, so nothing
is scaled against underflow; float16 would need that and is not offered.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from metajax.checks import check_choice, check_parts
from metajax.models.normalization import STATISTICS
from metajax.types import Array, Model, PyTree

__all__ = ["PRECISIONS", "check_precision", "with_precision"]

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def check_precision(precision: Precision) -> None:
    """Raises a ValueError unless `precision` is one of `PRECISIONS`."""
    check_choice(PRECISIONS, precision=precision)


def with_precision(model: Model, precision: Precision) -> Model:
    """Makes a model compute in another precision.

    Choose `"bfloat16"` on GPU and TPU, whose matrix units are made for it; on CPU it is
    slower than float32.

    Args:
      model: any model that takes the type of its computation from parameters and
        inputs, as Linen modules without a `dtype` do.
      precision: `"float32"`, which changes nothing, or `"bfloat16"`.

    Returns:
      A model with the parameters of `model`, in their types, and float32 outputs.

    Raises:
      ValueError: if `precision` is something else.
    """
    check_parts(model=model)
    check_precision(precision)
    if precision == "float32":
        return model
    compute = jnp.dtype(precision)

    def cast_params(params: PyTree) -> PyTree:
        if not isinstance(params, dict) or STATISTICS not in params:
            return _cast(params, compute)
        weights = {name: part for name, part in params.items() if name != STATISTICS}
        return _cast(weights, compute) | {STATISTICS: params[STATISTICS]}

    def apply(
        params: PyTree,
        x: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        x = _cast(x, compute)
        outputs = model.apply(cast_params(params), x, mask=mask, key=key)
        return _cast(outputs, jnp.dtype("float32"))

    def statistics(
        params: PyTree,
        x: PyTree,
        *,
        mask: Array | None = None,
        key: Array | None = None,
    ) -> PyTree:
        assert model.statistics is not None
        x = _cast(x, compute)
        frozen = model.statistics(cast_params(params), x, mask=mask, key=key)
        return params | {STATISTICS: frozen[STATISTICS]}

    return model._replace(
        apply=apply, statistics=None if model.statistics is None else statistics
    )


def _cast(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    def cast(leaf: Array) -> Array:
        is_floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, dtype) if is_floating else leaf

    return jax.tree.map(cast, tree)
