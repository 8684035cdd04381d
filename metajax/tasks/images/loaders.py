"""Class tables from arrays in memory, from folders of images, and from TFDS.

Each loader sorts examples by class into one padded uint8 array on the device and, while
reading, checks for what a network would otherwise silently learn from: NaN, labels that
are not integers, broken files, images of different sizes.
"""

import difflib
import io
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metajax.checks import is_integer
from metajax.tasks.images.class_table import ClassTable, Rotations, class_table

__all__ = ["from_arrays", "from_folder", "from_tfds", "import_tfds", "require_network"]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def from_arrays(
    images: Any,
    labels: Any,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    rotations: Rotations = 1,
    class_names: Sequence[str] | None = None,
) -> ClassTable:
    """Builds a table of labelled images.

    Args:
      images: `[n, H, W, C]`, or `[n, H, W]` for one channel; uint8, or floats in
        [0, 1], which are rounded to multiples of 1/255.
      labels: integers `[n]`, any values; a class may have any number of examples.
      size: `(H, W)` to resize to (Lanczos, aspect not kept), or None.
      channels: 1 (grey, 0.299 R + 0.587 G + 0.114 B), 3 (RGB) or 4 (RGBA) to convert
        to, or None.
      rotations: 1, 2 or 4, as for `class_table`.
      class_names: the name of label `i` at place `i`; None names classes by their
        labels.

    Returns:
      A `ClassTable` with a row for each label that occurs, in ascending order; within
      a row, examples keep their order.

    Raises:
      ValueError: for NaN or floats outside [0, 1], other types or shapes, labels that
        are not integers, lengths that differ, a label without a name, or a conversion
        from other than 1, 3 or 4 channels.
      ImportError: if there is something to convert, without Pillow.
    """
    _check_conversion(size, channels)
    images, labels = _to_uint8(np.asarray(images)), np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`labels` must be a vector of integers, got {labels.dtype} of shape "
            f"{labels.shape}; `numpy.unique(names, return_inverse=True)[1]` makes "
            "integers of names."
        )
    if len(labels) != len(images):
        raise ValueError(
            f"`labels` must have one entry for each image, got {len(labels)} labels "
            f"for {len(images)} images."
        )
    images = _converted(images, size, channels)
    values, rows, counts = np.unique(labels, return_inverse=True, return_counts=True)
    names = [str(value) for value in values]
    if class_names is not None:
        if values[0] < 0 or values[-1] >= len(class_names):
            raise ValueError(
                f"`class_names` has {len(class_names)} names, for labels 0 to "
                f"{len(class_names) - 1}, but labels go from {values[0]} to "
                f"{values[-1]}."
            )
        names = [class_names[value] for value in values]
    table = np.zeros((len(values), counts.max(), *images.shape[1:]), np.uint8)
    order = np.argsort(rows, kind="stable")
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    table[rows[order], columns] = images[order]
    return class_table(table, counts, rotations=rotations, class_names=names)


def from_folder(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    rotations: Rotations = 1,
) -> ClassTable:
    """Reads a table from a folder that holds one folder of image files for each class.

    Files directly in `path`, and names that start with a dot, are ignored.

    Args:
      path: the folder.
      size: `(H, W)` to resize to (Lanczos, aspect not kept); None if all images have
        the same size already.
      channels: 1 (grey), 3 (RGB) or 4 (RGBA) to convert to; None if all agree already.
      rotations: 1, 2 or 4, as for `class_table`.

    Returns:
      A `ClassTable` whose rows are the class folders in the order of their names, and
      are named by them; within a row, examples are in the order of their file names.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if a file is not a readable image (the message names it), images
        differ in size or channels, or a class is empty.
      ImportError: without Pillow.
    """
    path = Path(path)
    _check_conversion(size, channels)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{str(path)!r} is not a folder; `path` must hold one folder of images for "
            "each class."
        )
    folders = [item for item in _visible(path) if item.is_dir()]
    if not folders:
        raise ValueError(
            f"{str(path)!r} has no folders; it must hold one folder of images for each "
            "class."
        )
    images, labels = [], []
    for label, folder in enumerate(folders):
        files = _visible(folder)
        if not files:
            raise ValueError(
                f"The class folder {str(folder)!r} is empty; remove it or add images."
            )
        for file in files:
            if not file.is_file():
                raise ValueError(
                    f"{str(file)!r} is not a file; a class folder must hold image "
                    "files only."
                )
            images.append(_decode(file.read_bytes(), repr(str(file)), size, channels))
            _check_same_shape(images, repr(str(file)))
            labels.append(label)
    return from_arrays(
        np.stack(images),
        np.asarray(labels),
        rotations=rotations,
        class_names=[folder.name for folder in folders],
    )


def from_tfds(
    name: str,
    split: str,
    *,
    image_key: str = "image",
    label_key: str = "label",
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    rotations: Rotations = 1,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> ClassTable:
    """Reads a table from a data set of tensorflow-datasets, without TensorFlow.

    Reading needs the data prepared in a format with random access (array_record), which
    is also what this function prepares. Preparing is the business of each data set's
    own builder, and many of those do need TensorFlow, once. Images are decoded by
    Pillow here, so that 1-bit images are 0 and 255 and not, as from TFDS's own
    decoder, 0 and 1.

    Args:
      name: as for `tfds.builder`, such as `"cifar100"` or `"omniglot:3.0.0"`.
      split: as for TFDS, such as `"train"`, `"train+test"` or `"train[:10%]"`.
      image_key: the feature that is the image.
      label_key: the feature that is the class, an integer.
      size: `(H, W)` to resize to (Lanczos, aspect not kept), or None.
      channels: 1, 3 or 4 to convert to; None for what the data set declares.
      rotations: 1, 2 or 4, as for `class_table`.
      data_dir: the folder of prepared data; None for that of TFDS.
      download: whether to download and prepare what is not there.

    Returns:
      A `ClassTable` with a row for each label in the split, in ascending order, named
      as the data set names its labels.

    Raises:
      ValueError: for an unknown data set, split or feature, or images that differ in
        size.
      FileNotFoundError: if the data are not prepared, and cannot or must not be.
      ImportError: without the `data` extra.
    """
    _check_conversion(size, channels)
    tfds = import_tfds()
    builder = _builder(tfds, name, data_dir)
    _prepare(builder, name, download=download)
    features = builder.info.features
    for argument, key in (("image_key", image_key), ("label_key", label_key)):
        if key not in features:
            raise ValueError(
                f"`{argument}` must be one of {', '.join(sorted(features))}, the "
                f"features of {name!r}, got {key!r}."
            )
    feature = features[image_key]
    if not isinstance(feature, tfds.features.Image):
        raise ValueError(
            f"`image_key` must name an image, got {image_key!r} of type "
            f"{type(feature).__name__}; load such data yourself and use `from_arrays`."
        )
    if channels is None and feature.shape[-1] in _MODES:
        channels = feature.shape[-1]
    decoders = {image_key: tfds.decode.SkipDecoding()}
    try:
        source = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError as error:
        raise FileNotFoundError(
            f"{name!r} is prepared in a format without random access in "
            f"{str(builder.data_path)!r}; {_prepare_hint(name)}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"`split` must be made of {', '.join(sorted(builder.info.splits))}, the "
            f"splits of {name!r}, got {split!r}."
        ) from error

    images, labels = [], []
    for number, record in enumerate(source):
        what = f"image {number} of {name!r}"
        images.append(_decode(record[image_key], what, size, channels))
        _check_same_shape(images, what)
        labels.append(record[label_key])
    if not images:
        raise ValueError(f"The split {split!r} of {name!r} holds no images.")
    names = getattr(features[label_key], "names", None)
    return from_arrays(
        np.stack(images), np.asarray(labels), rotations=rotations, class_names=names
    )


def import_tfds() -> Any:
    """Imports `tensorflow_datasets`, or raises an ImportError that names the extra."""
    try:
        # TFDS imports the second only when it first reads data, and then fails.
        import importlib_resources  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"Reading TFDS data needs the package {error.name!r}; install it by "
            "`pip install 'metajax[data]'`."
        ) from error
    return tensorflow_datasets


def require_network(url: str, *, timeout: float = 20.0) -> None:
    """Asks for the head of `url`, so that no network is noticed in seconds.

    The downloader of TFDS retries for minutes instead.

    Raises:
      OSError: if the host does not answer within `timeout` seconds.
    """
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=timeout).close()
    except urllib.error.HTTPError:
        return  # Some hosts refuse this method, but they are there.


def _builder(tfds: Any, name: str, data_dir: Any) -> Any:
    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", name)[0]
    folder = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if base not in known and not (folder / base).is_dir():
        close = difflib.get_close_matches(base, known, n=3)
        hint = f"; close names are {', '.join(close)}" if close else ""
        raise ValueError(
            f"tensorflow-datasets has no data set {base!r}, and there is none in "
            f"{str(folder)!r}{hint}. `tfds.list_builders()` lists all."
        )
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except ValueError:
        # Already prepared in another format, which may be readable too.
        return tfds.builder(name, data_dir=data_dir)


def _prepare(builder: Any, name: str, *, download: bool) -> None:
    """Makes sure that the data are prepared."""
    if builder.is_prepared():
        return
    where = str(builder.data_path)
    if not download:
        raise FileNotFoundError(
            f"{name!r} is not prepared in {where!r}, and `download` is False; "
            f"{_prepare_hint(name)}"
        )
    try:
        for url in list(builder.url_infos)[:1]:
            require_network(url)
        builder.download_and_prepare()
    except Exception as error:  # Each data set fails in its own way, one remedy.
        raise FileNotFoundError(
            f"{name!r} is not prepared in {where!r} and could not be downloaded and "
            f"prepared ({type(error).__name__}: {error}); {_prepare_hint(name)}"
        ) from error


def _prepare_hint(name: str) -> str:
    return (
        "on a machine with a network and `pip install tensorflow`, run `tfds build "
        f"{name} --file_format=array_record`, and name its folder by `data_dir`."
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if not item.name.startswith("."))


def _check_conversion(size: tuple[int, int] | None, channels: int | None) -> None:
    if size is not None and not (
        isinstance(size, Sequence)
        and len(size) == 2
        and all(is_integer(side) and side >= 1 for side in size)
    ):
        raise ValueError(
            f"`size` must be `(H, W)`, two integers of at least 1, got {size!r}."
        )
    if channels is not None and channels not in _MODES:
        raise ValueError(f"`channels` must be 1, 3, 4 or None, got {channels!r}.")


def _check_same_shape(images: Sequence[np.ndarray], what: str) -> None:
    """Raises ValueError if the last of `images` differs from the first."""
    first, last = images[0].shape, images[-1].shape
    if first[:2] != last[:2]:
        raise ValueError(
            f"All images must have one size, but the first is {first[:2]} and {what} "
            f"is {last[:2]} (height, width); give `size=(H, W)` to resize them."
        )
    if first != last:
        raise ValueError(
            f"All images must have one number of channels, but the first has "
            f"{first[2]} and {what} has {last[2]}; give `channels` to convert them."
        )


def _decode(
    data: bytes, what: str, size: tuple[int, int] | None, channels: int | None
) -> np.ndarray:
    """An image file as uint8 `[H, W, C]`; `what` names it in errors."""
    Image = _pillow("Decoding")
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    except Exception as error:  # Pillow raises errors of many types on broken files.
        raise ValueError(
            f"Cannot read {what} as an image ({error}); replace or remove it."
        ) from error
    if image.mode[0] in "IF":
        raise ValueError(
            f"Cannot use {what}: its pixels are of mode {image.mode!r}, not 8 bits a "
            "channel; convert it first."
        )
    if channels is None:
        channels = 1 if image.mode in ("1", "L") else 4 if "A" in image.mode else 3
    return _convert(image, size, channels)


def _convert(image: Any, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """A Pillow image as uint8 `[H, W, C]`."""
    image = image.convert(_MODES[channels])
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), _pillow("Resizing").Resampling.LANCZOS)
    return np.asarray(image).reshape(image.size[1], image.size[0], channels)


def _converted(
    images: np.ndarray, size: tuple[int, int] | None, channels: int | None
) -> np.ndarray:
    """uint8 images `[n, H, W, C]` of another size or number of channels."""
    shape = images.shape[1:]
    size = shape[:2] if size is None else size
    channels = shape[2] if channels is None else channels
    if (*size, channels) == shape:
        return images
    if shape[2] not in _MODES:
        raise ValueError(
            f"Images can be converted from 1, 3 or 4 channels, got {shape[2]}; choose "
            "some of the channels, or leave `size` and `channels` None."
        )
    pillow = _pillow("Converting")
    # One channel has no axis in Pillow.
    sources = images[..., 0] if shape[2] == 1 else images
    return np.stack(
        [_convert(pillow.fromarray(image), size, channels) for image in sources]
    )


def _pillow(what: str) -> Any:
    """The module `PIL.Image`, or an ImportError that names the extra."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{what} images needs Pillow; install it by `pip install 'metajax[data]'`."
        ) from error
    return Image


def _to_uint8(images: np.ndarray) -> np.ndarray:
    """Checked images `[n, H, W, C]`."""
    if images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            "`images` must have shape [n, H, W, C] or [n, H, W] without empty axes, "
            f"got {images.shape}."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"`images` must be uint8 or floats in [0, 1], got {images.dtype}; convert "
            "pixels in 0 to 255 by `images.astype(numpy.uint8)`."
        )
    low, high = images.min(), images.max()
    if np.isnan(low):
        row = int(np.argmax(np.isnan(images).any(axis=(1, 2, 3))))
        raise ValueError(
            f"`images` must be finite, but image {row} has NaN; remove or repair it."
        )
    if low < 0 or high > 1:
        raise ValueError(
            f"Floating `images` must lie in [0, 1], got values from {low} to {high}; "
            "rescale them, or pass uint8 in 0 to 255."
        )
    return np.round(images * 255).astype(np.uint8)
