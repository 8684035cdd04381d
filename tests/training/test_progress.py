import io
import re

import pytest
from rich.console import Console

from metajax.training import progress
from metajax.training.progress import Progress


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def log_file():
    return Console(file=io.StringIO(), width=40)


def run(console, clock, *, steps=100, start=0, seconds_per_step=1.0):
    with Progress(start, steps, console=console) as show:
        with show.pause("compiling"):
            clock.now += 20
        show.validated("accuracy", 0.5, 0.01)
        for step in range(start + 1, steps + 1):
            clock.now += seconds_per_step
            show.update(step, 1 / step)
    return console.file.getvalue()


def test_log_file_gets_plain_lines(clock):
    text = run(log_file(), clock)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    lines = text.splitlines()
    assert lines[:2] == ["compiling ...", "compiling took 20.0 s"]
    assert len(lines) == 2 + 20
    # Longer than the console is wide, and not wrapped.
    assert lines[11] == (
        "step 50/100: 1 steps/s, loss 0.02, "
        "validation accuracy 0.5 ± 0.01, 0:00:50 left"
    )
    assert lines[-1].startswith("step 100/100: ")
    assert "left" not in lines[-1]


def test_slow_run_gets_a_line_every_30_seconds(clock):
    lines = run(log_file(), clock, seconds_per_step=11.0, steps=1000).splitlines()
    steps = [int(re.match(r"step (\d+)", line).group(1)) for line in lines[2:]]
    assert max(b - a for a, b in zip(steps, steps[1:], strict=False)) == 3


def test_rate_leaves_out_pauses_and_time_left_has_them(clock):
    console = log_file()
    with Progress(10, 20, console=console) as show:
        for _ in range(2):
            with show.pause("validating"):
                clock.now += 6
        clock.now += 4
        show.update(12, 1.0)
    # 2 steps in 4 s; 8 more at (4 + 6) / 2 s each. The first pause is compilation.
    assert "0.5 steps/s, loss 1, 0:00:40 left" in console.file.getvalue()
    assert console.file.getvalue().count("validating") == 2


def test_terminal_gets_a_bar(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    text = run(console, clock)
    assert "\x1b[" in text
    assert "100/100" in text
    # What does not fit is cut, not wrapped.
    assert "1 steps/s, loss 0.01, validation accuracy 0.5 ± 0.01" in text
    assert "compiling took 20.0 s" in text


@pytest.mark.parametrize("has_widgets", [False, True])
def test_notebook(clock, monkeypatch, has_widgets):
    found = "a spec" if has_widgets else None
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: found)
    console = log_file()
    console.is_jupyter = True
    assert (Progress(0, 10, console=console)._bar is not None) == has_widgets


def test_silence(clock):
    console = log_file()
    with Progress(0, 10, enabled=False, console=console) as show:
        with show.pause("compiling"):
            clock.now += 1
        show.update(10, 1.0)
        show.say("done")
    assert console.file.getvalue() == ""


def test_bar_ends_with_an_error(clock):
    console = Console(file=io.StringIO(), force_terminal=True)
    show = Progress(0, 10, console=console)
    with pytest.raises(KeyError), show:
        raise KeyError
    assert not show._bar.live.is_started
