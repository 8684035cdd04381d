"""Dataset2Vec: its formula by loops, what it must not notice, training, and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learners.entry import WAY, Entry, sample_pair

import metajax
from metajax.evaluation.bank import evaluate
from metajax.learners.representation.dataset2vec import dataset2vec
from metajax.tasks.tables.table_pairs import table_pairs
from metajax.tasks.tables.tables import Table
from metajax.training.outer_loop import init_state, outer_step, reverse_mode
from metajax.types import Examples, Task

ENTRIES = {
    "dataset2vec": Entry(
        lambda: metajax.learners.dataset2vec(
            num_classes=WAY, code_size=4, units=16, blocks=1
        ),
        uses_labels_untrained=False,
        sample=sample_pair,
    ),
}

# One shape for all tests: compiling is what takes time.
ROWS, COLUMNS, CLASSES = 12, 4, 3
LEARNER = dataset2vec(num_classes=CLASSES, code_size=3, units=5, blocks=1, gamma=0.7)


def table(seed=0, rows=10, columns=3):
    """Columns of two kinds and one of few values."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows)
    x = rng.normal(size=(rows, columns)) + y[:, None] * [2, 0, -1][:columns]
    x[:, 1] = np.exp(2 * x[:, 1])  # beyond the grid
    x[:, 2] = x[:, 2] > 0
    return x.astype(np.float32), y.astype(np.int32)


def pad(x, y, garbage=np.nan):
    """As `Examples` of the one shape, with garbage in hidden rows."""
    whole = np.full((ROWS, COLUMNS), garbage, np.float32)
    whole[: len(x)] = 0  # padding of columns
    whole[: len(x), : x.shape[1]] = x
    labels = np.full(ROWS, 2, np.int32)
    labels[: len(y)] = y
    return Examples(whole, labels, np.arange(ROWS) < len(x))


def make_task(seed=0):
    samples = [pad(*table(seed + number)) for number in range(2)]
    query = jax.tree.map(lambda *leaves: np.stack(leaves), *samples)
    return Task(pad(*table(seed)), Examples(query, np.asarray([1, 0], np.int32)))


@functools.lru_cache
def built():
    params = LEARNER.init(jax.random.key(0), make_task())
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(1)  # biases too
    moved = [
        leaf + rng.normal(0, 0.2, leaf.shape).astype(np.float32) for leaf in leaves
    ]
    embed = jax.jit(lambda params, support: LEARNER.adapt(params, support).embedding)
    return structure.unflatten(moved), embed


def embed(x, y, **options):
    params, function = built()
    return np.asarray(function(params, pad(x, y, **options)))


def dense(layer, x):
    kernel = np.asarray(layer["kernel"], float)
    return np.asarray(x, float) @ kernel + np.asarray(layer["bias"], float)


def residual(params, x):
    e = np.maximum(dense(params["Layers_0"]["Dense_0"], x), 0)
    block = params["Layers_1"]
    change = dense(block["Dense_1"], np.maximum(dense(block["Dense_0"], e), 0))
    return np.maximum(e + change, 0)


def reference(params, x, y):
    """The module's formula, one cell at a time, in 64 bits."""
    params, x = params["params"], x.astype(float)
    points = np.linspace(-4, 4, 33)

    def f(value, target):
        on_grid = residual(params["f"], [[target, point] for point in points])
        return [np.interp(value, points, column) for column in on_grid.T]

    pairs = []
    for column in x.T:
        z = (column - column.mean()) / column.std()
        for label in np.unique(y):
            cells = [f(z[n], float(y[n] == label)) for n in range(len(y))]
            e = np.mean(cells, axis=0)
            for place in range(2):
                e = np.maximum(dense(params["g"][f"Dense_{place}"], e), 0)
            pairs.append(e)
    return dense(params["e"], residual(params["h"], np.mean(pairs, axis=0)))


def test_it_is_the_formula():
    x, y = table()
    expected = reference(built()[0], x, y)
    np.testing.assert_allclose(embed(x, y), expected, rtol=1e-4, atol=1e-4)


def change_nothing():
    x, y = table()
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(len(x)), rng.permutation(x.shape[1])
    constant = np.full((len(x), 1), 7.3, np.float32)
    return {
        "rows": (x[rows], y[rows]),
        "columns": (x[:, columns], y),
        "names of classes": (x, np.asarray([2, 0])[y].astype(np.int32)),
        "units": (x * np.float32([3, 0.1, 100]) + np.float32([5, 0, -2]), y),
        "a constant column": (np.concatenate([x, constant], axis=1), y),
    }


@pytest.mark.parametrize("name", change_nothing())
def test_what_changes_nothing(name):
    np.testing.assert_allclose(
        embed(*change_nothing()[name]), embed(*table()), rtol=1e-4, atol=1e-4
    )


def test_hidden_rows_change_nothing_and_real_ones_do():
    x, y = table()
    np.testing.assert_array_equal(embed(x, y, garbage=1e9), embed(x, y))
    assert not np.allclose(embed(x[:-1], y[:-1]), embed(x, y), atol=1e-3)
    assert not np.allclose(embed(x, np.roll(y, 1)), embed(x, y), atol=1e-3)


def test_a_table_of_constants_or_nothing_is_finite():
    assert np.all(np.isfinite(embed(np.ones((4, 2), np.float32), np.ones(4, np.int32))))
    assert np.all(np.isfinite(embed(*(part[:0] for part in table()))))


def test_probabilities_and_loss():
    params, embed_one = built()
    task = make_task()
    adapted = LEARNER.adapt(params, task.support)
    outputs = LEARNER.predict(adapted, task.query.x)
    others = [embed(*table(number)) for number in range(2)]
    distances = [np.linalg.norm(other - adapted.embedding) for other in others]
    np.testing.assert_allclose(distances[0], 0, atol=1e-6)
    p = np.exp(-0.7 * distances[1])
    np.testing.assert_allclose(np.exp(outputs[1]), [1 - p, p], rtol=1e-4)
    np.testing.assert_allclose(np.exp(outputs).sum(axis=1), 1, rtol=1e-5)
    loss, metrics = LEARNER.loss(params, task)
    np.testing.assert_allclose(loss, -np.log(1 - p) / 2, rtol=1e-3)
    assert metrics["accuracy"] == (1 + (p < 0.5)) / 2
    hidden = LEARNER.predict(adapted, task.query.x, mask=jnp.asarray([False, True]))
    np.testing.assert_allclose(hidden[1], outputs[1], rtol=1e-5)


def test_gradients_are_finite_and_reach_all_parameters():
    params, _ = built()
    tasks = [make_task(seed) for seed in (0, 3, 6)]
    tasks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)

    def loss(params):
        return jnp.sum(jax.vmap(lambda task: LEARNER.loss(params, task)[0])(tasks))

    gradient = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)), path
        # The distance does not see what is added to both embeddings.
        is_last_bias = "'e'" in str(path) and "bias" in str(path)
        assert np.any(np.abs(leaf) > 1e-6) != is_last_bias, path


def test_trainer_and_evaluation_take_it_as_any_learner():
    learner = dataset2vec(num_classes=2, code_size=3, units=16, blocks=1)
    tables = []
    for number in range(2):
        y = np.arange(80, dtype=np.int32) % 2
        x = np.random.default_rng(number).normal(size=(80, 2)) + 6 * number * y[:, None]
        tables.append(
            Table(x.astype(np.float32), y, ("a", "b"), ("0", "1"), str(number))
        )
    pairs = table_pairs(tables, rows=(20, 24))
    optimizer, outer_gradient = optax.adam(1e-2), reverse_mode()
    task = pairs(jax.random.key(0))
    state = init_state(jax.random.key(1), learner, task, optimizer, outer_gradient)
    step = jax.jit(functools.partial(outer_step, learner, optimizer, outer_gradient))
    draw = jax.jit(jax.vmap(pairs))
    losses = []
    for number in range(60):
        keys = jax.random.split(jax.random.key(number), 8)
        state, metrics = step(state, draw(keys), keys)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    report = evaluate(learner, state.meta_params, pairs, num_tasks=20)
    assert report.protocol == "inductive"
    assert report.mean["accuracy"] > 0.8
    assert set(report.mean) >= {"accuracy", "nll"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "`num_classes` must be an integer of at least 1"),
        ({"code_size": 0}, "`code_size` must be an integer of at least 1"),
        ({"units": 1.5}, "`units` must be an integer of at least 1"),
        ({"blocks": -1}, "`blocks` must be an integer of at least 0"),
        ({"gamma": 0}, "`gamma` must be above 0"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        dataset2vec(**{"num_classes": 3} | changes)


def test_other_tasks_are_refused():
    task = make_task()
    plain = task._replace(query=task.support)
    with pytest.raises(
        ValueError, match="samples of tables, `Examples` with a leading"
    ):
        LEARNER.init(jax.random.key(0), plain)
    images = Examples(np.zeros((4, 5, 5, 1)), np.zeros(4, np.int32))
    with pytest.raises(ValueError, match=r"`x` \[n, D\], got \[4, 5, 5, 1\]"):
        LEARNER.init(jax.random.key(0), task._replace(support=images))
