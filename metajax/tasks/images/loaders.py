"""Class tables from arrays in memory, from folders of images, and from TFDS.

Each loader sorts examples by class into one padded uint8 array on the device and, while
reading, checks for what a network would otherwise silently learn from: NaN, labels that
are not integers, broken files, images of different sizes, channels in the wrong place.
"""

import difflib
import io
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from metajax.checks import (
    check_choice,
    check_fits,
    check_flags,
    check_instances,
    check_paths,
    check_words,
    is_integer,
)
from metajax.tasks.images.class_table import ClassTable, Rotations, class_table

__all__ = ["from_arrays", "from_folder", "from_tfds", "import_tfds", "require_network"]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def from_arrays(
    images: Any,
    labels: Any,
    *,
    kind: Literal["images", "signals"] | None = None,
    layout: Literal["HWC", "CHW"] | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    rotations: Rotations = 1,
    class_names: Sequence[str] | None = None,
) -> ClassTable:
    """Builds a table of labelled images, vectors or series.

    Args:
      images: of images, `[n, H, W, C]`, or `[n, H, W]` for one channel; uint8, or
        floats in [0, 1], which are rounded to multiples of 1/255. Of signals, vectors
        `[n, D]` or series of L steps `[n, L, C]`, any finite numbers, which become
        float32 and keep their values.
      labels: integers `[n]`, any values; a class may have any number of examples.
      kind: `"images"` or `"signals"`. None takes two axes for vectors and four for
        images; three axes are images if they are uint8 or lie in [0, 1], and a series
        if some number is negative or above 255.
      layout: `"HWC"`, or `"CHW"` for images as PyTorch has them, whose channels are
        put last. None refuses images that seem to have their channels first.
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
      ValueError: for NaN, floating images outside [0, 1], other types or shapes, images
        with channels first, labels that are not integers, lengths that differ, a label
        without a name, a conversion from other than 1, 3 or 4 channels, or of signals.
      ImportError: if there is something to convert, without Pillow.

    Example:
      >>> vectors = np.random.default_rng(0).normal(size=(8, 16))
      >>> from_arrays(vectors, np.arange(8) // 2)
      ClassTable(4 classes, up to 2 examples of 16 each, float32)
    """
    if class_names is not None and not isinstance(class_names, str):
        check_words(class_names=class_names)
    if kind is not None:
        check_choice(("images", "signals"), kind=kind)
    if layout is not None:
        check_choice(("HWC", "CHW"), layout=layout)
    _check_conversion(size, channels)
    images, labels = np.asarray(images), np.asarray(labels)
    if _are_signals(images, kind):
        if (size, channels, layout, rotations) != (None, None, None, 1):
            raise ValueError(
                "`size`, `channels`, `layout` and `rotations` are for images, but "
                f"`images` of shape {images.shape} are vectors or series; leave them "
                "out, or reshape to [n, H, W, C]."
            )
        images = _signals(images)
    else:
        images = _to_uint8(images, layout)
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
    if images.dtype == np.uint8:
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
    shape = (len(values), counts.max(), *images.shape[1:])
    table = np.zeros(shape, images.dtype)
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
    check_paths(path=path)
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
            if len(images) == 1:
                _check_room(sum(map(len, map(_visible, folders))), images[0].shape)
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
    for argument, key in (("image_key", image_key), ("label_key", label_key)):
        check_instances(str, "see the features of the data set", **{argument: key})
    check_flags(download=download)
    if data_dir is not None:
        check_paths(data_dir=data_dir)
    for argument, word in (("name", name), ("split", split)):
        check_instances(str, "see the catalogue of TFDS", **{argument: word})
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
        if number == 0:
            _check_room(len(source), images[0].shape)
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
    is_mode = is_integer(channels) and channels in _MODES
    if channels is not None and not is_mode:
        raise ValueError(f"`channels` must be 1, 3, 4 or None, got {channels!r}.")
    if size is not None:
        _check_room(1, (*size, channels or 1))


def _check_room(count: int, shape: tuple[int, ...]) -> None:
    """Raises a ValueError if so many images of a shape would not fit the memory."""
    check_fits(
        f"{count} images of `size` = {shape[:2]}",
        jax.ShapeDtypeStruct((count, *shape), "uint8"),
        "lower `size`",
    )


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
    _check_room(len(images), (*size, channels))
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


def _are_signals(images: np.ndarray, kind: str | None) -> bool:
    """Whether an array holds vectors or series; refuses what may be either."""
    if kind is not None:
        return kind == "signals"
    if images.ndim == 2 and images.dtype == np.uint8:
        raise ValueError(
            f"`images` are bytes of shape {images.shape}: if they are images that were "
            "flattened, reshape them to [n, H, W, C]; if they are vectors, give "
            "`kind='signals'`."
        )
    if images.ndim == 3 and np.issubdtype(images.dtype, np.floating) and images.size:
        low, high = images.min(), images.max()
        if low >= 0 and 1 < high <= 255:
            raise ValueError(
                f"`images` of shape {images.shape} are floats from {low} to {high}, "
                "which may be grey images in bytes or series: divide images by 255, "
                "or give `kind='signals'` for series."
            )
        return bool(low < 0 or high > 255)
    return images.ndim == 2


def _signals(signals: np.ndarray) -> np.ndarray:
    """Checked vectors `[n, D]` or series `[n, L, C]`, float32."""
    if (
        signals.ndim not in (2, 3)
        or signals.size == 0
        or signals.dtype.kind not in "biuf"
    ):
        raise ValueError(
            "Vectors must be numbers [n, D], and series [n, L, C], without empty axes, "
            f"got {signals.dtype} {list(signals.shape)}."
        )
    with np.errstate(over="ignore"):  # told below
        values = signals.astype(np.float32)
    is_bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if is_bad.any():
        raise ValueError(
            f"`images` must be finite in float32, but example {np.argmax(is_bad)} is "
            f"not, nor are {is_bad.sum()} of {len(values)}; remove or repair them."
        )
    return values


def _channels_last(images: np.ndarray, layout: str | None) -> np.ndarray:
    """Images `[n, H, W, C]`; refuses those that seem to have their channels first."""
    if layout == "CHW":
        return np.moveaxis(images, 1, -1)
    first, height, last = images.shape[1:]
    if layout is None and last not in _MODES and first < min(height, last):
        raise ValueError(
            f"`images` of shape {images.shape} seem to have their channels first, as "
            "PyTorch does, where [n, H, W, C] is wanted: give `layout='CHW'` to put "
            f"them last, or `layout='HWC'` if images are {first} high and have {last} "
            "channels."
        )
    return images


def _to_uint8(images: np.ndarray, layout: str | None) -> np.ndarray:
    """Checked images `[n, H, W, C]`."""
    if images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            "`images` must have shape [n, H, W, C] or [n, H, W] without empty axes "
            f"(or [n, D] for vectors), got {images.shape}."
        )
    if images.ndim == 3:
        images = images[..., None]
    else:
        images = _channels_last(images, layout)
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            f"`images` must be uint8 or floats in [0, 1], got {images.dtype}; convert "
            "pixels in 0 to 255 by `images.astype(numpy.uint8)`, or give "
            "`kind='signals'` for series of other numbers."
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
