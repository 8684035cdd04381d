"""The comparison with easyfsl: its tasks, what it makes of answers, and its text."""

import numpy as np
import pytest
from of_benchmarks.outcome import read_result

from benchmarks import beside_easyfsl, results_page
from benchmarks.beside_easyfsl import LEARNERS, Settings, measure
from benchmarks.peers.embeddings import few_shot_embeddings

TASKS = {
    "num_tasks": 6,
    "way": 3,
    "shot": 2,
    "num_queries": 4,
    "size": 12,
    "noise": 0.5,
    "seed": 1,
}


def test_tasks_are_those_of_the_seed_and_in_the_order_of_classes():
    support, queries = few_shot_embeddings(**TASKS)
    again, _ = few_shot_embeddings(**TASKS)
    other, _ = few_shot_embeddings(**TASKS | {"seed": 2})
    assert support.shape == (6, 6, 12)
    assert queries.shape == (6, 12, 12)
    np.testing.assert_array_equal(support, again)
    assert not np.array_equal(support, other)
    assert support.min() == 0
    means = support.reshape(6, 3, 2, 12).mean(2)
    own = queries.reshape(6, 3, 4, 12).mean(2)
    gaps = np.linalg.norm(means[:, :, None] - own[:, None], axis=-1)
    assert np.mean(gaps.argmin(-1) == np.arange(3)) > 0.8


def echo(name, settings, wrong=0):
    """An easyfsl that gives what metajax gives, but for `wrong` answers."""
    rows = [rows.astype(np.float32) for rows in few_shot_embeddings(**TASKS)]
    learned, turn = beside_easyfsl.answerer(name, TASKS, 2), LEARNERS[name][1]
    answers = turn(np.asarray(learned(*rows))).copy()
    answers[:, :wrong] = np.roll(answers[:, :wrong], 1, axis=-1)

    def ask(asked, first, count):
        assert asked == name
        return 0.5 * count, answers[first : first + count]

    return ask


@pytest.mark.parametrize("name", ["simple_shot", "laplacian_shot"])
@pytest.mark.parametrize("wrong", [0, 1])
def test_rows_say_how_far_answers_agree(name, wrong):
    settings = Settings(rounds=2, peer_tasks=3, slow_peer_tasks=2, block=2, **TASKS)
    row = measure(name, settings, TASKS, echo(name, settings, wrong))
    assert row["easyfsl_seconds"] == [0.5, 0.5]
    assert row["peer_tasks"] == (6 if name == "simple_shot" else 4)
    assert len(row["ratios"]) == 2
    if wrong:
        assert row["largest_difference"] > 0.01
        assert row["agreement"] == pytest.approx(11 / 12)
    else:
        assert row["largest_difference"] == 0
        assert row["agreement"] == 1


def test_from_settings_to_the_page(tmp_path, monkeypatch):
    """With a peer that only knows what was asked of it."""
    monkeypatch.setattr(beside_easyfsl, "make_environment", lambda *a: None)
    monkeypatch.setattr(beside_easyfsl, "LEARNERS", {"bd_cspn": LEARNERS["bd_cspn"]})

    class Peer:
        def __init__(self, name, *, worker):
            assert (name, worker) == ("easyfsl", "benchmarks.peers.worker_easyfsl")

        def ask(self, do, **arguments):
            if do == "prepare":
                self.support, self.queries = few_shot_embeddings(**arguments["tasks"])
                return {"versions": {"easyfsl": "1.5.0", "torch": "2.13.0"}}
            count = arguments["count"]
            np.save(arguments["path"], np.zeros((count, 12, 3)))
            return {"seconds": 1.0 * count}

        def close(self):
            pass

    monkeypatch.setattr(beside_easyfsl, "Process", Peer)
    beside_easyfsl.main(
        Settings(rounds=2, peer_tasks=2, double_tasks=2, block=2, **TASKS)
    )
    result = read_result(tmp_path)
    assert result["settings"]["versions"]["easyfsl"] == "1.5.0"
    [row] = result["results"]
    assert 0 < row["double_error"] <= 1
    page = results_page.page(tmp_path / "results")
    assert "## Beside easyfsl" in page
    assert "| bd_cspn | closed form |" in page


def test_without_easyfsl_it_says_why(monkeypatch):
    monkeypatch.setattr(
        beside_easyfsl, "make_environment", lambda *a: "no such version"
    )
    with pytest.raises(SystemExit, match="cannot be had: no such version"):
        beside_easyfsl.main(Settings())
