"""Omniglot: the published splits, equal tables from every source, bad input."""

import shutil

import numpy as np
import pytest

from metajax.tasks.images import omniglot as module
from metajax.tasks.images.omniglot import omniglot, omniglot_classes

COUNTS = {
    "vinyals": {
        "meta_train": 1028,
        "meta_valid": 172,
        "meta_trainval": 1200,
        "meta_test": 423,
    },
    "lake": {
        "meta_train": 792,
        "meta_valid": 172,
        "meta_trainval": 964,
        "meta_test": 659,
    },
}
NAMES = {"train": "meta_train", "val": "meta_valid", "test": "meta_test"}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def fail(url):
        raise OSError("no network in tests")

    monkeypatch.setattr(module, "require_network", fail)


@pytest.mark.parametrize("protocol", COUNTS)
def test_splits_have_the_published_sizes_and_are_disjoint(protocol):
    splits = {
        name: omniglot_classes(name, protocol=protocol) for name in module._SPLITS
    }
    assert {name: len(rows) for name, rows in splits.items()} == COUNTS[protocol]
    held = [set(splits[name].tolist()) for name in NAMES.values()]
    assert sum(map(len, held)) == len(set.union(*held)) == 1623
    assert set.union(*held) == set(range(1623))
    assert held[0] | held[1] == set(splits["meta_trainval"].tolist())


def test_lake_trains_on_the_background_only():
    np.testing.assert_array_equal(
        omniglot_classes("meta_trainval", protocol="lake"), np.arange(964)
    )


@pytest.mark.parametrize("name", NAMES)
def test_vinyals_split_is_the_published_one(data_dir, name):
    path = data_dir / "omniglot" / "splits_vinyals" / f"{name}.txt"
    if not path.is_file():
        pytest.skip("the published lists are not there")
    published = {line.rsplit("/", 1)[0] for line in path.read_text().split()}
    with np.load(data_dir / "omniglot" / "omniglot_28x28.npz") as file:
        classes = zip(file["alphabet"], file["character"], strict=True)
        names = [f"{alphabet}/{character}" for alphabet, character in classes]
    ours = [names[row] for row in omniglot_classes(NAMES[name])]
    assert set(ours) == published
    table = omniglot(NAMES[name], data_dir=data_dir)
    assert list(table.class_names) == ours


def test_table_is_ink_on_nothing(data_dir):
    table = omniglot("meta_valid", data_dir=data_dir, download=False)
    assert table.images.shape == (172, 20, 28, 28, 1)
    assert table.num_classes == 688
    assert np.all(np.asarray(table.counts) == 20)
    images = np.asarray(table.images)
    assert (images.min(), images.max()) == (0, 255)
    assert 10 < images.mean() < 40  # about a tenth of the paper is ink


def test_data_dir_defaults_to_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("METAJAX_DATA_DIR", str(data_dir))
    assert omniglot("meta_valid", rotations=1).num_classes == 172


@pytest.mark.slow
@pytest.mark.parametrize("source", ["prepared", "zips", "download"])
def test_all_sources_give_the_same_table(data_dir, tmp_path, monkeypatch, source):
    if source == "prepared":
        (tmp_path / "tfds").symlink_to(data_dir / "tfds")
    elif source == "zips":
        for name in module._ZIPS:
            (tmp_path / name).symlink_to(data_dir / "omniglot" / name)
    else:
        put_in_download_cache(data_dir / "omniglot", tmp_path)
        monkeypatch.setattr(module, "require_network", lambda url: None)
    found = omniglot("meta_test", data_dir=tmp_path, download=source == "download")
    assert (tmp_path / "omniglot_28x28.npz").is_file()
    again = omniglot("meta_test", data_dir=tmp_path, download=False)
    expected = omniglot("meta_test", data_dir=data_dir, download=False)
    for table in (found, again):
        np.testing.assert_array_equal(table.images, expected.images)


def put_in_download_cache(zips, data_dir):
    """Places the zip files where TFDS keeps what it has downloaded."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.download import resource

    builder = tfds.builder("omniglot", data_dir=data_dir)
    for url, info in type(builder).url_infos.items():
        if info.filename in module._ZIPS:
            name = resource.get_dl_fname(url, info.checksum)
            path = data_dir / "downloads" / "omniglot" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(zips / info.filename, path)
            resource.write_info_file(
                url=url,
                path=path,
                dataset_name="omniglot",
                original_fname=info.filename,
                url_info=info,
            )


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(KeyboardInterrupt):
        module._keep(tmp_path, np.zeros((1, 1, 28, 28), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    def fail(**arguments):
        raise PermissionError

    monkeypatch.setattr(module.tempfile, "mkstemp", fail)
    images = module._keep(tmp_path, np.zeros((1, 1, 28, 28), np.uint8))
    assert np.all(images == 255)
    assert list(tmp_path.iterdir()) == []


def test_missing_data_say_what_to_do(tmp_path, monkeypatch):
    message = r"`download` is False.*images_background\.zip.*METAJAX_DATA_DIR.*glyphs"
    with pytest.raises(FileNotFoundError, match=message):
        omniglot("meta_train", data_dir=tmp_path, download=False)
    monkeypatch.setenv("METAJAX_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"elsewhere"):
        omniglot("meta_train", download=False)


def test_no_network_says_what_to_do(tmp_path):
    message = r"could not be downloaded \(no network in tests\)\. Put images_backg"
    with pytest.raises(FileNotFoundError, match=message):
        omniglot("meta_train", data_dir=tmp_path)


def test_half_written_cache_is_named(tmp_path, data_dir):
    whole = (data_dir / "omniglot" / "omniglot_28x28.npz").read_bytes()
    path = tmp_path / "omniglot_28x28.npz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"omniglot_28x28.*not a readable.*delete it"):
        omniglot("meta_train", data_dir=tmp_path)


def test_foreign_cache_is_named(tmp_path):
    np.savez(tmp_path / "omniglot_28x28.npz", images=np.zeros((3, 3)))
    with pytest.raises(
        ValueError, match=r"must hold `images` uint8 \(1623, 20.*delete"
    ):
        omniglot("meta_train", data_dir=tmp_path)


def test_incomplete_source_is_an_error():
    with pytest.raises(ValueError, match=r"20 images of each.*class 0 has 0"):
        module._collect([])


@pytest.mark.parametrize("constructor", [omniglot, omniglot_classes])
def test_unknown_names(constructor):
    with pytest.raises(
        ValueError, match=r"`split` must be one of meta_train, .*'train'"
    ):
        constructor("train")
    with pytest.raises(
        ValueError, match=r"`protocol` must be 'vinyals' or 'lake', got"
    ):
        constructor("meta_train", protocol="ravi")
