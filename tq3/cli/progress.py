"""How far a run is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from tq3 import events
from tq3.units import duration, printable, share, size

_PLAIN_LINE_SECONDS = 5.0
_REDRAW_SECONDS = 0.1
_NO_GUESS_SECONDS = 1.0
# Columns of the progress bar; the figures beside it take about 62.
_BAR_WIDTH = 20
_SHORT_BAR_WIDTH = 10
_WIDE = 90


class ProgressLine:
    """Shows progress on a console; `say` prints a line where there is no terminal."""

    def __init__(self, console: Console, say: Callable[[str], None]) -> None:
        self._console = console
        self._say = say
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._next: float | None = None

    def show(self, event: events.Progress) -> None:
        """Draw the state, unless that was done just now and the end is not reached."""
        now = time.monotonic()
        finished = event.bytes_done == event.bytes_total
        if self._next is None:
            self._next = now if self._console.is_terminal else now + _PLAIN_LINE_SECONDS
        if now < self._next and not finished:
            return
        if self._console.is_terminal:
            self._next = now + _REDRAW_SECONDS
            self._redraw(event)
        else:
            self._next = now + _PLAIN_LINE_SECONDS
            self._say(f"{_figures(event)} {event.tensor}")

    def stop(self) -> None:
        """Take the bar away."""
        bar, self._bar = self._bar, None
        if bar:
            bar.stop()

    def _redraw(self, event: events.Progress) -> None:
        shown: dict[str, Any] = {
            "completed": event.bytes_done,
            "description": printable(event.tensor),
            "figures": _figures(event),
        }
        if self._bar is None:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task(total=event.bytes_total, **shown)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, total=event.bytes_total, **shown)


def _bar(console: Console) -> Progress:
    """One line: bar and figures, and in what is left the tensor's name."""
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    return Progress(
        BarColumn(bar_width=_BAR_WIDTH if console.width >= _WIDE else _SHORT_BAR_WIDTH),
        TextColumn("{task.fields[figures]} ", markup=False, table_column=Column(no_wrap=True)),
        TextColumn("{task.description}", style="dim", markup=False, table_column=rest),
        console=console,
        transient=True,
        expand=True,
    )


def _figures(event: events.Progress) -> str:
    seconds = max(event.seconds, 1e-9)
    rate = (event.bytes_done - event.bytes_before) / seconds
    left = (event.bytes_total - event.bytes_done) / rate if rate else 0.0
    done = 100 * event.bytes_done / max(event.bytes_total, 1)
    figures = [f"{done:3.0f}%", share(event.bytes_done, event.bytes_total)]
    # The first files may be small: their rate is not that of the weights.
    until = [f"{duration(left)} left"] if seconds >= _NO_GUESS_SECONDS else []
    if event.rates:  # last, since a narrow terminal cuts it
        return "  ".join([*figures, *until, _rates(event.rates)])
    weights = [f"{event.weights_done / seconds / 1e9:.2f} G weights/s"]
    speed = [f"{rate / 1e9:.2f} GB/s", *(weights if event.weights_done else [])]
    return "  ".join([*figures, *speed, *until])


def _rates(rates: events.Rates) -> str:
    """What the network brings, what the processors could take, and which of them binds."""
    both = f"network {size(int(rates.network))}/s, encoder {size(int(rates.encoder))}/s"
    return f"{both}: the {rates.binding} binds"
