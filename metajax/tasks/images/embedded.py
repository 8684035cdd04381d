"""Embeddings that are computed once: a table of them in place of a table of images.

With a frozen embedding, most of the work of an evaluation is to embed the same images
over and over. From `embed_table` on, tasks hold embeddings, and any learner made of an
embedding and a head runs on them with `identity()` as its model:

    features = embed_table(model, meta_params.embedding, table)
    learner = ridge(identity(), way=5)
    tasks = few_shot(features, way=5, shot=5, num_queries=15)
    evaluate(learner, without_embedding(meta_params), tasks, num_tasks=10_000)
"""

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_instances, check_integers, check_parts, named_if_other
from metajax.models.normalization import STATISTICS
from metajax.tasks.images.class_table import (
    ClassTable,
    as_floats,
    class_table,
    quarter_turns,
)
from metajax.types import Array, Model, PyTree

__all__ = ["embed_table", "without_embedding"]


def embed_table(
    model: Model, params: PyTree, table: ClassTable, *, batch_size: int = 500
) -> ClassTable:
    """Embeds every image of a table.

    Rotated classes become rows of their own, in the order of their class ids, so the
    same key draws the same tasks from both tables.

    Args:
      model: an inductive embedding: with normalisation of single examples, none, or
        `"calibrated"`, whose statistics `params` must hold.
      params: its parameters.
      table: images by class.
      batch_size: images that are embedded at once, at least 1.

    Returns:
      A table without rotations whose `images` are float `[num_classes, max_per_class,
      D]`; padding is 0.

    Raises:
      ValueError: if `model` is no `Model`, `table` no `ClassTable`, embeddings depend
        on the batch or are no vectors, or `batch_size` is out of range.
    """
    check_parts(model=model)
    check_instances(ClassTable, "`metajax.tasks.from_arrays` makes one", table=table)
    check_integers(1, batch_size=batch_size)
    kind = model.normalization
    if kind in ("batch", "support"):
        raise ValueError(
            f"With normalization={kind!r} an embedding depends on the task that an "
            "image is in, so it cannot be computed once; use a model with "
            "'calibrated', 'layer', 'group' or 'none'."
        )
    if kind == "calibrated" and STATISTICS not in params:
        raise ValueError(
            "The parameters of a model with normalization='calibrated' hold no "
            "statistics yet; call `metajax.models.calibrate` first."
        )
    images = jnp.asarray(table.images)
    rows, most, turns = images.shape[0], images.shape[1], table.rotations
    shape = (rows, turns, most)

    @jax.jit
    def embed(params: PyTree, images: Array) -> Array:
        def one(place: Array) -> Array:
            row, turn, column = jnp.unravel_index(place, shape)
            image = images[row, column][None]
            if turns > 1:
                image = quarter_turns(image, turn[None])
            return image[0]

        def batch(places: Array) -> Array:
            return model.apply(params, as_floats(jax.vmap(one)(places), jnp.float32))

        total = rows * turns * most
        size = min(batch_size, total)
        places = jnp.arange(-(-total // size) * size) % total
        features = jax.lax.map(batch, places.reshape(-1, size))
        return features.reshape(-1, *features.shape[2:])[:total]

    pixels = jnp.zeros((1, *images.shape[2:]), jnp.float32)
    with named_if_other(model.init, pixels, params=params):
        features = embed(params, images)
    if features.ndim != 2:
        raise ValueError(
            "A table holds embeddings that are vectors, and the model gives "
            f"{list(features.shape[1:])} for an image; flatten them."
        )
    features = features.reshape(rows * turns, most, -1)
    counts = np.repeat(np.asarray(table.counts), turns)
    is_real = jnp.arange(most)[None, :] < counts[:, None]
    names = table.class_names
    if names is not None and turns > 1:
        angles = [90 * turn for turn in range(turns)]
        names = tuple(f"{name} {angle}" for name in names for angle in angles)
    return class_table(
        jnp.where(is_real[..., None], features, 0), counts, class_names=names
    )


def without_embedding(meta_params: PyTree) -> PyTree:
    """Gives meta-parameters of the same learner with `identity()` as its model."""
    if "embedding" in getattr(meta_params, "_fields", ()):
        return meta_params._replace(embedding={})
    return {}
