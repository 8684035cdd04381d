"""Image completion: pixels are where the table has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metajax.tasks.functions.image_completion import image_completion, pixel_places
from metajax.tasks.images.class_table import class_table
from metajax.tasks.images.omniglot import omniglot
from metajax.tasks.task_checks import check_task

HEIGHT, WIDTH, CHANNELS = 4, 6, 3


def table(rotations=1, width=WIDTH):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 4, HEIGHT, width, CHANNELS), np.uint8)
    return class_table(images, [4, 2, 3], rotations=rotations)


def pixels_at(image, x):
    """What an image `[H, W, C]` has at inputs `[n, 2]`, by their meaning."""
    height, width = image.shape[:2]
    rows = np.rint((np.asarray(x[:, 0]) + 1) / 2 * (height - 1)).astype(int)
    columns = np.rint((np.asarray(x[:, 1]) + 1) / 2 * (width - 1)).astype(int)
    return image[rows, columns] / 255


def image_of(task, candidates):
    """Which of `candidates` the query is, by brute force."""
    whole = np.rint(np.asarray(task.query.y) * 255).reshape(candidates[0].shape)
    [found] = [i for i, image in enumerate(candidates) if np.array_equal(image, whole)]
    return found


def real_images(of_table):
    images, counts = np.asarray(of_table.images), np.asarray(of_table.counts)
    return [images[r, c] for r in range(len(counts)) for c in range(counts[r])]


@pytest.mark.parametrize("num_queries", [None, 9])
def test_support_and_query_are_pixels_of_one_image(num_queries):
    given = table()
    tasks = image_completion(given, shot=(2, 10), num_queries=num_queries)
    draw = jax.jit(lambda tasks, key: tasks(key))
    whole = image_completion(given, shot=(2, 10))
    images, seen = real_images(given), set()
    for seed in range(60):
        key = jax.random.key(seed)
        task = draw(tasks, key)
        place = image_of(draw(whole, key), images)
        seen.add(place)
        for examples in task:
            expected = pixels_at(images[place], examples.x)
            np.testing.assert_allclose(examples.y, expected, atol=1e-6)
            assert len(np.unique(examples.x, axis=0)) == len(examples.x)
        assert task.support.y.shape == (10, CHANNELS)
        assert 2 <= task.support.mask.sum() <= 10
        assert len(task.query.x) == (num_queries or HEIGHT * WIDTH)
    check_task(task, "tasks")
    assert seen == set(range(9))  # padding of small classes is never drawn


def test_places_go_row_by_row_from_top_left():
    places = pixel_places(HEIGHT, WIDTH)
    np.testing.assert_allclose(places[0], [-1, -1])
    np.testing.assert_allclose(places[WIDTH - 1], [-1, 1])
    np.testing.assert_allclose(places[-WIDTH], [1, -1])
    np.testing.assert_allclose(places[1], [-1, -1 + 2 / (WIDTH - 1)])


def test_rotations_are_images_of_their_own():
    given = table(rotations=4, width=HEIGHT)
    images = [np.rot90(i, turns) for i in real_images(given) for turns in range(4)]
    tasks = image_completion(given, shot=5)
    seen = {image_of(tasks(jax.random.key(seed)), images) for seed in range(40)}
    assert len({place % 4 for place in seen}) == 4
    assert tasks(jax.random.key(0)).support.mask is None


def test_all_pixels_may_be_given(key):
    task = image_completion(table(), shot=HEIGHT * WIDTH)(key)
    order = np.lexsort((task.support.x[:, 1], task.support.x[:, 0]))
    np.testing.assert_allclose(task.support.x[order], task.query.x, atol=1e-6)
    np.testing.assert_allclose(task.support.y[order], task.query.y)


def test_omniglot(data_dir, key):
    tasks = image_completion(omniglot("meta_test", data_dir=data_dir))
    task = jax.jit(lambda tasks, key: tasks(key))(tasks, key)
    assert task.query.y.shape == (784, 1)
    assert 0.02 < task.query.y.mean() < 0.5  # bright ink on dark ground


EMBEDDINGS = class_table(jnp.zeros((2, 3, 5)))
ERRORS = {
    "embeddings": (EMBEDDINGS, {}, r"must hold images .*got embeddings \[2, 3, 5\]"),
    "shot": (table(), {"shot": 25}, "`shot` asks for 25 pixels.* have 24"),
    "low": (table(), {"shot": (0, 5)}, "`shot` must be an integer of at least 1"),
    "queries": (table(), {"shot": 5, "num_queries": 25}, "`num_queries` asks for 25"),
    "none": (table(), {"shot": 5, "num_queries": 0}, "`num_queries` must be an int"),
    "dtype": (table(), {"dtype": jnp.int32}, "`dtype` must be a floating type"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_arguments(name):
    of_table, arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        image_completion(of_table, **arguments)
