"""Statistics of normalisation frozen after training, whatever the learner."""

from typing import Any

import jax

from metajax.models.normalization import calibrate
from metajax.types import Model, PyTree

__all__ = ["calibrated"]


def calibrated(model: Model, meta_params: PyTree, tasks: Any, seed: int) -> PyTree:
    """Meta-parameters with the statistics of `tasks` in those of the embedding.

    Args:
      model: the embedding, with normalization="calibrated".
      meta_params: its parameters, or a tuple with these as `embedding`.
      tasks: what it was trained on.
      seed: of the tasks that are drawn.
    """
    key = jax.random.key(seed)
    if not hasattr(meta_params, "embedding"):
        return calibrate(model, meta_params, tasks, key)
    embedding = calibrate(model, meta_params.embedding, tasks, key)
    return meta_params._replace(embedding=embedding)
