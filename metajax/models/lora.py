"""LoRA: weights that change by a product of two thin matrices.

E. Hu, Y. Shen, P. Wallis et al., "LoRA: Low-Rank Adaptation of Large Language Models",
ICLR 2022, https://arxiv.org/abs/2106.09685, section 4.1.

    W = W_0 + scale * down @ up      (W_0 [a, b], down [a, r], up [r, b])        Eq. (3)

W_0 is in `params["base"]`, the factors are in `params["lora"]`, r is `rank` and `scale`
the paper's alpha / r. down starts Gaussian, up starts from 0, so that W = W_0 at first.
The paper writes B A for what is here the transpose of down @ up: its weights multiply
from the left. As it learns the factors of one task from a trained W_0,

    metajax.learners.maml(with_lora(model, rank=2), optimizer, inner_steps=5,
    adapts=only("lora"))

meta-learns W_0 together with factors to start from, and adapts the factors alone.
Differs from the paper: any matrix may have factors, not those of attention only, and
convolutions have them as matrices `[h * w * C, F]`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from metajax.checks import check_integers, check_parts, is_number
from metajax.filters import everything, path_names
from metajax.models.normalization import STATISTICS
from metajax.types import Array, Filter, Model, PyTree

__all__ = ["merge_lora", "with_lora"]


def with_lora(
    model: Model,
    *,
    rank: int,
    scale: float = 1.0,
    where: Filter = everything,
) -> Model:
    """Builds a model with low-rank factors beside its matrices.

    Choose it where a task should change a large network in few numbers: for a quick
    inner loop, small adapted parameters, or little overfitting.

    Args:
      model: any model.
      rank: r, at least 1; a matrix with fewer rows or columns has as many as these.
      scale: factor of the product, other than 0.
      where: which weights have factors, by their path in the parameters of `model`, see
        `metajax.filters`: of the floating-point ones with two axes, or four, as
        convolutions have, whose first three then count as one.

    Returns:
      A model with parameters `{"base": params of model, "lora": {path: {"down": [a, r],
      "up": [r, b]}}}`, and `"statistics"` beside these once such are frozen. To start
      from a trained network, put its parameters under `"base"`.

    Raises:
      ValueError: if `rank` or `scale` is out of range; in `init`, if no weight is
        accepted, or every accepted one has fewer rows or columns than `rank`.

    Example:
      >>> import optax
      >>> from metajax.filters import only
      >>> from metajax.learners import maml
      >>> from metajax.models import mlp, with_lora
      >>> model = with_lora(mlp(1), rank=2)
      >>> learner = maml(model, optax.sgd(0.1), inner_steps=3, adapts=only("lora"))
    """
    check_parts(model=model, where=where)
    check_integers(1, rank=rank)
    if not is_number(scale) or not math.isfinite(scale) or scale == 0:
        raise ValueError(f"`scale` must be finite and not 0, got {scale!r}.")

    def init(key: Array, x: PyTree) -> PyTree:
        key_base, key_lora = jax.random.split(key)
        base = model.init(key_base, x)
        leaves = dict(zip(path_names(base), jax.tree.leaves(base), strict=True))
        chosen = {p: w for p, w in leaves.items() if _is_matrix(w) and where(p)}
        if not chosen:
            raise ValueError(
                "`where` accepts none of the weights that can have factors, which are "
                f"{[path for path, leaf in leaves.items() if _is_matrix(leaf)]}."
            )
        sides = {path: min(_matrix_shape(leaf)) for path, leaf in chosen.items()}
        if max(sides.values()) < rank:
            raise ValueError(
                f"`rank` is {rank}, but the largest rank that any of the weights can "
                f"have is {max(sides.values())}: {sides}. Lower `rank`."
            )
        keys = jax.random.split(key_lora, len(chosen))
        lora = {}
        for (path, leaf), key in zip(chosen.items(), keys, strict=True):
            rows, columns = _matrix_shape(leaf)
            size = min(rank, rows, columns)
            # So that an input of unit size gives a product with `up` of unit size.
            down = jax.random.normal(key, (rows, size), leaf.dtype) / math.sqrt(rows)
            lora[path] = {"down": down, "up": jnp.zeros((size, columns), leaf.dtype)}
        return {"base": base, "lora": lora}

    def effective(params: PyTree) -> PyTree:
        merged = merge_lora(params, scale)
        if STATISTICS in params:
            merged = merged | {STATISTICS: params[STATISTICS]}
        return merged

    def apply(params: PyTree, x: PyTree, **others: Any) -> PyTree:
        return model.apply(effective(params), x, **others)

    def statistics(params: PyTree, x: PyTree, **others: Any) -> PyTree:
        assert model.statistics is not None
        frozen = model.statistics(effective(params), x, **others)
        return params | {STATISTICS: frozen[STATISTICS]}

    return Model(
        init,
        apply,
        None if model.statistics is None else statistics,
        model.normalization,
    )


def merge_lora(params: PyTree, scale: float = 1.0) -> PyTree:
    """Computes the weights W of Eq. (3), as parameters of the model without factors.

    Args:
      params: `{"base": ..., "lora": ...}` as a model of `with_lora` has them.
      scale: what `with_lora` was given.

    Returns:
      A pytree like `params["base"]`.
    """
    base, lora = params["base"], params["lora"]

    def merge(path: str, weight: Array) -> Array:
        if path not in lora:
            return weight
        product = lora[path]["down"] @ lora[path]["up"]
        return weight + scale * product.reshape(weight.shape)  # Eq. (3)

    leaves, structure = jax.tree.flatten(base)
    return jax.tree.unflatten(structure, list(map(merge, path_names(base), leaves)))


def _is_matrix(leaf: Array) -> bool:
    is_floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return is_floating and jnp.ndim(leaf) in (2, 4)


def _matrix_shape(leaf: Array) -> tuple[int, int]:
    return math.prod(leaf.shape[:-1]), leaf.shape[-1]
