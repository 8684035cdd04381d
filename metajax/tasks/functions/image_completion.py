"""Image completion: an image is a function from places to colours, seen in part.

M. Garnelo et al., "Conditional Neural Processes", ICML 2018,
https://arxiv.org/abs/1807.01613, section 4.2. A task is one image of a class table:

    x = (row, column) of a pixel, each from -1 (top, left) to 1 (bottom, right)
    y = its channels in [0, 1]

The support set are pixels at random, without replacement; the query set are all pixels,
those of the support set too, as in the paper, or some at random.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metajax.checks import check_dtype, check_instances, check_integers
from metajax.tasks.images.class_table import (
    ClassTable,
    as_data,
    as_floats,
    check_arrays,
    quarter_turns,
    take_images,
)
from metajax.tasks.images.few_shot import distinct
from metajax.tasks.sizes import as_range, size_masks
from metajax.tasks.summaries import summary
from metajax.types import Array, Examples, Task

__all__ = ["ImageCompletion", "image_completion", "pixel_places"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["table"],
    meta_fields=["shot", "num_queries", "dtype"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class ImageCompletion:
    """The distribution that `image_completion` builds, which checks it.

    It is a pytree: hand it to `jit` as an argument, so that the images are not copied
    into the compiled program. `shot` is an inclusive range here.
    """

    table: ClassTable
    shot: tuple[int, int]
    num_queries: int | None
    dtype: Any

    __repr__ = summary

    def __call__(self, key: Array, /) -> Task:
        """Draws one image and its pixels; the key is consumed.

        Args:
          key: a typed random key.

        Returns:
          A task whose `support` has `x` `[K, 2]` and `y` `[K, C]`, with a mask if the
          number of pixels is a range, whose end is K; and whose `query` has them for
          all H W pixels, row by row, or for Q of them.
        """
        key_image, key_support, key_query, key_size = jax.random.split(key, 4)
        image = self._image(key_image)
        height, width, channels = image.shape
        places = jnp.asarray(pixel_places(height, width), self.dtype)
        pixels = image.reshape(height * width, channels)

        def some(key: Array, num: int) -> Examples:
            chosen = distinct(key, height * width, num)
            return Examples(places[chosen], pixels[chosen])

        query = Examples(places, pixels)
        if self.num_queries is not None:
            query = some(key_query, self.num_queries)
        mask, _ = size_masks(key_size, (1, 1), self.shot, len(query.x))
        return Task(some(key_support, self.shot[1])._replace(mask=mask), query)

    def _image(self, key: Array) -> Array:
        """An image `[H, W, C]` of a class, both uniform."""
        key_class, key_example = jax.random.split(key)
        table = self.table
        class_id = jax.random.randint(key_class, (1,), 0, table.num_classes)
        row = class_id // table.rotations
        column = jax.random.randint(key_example, (1,), 0, table.counts[row])
        image = take_images(table, row, column)
        if table.rotations > 1:
            image = quarter_turns(image, class_id % table.rotations)
        return as_floats(image, self.dtype)[0]


def image_completion(
    table: ClassTable,
    *,
    shot: int | tuple[int, int] = (1, 200),
    num_queries: int | None = None,
    dtype: Any = jnp.float32,
) -> ImageCompletion:
    """Builds tasks of completing images from some of their pixels.

    Classes are uniform, and so are the images of each; labels are not used.

    Args:
      table: images by class, such as `metajax.tasks.omniglot` or `from_arrays` give.
      shot: pixels of the support set, K, at least 1; or an inclusive range, uniform, up
        to whose end tasks are padded. At most all pixels.
      num_queries: None to ask for all pixels, or how many are asked for, at random and
        without replacement: enough for training, and faster.
      dtype: floating type of inputs and targets.

    Returns:
      A callable `(key) -> Task`, itself a pytree. See the module for inputs and
      targets.

    Raises:
      ValueError: if the table holds embeddings and not images, or an argument is out of
        range.

    Example:
      >>> from metajax.tasks.images.class_table import class_table
      >>> table = class_table(np.zeros((8, 20, 28, 28, 1), np.uint8))
      >>> task = image_completion(table, shot=(5, 50))(jax.random.key(0))
      >>> task.support.x.shape, task.query.y.shape
      ((50, 2), (784, 1))
    """
    check_instances(ClassTable, "`metajax.tasks.from_arrays` makes one", table=table)
    check_arrays(table.images, table.counts, table.rotations, table.class_names)
    check_dtype(dtype)
    if table.images.ndim != 5:
        raise ValueError(
            "`table` must hold images [rows, max_per_class, H, W, C], got embeddings "
            f"{list(table.images.shape)}; take the table that these were made of."
        )
    shots = as_range("shot", shot)
    num_pixels = table.images.shape[2] * table.images.shape[3]
    asked = {"shot": shots[1]}
    if num_queries is not None:
        check_integers(1, num_queries=num_queries)
        asked["num_queries"] = num_queries
    for name, num in asked.items():
        if num > num_pixels:
            raise ValueError(
                f"`{name}` asks for {num} pixels but images of this table have "
                f"{num_pixels}; ask for fewer."
            )
    # Names are dropped: as static data they would make equal programs compile twice.
    return ImageCompletion(as_data(table), shots, num_queries, jnp.dtype(dtype))


def pixel_places(height: int, width: int) -> np.ndarray:
    """Inputs `[H W, 2]` of all pixels, row by row: (row, column) in [-1, 1]."""
    axes = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
