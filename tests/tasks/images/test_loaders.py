"""Loaders: what goes in comes out by class, and bad data are named."""

import builtins
import io
import re
import sys
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metajax.tasks.images import loaders
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.loaders import (
    from_arrays,
    from_folder,
    from_tfds,
    import_tfds,
    require_network,
)

Image = pytest.importorskip("PIL.Image")


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(-3, 5)))
def test_every_image_lands_in_its_class(labels):
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None]
    table = from_arrays(images, labels)
    assert table.class_names == tuple(str(label) for label in np.unique(labels))
    for row, label in enumerate(np.unique(labels)):
        held = np.asarray(table.images)[row, :, 0, 0, 0]
        count = int(table.counts[row])
        np.testing.assert_array_equal(held[:count], np.flatnonzero(labels == label))
        assert np.all(held[count:] == 0)


@pytest.mark.parametrize("error", [0.0, 0.4, -0.4])
def test_floats_become_the_nearest_bytes(error):
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    floats = np.clip((images + error) / 255, 0, 1).astype(np.float32)
    table = from_arrays(floats, [0, 1, 0, 1])
    np.testing.assert_array_equal(table.images[0], images[[0, 2]])


def test_class_names_and_rotations():
    images = np.zeros((3, 2, 2), np.uint8)
    table = from_arrays(images, [3, 1, 3], class_names="abcd", rotations=4)
    assert table.class_names == ("b", "d")
    assert table.num_classes == 8


def test_arrays_are_converted_as_files_are(tmp_path):
    """Grey is luma, and resizing is Pillow's Lanczos, whoever reads."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        save(tmp_path / str(number) / "0.png", image)
    for size, channels in (((4, 5), 1), (None, 1), ((4, 5), None), (None, 4)):
        ours = from_arrays(images, [0, 1], size=size, channels=channels)
        files = from_folder(tmp_path, size=size, channels=channels)
        np.testing.assert_array_equal(ours.images, files.images)
    grey = from_arrays(images, [0, 1], channels=1).images[:, 0, ..., 0]
    luma = images @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey, luma, atol=0.51)
    colours = from_arrays(grey, [0, 1], channels=3)
    assert colours.images.shape == (2, 1, 6, 8, 3)
    assert np.ptp(colours.images, axis=-1).max() == 0


def test_vectors_and_series_keep_their_values():
    rng = np.random.default_rng(0)
    labels = np.asarray([3, 1, 3, 1, 1])
    for shape, dtype in (((5, 6), float), ((5, 6, 3), np.float32), ((5, 4), int)):
        values = (rng.normal(size=shape) * 300).astype(dtype)
        table = from_arrays(values, labels, class_names="abcd")
        assert table.images.dtype == np.float32
        assert table.class_names == ("b", "d")
        expected = values[[1, 3, 4]].astype(np.float32)
        np.testing.assert_array_equal(table.images[0], expected)
        np.testing.assert_array_equal(table.images[1, :2], values[[0, 2]].astype("f4"))
        tasks = few_shot(table, way=2, shot=1, num_queries=1)
        task = jax.jit(tasks)(jax.random.key(0))
        assert task.support.x.shape == (2, *shape[1:])
        held = {tuple(np.ravel(x)) for x in np.asarray(task.support.x)}
        assert held <= {tuple(np.ravel(x)) for x in values.astype(np.float32)}
    # Series within [0, 1] are taken for grey images, unless it is said.
    series = rng.uniform(size=(5, 6, 3))
    assert from_arrays(series, labels).images.shape == (2, 3, 6, 3, 1)
    table = from_arrays(series, labels, kind="signals")
    np.testing.assert_array_equal(table.images[1, 0], series[0].astype(np.float32))
    # Vectors are vectors, whatever their range, and so are bytes if it is said.
    assert from_arrays(series[:, :, 0], labels).images.shape == (2, 3, 6)
    data = np.arange(20, dtype=np.uint8).reshape(5, 4)
    table = from_arrays(data, labels, kind="signals")
    np.testing.assert_array_equal(table.images[1, 0], data[0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_channels_first_are_refused_or_put_last(channels):
    images = np.random.default_rng(0).integers(0, 256, (4, channels, 20, 18), np.uint8)
    labels = [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"seem to have their channels first"):
        from_arrays(images, labels)
    table = from_arrays(images, labels, layout="CHW")
    assert table.images.shape == (2, 2, 20, 18, channels)
    np.testing.assert_array_equal(table.images[1, 0, 5, 7], images[2, :, 5, 7])
    flat = from_arrays(images, labels, layout="HWC")
    assert flat.images.shape == (2, 2, channels, 20, 18)


@pytest.mark.parametrize("shape", [(2, 3, 32, 4), (2, 5, 5, 100), (2, 64, 64, 103)])
def test_channels_last_are_no_channels_first(shape):
    assert from_arrays(np.zeros(shape), [0, 1]).images.shape[2:] == shape[1:]


PIXELS = np.zeros((3, 2, 2, 1))
ARRAY_ERRORS = {
    "nan": (
        {"images": np.where(np.arange(3)[:, None, None, None] == 1, np.nan, PIXELS)},
        r"must be finite, but image 1 has NaN",
    ),
    "range": ({"images": PIXELS + 255.0}, r"lie in \[0, 1\], got values from 255.*re"),
    "infinite": ({"images": PIXELS + np.inf}, r"must lie in \[0, 1\].*inf"),
    "integers": ({"images": PIXELS.astype(int)}, r"uint8 or floats.*int64.*astype"),
    "text": ({"images": np.full((3, 2, 2), "a")}, r"uint8 or floats in \[0, 1\]"),
    "rank": ({"images": np.zeros(3)}, r"\[n, H, W, C\] or \[n, H, W\].*\(3,\)"),
    "kind": ({"kind": "series"}, r"`kind` must be one of images, signals, got 'seri"),
    "layout": ({"layout": "NCHW"}, r"`layout` must be one of HWC, CHW, got 'NCHW'"),
    "channels first": (
        {"images": np.zeros((3, 2, 32, 30))},
        r"channels first, .* `layout='CHW'` .* `layout='HWC'` .* 2 high .* 30 channels",
    ),
    "flattened": (
        {"images": np.zeros((3, 784), np.uint8)},
        r"bytes of shape \(3, 784\): .* reshape them to \[n, H, W, C\]; .*`kind=",
    ),
    "float bytes": (
        {"images": np.full((3, 8, 8), 200.0)},
        r"floats from 200.0 to 200.0, .* divide images by 255, or give `kind='sign",
    ),
    "vectors of text": (
        {"images": np.full((3, 2), "a")},
        r"numbers \[n, D\], .*\[3, 2\]",
    ),
    "video as signals": (
        {"kind": "signals", "images": np.zeros((3, 2, 2, 2))},
        r"series \[n, L, C\], without empty axes, got float64 \[3, 2, 2, 2\]",
    ),
    "nan in vectors": (
        {"images": np.where(np.eye(3, 4) * [0, 1, 0, 0], np.nan, 0)},
        r"finite in float32, but example 1 is not, nor are 1 of 3",
    ),
    "too large": (
        {"images": np.full((3, 2), 1e39)},
        r"finite in float32, but example 0",
    ),
    "resized vectors": (
        {"images": np.zeros((3, 4)), "size": (2, 2)},
        r"`size`, .* are for images, but `images` of shape \(3, 4\) are vectors",
    ),
    "turned vectors": ({"images": np.zeros((3, 4)), "rotations": 4}, r"are for images"),
    "empty": ({"images": PIXELS[:0]}, r"without empty axes"),
    "floats": (
        {"labels": [0.0, 1.0, 2.0]},
        r"`labels` must be .*integers, got float64",
    ),
    "names": ({"labels": ["a", "b", "c"]}, r"must be a vector of integers.*unique"),
    "one-hot": ({"labels": np.eye(3, dtype=int)}, r"vector of integers.*\(3, 3\)"),
    "length": ({"labels": [0, 1]}, r"got 2 labels for 3 images"),
    "unnamed": (
        {"class_names": ["a", "b"]},
        r"2 names, for labels 0 to 1.*from 0 to 2",
    ),
    "two channels": (
        {"images": np.zeros((3, 2, 2, 2)), "size": (4, 4)},
        r"converted from 1, 3 or 4 channels, got 2; choose some",
    ),
    "negative": (
        {"labels": [-1, 0, 1], "class_names": ["a", "b"]},
        r"labels go from -1 to 1",
    ),
}


@pytest.mark.parametrize("case", ARRAY_ERRORS)
def test_from_arrays_errors(case):
    arguments, message = ARRAY_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        from_arrays(**{"images": PIXELS, "labels": [0, 1, 2], **arguments})


def save(path, array, mode=None):
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, two and one images of 4 x 6 grey pixels."""
    for number, name in enumerate(["b/2.png", "b/10.png", "a/0.png"]):
        save(tmp_path / name, np.full((4, 6), 10 * number, np.uint8))
    (tmp_path / "README.txt").write_text("not a class")
    (tmp_path / "a" / ".hidden").write_text("not an image")
    return tmp_path


def test_folder_becomes_a_table(folder):
    table = from_folder(folder)
    assert table.images.shape == (2, 2, 4, 6, 1)
    assert table.class_names == ("a", "b")
    np.testing.assert_array_equal(table.counts, [1, 2])
    np.testing.assert_array_equal(table.images[:, :, 0, 0, 0], [[20, 0], [10, 0]])


def test_folder_is_converted_on_demand(folder):
    save(folder / "a" / "1.png", np.full((8, 8, 3), 7, np.uint8))
    table = from_folder(folder, size=(5, 5), channels=3, rotations=4)
    assert table.images.shape == (2, 2, 5, 5, 3)
    assert np.all(np.asarray(table.images[0, 1]) == 7)


def test_one_bit_images_are_black_and_white(tmp_path):
    save(tmp_path / "a" / "0.png", np.eye(4, dtype=np.uint8) * 255, mode="1")
    np.testing.assert_array_equal(
        from_folder(tmp_path).images[0, 0, :, :, 0], np.eye(4) * 255
    )


def test_broken_images_are_named(folder):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "png")
    for data in (b"text", b"", buffer.getvalue()[:200]):
        (folder / "b" / "broken.png").write_bytes(data)
        message = r"Cannot read '.*broken\.png' as an image .*replace or remove"
        with pytest.raises(ValueError, match=message):
            from_folder(folder, size=(4, 6))


def test_mixed_images_are_named(folder):
    save(folder / "b" / "large.png", np.zeros((5, 6), np.uint8))
    message = r"first is \(4, 6\) and '.*large\.png' is \(5, 6\).*give `size=\(H, W\)`"
    with pytest.raises(ValueError, match=message):
        from_folder(folder)
    (folder / "b" / "large.png").unlink()
    save(folder / "b" / "colour.png", np.zeros((4, 6, 3), np.uint8))
    message = r"first has 1 and '.*colour\.png' has 3; give `channels`"
    with pytest.raises(ValueError, match=message):
        from_folder(folder)


def test_deep_images_are_refused(folder):
    save(folder / "b" / "deep.png", np.full((4, 6), 1000, np.uint16))
    with pytest.raises(ValueError, match=r"deep\.png'.*'I;16', not 8 bits"):
        from_folder(folder)


def test_folder_layout_errors(folder):
    (folder / "a" / "nested").mkdir()
    with pytest.raises(ValueError, match=r"nested' is not a file; a class folder"):
        from_folder(folder)
    (folder / "0empty").mkdir()
    with pytest.raises(ValueError, match=r"class folder '.*0empty' is empty"):
        from_folder(folder)
    with pytest.raises(ValueError, match=r"nested' has no folders"):
        from_folder(folder / "a" / "nested")
    with pytest.raises(FileNotFoundError, match=r"nowhere' is not a folder"):
        from_folder(folder / "nowhere")


@pytest.mark.parametrize(
    "load",
    [
        from_folder,
        lambda path, **k: from_tfds("a", "b", **k),
        lambda path, **k: from_arrays(PIXELS, [0, 1, 2], **k),
    ],
)
def test_conversion_errors(tmp_path, load):
    for size in ((0, 3), (3,), 3, (3.0, 3.0)):
        message = rf"`size` must be `\(H, W\)`.*got {re.escape(str(size))}"
        with pytest.raises(ValueError, match=message):
            load(tmp_path, size=size)
    with pytest.raises(ValueError, match=r"`channels` must be 1, 3, 4 or None, got 2"):
        load(tmp_path, channels=2)


def without(monkeypatch, *missing):
    """Makes imports of some packages fail as if they were not installed."""
    original = builtins.__import__

    def fake(name, *args, **kwargs):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    for name in missing:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", fake)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "importlib_resources"])
def test_missing_tfds_names_the_extra(monkeypatch, package):
    without(monkeypatch, package)
    with pytest.raises(ImportError, match=rf"{package}.*metajax\[data\]"):
        import_tfds()


def test_missing_pillow_names_the_extra(monkeypatch, folder):
    without(monkeypatch, "PIL")
    with pytest.raises(ImportError, match=r"Pillow.*metajax\[data\]"):
        from_folder(folder)
    with pytest.raises(ImportError, match=r"Pillow.*metajax\[data\]"):
        from_arrays(PIXELS, [0, 1, 2], size=(4, 4))
    # What needs no conversion needs no Pillow.
    from_arrays(PIXELS, [0, 1, 2], size=(2, 2), channels=1)


def test_prepared_omniglot(data_dir):
    pytest.importorskip("tensorflow_datasets")
    table = from_tfds(
        "omniglot",
        "small1[:5%]",
        size=(28, 28),
        channels=1,
        data_dir=data_dir / "tfds",
        download=False,
    )
    assert table.images.shape[2:] == (28, 28, 1)
    assert int(np.sum(table.counts)) == 136
    assert table.class_names[0].startswith("Balinese")
    # The 1-bit pitfall: 0 and 1 would make a black image.
    assert np.asarray(table.images)[:, 0].mean() > 200
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"split": "training"},
            r"`split` must be made of small1, small2, test, train.*got 'training'",
        ),
        ({"image_key": "picture"}, r"`image_key` must be one of alphabet.*'picture'"),
        (
            {"image_key": "label"},
            r"`image_key` must name an image.*'label' of type Class",
        ),
        ({"label_key": "class"}, r"`label_key` must be one of alphabet.*'class'"),
        ({"name": "omniglott"}, r"no data set 'omniglott'.*close names are omniglot"),
        ({"name": "zzzzzz"}, r"no data set 'zzzzzz'.*tfds'. `tfds\.list_builders"),
    ],
)
def test_from_tfds_errors(data_dir, arguments, message):
    pytest.importorskip("tensorflow_datasets")
    options = {"name": "omniglot", "split": "train", "download": False, **arguments}
    with pytest.raises(ValueError, match=message):
        from_tfds(**options, data_dir=data_dir / "tfds")


def test_unprepared_data_say_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    message = r"'mnist' is not prepared in .*`download` is False.*tfds build mnist --fi"
    with pytest.raises(FileNotFoundError, match=message):
        from_tfds("mnist", "train", data_dir=tmp_path, download=False)

    def fail(url):
        raise OSError("no network in tests")

    monkeypatch.setattr(loaders, "require_network", fail)
    message = r"could not be downloaded.*OSError: no network in tests\); on a machine"
    with pytest.raises(FileNotFoundError, match=message):
        from_tfds("mnist", "train", data_dir=tmp_path)


def png(array, mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, "png")
    return buffer.getvalue()


def mocked(monkeypatch, tmp_path, records, **arguments):
    """`from_tfds("mnist", ...)` over the true features and made-up records."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(loaders, "require_network", lambda url: None)

    def as_data_source(builder, split, decoders):
        assert isinstance(decoders["image"], tfds.decode.SkipDecoding)
        return records

    with tfds.testing.mock_data(as_data_source_fn=as_data_source):
        return from_tfds("mnist", "train", data_dir=tmp_path, **arguments)


def test_tfds_records_become_a_table(tmp_path, monkeypatch):
    one_bit = png(np.eye(4, dtype=np.uint8) * 255, mode="1")
    records = [{"image": one_bit, "label": np.int64(label)} for label in (7, 2, 7)]
    table = mocked(monkeypatch, tmp_path, records, rotations=2)
    assert table.class_names == ("2", "7")
    np.testing.assert_array_equal(table.counts, [1, 2])
    # The 1-bit pitfall: TFDS decodes these to 0 and 1, or to 0 and 255.
    np.testing.assert_array_equal(table.images[1, 1, :, :, 0], np.eye(4) * 255)
    assert table.num_classes == 4
    assert "tensorflow" not in sys.modules


def test_mixed_tfds_records_are_named(tmp_path, monkeypatch):
    records = [
        {"image": png(np.zeros((size, 4), np.uint8)), "label": 0} for size in (4, 5)
    ]
    with pytest.raises(ValueError, match=r"image 1 of 'mnist' is \(5, 4\).*give `size"):
        mocked(monkeypatch, tmp_path, records)
    table = mocked(monkeypatch, tmp_path, records, size=(6, 6), channels=3)
    assert table.images.shape == (1, 2, 6, 6, 3)


def test_an_empty_tfds_split_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'train' of 'mnist' holds no images"):
        mocked(monkeypatch, tmp_path, [])


def test_a_host_that_refuses_is_still_a_network(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 403, "no", None, io.BytesIO())

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    require_network("https://example.org/data.zip")

    def unreachable(request, timeout):
        raise urllib.error.URLError("unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(OSError, match="unreachable"):
        require_network("https://example.org/data.zip")


@pytest.mark.parametrize("channels", [1j, 2, "1", {"a": 1}])
def test_wrong_channels_are_named_before_their_size_is_counted(channels):
    images = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match="`channels` must be 1, 3, 4 or None, got"):
        from_arrays(images, [0, 1], size=(4, 5), channels=channels)
