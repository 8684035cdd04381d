"""Ranks over domains by hand-made numbers."""

import json

import numpy as np
import pytest

from metajax.evaluation.ranks import rank_learners
from metajax.evaluation.reports import Report

EASE = np.random.default_rng(0).uniform(0.3, 0.7, 30)
WAVE = np.tile([1.0, -1.0], 15)


def report(shift, noise=0.0, *, name="accuracy", seed=0, tag=0.0, num=30, **kwargs):
    """Tasks that are much more different than learners; noise has mean 0."""
    values = {name: (EASE + shift + noise * WAVE)[:num]}
    fingerprint = np.stack([EASE + tag, EASE + 1 + tag], axis=1)[:num]
    return Report(
        values,
        **({"protocol": "inductive"} | kwargs),
        seed=seed,
        fingerprint=fingerprint,
    )


def test_ranks_by_hand():
    """One domain with a clear order, one with a tie: 0.05 t / sqrt(30) > 0.01.

    There a (0.2) and b (0.19) tie for ranks 1 and 2, c (0.1) is third.
    """
    ranking = rank_learners(
        {
            "c": {"x": report(0.3), "y": report(0.1)},
            "a": {"x": report(0.2), "y": report(0.2)},
            "b": {"x": report(0.1), "y": report(0.19, 0.05)},
        }
    )
    np.testing.assert_array_equal(ranking.rank, [[1, 3], [2, 1.5], [3, 1.5]])
    np.testing.assert_allclose(ranking.average_rank, [2, 1.75, 2.25])
    assert [ranking.learners[i] for i in ranking.order] == ["a", "c", "b"]
    np.testing.assert_allclose(ranking.mean[0], EASE.mean() + np.array([0.3, 0.1]))
    np.testing.assert_allclose(
        ranking.half_width[0, 0], report(0.3).half_width["accuracy"]
    )


def test_unpaired_intervals_that_overlap_are_no_tie():
    """The tasks differ by 0.4, and the learners by 0.01 on every task."""
    one, other = report(0.0), report(0.01)
    assert one.half_width["accuracy"] > 0.01
    ranking = rank_learners({"one": {"x": one}, "other": {"x": other}})
    np.testing.assert_array_equal(ranking.rank, [[2], [1]])


def test_ties_are_with_the_best_that_is_left():
    """b ties with a, and c would tie with b but not with a."""
    ranking = rank_learners(
        {
            "a": {"x": report(0.020)},
            "b": {"x": report(0.005, 0.05)},
            "c": {"x": report(0.000)},
            "d": {"x": report(0.000)},
        }
    )
    np.testing.assert_array_equal(ranking.rank[:, 0], [1.5, 1.5, 3.5, 3.5])


def test_losses_are_better_when_low_and_nan_ranks_last():
    ranking = rank_learners(
        {
            "high": {"x": report(0.2, name="nll")},
            "nan": {"x": report(np.nan, name="nll")},
            "low": {"x": report(0.1, name="nll")},
            "infinite": {"x": report(np.inf, name="nll")},
        }
    )
    np.testing.assert_array_equal(ranking.rank[:, 0], [2, 3.5, 1, 3.5])
    assert ranking.metric == "nll"


def test_sum_of_ranks_is_what_it_is_without_ties():
    rng = np.random.default_rng(1)
    for _ in range(20):
        learners = {
            str(i): {"x": report(rng.normal(0, 0.02), rng.uniform(0, 0.1))}
            for i in range(6)
        }
        assert rank_learners(learners).rank.sum() == 21


def test_table_and_json():
    ranking = rank_learners(
        {
            "bad": {"one": report(0.0), "two": report(0.0, protocol="unchecked")},
            "good": {"one": report(0.1), "two": report(0.2)},
        }
    )
    header, first, second = str(ranking).split("\n")
    assert header.split() == ["accuracy", "one", "two", "average", "rank"]
    assert first.startswith("good ")
    assert first.split()[-1] == "1.00"
    assert "(2)" in second
    assert len(header) == len(first) == len(second)
    found = json.loads(json.dumps(ranking.to_json()))
    assert found["domains"] == ["one", "two"]
    assert found["learners"]["good"]["rank"] == [1, 1]
    assert found["learners"]["bad"]["protocol"] == "inductive, unchecked"


def test_other_numbers_in_the_same_tasks_must_be_allowed():
    learners = {"a": {"x": report(0.1)}, "b": {"x": report(0.0, tag=5.0)}}
    with pytest.raises(ValueError, match="do not hold the same numbers"):
        rank_learners(learners)
    ranking = rank_learners(learners, check_tasks=False)
    np.testing.assert_array_equal(ranking.rank[:, 0], [1, 2])


BAD = {
    "no learner": ({}, "at least one domain"),
    "no domain": ({"a": {}}, "at least one domain"),
    "a domain is missing": (
        {"a": {"x": report(0), "y": report(0)}, "b": {"x": report(0)}},
        "'a' and 'b' do not both have y; evaluate them or leave them out",
    ),
    "another bank": (
        {"a": {"x": report(0)}, "b": {"x": report(0, seed=1)}},
        "different banks: `seed` is 0 in one and 1",
    ),
    "one task": ({"a": {"x": report(0, num=1)}}, "at least 2 tasks .* got 1 of 'x'"),
    "other metrics": (
        {"a": {"x": report(0)}, "b": {"x": report(0, name="nll")}},
        r"`metric` must be one that all reports have, \[\], got None",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    reports, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        rank_learners(reports)
