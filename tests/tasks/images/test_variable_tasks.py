"""Variable tasks: sizes against NumPy, exact sets, groups, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.tasks.images.class_table import ClassTable, class_table
from metajax.tasks.images.grain_source import on_host
from metajax.tasks.images.variable_tasks import _distinct_in_groups, meta_dataset_tasks


def numbered(counts, *, rotations=1):
    """A table in which the two channels of a pixel tell row and example."""
    most = max(counts)
    images = np.zeros((len(counts), most, 2, 2, 2), np.uint8)
    images[..., 0] = 1 + np.arange(len(counts))[:, None, None, None]
    images[..., 1] = np.arange(most)[None, :, None, None]
    return class_table(images, counts, rotations=rotations)


def ids(x):
    """Rows and examples `[..., 2]` of floating images of `numbered`."""
    return np.round(np.asarray(x)[..., 0, 0, :] * 255).astype(int) - [1, 0]


@jax.jit
def draw_one(tasks, key):
    return tasks(key)


@functools.partial(jax.jit, static_argnums=2)
def draw(tasks, key, num):
    return jax.vmap(lambda key: (tasks(key), tasks.composition(key)))(
        jax.random.split(key, num)
    )


def shots_of_paper(rng, counts, *, low, high, max_support, max_per_class, num_queries):
    """Class sizes, shots and queries of a task, by the formulas of the paper."""
    way = rng.integers(low, min(high, len(counts)) + 1)
    sizes = rng.choice(counts, way, replace=False)
    queries = min(num_queries, min(sizes // 2))
    left = sizes - queries
    beta = 1 - rng.uniform()
    total = np.sum(np.ceil(beta * np.minimum(max_per_class, left)))
    total = min(max_support, total)
    share = sizes * np.exp(rng.uniform(np.log(0.5), np.log(2), way))
    share /= share.sum()
    return sizes, np.minimum(np.floor(share * (total - way)) + 1, left), queries


PROTOCOLS = {
    # Small classes limit the queries, and few are many enough for the limit of a class.
    "uneven": ([4, 7, 30, 50, 12, 9, 80, 23], {"way": (3, 6), "max_support": 60}),
    # The limit of the support set holds nearly always.
    "capped": ([40] * 9, {"way": (5, 50), "max_support": 30, "max_per_class": 20}),
    # As Omniglot: nothing is capped.
    "even": ([20] * 12, {}),
}
DEFAULTS = {"way": (5, 50), "max_support": 500, "max_per_class": 100, "num_queries": 10}


def statistics(sizes, shots, queries):
    """What is compared: `[statistics]` of one task, absent classes left out."""
    total = np.sum(shots)
    share = np.sum(shots * sizes) / np.sum(sizes) / total
    imbalance = np.max(shots / sizes) / np.min(shots / sizes)
    full = np.mean(shots == sizes - queries)
    return [len(shots), total, total**2, queries, share, np.max(shots), imbalance, full]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_sizes_are_distributed_as_in_the_paper(name):
    """Means of several statistics within 4.5 standard errors of NumPy's."""
    counts, changes = PROTOCOLS[name]
    counts = np.array(counts)
    arguments = DEFAULTS | changes
    num = 6_000
    tasks = meta_dataset_tasks(numbered(counts), **arguments)
    keys = jax.random.split(jax.random.key(5), num)
    got = jax.device_get(
        jax.jit(lambda tasks, keys: jax.vmap(tasks.composition)(keys))(tasks, keys)
    )
    ours = []
    for class_ids, shots, queries in zip(*got, strict=True):
        is_real = shots > 0
        ours.append(statistics(counts[class_ids[is_real]], shots[is_real], queries))
    low, high = arguments.pop("way")
    rng = np.random.default_rng(0)
    theirs = [
        statistics(*shots_of_paper(rng, counts, low=low, high=high, **arguments))
        for _ in range(num)
    ]
    ours, theirs = np.array(ours), np.array(theirs)
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / num)
    difference = np.abs(ours.mean(axis=0) - theirs.mean(axis=0))
    assert np.all(difference <= 4.5 * error + 1e-12), (difference / error).round(1)


def check_task(task, composition, counts):
    """What holds exactly for every task."""
    class_ids, shots, queries = composition
    support, query = task
    way = int(np.sum(shots > 0))
    assert np.all(shots[:way] > 0)
    assert len(set(class_ids[:way].tolist())) == way
    num = int(shots.sum())
    mask = np.arange(len(support.y)) < num
    np.testing.assert_array_equal(support.mask, mask)
    labels = np.repeat(np.arange(way), shots[:way])
    np.testing.assert_array_equal(support.y[:num], labels)
    assert np.all(support.y[num:] == 0)
    rows = len(query.y) // len(shots)
    place, draw = np.divmod(np.arange(len(query.y)), rows)
    mask = (place < way) & (draw < queries)
    np.testing.assert_array_equal(query.mask, mask)
    np.testing.assert_array_equal(query.y, np.where(mask, place, 0))

    seen = np.concatenate([ids(support.x)[support.mask], ids(query.x)[query.mask]])
    labels = np.concatenate([support.y[support.mask], query.y[query.mask]])
    np.testing.assert_array_equal(seen[:, 0], class_ids[labels])
    assert len(set(map(tuple, seen.tolist()))) == len(seen)
    assert np.all(seen[:, 1] < counts[seen[:, 0]])
    for examples in task:
        assert np.all(examples.x[~examples.mask] == 0)


@settings(deadline=None, max_examples=4)
@given(
    st.lists(st.integers(2, 12), min_size=8, max_size=8),
    st.integers(0, 2**32 - 1),
)
def test_every_task_keeps_the_rules(counts, seed):
    tasks = meta_dataset_tasks(numbered(counts), way=(2, 6), max_support=20)
    got = jax.device_get(draw(tasks, jax.random.key(seed), 5))
    for i in range(5):
        task, composition = jax.tree.map(lambda leaf, i=i: leaf[i], got)
        check_task(task, composition, np.array(counts))
        sizes = np.array(counts)[composition.class_ids[composition.shots > 0]]
        assert composition.num_queries == min(10, min(sizes // 2))
        assert 2 <= len(sizes) <= 6
        assert composition.shots.sum() <= 20


def test_rows_suffice_and_are_not_more_than_can_be_filled():
    """Twelve classes of 20: 10 queries and up to 10 shots each."""
    tasks = meta_dataset_tasks(numbered([20] * 12))
    task, composition = draw(tasks, jax.random.key(0), 400)
    assert task.support.y.shape == (400, 120)
    assert task.query.y.shape == (400, 120)
    assert composition.shots.sum(axis=1).max() > 100
    few = meta_dataset_tasks(numbered([5] * 12), max_support=30)
    task = jax.eval_shape(few, jax.random.key(0))
    assert task.support.y.shape == (30,)
    assert task.query.y.shape == (24,)


def test_examples_are_uniform_over_ordered_choices():
    """Two draws of 4 and three of 3 in one call: all 12 times 6 outcomes as often."""
    num = 20_000
    sizes, groups = jnp.array([4, 3, 4, 3, 9, 3]), jnp.array([2, 0, 2, 0, -1, 0])
    numbers = jnp.array([0, 0, 1, 1, 5, 2])
    keys = jax.random.split(jax.random.key(0), num)
    got = np.asarray(
        jax.jit(jax.vmap(lambda key: _distinct_in_groups(key, sizes, groups, numbers)))(
            keys
        )
    )
    assert np.all(got[:, 4] == 0)
    outcomes, counts = np.unique(got, axis=0, return_counts=True)
    assert len(outcomes) == 12 * 6
    chi2 = np.sum((counts - num / 72) ** 2) / (num / 72)
    assert chi2 < 71 + 5 * np.sqrt(2 * 71)


def test_groups_are_kept_and_uniform():
    """Groups of 3 and 5 rows with two rotations, so of 6 and 10 classes."""
    groups = np.array(["b", "a", "a", "b", "a", "b", "a", "a"])
    table = numbered([6] * 8, rotations=2)
    tasks = meta_dataset_tasks(table, way=(4, 9), groups=groups)
    num = 4_000
    got = jax.device_get(
        jax.jit(lambda tasks, keys: jax.vmap(tasks.composition)(keys))(
            tasks, jax.random.split(jax.random.key(2), num)
        )
    )
    is_real = got.shots > 0
    label = groups[got.class_ids // 2]
    of_a = label[:, 0] == "a"
    assert np.all((label == label[:, :1]) | ~is_real)
    assert abs(of_a.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(num)
    way = is_real.sum(axis=1)
    for is_member, high in ((of_a, 9), (~of_a, 6)):
        assert set(way[is_member]) == set(range(4, high + 1))
        middle, spread = (4 + high) / 2, np.sqrt(((high - 3) ** 2 - 1) / 12)
        count = is_member.sum()
        assert abs(way[is_member].mean() - middle) < 4.5 * spread / np.sqrt(count)
    small = [row[:w].tolist() for row, w in zip(got.class_ids, way, strict=True)]
    assert all(len(set(row)) == len(row) for row in small)
    assert {row[0] for row in small} == set(range(16))


def test_rotated_classes_are_quarter_turns(key):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (3, 6, 5, 5, 1), dtype=np.uint8)
    tasks = meta_dataset_tasks(class_table(images, rotations=4), way=(12, 12))
    task, indices = jax.jit(lambda tasks, key: (tasks(key), tasks.indices(key)))(
        tasks, key
    )
    num = len(task.support.y)
    x = np.concatenate([task.support.x, task.query.x])
    for row in (0, num - 1, num, len(x) - 1):
        class_id, example = indices.class_ids[row], indices.example_ids[row]
        expected = np.rot90(images[class_id // 4, example], class_id % 4) / 255
        is_real = np.concatenate([task.support.mask, task.query.mask])[row]
        np.testing.assert_allclose(x[row], expected * is_real, rtol=1e-6)


def test_a_task_is_the_same_alone_and_in_a_batch(key):
    tasks = meta_dataset_tasks(numbered([9, 4, 7]), way=(2, 3))
    batch, _ = draw(tasks, key, 3)
    alone = draw_one(tasks, jax.random.split(key, 3)[1])
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y), batch, alone)


def test_augmentation_leaves_padding_alone(key):
    def augment(key, images):
        return images + 1 + jax.random.uniform(key)

    table = numbered([9, 4, 7])
    task, plain = (
        draw_one(meta_dataset_tasks(table, way=(2, 3), augment=change), key)
        for change in (augment, None)
    )
    added = [a.x - b.x for a, b in zip(task, plain, strict=True)]
    values = []
    for change, examples in zip(added, plain, strict=True):
        assert np.all(change[~examples.mask] == 0)
        values.append(float(change[0, 0, 0, 0]))
        np.testing.assert_allclose(change[examples.mask], values[-1], rtol=1e-5)
    assert min(values) > 1
    assert values[0] != values[1]


def test_the_same_tasks_from_the_host(key):
    pytest.importorskip("grain")
    table = numbered([9, 4, 7])
    tasks = meta_dataset_tasks(table, way=(2, 3))
    on_disk = ClassTable(np.asarray(table.images), np.asarray(table.counts))
    source = on_host(meta_dataset_tasks(on_disk, way=(2, 3)))
    keys = jax.random.split(key, 3)
    batch = next(source.batches(lambda step: keys, 0, 1))
    expected, _ = draw(tasks, key, 3)
    jax.tree.map(np.testing.assert_array_equal, batch, expected)


BAD = {
    "a class of one example": (
        {"table": numbered([5, 1, 4])},
        r"at least 2 examples.* class row 1 has 1; leave out small",
    ),
    "fewer classes than asked for": (
        {},
        r"asks for at least 5 classes but the table has 3; lower `way`",
    ),
    "a way above the classes": ({"way": 4}, "at least 4 classes but the table has 3"),
    "a small group": (
        {"way": (2, 3), "groups": ["x", "y", "x"]},
        "at least 2 classes but group 'y' has 1; lower `way`",
    ),
    "groups of other rows": (
        {"way": 2, "groups": [0, 1]},
        "a label for each of the 3 rows of the table, got 2",
    ),
    "no group": ({"way": 2, "groups": 7}, "each of the 3 rows of the table, got 0"),
    "a range that falls": ({"way": (3, 2)}, "low <= high, got \\(3, 2\\)"),
    "too little support": (
        {"way": 3, "max_support": 2},
        "for each of up to 3 classes, got 2; raise it or lower `way`",
    ),
    "nothing of a class": (
        {"max_per_class": 0},
        "`max_per_class` must be an integer of at least 1, got 0",
    ),
    "no queries": ({"num_queries": 0}, "`num_queries` must be an integer of at least"),
    "integers": ({"way": 2, "dtype": int}, "`dtype` must be a floating type"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, message = BAD[name]
    arguments = {"table": numbered([5, 3, 4])} | changes
    with pytest.raises(ValueError, match=message):
        meta_dataset_tasks(**arguments)
