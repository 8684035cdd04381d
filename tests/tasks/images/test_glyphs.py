import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.images import glyphs as module
from metajax.tasks.images.glyphs import SPLITS, draw_class, draw_example, glyphs


@pytest.fixture(scope="module")
def images():
    """One draw for all statistics: 200 classes of own alphabets, 6 examples of each."""

    @jax.jit
    def draw(key):
        key_class, key_example = jax.random.split(key)
        classes = jax.vmap(draw_class)(jax.random.split(key_class, 200))
        keys = jax.random.split(key_example, (200, 6))
        return jax.vmap(jax.vmap(draw_example, (0, None)))(keys, classes)

    return np.asarray(draw(jax.random.key(1)))[..., 0]


@pytest.fixture(scope="module")
def draw_task():
    """One compiled program for all tests that look at whole tasks."""
    return jax.jit(glyphs(way=4, shot=8, num_queries=8))


def test_layout(key, draw_task):
    tasks = glyphs(way=3, shot=2, num_queries=4)
    task = jax.eval_shape(tasks, key)
    chex.assert_shape(task.support.x, (6, 28, 28, 1))
    chex.assert_shape(task.query.x, (12, 28, 28, 1))
    chex.assert_type([task.support.x, task.query.x], jnp.float32)
    chex.assert_type([task.support.y, task.query.y], jnp.int32)
    assert task.support.mask is None
    assert task.query.mask is None
    np.testing.assert_array_equal(draw_task(key).support.y, np.repeat(np.arange(4), 8))
    np.testing.assert_array_equal(draw_task(key).query.y, np.repeat(np.arange(4), 8))


def test_rows_are_of_the_class_that_their_label_says(key, draw_task):
    """Class means of support and query agree for each label, and only for it."""
    task = draw_task(key)
    support, query = (
        blurred(np.asarray(x)[..., 0]).reshape(4, 8, -1).mean(axis=1)
        for x in (task.support.x, task.query.x)
    )
    distance = np.square(support[:, None] - query[None]).sum(axis=-1)
    np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(4))


def test_same_key_same_task(key, draw_task):
    chex.assert_trees_all_equal(draw_task(key), draw_task(key))
    other = draw_task(jax.random.key(1))
    assert np.abs(np.asarray(other.support.x - draw_task(key).support.x)).max() > 0.5


def test_jit_changes_nothing_in_an_example(key):
    strokes = jax.jit(draw_class)(key)
    chex.assert_trees_all_close(
        jax.jit(draw_example)(key, strokes), draw_example(key, strokes), atol=1e-4
    )


@pytest.mark.slow
def test_jit_changes_nothing_in_a_task(key):
    tasks = glyphs(way=1, shot=1, num_queries=1)
    chex.assert_trees_all_close(jax.jit(tasks)(key), tasks(key), atol=1e-4)


def test_is_static_under_jit():
    tasks = glyphs(way=2, shot=1, num_queries=1)
    assert jax.tree.leaves(tasks) == []
    same = glyphs(way=(2, 2), shot=1, num_queries=1)
    assert jax.tree.structure(tasks) == jax.tree.structure(same)
    assert hash(tasks) == hash(same)
    other = glyphs(way=2, shot=1, num_queries=1, split="meta_test")
    assert jax.tree.structure(tasks) != jax.tree.structure(other)


def test_images_look_like_writing(images):
    """Bounds around Omniglot's statistics (in brackets) at 28 x 28 pixels."""
    assert images.min() >= 0
    assert images.max() <= 1
    ink = images.mean(axis=(2, 3))
    assert 0.07 < ink.mean() < 0.095  # (0.083) its standard error is about 0.002
    assert ink.min() > 0.002
    assert ink.max() < 0.35
    assert images.max(axis=(2, 3)).min() > 0.7  # a stroke is more than a pixel wide
    total = images.sum(axis=(2, 3))
    pixels = np.arange(28)
    for axis, centre in ((2, 13.1), (3, 12.8)):  # x, then y
        mean = images.sum(axis=axis) @ pixels / total
        assert abs(mean.mean() - centre) < 0.5
        assert 1.0 < mean.std(axis=1).mean() < 1.8  # (1.4)
    near_border = np.abs(pixels - 13.5) > 12
    assert images[..., near_border].sum() < 0.03 * images.sum()


def test_nearest_neighbours_find_the_class(images):
    """5-way 1-shot on blurred pixels, where Omniglot's characters give 0.67."""
    features = blurred(images.reshape(-1, 28, 28)).reshape(200, 6, -1)
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(1000):
        classes = rng.choice(200, 5, replace=False)
        support, query = rng.choice(6, 2, replace=False)
        apart = features[classes, support] - features[classes[0], query]
        hits.append(np.square(apart).sum(axis=1).argmin() == 0)
    accuracy = np.mean(hits)  # its standard error is about 0.015
    assert 0.58 < accuracy < 0.78


def test_no_two_examples_are_alike(images):
    flat = images.reshape(200, 6, -1)
    apart = np.abs(flat[:, :1] - flat[:, 1:]).max(axis=-1)
    assert apart.min() > 0.1


def test_ink_is_the_integral_of_a_pen_along_the_strokes():
    """Against 20000 points on a bent line; a dot has the ink of its five segments."""
    bend = [[-0.3, -0.2], [-0.2, -0.2], [0, -0.2], [0.1, -0.2], [0.2, 0], [0.3, 0.3]]
    controls = np.zeros((5, 6, 2), np.float32)
    controls[0] = bend
    controls[1] = [-0.3, 0.3]
    drawn = np.arange(5) < 2
    image = module._ink(controls, jnp.zeros(5), drawn, 0.8)[..., 0]

    points = (np.array(bend) + 0.5) * 28 - 0.5
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    at = (np.arange(20_000) + 0.5) / 20_000 * lengths.sum()
    places = np.concatenate([[0], np.cumsum(lengths)])
    x, y = (np.interp(at, places, points[:, i]) for i in (0, 1))
    grid = np.arange(28)
    blur = module._LINE_BLUR
    columns = np.exp(-((grid[:, None] - x) ** 2) / (2 * blur**2))
    rows = np.exp(-((grid[:, None] - y) ** 2) / (2 * blur**2))
    # Every segment counts a quarter of a pixel longer, so that dots leave ink.
    longer = 1 + 0.25 / lengths[np.searchsorted(places[1:-1], at)]
    expected = (rows * longer) @ columns.T
    expected *= 0.8 * lengths.sum() / 20_000 / (2 * np.pi * blur**2)
    np.testing.assert_allclose(image[:19], np.minimum(expected[:19], 1), atol=5e-3)
    dot = np.asarray(image)[20:25, 3:8]
    # Few of the points fall on it, hence the tolerance.
    assert dot.sum() == pytest.approx(0.8 * 5 * 0.25, rel=0.25)


def test_absent_strokes_leave_no_ink(key):
    strokes = jax.jit(draw_class)(key, key)
    strokes = strokes._replace(drawn=jnp.arange(5) < 1)
    moved = strokes._replace(controls=strokes.controls.at[1:].add(0.2))
    draw = jax.jit(draw_example)
    chex.assert_trees_all_close(draw(key, strokes), draw(key, moved), atol=1e-5)


def test_half_of_the_classes_of_a_task_share_an_alphabet(key):
    classes, alphabets = glyphs(way=400, shot=1, num_queries=1).class_keys(key)
    assert len(np.unique(jax.random.key_data(classes), axis=0)) == 400
    _, counts = np.unique(jax.random.key_data(alphabets), axis=0, return_counts=True)
    assert abs(counts.max() - 200) < 4 * 10  # binomial, standard deviation 10
    assert np.sort(counts)[-2] == 1


def test_splits_share_no_class(key):
    """Keys of classes and alphabets differ in their first word for every split."""
    words, keys = [], []
    for split in SPLITS:
        tasks = glyphs(way=50, shot=1, num_queries=1, split=split)
        keys.append(tasks.class_keys(key))
        words += [np.asarray(jax.random.key_data(part)) for part in keys[-1]]
    first = [np.unique(word[:, 0]) for word in words]
    assert all(len(word) == 1 for word in first)
    assert len(np.unique(first)) == 2 * len(SPLITS)
    # The numbers, the second word, are the same here, yet the classes are others.
    np.testing.assert_array_equal(words[0][:, 1], words[2][:, 1])
    classes, alphabets = (jnp.concatenate(part) for part in zip(*keys, strict=True))
    strokes = jax.jit(jax.vmap(draw_class))(classes, alphabets)
    controls = np.asarray(strokes.controls).reshape(150, -1)
    assert len(np.unique(controls.round(3), axis=0)) == 150


def test_alphabets_share_strokes(key):
    """Lone strokes of one alphabet are often one shape, of different ones never."""
    keys = jax.random.split(key, 600)
    draw = jax.jit(jax.vmap(draw_class, (0, 0)))
    rates = []
    for alphabets in (jnp.repeat(keys[:1], 600), keys):
        strokes = draw(keys, alphabets)
        is_lone = np.asarray(strokes.drawn).sum(axis=1) == 1
        smoothness = np.asarray(strokes.smoothness)[is_lone, 0]
        smoothness = smoothness[(smoothness > 0) & (smoothness < 1)]
        rates.append(1 - len(np.unique(smoothness)) / len(smoothness))
    assert rates[0] > 0.2
    assert rates[1] == 0


def test_ranges_give_masks(key):
    tasks = glyphs(way=(2, 4), shot=(1, 3), num_queries=2)
    assert jax.eval_shape(tasks, key).support.x.shape == (12, 28, 28, 1)

    @jax.jit
    @jax.vmap
    def masks(key):  # and no images, which the compiler then leaves out
        task = tasks(key)
        return task.support.mask, task.query.mask

    support, query = masks(jax.random.split(key, 60))
    support = np.asarray(support).reshape(60, 4, 3)
    way, shot = support.any(axis=2).sum(axis=1), support.any(axis=1).sum(axis=1)
    sizes = set(zip(way.tolist(), shot.tolist(), strict=True))
    assert sizes == {(w, s) for w in (2, 3, 4) for s in (1, 2, 3)}
    classes = np.arange(4)[None] < way[:, None]
    shots = np.arange(3)[None] < shot[:, None]
    np.testing.assert_array_equal(support, classes[:, :, None] & shots[:, None])
    np.testing.assert_array_equal(query, np.repeat(classes, 2, axis=1))


def test_only_what_may_be_padding_has_a_mask(key):
    task = jax.eval_shape(glyphs(way=2, shot=(1, 2), num_queries=1), key)
    assert task.support.mask.shape == (4,)
    assert task.query.mask is None
    task = jax.eval_shape(glyphs(way=(1, 2), shot=1, num_queries=1), key)
    assert task.support.mask.shape == (2,)
    assert task.query.mask.shape == (2,)


ERRORS = {
    "no class": ({"way": 0}, r"`way` must be an integer of at least 1 .* got 0"),
    "no shot": ({"shot": (0, 5)}, r"`shot` must be .* got \(0, 5\)"),
    "reversed": ({"shot": (5, 1)}, r"`shot` must be .*low <= high, got \(5, 1\)"),
    "no query": (
        {"num_queries": 0},
        r"`num_queries` must be .* at least 1, got 0",
    ),
    "split": ({"split": "test"}, r"`split` must be one of .*meta_test.* got 'test'"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        glyphs(**{"way": 5, "shot": 1, "num_queries": 1} | arguments)


def test_strokes_of_many_classes_are_refused(key):
    strokes = jax.eval_shape(jax.vmap(draw_class), key[None])
    with pytest.raises(AssertionError, match="shape"):
        draw_example(key, strokes)


def blurred(images):
    """Images `[n, 28, 28]` smoothed by a Gaussian of two pixels."""
    i = np.arange(28)
    kernel = np.exp(-((i[:, None] - i) ** 2) / 8)
    return kernel @ images @ kernel
