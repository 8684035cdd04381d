"""Statistics of reports against SciPy, and what a report says of itself."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from metajax.evaluation.reports import Report, across_seeds, compare, reliability

NUM_TASKS = 40


def make_report(shift=0.0, *, seed=0, num_tasks=NUM_TASKS, **kwargs):
    """Tasks from easy to hard, with some noise and a shift that are the learner's."""
    generator = np.random.default_rng(seed)
    ease = generator.uniform(0.4, 0.9, num_tasks)
    noise = np.random.default_rng(round(100 * shift)).normal(0, 0.02, num_tasks)
    values = {
        "accuracy": (ease + noise + shift).astype(np.float32),
        "nll": (-np.log(ease + noise + shift)).astype(np.float32),
    }
    fingerprint = generator.normal(size=(num_tasks, 2)) + [0, 10]
    arguments = {"protocol": "inductive", "seed": seed, "fingerprint": fingerprint}
    return Report(values, **(arguments | kwargs))


@pytest.fixture
def report():
    return make_report()


def test_interval_matches_scipy(report):
    values = report.values["nll"].astype(float)
    error = scipy.stats.sem(values)
    low, high = scipy.stats.t.interval(0.95, NUM_TASKS - 1, values.mean(), error)
    np.testing.assert_allclose(report.mean["nll"], (low + high) / 2)
    np.testing.assert_allclose(report.half_width["nll"], (high - low) / 2)
    np.testing.assert_allclose(report.median["nll"], np.median(values))


def test_curve_has_an_interval_for_each_step(report):
    steps = np.stack([report.values["nll"], 2 * report.values["nll"]], axis=1)
    curve = dataclasses.replace(report, step_values={"nll": steps}).curve["nll"]
    expected = np.array([1, 2])
    np.testing.assert_allclose(curve.mean, report.mean["nll"] * expected)
    np.testing.assert_allclose(curve.half_width, report.half_width["nll"] * expected)


def test_reliability_by_hand():
    # Two queries of confidence 0.6, one of them right; one of 0.9, right; none between.
    result = reliability(
        np.array([2, 0, 1]), np.array([1.2, 0, 0.9]), np.array([1, 0, 1])
    )
    np.testing.assert_allclose(result.error, 2 / 3 * 0.1 + 1 / 3 * 0.1)
    np.testing.assert_allclose(result.confidence, [0.6, np.nan, 0.9])
    np.testing.assert_allclose(result.accuracy, [0.5, np.nan, 1])


def with_failures(report):
    values = {name: v.copy() for name, v in report.values.items()}
    values["nll"][:2] = np.inf
    for v in values.values():
        v[2] = np.nan
    return dataclasses.replace(report, values=values)


def test_failed_tasks_show_and_are_counted(report):
    failed = with_failures(report)
    assert failed.num_non_finite == 3
    assert np.isnan([failed.mean["accuracy"], failed.half_width["nll"]]).all()
    np.testing.assert_allclose(
        failed.median["nll"], np.median(report.values["nll"][3:]), rtol=1e-6
    )
    assert f"3 of {NUM_TASKS} tasks not finite; median of the others: " in str(failed)
    assert str(failed).startswith("accuracy nan % ± no interval")
    values = {"nll": np.where(report.values["nll"] > 0.5, np.inf, 0)}
    assert dataclasses.replace(report, values=values).mean["nll"] == np.inf


def test_all_tasks_failed(report):
    values = {"mse": np.full(NUM_TASKS, np.nan)}
    failed = dataclasses.replace(report, values=values)
    assert failed.num_non_finite == NUM_TASKS
    assert np.isnan(failed.median["mse"])


@pytest.mark.filterwarnings("error")
def test_one_task_has_no_interval():
    report = make_report(num_tasks=1)
    assert report.num_tasks == 1
    assert np.isnan(report.half_width["accuracy"])
    assert "± no interval (1 tasks, inductive)" in str(report)
    assert np.isnan(compare(report, report).p_value)


def test_report_reads_well(report):
    bins = np.array([2, 1]), np.array([1.2, 0.9]), np.array([1, 1])
    report = dataclasses.replace(
        report,
        values={
            "nll": np.array([0.5, 0.7]),
            "accuracy": np.array([0.98, 0.99]),
        },
        fingerprint=np.ones((2, 2)),
        calibration=reliability(*bins),
    )
    assert str(report).split("\n") == [
        "accuracy 98.50 % ± 6.35 (2 tasks, inductive)",
        "nll 0.6 ± 1.3",
        "calibration error 10.00 % (2 bins)",
    ]


def test_report_as_json(report):
    bins = np.array([2, 0]), np.array([1.2, 0]), np.array([1, 0])
    steps = {"nll": np.stack([report.values["nll"]] * 2, axis=1)}
    report = dataclasses.replace(
        with_failures(report), calibration=reliability(*bins), step_values=steps
    )
    data = json.loads(json.dumps(report.to_json(per_task=True), allow_nan=False))
    assert data["metrics"]["accuracy"]["mean"] is None
    assert data["metrics"]["nll"]["median_of_finite"] == report.median["nll"]
    assert data["num_tasks"] == NUM_TASKS
    assert data["non_finite_tasks"] == 3
    assert data["protocol"] == "inductive"
    assert data["seed"] == 0
    assert data["calibration"]["accuracy"] == [0.5, None]
    assert data["curve"]["nll"]["mean"] == report.curve["nll"].mean.tolist()
    assert data["values"]["accuracy"][2] is None
    np.testing.assert_array_equal(
        np.array(data["values"]["accuracy"][3:], np.float32),
        report.values["accuracy"][3:],
    )
    assert "values" not in report.to_json()


def test_comparison_matches_scipy(report):
    better = make_report(0.02)
    comparison = compare(better, report)
    a, b = (r.values["accuracy"].astype(float) for r in (better, report))
    result = scipy.stats.ttest_rel(a, b)
    low, high = result.confidence_interval(0.95)
    assert comparison.metric == "accuracy"
    np.testing.assert_allclose(comparison.p_value, result.pvalue)
    np.testing.assert_allclose(comparison.difference, (low + high) / 2)
    np.testing.assert_allclose(comparison.half_width, (high - low) / 2)
    assert comparison.share_higher == np.mean(a > b)
    assert comparison.share_lower == np.mean(a < b)
    assert 0 < comparison.share_lower < comparison.share_higher < 1
    # The intervals of the two overlap, and yet the difference is clear.
    assert comparison.difference < report.half_width["accuracy"]
    assert comparison.difference > comparison.half_width > 0
    assert comparison.p_value < 0.01
    assert compare(report, better).difference == -comparison.difference


def test_comparison_reads_well(report):
    values = {"accuracy": np.array([0.5, 0.7, 0.9, 0.6])}
    bank = {"fingerprint": np.ones((4, 2))}
    a = dataclasses.replace(report, values=values, **bank)
    values = {"accuracy": values["accuracy"] - [0.1, 0.1, -0.1, 0]}
    b = dataclasses.replace(report, values=values, protocol="transductive", **bank)
    assert str(compare(a, b)) == (
        "accuracy a - b: 2.50 % ± 15.23 (4 paired tasks, a higher in 50.0%, lower in "
        "25.0%; p = 0.64; a inductive, b transductive)"
    )


def test_equal_and_constant_differences(report):
    assert compare(report, report)[1:6] == (0, 0, 0, 0, 1)
    values = {"accuracy": np.zeros(NUM_TASKS)}
    zero = dataclasses.replace(report, values=values)
    one = dataclasses.replace(report, values={"accuracy": values["accuracy"] + 1})
    assert compare(one, zero)[1:6] == (1, 0, 1, 0, 0)


def test_failures_show_in_a_comparison(report):
    comparison = compare(with_failures(report), with_failures(report), "nll")
    assert np.isnan([comparison.difference, comparison.p_value]).all()


def test_rounding_of_the_bank_is_forgiven(report):
    rounded = dataclasses.replace(report, fingerprint=report.fingerprint * (1 + 1e-6))
    assert compare(report, rounded).p_value == 1


def test_across_seeds_matches_scipy():
    reports = [make_report(shift) for shift in (0.0, 0.01, 0.05)]
    spread = across_seeds(reports)
    means = [r.mean["accuracy"] for r in reports]
    low, high = scipy.stats.t.interval(
        0.95, 2, loc=np.mean(means), scale=scipy.stats.sem(means)
    )
    np.testing.assert_allclose(spread.mean, np.mean(means))
    np.testing.assert_allclose(spread.half_width, (high - low) / 2)
    assert (spread.minimum, spread.maximum) == (min(means), max(means))
    assert spread.num_seeds == 3
    assert f"± {100 * spread.half_width:.2f} over 3 training seeds (" in str(spread)


def test_one_seed_has_no_interval(report):
    spread = across_seeds([report])
    assert spread.mean == spread.minimum == spread.maximum
    assert "no interval over 1 training seeds" in str(spread)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_report(seed=1), "different banks: `seed` is 0 in one and 1 in the other"),
        (make_report(num_tasks=9), "different banks: `num_tasks` is 40 in one and 9"),
        (
            make_report(fingerprint=make_report().fingerprint + np.eye(40, 2)),
            "different banks: .* 2 of 40 tasks do not hold the same numbers",
        ),
    ],
)
def test_other_banks_are_refused(report, other, message):
    with pytest.raises(ValueError, match=message):
        compare(report, other)
    with pytest.raises(ValueError, match=message):
        across_seeds([report, other])


def test_unknown_metrics_are_refused(report):
    names = r"`metric` must be one that all reports have, \['accuracy', 'nll'\], got "
    with pytest.raises(ValueError, match=names + "'mse'"):
        compare(report, report, "mse")
    with pytest.raises(ValueError, match=names + "'mse'"):
        across_seeds([report], "mse")
    several = dataclasses.replace(report, values={"b": np.ones(2), "a": np.ones(2)})
    with pytest.raises(ValueError, match=r"\['a', 'b'\], got None"):
        compare(several, several)


def test_other_errors(report):
    with pytest.raises(ValueError, match="at least 1 report, got none"):
        across_seeds([])
    with pytest.raises(ValueError, match="no curve .* `steps_curve=True`"):
        _ = report.curve
