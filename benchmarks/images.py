"""Image sets that models are tested on, all as 28 x 28 grey images by class.

They come from the folder that `METAJAX_DATA_DIR` names. Images of 32 x 32 become 28 x
28: Devanagari characters lose their margin of 2 pixels, which is empty, and photographs
are resized (Lanczos). Colours become grey by 0.299 R + 0.587 G + 0.114 B. Ink is bright
in characters; photographs stay as they are.
"""

import gzip
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from metajax.tasks.images.class_table import ClassTable, class_table
from metajax.tasks.images.loaders import from_arrays
from metajax.tasks.images.omniglot import omniglot

__all__ = ["READERS", "at_most", "read"]


def read(names: Sequence[str]) -> dict[str, ClassTable]:
    """The tables of some image sets, by name."""
    return {name: READERS[name]() for name in names}


def at_most(table: ClassTable, most: int) -> ClassTable:
    """The first `most` examples of every class, with room for as many.

    Tables with the same number of classes then have one shape, and share programs.
    """
    images = np.asarray(table.images)[:, :most]
    room = [(0, 0), (0, most - images.shape[1])] + [(0, 0)] * (images.ndim - 2)
    return class_table(
        np.pad(images, room),
        np.minimum(table.counts, most),
        rotations=table.rotations,
        class_names=table.class_names,
    )


def _folder() -> pathlib.Path:
    return pathlib.Path(os.environ["METAJAX_DATA_DIR"]) / "image_domains"


def _from_npz(file: str, margin: int = 0) -> ClassTable:
    with np.load(_folder() / file) as arrays:
        images = arrays["images"]
        inner = slice(margin, images.shape[1] - margin)
        return from_arrays(
            images[:, inner, inner],
            arrays["labels"],
            size=(28, 28),
            channels=1,
            class_names=arrays["class_names"].tolist(),
        )


def _mnist() -> ClassTable:
    folder = _folder() / "mnist_test"
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return from_arrays(images, labels.astype(np.int32))


READERS: dict[str, Callable[[], ClassTable]] = {
    "omniglot": lambda: omniglot("meta_test"),
    "devanagari": lambda: _from_npz("devanagari_46x300_32x32.npz", margin=2),
    "mnist": _mnist,
    "sign digits": lambda: _from_npz("sign_digits_32x32.npz"),
    "clothing": lambda: _from_npz("clothing_small_32x32.npz"),
    "cifar-10": lambda: _from_npz("cifar10_test500_32x32.npz"),
}
