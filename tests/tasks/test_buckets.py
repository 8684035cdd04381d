"""Buckets: the same losses, gradients, metrics and banks as without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metajax
from metajax.evaluation.bank import bank_task
from metajax.masks import masked_mean
from metajax.objectives import accuracy, cross_entropy
from metajax.tasks.buckets import (
    as_buckets,
    bucket_of,
    bucketed,
    cut,
    fit_buckets,
    needed_rows,
)
from metajax.tasks.images.class_table import class_table
from metajax.types import Examples, Learner, Task

BUCKETS = ((12, 16), (20, 24))


@pytest.fixture(scope="module")
def tasks():
    """Tasks of 2 to 6 classes, up to 40 support and 30 query rows."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 14, 3, 3, 1), dtype=np.uint8)
    return metajax.tasks.meta_dataset_tasks(
        class_table(images), way=(2, 6), max_support=40, num_queries=5
    )


@jax.jit
def draw(tasks, key):
    return tasks(key)


def by_hand(task, buckets):
    needs = []
    for examples in task:
        mask = np.asarray(examples.mask)
        needs.append(np.flatnonzero(mask)[-1] + 1)
    for number, bucket in enumerate(buckets):
        if needs[0] <= bucket[0] and needs[1] <= bucket[1]:
            return needs, number
    return needs, len(buckets)


def test_the_first_bucket_that_holds_a_task(tasks):
    seen = set()
    for seed in range(30):
        task = draw(tasks, jax.random.key(seed))
        needs, number = by_hand(task, BUCKETS)
        np.testing.assert_array_equal(needed_rows(task), needs)
        assert bucket_of(task, BUCKETS) == number
        seen.add(number)
        size = (*BUCKETS, None)[number]
        for whole, part in zip(task, cut(task, size), strict=True):
            assert part.mask.sum() == whole.mask.sum()
    assert seen == {0, 1, 2}


def test_sets_without_a_mask_need_all_their_rows(key):
    x = jnp.zeros((5, 2))
    hidden = Examples(x, jnp.arange(5), jnp.zeros(5, bool))
    task = Task(Examples(x, jnp.arange(5)), hidden)
    np.testing.assert_array_equal(needed_rows(task), [5, 1])
    assert bucket_of(task, ((4, 9), (5, 1))) == 1
    assert bucket_of(task, ()) == 0


@pytest.fixture(scope="module")
def of_each_bucket(tasks):
    """A task of every bucket, and one of none."""
    found = {}
    for seed in range(30):
        task = draw(tasks, jax.random.key(seed))
        found.setdefault(by_hand(task, BUCKETS)[1], task)
    return [found[number] for number in range(3)]


@pytest.fixture(scope="module")
def learner():
    """One whose adapted state has a row for each support row."""
    return metajax.learners.prototypical(
        metajax.models.mlp(4, hidden_sizes=(5,), normalization="support")
    )


@pytest.fixture(scope="module")
def params(learner, of_each_bucket):
    return jax.jit(learner.init)(jax.random.key(1), of_each_bucket[0])


def test_loss_and_gradient_are_the_same(learner, params, of_each_bucket):
    def losses(learner):
        return jax.jit(jax.value_and_grad(learner.loss, has_aux=True))

    plain, fast = losses(learner), losses(bucketed(learner, BUCKETS[::-1]))
    for task in of_each_bucket:
        got, expected = (loss(params, task) for loss in (fast, plain))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5),
            got,
            expected,
        )


def test_loss_really_sees_the_smaller_shape(of_each_bucket, key):
    """And so does the scheduled one, with its step and the key."""

    def loss(params, task, *, key=None):
        return jnp.float32(len(task.support.y)), {"rows": len(task.query.y)}

    def scheduled(step, params, task, *, key=None):
        value, metrics = loss(params, task, key=key)
        return value + step, metrics | {"key": jax.random.uniform(key)}

    def nothing(*args, **kwargs):
        raise AssertionError

    segments = metajax.types.Segments(1, nothing, nothing)
    learner = Learner(nothing, nothing, nothing, loss, None, scheduled, segments)
    fast = bucketed(learner, BUCKETS)
    assert fast.segments is None
    for number, task in enumerate(of_each_bucket):
        support, query = (*BUCKETS, (40, 30))[number]
        value, metrics = fast.loss({}, task)
        assert (value, metrics["rows"]) == (support, query)
        value, metrics = fast.scheduled_loss(jnp.int32(7), {}, task, key=key)
        assert value == support + 7
        assert metrics["key"] == jax.random.uniform(key)


def test_a_bank_is_judged_the_same_in_smaller_shapes(tasks, learner, params):
    def judge(outputs, query):
        return {
            "accuracy": masked_mean(accuracy(outputs, query.y), query.mask),
            "nll": masked_mean(cross_entropy(outputs, query.y), query.mask),
            "rows": jnp.float32(len(outputs)),
        }

    plain, fast = (
        metajax.evaluate(
            learner,
            params,
            tasks,
            num_tasks=23,
            tasks_per_block=4,
            buckets=buckets,
            metrics_fn=judge,
            check_leakage=bool(buckets),
        )
        for buckets in ((), BUCKETS)
    )
    for name in ("accuracy", "nll"):
        np.testing.assert_allclose(fast.values[name], plain.values[name], rtol=1e-4)
    sizes = [*(query for _, query in BUCKETS), 30]
    for index in range(23):
        number = by_hand(bank_task(tasks, index), BUCKETS)[1]
        assert fast.values["rows"][index] == sizes[number]
    assert fast.protocol == "inductive"
    # Learners with and without buckets have answered the same tasks.
    np.testing.assert_array_equal(fast.fingerprint, plain.fingerprint)
    assert metajax.compare(fast, plain).difference == pytest.approx(0, abs=1e-5)


def test_calibration_is_of_all_buckets(tasks, learner, params):
    report = metajax.evaluate(
        learner,
        params,
        tasks,
        num_tasks=6,
        tasks_per_block=6,
        buckets=BUCKETS[1:],
        check_leakage=False,
    )
    queries = [bank_task(tasks, index).query.mask.sum() for index in range(6)]
    assert report.calibration.num_queries.sum() == sum(queries)


def test_fitted_buckets_save_rows(tasks, key):
    """Of one bucket, the best by trying all, as tasks are sorted by their rows."""
    needs = np.asarray(
        jax.jit(lambda tasks, keys: jax.vmap(lambda k: needed_rows(tasks(k)))(keys))(
            tasks, jax.random.split(key, 100)
        )
    )
    full = (40, 30)
    means = []
    for count in (1, 2, 3, 4):
        buckets = fit_buckets(tasks, count, key, num_tasks=100)
        assert len(buckets) == count - 1
        fitting = [
            next(b for b in (*buckets, full) if np.all(need <= b)) for need in needs
        ]
        means.append(np.mean(np.sum(fitting, axis=1)))
    assert means[0] == 70
    assert means == sorted(means, reverse=True)
    needs = needs[np.argsort(needs.sum(axis=1), kind="stable")]
    costs = [
        count * needs[:count].max(axis=0, initial=0).sum() + (100 - count) * 70
        for count in range(101)
    ]
    best = needs[: int(np.argmin(costs))].max(axis=0)
    assert fit_buckets(tasks, 2, key, num_tasks=100) == (tuple(best),)


def test_tasks_of_one_size_need_no_bucket(key):
    tasks = metajax.tasks.sinusoid()
    assert fit_buckets(tasks, 3, key, num_tasks=5) == ()


def test_buckets_are_tried_in_the_order_of_their_rows():
    assert as_buckets([(9, 1), (np.int64(2), 3), (2, 3)]) == ((2, 3), (9, 1))


@pytest.mark.parametrize("bucket", [(1, 2, 3), (0, 4), (2.0, 4), 5])
def test_bad_buckets(tasks, learner, bucket):
    with pytest.raises(ValueError, match="pairs of integers of at least 1"):
        bucketed(learner, [bucket])
    with pytest.raises(ValueError, match="pairs of integers of at least 1"):
        metajax.evaluate(learner, {}, tasks, num_tasks=2, buckets=[bucket])


def test_bad_numbers_of_buckets(tasks, key):
    with pytest.raises(ValueError, match="`num_shapes` must be an integer of at least"):
        fit_buckets(tasks, 0, key)
    with pytest.raises(
        ValueError, match="`num_tasks` must be an integer of at least 1"
    ):
        fit_buckets(tasks, 2, key, num_tasks=0)
