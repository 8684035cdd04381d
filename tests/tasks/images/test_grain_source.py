"""Tables on the host: the same tasks, bit for bit, as on the device."""

import builtins
import itertools

import jax
import numpy as np
import pytest

from metajax.tasks.images.class_table import ClassTable, class_table
from metajax.tasks.images.few_shot import few_shot
from metajax.tasks.images.grain_source import on_host

pytest.importorskip("grain")

OPTIONS = {"way": (2, 3), "shot": (1, 2), "num_queries": 2}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 7, 4, 4, 1), dtype=np.uint8)


COUNTS = np.array([7, 4, 5, 7, 6, 4])


def step_keys(step):
    return jax.random.split(jax.random.fold_in(jax.random.key(1), step), 3)


def host_tasks(images, **options):
    table = ClassTable(images, COUNTS, rotations=4)
    return on_host(few_shot(table, **{**OPTIONS, **options}))


def test_host_equals_device_bit_for_bit(images, tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, images)
    memory_map = np.load(path, mmap_mode="r")
    device = few_shot(class_table(images, COUNTS, rotations=4), **OPTIONS)
    draw = jax.jit(lambda tasks, keys: jax.vmap(tasks)(keys))
    for source in (host_tasks(images), host_tasks(memory_map)):
        batches = list(source.batches(step_keys, 0, 4))
        assert len(batches) == 4
        for step, batch in enumerate(batches):
            expected = draw(device, step_keys(step))
            jax.tree.map(np.testing.assert_array_equal, batch, expected)
            assert jax.tree.structure(batch) == jax.tree.structure(expected)


def test_augmentation_is_the_same(images):
    def flip(key, images):
        return jax.numpy.where(jax.random.bernoulli(key), images[:, ::-1], images)

    device = few_shot(class_table(images, COUNTS), **OPTIONS, augment=flip)
    table = ClassTable(images, COUNTS)
    source = on_host(few_shot(table, **OPTIONS, augment=flip))
    expected = jax.jit(lambda tasks, keys: jax.vmap(tasks)(keys))(device, step_keys(0))
    batch = next(source.batches(step_keys, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, batch, expected)


def test_a_run_resumes_at_any_step(images):
    source = host_tasks(images)
    whole = list(source.batches(step_keys, 0, 6))
    resumed = itertools.islice(source.batches(step_keys, 4), 2)
    for before, after in zip(whole[4:], resumed, strict=True):
        jax.tree.map(np.testing.assert_array_equal, before, after)


def test_no_steps_no_batches(images):
    assert list(host_tasks(images).batches(step_keys, 3, 3)) == []


def test_errors_of_step_keys_reach_the_caller(images):
    def fail(step):
        raise RuntimeError("no keys")

    with pytest.raises(RuntimeError, match="no keys"):
        next(host_tasks(images).batches(fail, 0, 1))


def test_errors(images):
    source = host_tasks(images)
    with pytest.raises(ValueError, match=r"0 <= start <= stop, got 3 and 2"):
        source.batches(step_keys, 3, 2)
    with pytest.raises(ValueError, match=r"numpy array or memory map, got ArrayImpl"):
        on_host(few_shot(class_table(images, COUNTS), **OPTIONS))
    tasks = few_shot(ClassTable(images, COUNTS), **OPTIONS)
    with pytest.raises(ValueError, match=r"`num_threads` must be .* got 0"):
        on_host(tasks, num_threads=0)
    with pytest.raises(ValueError, match=r"`num_prefetch` must be .* got 1.5"):
        on_host(tasks, num_prefetch=1.5)
    with pytest.raises(ValueError, match=r"from a class table, .* got function"):
        on_host(lambda key: None)


def test_missing_grain_names_the_extra(images, monkeypatch):
    original = builtins.__import__

    def fake(name, *args, **kwargs):
        if name == "grain":
            raise ModuleNotFoundError(name)
        return original(name, *args, **kwargs)

    source = host_tasks(images)
    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(ImportError, match=r"Grain.*metajax\[data\]"):
        source.batches(step_keys, 0, 1)
