"""The only place that prints: data to stdout, words to stderr."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from tq3.cli import tables
from tq3.cli.units import duration, gigabytes
from tq3.errors import Tq3Error
from tq3.pipelines import events

INTERRUPTED = 130
_PLAIN_LINE_SECONDS = 5.0
_REDRAW_SECONDS = 0.1
_PIPE_WIDTH = 1000


class Screen:
    """Shows events, results and errors; turns an error into its sentence and exit code."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self._json = json
        self._quiet = quiet
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self._out = Console(highlight=False, markup=False, emoji=False, width=width)
        self._err = Console(highlight=False, markup=False, emoji=False, stderr=True)
        self._bar: Progress | None = None
        self._bar_task: TaskID | None = None
        self._next_line: float | None = None

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if isinstance(error, Tq3Error):
            self._err.print(f"tq3: error: {error}", style="bold red", soft_wrap=True)
            raise typer.Exit(error.exit_code)
        if isinstance(error, KeyboardInterrupt):
            self._err.print("tq3: interrupted; nothing was left in the target", style="bold red")
            raise typer.Exit(INTERRUPTED)

    def follow(self, run: events.Run, out: Path) -> None:
        """Show a pipeline's events to the last, its figures at the end."""
        with closing(run):
            for event in run:
                if isinstance(event, events.Finished):
                    self._finished(event.report, out)
                elif not self._quiet:
                    self._show(event)

    def description(self, description: Any, *, tensors: bool) -> None:
        """Show a plan or a checkpoint; with `tensors` a line for each one."""
        if self._json:
            self._object(description.to_dict())
            return
        for table in tables.of_description(description, tensors=tensors):
            self._table(table)

    def _show(self, event: events.Event) -> None:
        if isinstance(event, events.Planned):
            plan = event.plan
            self._err.print(
                f"{len(plan.tasks)} tensors, {gigabytes(plan.bytes_in)} -> "
                f"{gigabytes(plan.bytes_out)}, {event.workers} workers, backend {event.backend}",
                soft_wrap=True,
            )
            if event.backend == "numpy":
                self._err.print(
                    "no compiled codec: numpy gives the same bytes, some hundred times slower; "
                    "install a C++ compiler and then tq3 again",
                    style="yellow",
                    soft_wrap=True,
                )
        elif isinstance(event, events.Notice):
            self._err.print(f"notice: {event.text}", style="yellow", soft_wrap=True)
        elif isinstance(event, events.Progress):
            self._progress(event)

    def _progress(self, event: events.Progress) -> None:
        now = time.monotonic()
        finished = event.bytes_done == event.bytes_total
        if self._next_line is None:
            self._next_line = now if self._err.is_terminal else now + _PLAIN_LINE_SECONDS
        if now < self._next_line and not finished:
            return
        if self._err.is_terminal:
            self._next_line = now + _REDRAW_SECONDS
            self._redraw(event)
        else:
            self._next_line = now + _PLAIN_LINE_SECONDS
            self._err.print(f"{_percent(event)} {_figures(event)} {event.tensor}", soft_wrap=True)

    def _redraw(self, event: events.Progress) -> None:
        if self._bar is None:
            columns = (
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[figures]}", markup=False),
                TextColumn("{task.description}", style="dim", markup=False),
            )
            self._bar = Progress(*columns, console=self._err, transient=True)
            self._bar_task = self._bar.add_task("", total=event.bytes_total, figures="")
            self._bar.start()
        assert self._bar_task is not None
        self._bar.update(
            self._bar_task,
            completed=event.bytes_done,
            description=event.tensor,
            figures=_figures(event),
        )

    def _finished(self, report: events.Report, out: Path) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
        if self._json:
            figures = {"ratio": report.ratio, "gb_per_second": report.gb_per_second}
            self._object({"out": str(out), **asdict(report), **figures})
        elif not self._quiet:
            self._table(tables.of_report(report, out))

    def _table(self, table: Table) -> None:
        """As wide as the terminal, or in a pipe as wide as it needs to be, for grep."""
        if self._out.is_terminal:
            self._out.print(table)
            return
        with self._out.capture() as captured:
            self._out.print(table)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def _object(self, value: dict[str, Any]) -> None:
        print(json.dumps(value, indent=2))


def _percent(event: events.Progress) -> str:
    return f"{100 * event.bytes_done / max(event.bytes_total, 1):3.0f}%"


def _figures(event: events.Progress) -> str:
    seconds = max(event.seconds, 1e-9)
    rate = event.bytes_done / seconds
    left = (event.bytes_total - event.bytes_done) / rate if rate else 0.0
    return (
        f"{gigabytes(event.bytes_done)} of {gigabytes(event.bytes_total)}, "
        f"{rate / 1e9:.2f} GB/s, {event.weights_done / seconds / 1e9:.2f} G weights/s, "
        f"{duration(left)} left"
    )
