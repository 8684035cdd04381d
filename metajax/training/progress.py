"""How a training run shows itself: a live bar, or plain lines in a log file.

On a terminal, and in a notebook, rich keeps one bar up to date. Anywhere else (a file,
a pipe) plain lines without control characters come at every 5 % of the run, and after
30 s at the latest.
"""

import datetime
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

__all__ = ["Progress"]

_LINES_PER_RUN = 20
_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_BARS = 0.1


class Progress:
    """Shows one run, as a context manager.

    Args:
      start: steps that were taken before.
      steps: steps of the whole run.
      enabled: False shows nothing.
      console: where to write; standard output by default.
    """

    def __init__(
        self,
        start: int,
        steps: int,
        *,
        enabled: bool = True,
        console: Console | None = None,
    ) -> None:
        self._console = console or Console()
        self._enabled = enabled
        self._start = self._last_step = start
        self._steps = steps
        self._began = self._last_time = time.monotonic()
        self._paused = 0.0
        self._seen: set[str] = set()
        self._validation = ""
        self._bar: _Bar | None = None
        if enabled and _is_live(self._console):
            self._bar = _Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                console=self._console,
                refresh_per_second=4,
            )
            self._bar.add_task("training", total=steps, completed=start)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints one line, above the bar if there is one."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            self._console.file.flush()

    @contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Says what goes on instead of training, and leaves its time out of the rate.

        The first time, which is slow because it compiles, is announced, and is left
        out of the remaining time too.
        """
        began = time.monotonic()
        is_first = what not in self._seen
        self._seen.add(what)
        if self._bar is not None:
            self._bar.update(TaskID(0), description=what)
        elif is_first:
            self.say(f"{what} ...")
        yield
        seconds = time.monotonic() - began
        if is_first:
            self._began += seconds
            self.say(f"{what} took {seconds:.1f} s")
        else:
            self._paused += seconds
        if self._bar is not None:
            self._bar.update(TaskID(0), description="training")

    def validated(self, monitor: str, value: float, half_width: float) -> None:
        """Takes note of the latest validation: mean and 95 % half-width."""
        self._validation = f"validation {monitor} {value:.4g} ± {half_width:.2g}"

    def update(self, step: int, loss: float) -> None:
        """Shows where the run is: steps taken so far, and the latest loss."""
        now = time.monotonic()
        if not self._is_due(step, now):
            return
        self._last_step, self._last_time = step, now
        elapsed = now - self._began
        done, to_do = step - self._start, self._steps - step
        rate = done / max(elapsed - self._paused, 1e-9)  # a clock may stand still
        parts = [f"{rate:.4g} steps/s", f"loss {loss:.4g}"]
        if self._validation:
            parts.append(self._validation)
        if done and to_do:
            left = datetime.timedelta(seconds=round(elapsed / done * to_do))
            parts.append(f"{left} left")
        text = ", ".join(parts)
        if self._bar is not None:
            self._bar.text = text
            self._bar.update(TaskID(0), completed=step)
        else:
            self.say(f"step {step}/{self._steps}: {text}")

    def _is_due(self, step: int, now: float) -> bool:
        seconds = now - self._last_time
        if self._bar is not None:
            return seconds > _SECONDS_BETWEEN_BARS or step == self._steps
        lines = step * _LINES_PER_RUN // self._steps
        last_lines = self._last_step * _LINES_PER_RUN // self._steps
        return lines > last_lines or seconds > _SECONDS_BETWEEN_LINES


class _Bar(Bar):
    """A bar with a line of text below, which is cut where the terminal is narrow."""

    text = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.text, no_wrap=True, overflow="ellipsis")


def _is_live(console: Console) -> bool:
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal
