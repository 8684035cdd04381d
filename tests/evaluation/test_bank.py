"""The referee against plain NumPy, and against learners that cheat or fail."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metajax.evaluation.bank import bank_task, evaluate
from metajax.evaluation.metrics import NUM_BINS
from metajax.evaluation.reports import compare
from metajax.evaluation.transduction import leakage
from metajax.objectives import query_loss, squared_error
from metajax.types import Examples, Learner, Task

WAY, SHOT, NUM_QUERIES, DIM = 3, 2, 4, 5


def pseudo_noise(key, shape):
    """Noise enough for tests; JAX's generator would take seconds to compile."""
    first, second = (jax.random.key_data(key) % 10007).astype(float)
    position = jnp.arange(math.prod(shape), dtype=float).reshape(shape)
    return 1.5 * jnp.sin(first * (1 + position) + second)


def class_task(key):
    """Gaussian classes; support and query rows in order of class."""
    noise = pseudo_noise(key, (WAY, SHOT + NUM_QUERIES + 1, DIM))
    x = noise[:, 1:] + 0.7 * noise[:, :1]

    def examples(x):
        y = jnp.repeat(jnp.arange(WAY), x.shape[1])
        return Examples(x.reshape(-1, DIM), y)

    return Task(examples(x[:, :SHOT]), examples(x[:, SHOT:]))


def padded_class_task(key):
    """The same tasks, with rubbish in rows that the mask hides."""

    def pad(examples):
        rubbish = 100 + jnp.arange(2 * DIM, dtype=float).reshape(2, DIM)
        x = jnp.concatenate([rubbish[:1], examples.x, rubbish[1:]])
        y = jnp.pad(examples.y, 1)
        return Examples(x, y, jnp.pad(jnp.ones(examples.y.shape, bool), 1))

    return Task(*map(pad, class_task(key)))


def line_task(key):
    """`y = a x + b` without noise."""
    noise = pseudo_noise(key, (14, 1))
    slope, offset = noise[0, 0], noise[1, 0]
    y = slope * noise + offset
    return Task(Examples(noise[2:7], y[2:7]), Examples(noise[7:], y[7:]))


def centroid(*, transform=lambda x, mask: x, way=WAY):
    """Nearest class mean of the transformed inputs, scaled by `meta_params`."""

    def init(key, task):
        del key, task
        return {"scale": jnp.ones(())}

    def adapt(meta_params, support, *, key=None):
        del key
        one_hot = jax.nn.one_hot(support.y, way)
        if support.mask is not None:
            one_hot = one_hot * support.mask[:, None]
        count = jnp.sum(one_hot, axis=0)[:, None]
        return (one_hot.T @ support.x) / count, meta_params["scale"]

    def predict(adapted, inputs, *, mask=None, key=None):
        assert key is None
        means, scale = adapted
        inputs = transform(inputs, mask)
        difference = inputs[:, None, :] - means[None, :, :]
        logits = -scale * jnp.sum(jnp.square(difference), axis=-1)
        return jnp.where(jnp.isnan(means[:, 0])[None, :], -jnp.inf, logits)

    return Learner(init, adapt, predict, query_loss(adapt, predict, None))


def gradient_descent(*, steps=3, rate=0.1):
    """Steps on a linear model from `meta_params`."""

    def init(key, task):
        del key, task
        return jnp.zeros(2)

    def predict(adapted, inputs, *, mask=None, key=None):
        del mask, key
        return adapted[0] * inputs + adapted[1]

    def adapt_steps(meta_params, support, *, key=None):
        del key

        def loss(params):
            return jnp.mean(squared_error(predict(params, support.x), support.y))

        def step(params, _):
            return params - rate * jax.grad(loss)(params), params

        last, states = jax.lax.scan(step, meta_params, length=steps)
        return jnp.concatenate([states, last[None]])

    def adapt(meta_params, support, *, key=None):
        return adapt_steps(meta_params, support, key=key)[-1]

    loss = query_loss(adapt, predict, squared_error)
    return Learner(init, adapt, predict, loss, adapt_steps)


CENTROID = centroid()
LINEAR = gradient_descent()
PARAMS = {"scale": jnp.asarray(0.3)}


def report_of(learner=CENTROID, params=PARAMS, tasks=class_task, **kwargs):
    kwargs = {"num_tasks": 50, "check_leakage": False} | kwargs
    return evaluate(learner, params, tasks, **kwargs)


@pytest.fixture(scope="module")
def report():
    return report_of(check_leakage=True)


@pytest.fixture(scope="module")
def oracle():
    """Probabilities `[tasks, n, N]` and labels `[tasks, n]` by loops in NumPy."""
    probabilities, labels = [], []
    for index in range(50):
        support, query = jax.tree.map(np.asarray, bank_task(class_task, index))
        means = [support.x[support.y == c].mean(axis=0) for c in range(WAY)]
        logits = [[-0.3 * np.sum((x - m) ** 2) for m in means] for x in query.x]
        exponentials = np.exp(np.array(logits, float))
        probabilities.append(exponentials / exponentials.sum(axis=1, keepdims=True))
        labels.append(query.y)
    return np.array(probabilities), np.array(labels)


def test_means_and_intervals_match_numpy(report, oracle):
    probabilities, labels = oracle
    right = probabilities.argmax(axis=-1) == labels
    likelihood = np.take_along_axis(probabilities, labels[..., None], axis=-1)
    expected = {
        "accuracy": right.mean(axis=1),
        "nll": -np.log(likelihood).mean(axis=(1, 2)),
    }
    assert set(report.values) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(report.values[name], values, rtol=1e-4)
        np.testing.assert_allclose(report.mean[name], values.mean(), rtol=1e-4)
        np.testing.assert_allclose(report.median[name], np.median(values), rtol=1e-4)
        low, high = scipy.stats.t.interval(
            0.95, 49, loc=values.mean(), scale=values.std(ddof=1) / np.sqrt(50)
        )
        half_width = (high - low) / 2
        np.testing.assert_allclose(report.half_width[name], half_width, rtol=1e-4)


def test_calibration_matches_numpy(report, oracle):
    probabilities, labels = oracle
    confidence = probabilities.max(axis=-1).ravel()
    right = (probabilities.argmax(axis=-1) == labels).ravel()
    error = 0.0
    for low in range(NUM_BINS):
        is_in = (confidence > low / NUM_BINS) & (confidence <= (low + 1) / NUM_BINS)
        assert report.calibration.num_queries[low] == is_in.sum()
        if is_in.any():
            gap = abs(right[is_in].mean() - confidence[is_in].mean())
            error += is_in.mean() * gap
            np.testing.assert_allclose(
                [report.calibration.accuracy[low], report.calibration.confidence[low]],
                [right[is_in].mean(), confidence[is_in].mean()],
                rtol=1e-4,
            )
    assert error > 0.05
    np.testing.assert_allclose(report.calibration.error, error, rtol=1e-4)


def test_regression_is_judged_by_squared_error():
    report = report_of(LINEAR, jnp.array([1.0, 2.0]), line_task, num_tasks=3)
    zero = gradient_descent(steps=0)
    unadapted = report_of(zero, jnp.array([1.0, 2.0]), line_task, num_tasks=3)
    query = [bank_task(line_task, i).query for i in range(3)]
    expected = [np.mean((np.asarray(q.x) + 2 - np.asarray(q.y)) ** 2) for q in query]
    np.testing.assert_allclose(unadapted.values["mse"], expected, rtol=1e-5)
    assert report.mean["mse"] < unadapted.mean["mse"]
    assert report.calibration is None


def test_bank_does_not_depend_on_its_size_or_blocks(report):
    fewer = report_of(num_tasks=7, tasks_per_block=3)
    np.testing.assert_allclose(fewer.fingerprint, report.fingerprint[:7], rtol=1e-5)
    for name, values in fewer.values.items():
        assert values.shape == (7,)
        np.testing.assert_allclose(values, report.values[name][:7], rtol=1e-5)


def test_no_task_is_in_the_bank_twice(report):
    assert len(np.unique(report.fingerprint[:, 0])) == 50


def test_bank_does_not_depend_on_the_configured_generator():
    task = bank_task(class_task, 3)
    with jax.default_prng_impl("rbg"):
        chex.assert_trees_all_equal(bank_task(class_task, 3), task)


def test_bank_depends_on_seed(report):
    other = report_of(seed=1)
    assert other.seed == 1
    assert np.all(other.fingerprint[:, 0] != report.fingerprint[:, 0])
    x = [bank_task(class_task, 3, seed=seed).query.x for seed in (0, 1)]
    assert not np.any(x[0] == x[1])


def test_padding_changes_nothing(report):
    padded = report_of(tasks=padded_class_task, check_leakage=True)
    assert padded.protocol == "inductive"
    for name, values in padded.values.items():
        np.testing.assert_allclose(values, report.values[name], rtol=1e-4)
    np.testing.assert_array_equal(
        padded.calibration.num_queries, report.calibration.num_queries
    )
    np.testing.assert_allclose(padded.calibration.error, report.calibration.error)


def test_nan_for_padding_does_not_count(report):
    def transform(x, mask):
        return jnp.where(mask[:, None], x, jnp.nan)

    learner = centroid(transform=transform)
    padded = report_of(learner, tasks=padded_class_task, check_leakage=True)
    assert padded.num_non_finite == 0
    assert padded.protocol == "inductive"
    np.testing.assert_allclose(padded.mean["nll"], report.mean["nll"], rtol=1e-5)
    np.testing.assert_allclose(padded.calibration.error, report.calibration.error)


def test_absent_classes_change_nothing(report):
    wider = report_of(centroid(way=WAY + 2), check_leakage=True)
    assert wider.protocol == "inductive"
    assert wider.num_non_finite == 0
    np.testing.assert_allclose(wider.mean["nll"], report.mean["nll"], rtol=1e-5)
    np.testing.assert_allclose(wider.calibration.error, report.calibration.error)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """A distribution that holds an array."""

    x: jax.Array

    def __call__(self, key):
        del key
        y = np.arange(WAY)  # a constant, which stays NumPy within `jit`
        return Task(Examples(self.x, y), Examples(self.x[::-1], y[::-1]))


def test_one_compilation_serves_all_calls():
    traces = []

    def transform(x, mask):
        del mask
        traces.append(0)
        return x

    learner = centroid(transform=transform)
    table = jnp.arange(3.0 * DIM).reshape(3, DIM)
    first = report_of(learner, tasks=Table(table), num_tasks=3, check_leakage=True)
    count = len(traces)
    assert count == 2  # the bank, and the leakage check, whose trace sizes the blocks
    second = report_of(
        learner,
        {"scale": jnp.asarray(2.0)},
        Table(0.01 * table),
        num_tasks=3,
        seed=5,
        check_leakage=True,
    )
    assert len(traces) == count
    assert first.mean["nll"] != second.mean["nll"]


def test_plain_functions_are_compiled_once():
    traces = []

    def tasks(key):
        traces.append(0)
        return Table(jnp.ones((3, DIM)))(key)

    for _ in range(2):
        report_of(tasks=tasks, num_tasks=2)
    assert len(traces) == 2  # one task to check, and the bank


def test_adapt_gets_a_key_of_its_own_in_every_task():
    def adapt(meta_params, support, *, key=None):
        del support
        return meta_params + jax.random.uniform(key)

    def predict(adapted, inputs, *, mask=None, key=None):
        assert key is None
        return adapted + jnp.zeros((inputs.shape[0], 1))

    def metrics_fn(outputs, query):
        del query
        return {"draw": outputs[0, 0]}

    learner = Learner(None, adapt, predict, None)
    draws = [
        report_of(
            learner,
            jnp.zeros(()),
            Table(jnp.ones((3, 1))),
            num_tasks=4,
            tasks_per_block=size,
            metrics_fn=metrics_fn,
        ).values["draw"]
        for size in (4, 2)
    ]
    assert len(np.unique(draws[0])) == 4
    np.testing.assert_array_equal(*draws)


def test_custom_metrics():
    def metrics_fn(outputs, query):
        return {"worst": jnp.max(jnp.square(outputs - query.y))}

    report = report_of(LINEAR, jnp.zeros(2), line_task, metrics_fn=metrics_fn)
    assert set(report.values) == {"worst"}
    assert report.values["worst"].shape == (50,)
    assert compare(report, report).metric == "worst"


def test_half_precision_outputs_are_averaged_in_full():
    def adapt(meta_params, support, *, key=None):
        return meta_params

    def predict(adapted, inputs, *, mask=None, key=None):
        return jnp.tile(jnp.array([[1, 0]], jnp.bfloat16), (inputs.shape[0], 1))

    def tasks(key):
        y = jnp.zeros(901, int).at[7].set(1)
        examples = Examples(jnp.zeros((901, 1)), y)
        return Task(examples, examples)

    learner = Learner(None, adapt, predict, None)
    report = report_of(learner, jnp.zeros(()), tasks, num_tasks=1)
    np.testing.assert_allclose(report.mean["accuracy"], 900 / 901, rtol=1e-6)


def test_curve_holds_every_step():
    start = jnp.array([1.0, -1.0])
    report = report_of(LINEAR, start, line_task, num_tasks=8, steps_curve=True)
    mean, half_width = report.curve["mse"]
    assert mean.shape == half_width.shape == (4,)
    for steps in range(4):
        learner = gradient_descent(steps=steps)
        alone = report_of(learner, start, line_task, num_tasks=8)
        np.testing.assert_allclose(mean[steps], alone.mean["mse"], rtol=1e-5)
        np.testing.assert_allclose(
            half_width[steps], alone.half_width["mse"], rtol=1e-5
        )
    assert np.all(np.diff(mean) < 0)


# Tasks that fail.


def diverging():
    """Half of the tasks give NaN."""

    def adapt(meta_params, support, *, key=None):
        means, scale = CENTROID.adapt(meta_params, support)
        return means, jnp.where(means[0, 0] > 0, jnp.nan, scale)

    return CENTROID._replace(adapt=adapt)


def test_diverged_tasks_are_counted_and_not_dropped(report):
    failed = report_of(diverging())
    supports = [bank_task(class_task, i).support for i in range(50)]
    has_failed = np.array([np.mean(s.x[:SHOT, 0]) > 0 for s in supports])
    assert 10 < failed.num_non_finite == np.sum(has_failed) < 40
    np.testing.assert_array_equal(failed.is_finite, ~has_failed)
    for name in ("accuracy", "nll"):
        assert np.isnan(failed.mean[name])
        assert np.isnan(failed.half_width[name])
        assert np.all(np.isnan(failed.values[name][has_failed]))
        finite = report.values[name][~has_failed]
        np.testing.assert_allclose(failed.median[name], np.median(finite), rtol=1e-5)
    assert np.isnan(failed.calibration.error)
    comparison = compare(failed, report)
    assert np.isnan([comparison.difference, comparison.p_value]).all()


def test_infinite_likelihood_shows():
    """A label that the learner holds impossible."""

    def predict(adapted, inputs, *, mask=None, key=None):
        logits = CENTROID.predict(adapted, inputs)
        return logits.at[:, 1].set(-jnp.inf)

    report = report_of(CENTROID._replace(predict=predict))
    assert report.num_non_finite == 50
    assert report.mean["nll"] == np.inf
    assert 0 < report.mean["accuracy"] < 1
    assert np.isnan(report.median["nll"])


# Banks.


def shifted_task(key):
    """Nearly the same distribution: one number is another one."""
    support, query = class_task(key)
    return Task(support, query._replace(x=query.x.at[-1, 0].add(0.1)))


def test_reports_of_one_bank_are_comparable(report):
    other = report_of(params={"scale": jnp.asarray(0.5)}, tasks_per_block=13)
    comparison = compare(other, report)
    assert comparison.difference == 0  # the scale does not decide which mean is nearest
    assert compare(other, report, "nll").difference > 0


def test_reports_of_other_distributions_are_not(report):
    with pytest.raises(ValueError, match="50 of 50 tasks do not hold the same"):
        compare(report, report_of(tasks=shifted_task))


def test_infinity_in_a_task_does_not_hide_the_bank(report):
    """Such as a limit among the parameters of an environment."""

    def tasks(key):
        support, query = class_task(key)
        return Task((jnp.inf, support), query)

    def adapt(meta_params, support, *, key=None):
        return CENTROID.adapt(meta_params, support[1])

    other = report_of(CENTROID._replace(adapt=adapt), tasks=tasks)
    np.testing.assert_array_equal(other.values["nll"], report.values["nll"])
    assert compare(other, other).p_value == 1


# Leakage.


def test_inductive_learner_passes():
    result = leakage(CENTROID, PARAMS, bank_task(class_task, 0))
    assert result.is_inductive
    assert result.protocol == "inductive"
    assert result.max_deviation < 1e-5


def centre(x, mask):
    """The mean of the batch is taken off, with due respect to the mask."""
    mask = jnp.ones(len(x), bool) if mask is None else mask
    total = jnp.sum(jnp.where(mask[:, None], x, 0), axis=0, keepdims=True)
    return x - total / jnp.sum(mask)


CHEATS = {
    "batch mean": centre,
    "slight batch mean": lambda x, mask: x + 0.01 * centre(x, mask),
    "batch maximum": lambda x, mask: x / jnp.max(jnp.abs(x)),
    "position": lambda x, mask: x.at[: len(x) // WAY].add(1),
    "neighbour": lambda x, mask: x + 0.1 * jnp.roll(x, 1, axis=0),
    "first query": lambda x, mask: x + x[:1],
    "number of queries": lambda x, mask: x * jnp.sum(mask),
}


@pytest.mark.parametrize("name", CHEATS)
def test_transductive_learner_is_found(name):
    learner = centroid(transform=CHEATS[name])
    result = leakage(learner, PARAMS, bank_task(class_task, 0), jax.random.key(1))
    assert not result.is_inductive
    assert result.protocol == "transductive"
    assert result.max_deviation > 10 * result.tolerance


def test_small_predictions_do_not_hide_a_leak():
    params = {"scale": jnp.asarray(1e-8)}
    result = leakage(centroid(transform=centre), params, bank_task(class_task, 0))
    assert result.protocol == "transductive"


def test_absent_classes_do_not_hide_a_leak():
    learner = centroid(transform=centre, way=WAY + 1)
    result = leakage(learner, PARAMS, bank_task(class_task, 0))
    assert np.isfinite(result.max_deviation)
    assert result.protocol == "transductive"


def test_leak_to_a_single_query_is_found():
    def adapt(meta_params, support, *, key=None):
        return CENTROID.adapt(PARAMS, support), meta_params

    def predict(adapted, inputs, *, mask=None, key=None):
        adapted, target = adapted
        is_target = jnp.all(inputs == target[None, :], axis=1, keepdims=True)
        inputs = jnp.where(is_target, centre(inputs, mask), inputs)
        return CENTROID.predict(adapted, inputs)

    learner = Learner(None, adapt, predict, None)
    task = bank_task(class_task, 0)
    for target in task.query.x:
        assert leakage(learner, target, task).protocol == "transductive"
    assert leakage(learner, jnp.zeros(DIM), task).protocol == "inductive"


def test_evaluation_states_the_protocol(report):
    cheat = report_of(centroid(transform=centre), num_tasks=2, check_leakage=True)
    assert cheat.protocol == "transductive"
    assert "(2 tasks, transductive)" in str(cheat)
    assert report_of(num_tasks=50).protocol == "unchecked"


def test_padded_queries_are_others_too():
    """A batch statistic over padding and all, which the mask should have hidden."""
    learner = centroid(transform=lambda x, mask: x - jnp.mean(x))
    task = bank_task(padded_class_task, 0)
    assert leakage(learner, PARAMS, task).protocol == "transductive"


def test_nan_predictions_have_no_protocol():
    params = {"scale": jnp.asarray(jnp.nan)}
    result = leakage(CENTROID, params, bank_task(class_task, 0))
    assert not result.is_inductive
    assert result.protocol == "unknown"


def test_single_query_is_inductive():
    support, query = bank_task(class_task, 0)
    task = Task(support, Examples(query.x[:1], query.y[:1]))
    assert leakage(centroid(transform=centre), PARAMS, task).is_inductive


# Errors.


def no_queries_row(adapted, inputs, *, mask=None, key=None):
    return jnp.sum(CENTROID.predict(adapted, inputs))


def environment_task(key):
    support, query = class_task(key)
    return Task(support, query.x)


def nan_task(key):
    support, query = class_task(key)
    return Task(support._replace(x=support.x.at[1].set(jnp.nan)), query)


def pair_task(key):
    support, query = class_task(key)
    return Task(support, query._replace(y=(query.y, query.y)))


ERRORS = {
    "no tasks": (
        {"num_tasks": 0},
        "`num_tasks` must be an integer of at least 1, got 0",
    ),
    "no block": (
        {"tasks_per_block": 0},
        "`tasks_per_block` must be .* at least 1, got 0",
    ),
    "no steps": ({"steps_curve": True}, "`steps_curve=True` needs .* `adapt_steps`"),
    "NaN": (
        {"params": {"scale": jnp.array([1.0, jnp.nan])}},
        r"`meta_params\['scale'\]` holds NaN: .* last good checkpoint",
    ),
    "tasks": ({"tasks": [1]}, "`tasks` must be a function .* got list"),
    "bad task": ({"tasks": nan_task}, "tasks: `support.x` must be finite"),
    "environment": ({"tasks": environment_task}, "whose query is `Examples`, got"),
    "pytree": ({"tasks": pair_task}, "default metrics need .* give `metrics_fn`"),
    "metrics not scalar": (
        {"metrics_fn": lambda outputs, query: {"all": outputs}},
        r"must return scalars, but 'all' has shape \(12, 3\)",
    ),
    "metrics no dict": (
        {"metrics_fn": lambda outputs, query: jnp.sum(outputs)},
        "`metrics_fn` must return a dict",
    ),
    "no metrics": (
        {"metrics_fn": lambda outputs, query: {}},
        "dict of at least one scalar, got dict {}",
    ),
    "no rows": (
        {
            "learner": CENTROID._replace(predict=no_queries_row),
            "metrics_fn": lambda outputs, query: {"sum": outputs},
            "check_leakage": True,
        },
        r"must answer 12 queries with arrays \[12, ...\], got shape \(\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    kwargs, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        report_of(**({"num_tasks": 1} | kwargs))
