"""The side-by-side benchmark: its work, arithmetic and text; nothing is timed here."""

import jax
import numpy as np
import pytest

from benchmarks.peers import environments, worker_metajax
from benchmarks.peers.__main__ import Settings, install, main
from benchmarks.peers.environments import RECIPES
from benchmarks.peers.interleave import Process, WorkerError, check_losses, measure
from benchmarks.peers.items import (
    CONTENDERS,
    ITEMS,
    PEERS,
    data_of,
    parts_of,
    select_items,
    select_peers,
    weights_of,
)
from benchmarks.peers.report import draw, ratio, summarise, table


def rows_of(**seconds):
    row = {"group": "W9", "item": "W9 test", "tasks": 4, "loss": 1.5}
    return [row | {"contender": k, "seconds": v} for k, v in seconds.items()]


def test_every_peer_has_a_recipe_and_every_item_known_contenders():
    assert tuple(RECIPES) == PEERS
    assert {c.peer for c in CONTENDERS.values()} == {None, *PEERS}
    assert len({str(item) for item in ITEMS}) == len(ITEMS)
    for item in ITEMS:
        assert set(item.contenders) <= set(CONTENDERS)
        assert not set(item.contenders) & {name for name, _ in item.absent}


@pytest.mark.parametrize("group", ["W1a", "W2", "W3"])
def test_data_and_weights_are_those_of_the_seed(group):
    item = select_items([group])[0]
    for make in (data_of, weights_of):
        first, again, other = make(item, 3), make(item, 3), make(item, 4)
        assert first.keys() == again.keys()
        for name, array in first.items():
            np.testing.assert_array_equal(array, again[name])
        assert any(not np.array_equal(first[k], other[k]) for k in first)
    data = data_of(item)
    assert data["support_x"].shape[:2] == (item.tasks, item.way * item.shot)
    assert data["query_x"].shape[:2] == (item.tasks, item.way * item.num_queries)
    assert {a.dtype.name for a in data.values()} <= {"float32", "int32"}


@pytest.mark.parametrize("item", select_items(("W0",)), ids=lambda item: item.kind)
def test_parts_are_products_and_convolutions(item, monkeypatch):
    monkeypatch.setattr("benchmarks.peers.items.PRODUCT", 8)
    own, shared = parts_of(item)
    if item.kind == "product":
        found = own @ shared
        loss = np.mean(np.square(found))
    else:
        dimensions = ("NHWC", "HWIO", "NHWC")
        found = jax.lax.conv_general_dilated(
            own.reshape(-1, *own.shape[2:]),
            shared,
            (1, 1),
            "SAME",
            dimension_numbers=dimensions,
        )
        loss = np.mean(np.square(found)) / 2
    step, _ = worker_metajax.part(item)
    np.testing.assert_allclose(step(2), loss, rtol=1e-4)


def test_names_select_groups_and_items():
    assert select_items([]) == ITEMS
    assert {item.group for item in select_items(["W3", "W5"])} == {"W3", "W5"}
    assert [str(i) for i in select_items(["W4 50 inner"])] == ["W4 50 inner"]
    assert select_peers(["naive", "higher"]) == ("higher", "naive")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"`--items` must be among 'W0'.*'W6'"):
        select_items(["W6"])
    with pytest.raises(ValueError, match=r"`--peers` must be among 'learn2.*'jaxopt'"):
        main(Settings(peers=("jaxopt",)))
    with pytest.raises(ValueError, match=r"`--rounds` must be at least 1, got 0"):
        main(Settings(rounds=0))


def test_ratio_is_the_median_of_the_ratios_of_common_rounds():
    # The ratio of the two medians would be 3 / 2.
    assert ratio([1.0, 3.0, 8.0], [1.0, 6.0, 2.0]) == [1.0, 0.5, 4.0]
    assert ratio([1.0, None, 8.0], [2.0, 6.0, None]) == [0.5, 0.5, 0.5]
    assert ratio([None], [1.0]) == []


def test_summary_finds_the_fastest_peer_and_leaves_out_what_failed():
    rows = rows_of(
        metajax=[1.0, 1.0], higher=[2.0, 6.0], learn2learn=[4.0, 8.0], naive=[0.1, 0.1]
    )
    rows[3]["problem"] = "its loss is nan"
    ours, higher, _, naive = summarise(rows)
    assert ours["fastest"] == "higher"
    assert ours["to_fastest"][0] == (1 / 2 + 1 / 6) / 2
    assert higher["to_reference"] == [0.625, 0.5, 0.75]
    assert (higher["median"], higher["least"], higher["greatest"]) == (4.0, 2.0, 6.0)
    assert "median" not in naive


def test_table_and_plot(tmp_path):
    rows = rows_of(metajax=[0.25, 0.5], learn2learn=[1.0, None], higher=[])
    rows[2]["problem"] = "not installed: no such version"
    rows = summarise(rows)
    heads, ours, peer, failed = (line.split("  ") for line in table(rows).splitlines())
    assert heads[0] == "W9 test"
    assert [c.strip() for c in ours if c][:6] == (
        ["metajax", "375", "250 to 500", "11", "0.25", "0.25"]
    )
    assert [c.strip() for c in peer if c][1:3] == ["1000", "1000 to 1000"]
    assert [c.strip() for c in failed if c] == ["higher", rows[2]["problem"]]
    draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_nothing_is_drawn_without_learn2learn(tmp_path):
    draw(summarise(rows_of(metajax=[1.0, 2.0], higher=[2.0, 3.0])), tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_a_table_without_any_measurement_still_says_why():
    rows = rows_of(metajax=[])
    rows[0]["problem"] = "failed to prepare: exit code 1; no memory"
    assert "no memory" in table(summarise(rows))


def test_losses_must_agree_to_a_thousandth():
    rows = rows_of(metajax=[], a=[], b=[], c=[], d=[])
    for row, loss in zip(rows, (2.0, 2.0019, 2.0021, float("nan"), None), strict=True):
        row["loss"] = loss
    check_losses(rows)
    assert ["problem" in row for row in rows] == [False, False, True, True, False]
    assert rows[2]["problem"] == "its loss is 2.0021 but that of metajax 2"


def test_a_peer_that_cannot_be_installed_is_reported(tmp_path, monkeypatch, capsys):
    def fail(*command, **options):
        raise environments.subprocess.CalledProcessError(
            1, command, output="Collecting x\nERROR: No matching version\nhint: none\n"
        )

    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "_run", fail)
    missing = install(("higher",))
    assert missing["higher"].startswith("not installed: `-m venv")
    assert missing["higher"].endswith("failed: ERROR: No matching version")
    assert "higher not installed" in capsys.readouterr().out


def test_absent_peers_have_rows_that_say_why():
    item = select_items(["W2"])[0]
    everyone = dict.fromkeys((*PEERS, ""), "not installed: a reason")
    rows = measure(item, everyone, rounds=1)
    assert [row["contender"] for row in rows] == list(item.contenders)
    assert {row["problem"] for row in rows} == {"not installed: a reason"}
    assert "a reason" in table(summarise(rows))


def test_a_worker_answers_and_its_death_is_an_error():
    process = Process("numpy")
    try:
        assert process.ask("report")["peak_rss_mib"] > 1
        with pytest.raises(WorkerError, match="failed to prepare: exit code 1; Value"):
            process.ask("prepare", item="no such item")
    finally:
        process.close()
