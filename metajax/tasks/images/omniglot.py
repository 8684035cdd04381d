"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people.

B. Lake, R. Salakhutdinov, J. Tenenbaum, "Human-level concept learning through
probabilistic program induction", Science 2015; images from
https://github.com/brendenlake/omniglot (MIT licence). They are 105 x 105 and black on
white; here they are 28 x 28 (Lanczos) with ink 255 on 0.

Two protocols split the characters; `omniglot_splits.json` has them as lists of classes:

- `"vinyals"`: the split of O. Vinyals et al., "Matching Networks for One Shot
  Learning", NeurIPS 2016, as published with J. Snell et al., "Prototypical Networks for
  Few-shot Learning", NeurIPS 2017: `meta_train` 1028 characters, `meta_valid` 172,
  `meta_test` 423. `meta_trainval` is the 1200 characters that papers train on after
  choosing hyper-parameters.
- `"lake"`: the alphabets of Lake et al.: `meta_trainval` is their 964 background
  characters, `meta_test` their 659 evaluation characters. They have no validation set;
  `meta_valid` is taken from the background and is the same five alphabets as above (172
  characters), `meta_train` is the other 792.

Training, validation and test characters are disjoint; only `meta_trainval` overlaps, as
the union of the first two.
"""

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np

from metajax.checks import check_choice, check_flags, check_paths
from metajax.tasks.images.class_table import ClassTable, Rotations, class_table
from metajax.tasks.images.loaders import import_tfds, require_network

__all__ = ["omniglot", "omniglot_classes"]

_CACHE = "omniglot_28x28.npz"
_ZIPS = ("images_background.zip", "images_evaluation.zip")
_SPLITS = {
    "meta_train": ("meta_train",),
    "meta_valid": ("meta_valid",),
    "meta_trainval": ("meta_train", "meta_valid"),
    "meta_test": ("meta_test",),
}
_NUM_CLASSES, _NUM_DRAWERS, _SIZE = 1623, 20, 28

Protocol = Literal["vinyals", "lake"]
"""Which characters are in which split."""


def omniglot(
    split: str,
    *,
    protocol: Protocol = "vinyals",
    rotations: Rotations = 4,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> ClassTable:
    """Reads the characters of one split of Omniglot.

    The images come from the first of these that exists: `omniglot_28x28.npz` in
    `data_dir` or `data_dir/omniglot`; Omniglot as prepared by tensorflow-datasets in
    the array_record format in `data_dir` or `data_dir/tfds`; the two zip files of the
    authors in `data_dir` or `data_dir/omniglot`; a download of these two through
    tensorflow-datasets. Whatever had to be decoded is then kept as
    `omniglot_28x28.npz` in `data_dir`, where that can be written. None of them needs
    TensorFlow, and all give the same table bit for bit: prepared data do not say who
    drew an image, so the examples of a class are put in the order of their pixels.

    Args:
      split: `"meta_train"`, `"meta_valid"`, `"meta_trainval"` or `"meta_test"`.
      protocol: `"vinyals"` or `"lake"`, see the module.
      rotations: 1, 2 or 4. Papers train and test with 4, so with four times as many
        classes; a class and its rotations are on the same side of every split.
      data_dir: a folder; by default that of the environment variable
        `METAJAX_DATA_DIR`, else of `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      download: whether to download what is not there.

    Returns:
      A `ClassTable` with images `[characters, 20, 28, 28, 1]`, rows in the order of
      the global class id, named `"Alphabet/characterNN"`.

    Raises:
      ValueError: for an unknown split or protocol, or a broken data file.
      FileNotFoundError: if the data are not there and cannot be downloaded.
      ImportError: if packages of the `data` extra are needed and missing.
    """
    check_flags(download=download)
    if data_dir is not None:
        check_paths(data_dir=data_dir)
    rows = omniglot_classes(split, protocol=protocol)
    images = _load(_data_dir(data_dir), download=download)
    names = [
        f"{alphabet}/character{number:02d}"
        for alphabet, _, _, first, last in _runs()
        for number in range(first, last + 1)
    ]
    return class_table(
        images[rows], rotations=rotations, class_names=[names[row] for row in rows]
    )


def omniglot_classes(split: str, *, protocol: Protocol = "vinyals") -> np.ndarray:
    """Lists global class ids, in [0, 1623), of the characters of a split, ascending.

    Args:
      split: as for `omniglot`.
      protocol: `"vinyals"` or `"lake"`.

    Raises:
      ValueError: for an unknown split or protocol.
    """
    if protocol not in ("vinyals", "lake"):
        raise ValueError(f"`protocol` must be 'vinyals' or 'lake', got {protocol!r}.")
    check_choice(_SPLITS, split=split)
    chosen: list[int] = []
    class_id = 0
    for _, part, run_split, first, last in _runs():
        if protocol == "lake" and run_split != "meta_valid":
            run_split = "meta_train" if part == "background" else "meta_test"
        run = range(class_id, class_id + last - first + 1)
        class_id = run.stop
        if run_split in _SPLITS[split]:
            chosen.extend(run)
    return np.asarray(chosen)


def _runs() -> list[tuple[str, str, str, int, int]]:
    text = (
        resources.files("metajax.tasks.images")
        .joinpath("omniglot_splits.json")
        .read_text()
    )
    return [tuple(run) for run in json.loads(text)["runs"]]


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    if data_dir is None:
        data_dir = os.environ.get("METAJAX_DATA_DIR") or os.environ.get(
            "TFDS_DATA_DIR", "~/tensorflow_datasets"
        )
    return Path(data_dir).expanduser()


def _load(data_dir: Path, *, download: bool) -> np.ndarray:
    """All images, uint8 `[1623, 20, 28, 28, 1]` with ink 255, from where they are."""
    folders = (data_dir, data_dir / "omniglot")
    for folder in folders:
        if (folder / _CACHE).is_file():
            return _from_cache(folder / _CACHE)
    for folder in (data_dir, data_dir / "tfds"):
        if list(folder.glob("omniglot/*/*.array_record-*")):
            return _keep(data_dir, _collect(_prepared_records(folder)))
    for folder in folders:
        if all((folder / name).is_file() for name in _ZIPS):
            paths = [folder / name for name in _ZIPS]
            return _keep(data_dir, _collect(_zip_records(paths)))
    if not download:
        raise FileNotFoundError(_missing(data_dir, "and `download` is False"))
    return _keep(data_dir, _collect(_zip_records(_download(data_dir))))


def _missing(data_dir: Path, why: str) -> str:
    return (
        f"Omniglot is not in {str(data_dir)!r} {why}. Put {_ZIPS[0]} and {_ZIPS[1]} "
        "from https://github.com/brendenlake/omniglot/tree/master/python there, or "
        "name the folder that has them (or `omniglot_28x28.npz`, or what `tfds build "
        "omniglot --file_format=array_record` prepared) by `data_dir` or by the "
        "environment variable METAJAX_DATA_DIR. Without a network, the `glyphs` tasks "
        "need no data."
    )


def _from_cache(path: Path) -> np.ndarray:
    try:
        # Opened here, because `np.load` leaves a broken file open.
        with path.open("rb") as handle, np.load(handle) as file:
            images = file["images"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{str(path)!r} is not a readable Omniglot file ({error}); delete it, and "
            "it is made again from the original data."
        ) from error
    shape = (_NUM_CLASSES, _NUM_DRAWERS, _SIZE, _SIZE)
    if images.shape != shape or images.dtype != np.uint8:
        raise ValueError(
            f"{str(path)!r} must hold `images` uint8 {shape}, got {images.dtype} "
            f"{images.shape}; delete it, and it is made again from the original data."
        )
    return _canonical(images)


def _keep(data_dir: Path, images: np.ndarray) -> np.ndarray:
    """Writes the cache for the next call, all or nothing, where that is allowed."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=data_dir, suffix=".npz.part")
    except OSError:  # A read-only folder is no reason to fail: decode every time.
        return _canonical(images)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, images=images)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, data_dir / _CACHE)
    except BaseException:
        os.unlink(name)
        raise
    return _canonical(images)


def _canonical(images: np.ndarray) -> np.ndarray:
    """From paper white and drawers in any order to ink 255 and the order of pixels."""
    flat = images.reshape(*images.shape[:2], -1)
    ordered = [
        row[sorted(range(len(row)), key=lambda i: row[i].tobytes())] for row in flat
    ]
    return 255 - np.stack(ordered).reshape(*images.shape, 1)


def _collect(records: Iterable[tuple[int, bytes]]) -> np.ndarray:
    """Decodes and shrinks `(class_id, png)` records to `[1623, 20, 28, 28]`."""
    from PIL import Image

    images = np.zeros((_NUM_CLASSES, _NUM_DRAWERS, _SIZE, _SIZE), np.uint8)
    seen = np.zeros(_NUM_CLASSES, int)
    for class_id, png in records:
        # Decoders disagree whether white is 1 or 255 in these 1-bit images.
        white = np.asarray(Image.open(io.BytesIO(png)).convert("L")) > 0
        image = Image.fromarray(white.astype(np.uint8) * 255)
        small = image.resize((_SIZE, _SIZE), Image.Resampling.LANCZOS)
        images[class_id, seen[class_id]] = np.asarray(small)
        seen[class_id] += 1
    if not np.all(seen == _NUM_DRAWERS):
        class_id = int(np.argmin(seen))
        raise ValueError(
            f"Omniglot must have {_NUM_DRAWERS} images of each of {_NUM_CLASSES} "
            f"characters, but class {class_id} has {seen[class_id]}; the source is "
            "incomplete, fetch it again."
        )
    return images


def _prepared_records(folder: Path) -> Iterable[tuple[int, bytes]]:
    tfds = import_tfds()
    for split in ("train", "test"):
        source = tfds.data_source(
            "omniglot",
            split=split,
            data_dir=folder,
            download=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        for record in source:
            yield int(record["label"]), record["image"]


def _zip_records(paths: Iterable[Path]) -> Iterable[tuple[int, bytes]]:
    for path in paths:
        with zipfile.ZipFile(path) as file:
            for name in sorted(file.namelist()):
                if name.endswith(".png"):
                    # <part>/<alphabet>/<character>/<global id>_<drawer>.png
                    yield int(name.rsplit("/", 1)[1][:4]) - 1, file.read(name)


def _download(data_dir: Path) -> list[Path]:
    """The two zip files, checksums verified, through the TFDS download manager."""
    tfds = import_tfds()
    try:
        builder = tfds.builder("omniglot", data_dir=data_dir)
        manager = tfds.download.DownloadManager(
            download_dir=data_dir / "downloads",
            dataset_name="omniglot",
            url_infos=type(builder).url_infos,
        )
        urls = {info.filename: url for url, info in type(builder).url_infos.items()}
        require_network(urls[_ZIPS[0]])
        return [Path(manager.download(urls[name])) for name in _ZIPS]
    except Exception as error:  # Network errors of many kinds, all with one remedy.
        raise FileNotFoundError(
            _missing(data_dir, f"and could not be downloaded ({error})")
        ) from error
