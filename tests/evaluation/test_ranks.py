"""Ranks over domains by hand-made numbers."""

import json

import numpy as np
import pytest
import scipy.stats

from metajax.evaluation.ranks import friedman_test, nemenyi_test, rank_learners
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


def random_ranks(learners, domains, decimals):
    """By values that are rounded, so that there are ties."""
    values = np.random.default_rng(0).normal(size=(learners, domains))
    values[0] -= 0.5
    return scipy.stats.rankdata(np.round(values, decimals), axis=0)


@pytest.mark.parametrize("decimals", [0, 9])
@pytest.mark.parametrize(("learners", "domains"), [(3, 2), (4, 10), (7, 5)])
def test_friedman_is_scipys(learners, domains, decimals):
    ranks = random_ranks(learners, domains, decimals)
    found = friedman_test(ranks)
    wanted = scipy.stats.friedmanchisquare(*ranks)
    np.testing.assert_allclose(found.statistic, wanted.statistic, rtol=1e-10)
    np.testing.assert_allclose(found.p_value, wanted.pvalue, rtol=1e-10)
    f = (domains - 1) * found.statistic
    f /= domains * (learners - 1) - found.statistic
    freedoms = learners - 1, (learners - 1) * (domains - 1)
    np.testing.assert_allclose(found.f_statistic, f, rtol=1e-10)
    np.testing.assert_allclose(found.f_p_value, scipy.stats.f.sf(f, *freedoms))


def test_friedman_where_all_agree_and_where_all_tie():
    agree = friedman_test(np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]]))
    assert agree == (6, pytest.approx(np.exp(-3)), np.inf, 0)
    tied = friedman_test(np.full((4, 3), 2.5))
    assert tied == (0, 1, 0, 1)


# Demsar 2006, table 5(a): critical values q at 0.05 and 0.10.
QUANTILES = {
    0.05: (2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164),
    0.10: (2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920),
}


@pytest.mark.parametrize("level", QUANTILES)
def test_critical_differences_are_the_published_ones(level):
    for learners, q in enumerate(QUANTILES[level], start=3):
        ranks = random_ranks(learners, 6, 9)
        found = nemenyi_test(ranks, level=level).critical_difference
        wanted = q * np.sqrt(learners * (learners + 1) / 36)
        np.testing.assert_allclose(found, wanted, rtol=5e-4)


def test_pairs_differ_that_are_further_apart_than_the_critical_difference():
    ranks = random_ranks(5, 12, 9)
    average = ranks.mean(1)
    apart = np.abs(average[:, None] - average)
    p_values = nemenyi_test(ranks).p_values
    np.testing.assert_allclose(np.diag(p_values), 1)
    np.testing.assert_array_equal(p_values, p_values.T)
    for level in (0.2, 0.05, 0.5):
        critical = nemenyi_test(ranks, level=level).critical_difference
        np.testing.assert_array_equal(p_values < level, apart > critical)
    assert 0 < (p_values < 0.5).sum() < 20


def test_tests_stand_below_the_table_of_three():
    shifts = {"good": (0.2, 0.3), "bad": (0.0, 0.1), "middle": (0.1, 0.2)}
    reports = {
        name: {"x": report(first), "y": report(second)}
        for name, (first, second) in shifts.items()
    }
    ranking = rank_learners(reports)
    *table, last = str(ranking).split("\n")
    assert len(table) == 4
    critical = nemenyi_test(ranking.rank).critical_difference
    assert last.startswith("Friedman test: p = 0; ")
    assert f"more than {critical:.2f} apart (5 %)" in last
    one = rank_learners({name: {"x": of["x"]} for name, of in reports.items()})
    assert "Friedman" not in str(one)


BAD_RANKS = {
    "two learners": (np.ones((2, 4)), {}, r"at least 3 learners .* shape \[2, 4\]"),
    "one domain": ([[1], [2], [3]], {}, r"at least 2 domains, got shape \[3, 1\]"),
    "a vector": ([1, 2, 3], {}, r"got shape \[3\]"),
    "values": (
        [[1, 0.5], [2, 0.6], [3, 0.7]],
        {},
        r"sum to 6, got \[0.5, 0.6, 0.7\] on domain 1",
    ),
    "ties that do not share": ([[1, 1], [1, 2], [3, 3]], {}, "on domain 0; those that"),
    "NaN": ([[1, np.nan], [2, 2], [3, 3]], {}, "on domain 1"),
    "level": (random_ranks(3, 3, 9), {"level": 5}, "`level` must be .* 1, got 5"),
}


@pytest.mark.parametrize("name", BAD_RANKS)
def test_bad_ranks(name):
    ranks, options, message = BAD_RANKS[name]
    with pytest.raises(ValueError, match=message):
        nemenyi_test(ranks, **options)
    if not options:
        with pytest.raises(ValueError, match=message):
            friedman_test(ranks)
