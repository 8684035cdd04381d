"""Tasks from class tables: exact draws, disjoint sets, rotations, masks, bad input."""

import collections
import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metajax.tasks.images.class_table import (
    ClassTable,
    class_table,
    join_classes,
    split_classes,
)
from metajax.tasks.images.few_shot import distinct, few_shot, whole_classes
from metajax.tasks.images.variable_tasks import meta_dataset_tasks


def numbered(rows, size, *, counts=None, rotations=1, side=3):
    """A table in which every pixel tells row and example: `row * size + example`."""
    ids = np.arange(rows * size, dtype=np.uint8).reshape(rows, size, 1, 1, 1)
    images = np.broadcast_to(ids, (rows, size, side, side, 1)).copy()
    return class_table(images, counts, rotations=rotations)


def image_ids(x):
    """Undoes `numbered`: the ids `[...]` of floating images `[..., H, W, C]`."""
    return np.round(np.asarray(x)[..., 0, 0, 0] * 255).astype(int)


@jax.jit
def draw_one(tasks, key):
    return tasks(key), tasks.indices(key)


@functools.partial(jax.jit, static_argnums=2)
def draw(tasks, key, num):
    return jax.vmap(lambda key: draw_one(tasks, key))(jax.random.split(key, num))


def assert_uniform(counts, num_draws):
    """Chi-square of equal probabilities, within 5 standard deviations of its mean."""
    expected = num_draws / len(counts)
    chi2 = np.sum((np.asarray(counts) - expected) ** 2) / expected
    freedom = len(counts) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


def test_distinct_is_uniform_over_ordered_choices(key):
    num = 24_000
    draws = jax.jit(jax.vmap(lambda key: distinct(key, 5, 3)))(
        jax.random.split(key, num)
    )
    seen = collections.Counter(map(tuple, np.asarray(draws).tolist()))
    assert set(seen) == set(itertools.permutations(range(5), 3))
    assert_uniform(list(seen.values()), num)


# 40 draws are past the length to which the loop is unrolled.
@pytest.mark.parametrize("num_draws", [1, 7, 40])
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(0, 2**32 - 1))
def test_distinct_never_repeats(num_draws, extra, seed):
    sample = jax.jit(distinct, static_argnums=2)
    draws = np.asarray(sample(jax.random.key(seed), num_draws + extra, num_draws))
    assert len(set(draws.tolist())) == num_draws
    assert draws.min() >= 0
    assert draws.max() < num_draws + extra


COUNTS = np.array([4, 7, 5, 9, 6, 8])
NUM_TASKS = 8_000


@pytest.fixture(scope="module")
def ragged():
    """Tasks over classes of different sizes, 3-way 2-shot with 2 queries."""
    return few_shot(numbered(6, 9, counts=COUNTS), way=3, shot=2, num_queries=2)


@pytest.fixture(scope="module")
def drawn(ragged):
    """Many of these tasks, and their indices, in numpy."""
    return jax.device_get(draw(ragged, jax.random.key(3), NUM_TASKS))


def test_classes_and_examples_are_uniform(drawn):
    _, indices = drawn
    for place in range(3):
        assert_uniform(np.bincount(indices.class_ids[:, place], minlength=6), NUM_TASKS)
    for row, count in enumerate(COUNTS):
        chosen = indices.example_ids[indices.class_ids == row]
        for place in range(4):
            seen = np.bincount(chosen[:, place])
            assert len(seen) == count
            assert_uniform(seen, len(chosen))


def test_examples_of_two_classes_are_independent(drawn):
    """The first examples of the classes of 4 and 8, where these are drawn first.

    4 divides 8, so that equal random bits would show.
    """
    _, indices = drawn
    chosen = np.all(indices.class_ids[:, :2] == [0, 5], axis=1)
    first = indices.example_ids[chosen, :, 0]
    assert_uniform(np.bincount(first[:, 0] * 8 + first[:, 1], minlength=32), len(first))


def test_no_image_and_no_class_occurs_twice_in_a_task(drawn):
    task, _ = drawn
    ids = np.concatenate([image_ids(task.support.x), image_ids(task.query.x)], axis=1)
    assert all(len(set(row)) == 3 * 4 for row in ids.tolist())
    assert all(len(set(row)) == 3 for row in (ids // 9).tolist())


def test_padding_of_small_classes_is_never_drawn(drawn):
    ids = image_ids(drawn[0].query.x)
    assert np.all(ids % 9 < COUNTS[ids // 9])


def test_sets_are_class_major_with_local_labels(drawn):
    task, indices = drawn
    assert task.support.x.shape == (NUM_TASKS, 6, 3, 3, 1)
    assert task.query.x.shape == (NUM_TASKS, 6, 3, 3, 1)
    assert task.support.x.dtype == np.float32
    assert task.support.y.dtype == np.int32
    assert task.support.mask is None
    assert task.query.mask is None
    np.testing.assert_array_equal(task.support.y[0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(task.query.y[0], [0, 0, 1, 1, 2, 2])
    ids = indices.class_ids[:, :, None] * 9 + indices.example_ids
    np.testing.assert_array_equal(
        image_ids(task.support.x), ids[:, :, :2].reshape(-1, 6)
    )
    np.testing.assert_array_equal(image_ids(task.query.x), ids[:, :, 2:].reshape(-1, 6))


def test_same_key_same_task(ragged, drawn):
    keys = jax.random.split(jax.random.key(3), NUM_TASKS)
    for place in (0, 7):
        expected = jax.tree.map(lambda leaf, place=place: leaf[place], drawn)
        got = draw_one(ragged, keys[place])
        jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_jit_changes_nothing(ragged, key):
    jax.tree.map(np.testing.assert_array_equal, ragged(key), draw_one(ragged, key)[0])


def test_values_run_from_zero_to_one(key):
    images = np.zeros((2, 2, 2, 2, 1), np.uint8)
    images[:, :, 0] = 255
    tasks = few_shot(class_table(images), way=2, shot=1, num_queries=1)
    task, _ = draw_one(tasks, key)
    np.testing.assert_array_equal(np.unique(task.support.x), [0.0, 1.0])


@pytest.mark.parametrize("rotations", [2, 4])
def test_rotated_classes_are_quarter_turns(key, rotations):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, 5, 5, 2), dtype=np.uint8)
    table = class_table(images, rotations=rotations)
    assert table.num_classes == 3 * rotations
    tasks = few_shot(table, way=3 * rotations, shot=1, num_queries=2)
    task, indices = draw_one(tasks, key)
    assert sorted(np.asarray(indices.class_ids)) == list(range(3 * rotations))
    query = np.asarray(task.query.x).reshape(-1, 2, 5, 5, 2)
    for place, class_id in enumerate(np.asarray(indices.class_ids)):
        row, turns = divmod(class_id, rotations)
        for example in range(3):
            base = images[row, indices.example_ids[place, example]]
            got = task.support.x[place] if example == 0 else query[place, example - 1]
            np.testing.assert_array_equal(
                np.round(np.asarray(got) * 255), np.rot90(base, turns)
            )


def test_masks_say_what_is_real(key):
    tasks = few_shot(numbered(8, 10), way=(2, 4), shot=(1, 3), num_queries=2)
    task, _ = draw(tasks, key, 3_000)
    support = np.asarray(task.support.mask).reshape(-1, 4, 3)
    query = np.asarray(task.query.mask).reshape(-1, 4, 2)
    way, shot = support.any(2).sum(1), support.any(1).sum(1)
    expected = np.arange(4)[:, None] < way[:, None, None]
    np.testing.assert_array_equal(query, np.broadcast_to(expected, query.shape))
    np.testing.assert_array_equal(
        support, expected & (np.arange(3) < shot[:, None, None])
    )
    pairs = (way - 2) * 3 + (shot - 1)
    assert_uniform(np.bincount(pairs, minlength=9), 3_000)


def test_a_range_of_shots_leaves_queries_without_a_mask(key):
    tasks = few_shot(numbered(4, 6), way=3, shot=(1, 3), num_queries=2)
    task = jax.eval_shape(tasks, key)
    assert task.support.mask.shape == (9,)
    assert task.query.mask is None


def test_augmentation_sees_float_images_and_two_keys(key):
    def shift(key, images):
        assert images.dtype == jnp.float32
        return images + jax.random.normal(key)

    table = numbered(4, 6)
    options = {"way": 3, "shot": 2, "num_queries": 2}
    plain, _ = draw_one(few_shot(table, **options), key)
    shifted, _ = draw_one(few_shot(table, **options, augment=shift), key)
    by_support = np.asarray(shifted.support.x - plain.support.x)
    by_query = np.asarray(shifted.query.x - plain.query.x)
    np.testing.assert_allclose(by_support, by_support.flat[0], atol=1e-6)
    np.testing.assert_allclose(by_query, by_query.flat[0], atol=1e-6)
    assert abs(by_support.flat[0] - by_query.flat[0]) > 1e-3


def test_dtype_of_images(key):
    tasks = few_shot(numbered(3, 4), way=2, shot=1, num_queries=1, dtype=jnp.bfloat16)
    assert jax.eval_shape(tasks, key).support.x.dtype == jnp.bfloat16


def test_tables_of_one_shape_share_a_program(key):
    traces = []

    @jax.jit
    def sample(tasks, key):
        traces.append(1)
        return tasks(key)

    for name in ("a", "b"):
        images = np.zeros((3, 4, 2, 2, 1), np.uint8)
        table = class_table(images, class_names=[name, name + "1", name + "2"])
        sample(few_shot(table, way=2, shot=1, num_queries=1), key)
    assert len(traces) == 1


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from([20, 33]),
    st.lists(st.floats(0.15, 1.0), min_size=1, max_size=3),
    st.integers(0, 2**31),
)
def test_splits_are_disjoint(rows, weights, seed):
    images = np.arange(rows, dtype=np.uint8).reshape(rows, 1, 1, 1, 1)
    fractions = np.asarray(weights) / max(1.0, sum(weights))
    table = ClassTable(images, np.ones(rows, np.int32))
    parts = split_classes(table, jax.random.key(seed), fractions)
    held = [set(np.asarray(part.images).ravel().tolist()) for part in parts]
    assert sum(map(len, held)) == len(set.union(*held))
    for part, fraction in zip(held, fractions, strict=True):
        assert abs(len(part) - fraction * rows) <= 1
    if math.isclose(sum(fractions), 1):
        assert len(set.union(*held)) == rows


def test_split_keeps_rotations_counts_and_names_together(key):
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1, 1)
    table = class_table(
        np.tile(images, (1, 5, 1, 1, 1)),
        np.arange(10) % 5 + 1,
        rotations=4,
        class_names=[f"class{row}" for row in range(10)],
    )
    train, test = split_classes(table, key, (0.8, 0.2))
    assert (train.num_classes, test.num_classes) == (32, 8)
    for part in (train, test):
        rows = np.asarray(part.images)[:, 0, 0, 0, 0]
        assert part.class_names == tuple(f"class{row}" for row in rows)
        np.testing.assert_array_equal(part.counts, rows % 5 + 1)
        assert np.all(np.diff(rows.astype(int)) > 0)
    again, _ = split_classes(table, key, (0.8, 0.2))
    np.testing.assert_array_equal(again.images, train.images)


def test_errors_name_the_part_that_is_too_small(key):
    table = class_table(zeros(15, 4, 6, 6, 1))
    names = ("meta_train", "meta_valid", "meta_test")
    for own, name in ((names, "meta_valid"), (None, "part 1")):
        part = split_classes(table, key, (0.64, 0.16, 0.2), own)[1]
        told = (
            rf"the table, {name} \(0.16 of 15 by `fractions`\), has 2; lower `way` or "
        )
        with pytest.raises(
            ValueError, match=rf"3 classes but {told}.* larger fraction"
        ):
            few_shot(part, way=3, shot=1, num_queries=1)
    with pytest.raises(ValueError, match=r"the table, of meta_valid .*, has 2; lower"):
        meta_dataset_tasks(
            split_classes(table, key, (0.64, 0.16, 0.2), names)[1], way=(3, 5)
        )
    # It is told of what is taken and drawn from, and no static data of programs.
    tasks = [
        few_shot(part, way=1, shot=1, num_queries=1)
        for part in split_classes(table, key, (0.4, 0.4), ("a", "b"))
    ]
    assert jax.tree.structure(tasks[0]) == jax.tree.structure(tasks[1])
    turned = class_table(zeros(2, 4, 6, 6, 1), rotations=4)
    with pytest.raises(ValueError, match=r"has 8 \(2, each in 4 rotations\)"):
        few_shot(turned, way=9, shot=1, num_queries=1)
    with pytest.raises(ValueError, match=r"\(meta_train 15, meta_valid 0\)"):
        split_classes(table, key, (0.98, 0.02), names[:2])
    with pytest.raises(ValueError, match=r"`names` must be one for each of the 2"):
        split_classes(table, key, (0.5, 0.5), names)


def zeros(*shape):
    return np.zeros(shape, np.uint8)


TABLE_ERRORS = {
    "dtype": ({"images": np.zeros((2, 3, 4, 4, 1))}, r"must be a uint8 .*float64.*fr"),
    "list": ({"images": [[0]]}, r"`images` must be a uint8 array, got list"),
    "rank": ({"images": zeros(2, 3, 4, 4)}, r"\[rows, .*\].*got \(2, 3, 4, 4\)"),
    "empty": ({"images": zeros(0, 3, 4, 4, 1)}, r"without empty axes"),
    "turns": ({"rotations": 3}, r"`rotations` must be 1, 2 or 4, got 3"),
    "oblong": (
        {"images": zeros(2, 3, 4, 5, 1), "rotations": 4},
        r"`rotations` of 4 needs square images, got 4 x 5",
    ),
    "length": ({"counts": [3]}, r"`counts` must be 2 integers.*got shape \(1,\)"),
    "floats": ({"counts": [1.0, 2.0]}, r"`counts` must be 2 integers.*float64"),
    "many": ({"counts": [3, 4]}, r"`counts` must lie in \[1, 3\].*from 3 to 4"),
    "none": ({"counts": [0, 3]}, r"`counts` must lie in \[1, 3\].*from 0 to 3"),
    "names": ({"class_names": ["a"]}, r"name each of the 2 rows, got 1 names"),
}


@pytest.mark.parametrize("case", TABLE_ERRORS)
def test_table_errors(case):
    arguments, message = TABLE_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        class_table(**{"images": zeros(2, 3, 4, 4, 1), **arguments})


FEW_SHOT_ERRORS = {
    "examples": (
        {"shot": 3, "num_queries": 2},
        r"needs 5 examples of every class but class row 1 \('b'\) has 4; lower",
    ),
    "range": ({"shot": (1, 4)}, r"needs 5 examples .* has 4"),
    "classes": ({"way": 7}, r"`way` asks for 7 classes but the table has 6"),
    "way": ({"way": 0}, r"`way` must be an integer of at least 1 or a range .*got 0"),
    "order": ({"way": (3, 2)}, r"`way` must be .* low <= high, got \(3, 2\)"),
    "triple": ({"shot": (1, 2, 3)}, r"`shot` must be .*got \(1, 2, 3\)"),
    "float": ({"shot": 1.0}, r"`shot` must be .*got 1\.0"),
    "bool": ({"shot": True}, r"`shot` must be .*got True"),
    "queries": (
        {"num_queries": 0},
        r"`num_queries` must be .* at least 1, got 0",
    ),
    "dtype": ({"dtype": jnp.int32}, r"`dtype` must be a floating type"),
}


@pytest.mark.parametrize("case", FEW_SHOT_ERRORS)
def test_few_shot_errors(case):
    arguments, message = FEW_SHOT_ERRORS[case]
    table = class_table(
        zeros(3, 6, 4, 4, 1), [5, 4, 6], rotations=2, class_names=["a", "b", "c"]
    )
    with pytest.raises(ValueError, match=message):
        few_shot(table, **{"way": 2, "shot": 1, "num_queries": 1, **arguments})


def test_few_shot_checks_a_table_built_by_hand():
    with pytest.raises(ValueError, match=r"`images` must be a uint8 array"):
        few_shot(
            ClassTable(np.zeros((2, 3, 4, 4, 1)), np.full(2, 3)),
            way=2,
            shot=1,
            num_queries=1,
        )


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_few_shot_accepts_exactly_what_fits(counts, way, shot, num_queries):
    table = numbered(len(counts), 6, counts=counts, side=1)
    if way <= len(counts) and shot + num_queries <= min(counts):
        few_shot(table, way=way, shot=shot, num_queries=num_queries)
    else:
        with pytest.raises(
            ValueError, match=r"needs \d+ examples|asks for \d+ classes"
        ):
            few_shot(table, way=way, shot=shot, num_queries=num_queries)


TAKE_ERRORS = {
    "empty": ([], r"non-empty list of integers"),
    "floats": ([0.5], r"non-empty list of integers.*float64"),
    "range": ([0, 3], r"\[0, 3\).*from 0 to 3"),
    "twice": ([1, 1], r"`rows` must be distinct"),
}


@pytest.mark.parametrize("case", TAKE_ERRORS)
def test_take_errors(case):
    rows, message = TAKE_ERRORS[case]
    with pytest.raises(ValueError, match=message):
        numbered(3, 2).take(rows)


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ((0.8, 0.3), r"sum of at most 1, got \(0\.8, 0\.3\)"),
        ((1.0, 0.0), r"must be positive"),
        ((float("nan"),), r"must be positive"),
        ((0.9, 0.1), r"leave a part of the 3 rows empty"),
    ],
)
def test_split_errors(key, fractions, message):
    with pytest.raises(ValueError, match=message):
        split_classes(numbered(3, 2), key, fractions)


def test_joined_tables_have_all_classes():
    first = numbered(2, 3, counts=[3, 2], rotations=4)
    second = numbered(3, 5, counts=[1, 5, 4], rotations=4)
    both = join_classes([first, second])
    assert both.num_classes == 20
    np.testing.assert_array_equal(both.counts, [3, 2, 1, 5, 4])
    np.testing.assert_array_equal(both.images[:2, :3], first.images)
    np.testing.assert_array_equal(both.images[2:], second.images)
    assert np.all(np.asarray(both.images[:2, 3:]) == 0)
    assert both.class_names is None
    names = [dataclasses.replace(t, class_names=n) for t, n in ((first, ("a", "b")),)]
    assert join_classes([*names, *names]).class_names == ("a", "b", "a", "b")
    assert join_classes([*names, second]).class_names is None


def test_joined_embeddings():
    tables = [class_table(np.full((2, 3, 4), value, np.float32)) for value in (1, 2)]
    assert join_classes(tables).images.shape == (4, 3, 4)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "at least one table, got none"),
        (
            [numbered(2, 2), numbered(2, 2, side=5)],
            r"table 0 has \(\(3, 3, 1\).*table 1",
        ),
        ([numbered(2, 2), numbered(2, 2, rotations=2)], "rotations of their images"),
    ],
)
def test_join_errors(tables, message):
    with pytest.raises(ValueError, match=message):
        join_classes(tables)


def test_whole_classes_draws_every_class_and_real_example():
    """Pixels say class, turn and example; rows have different numbers of them."""
    counts = [2, 3]
    images = np.zeros((2, 3, 4, 4, 1), np.uint8)
    for row in range(2):
        for column in range(3):
            images[row, column, 0, 0] = 100 * row + 10 * column + 10
    table = class_table(images, counts, rotations=4)
    tasks = whole_classes(table, batch_size=400)
    task = jax.jit(lambda tasks, key: tasks(key))(tasks, jax.random.key(0))
    np.testing.assert_array_equal(task.support.x, task.query.x)
    assert task.query.x.shape == (400, 4, 4, 1)
    assert task.query.y.dtype == jnp.int32
    seen = set()
    for x, label in zip(
        np.asarray(task.query.x), np.asarray(task.query.y), strict=True
    ):
        value = np.rot90(x[..., 0], -(label % 4))[0, 0] * 255
        row, column = divmod(round(float(value)) - 10, 100)
        assert row == label // 4
        assert column // 10 < counts[row]
        seen.add((int(label), column // 10))
    assert len(seen) == 4 * sum(counts)


def test_whole_classes_errors():
    table = class_table(zeros(3, 6, 4, 4, 1))
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least"):
        whole_classes(table, batch_size=0)
    with pytest.raises(ValueError, match="`dtype` must be a floating type"):
        whole_classes(table, batch_size=2, dtype=jnp.int32)
