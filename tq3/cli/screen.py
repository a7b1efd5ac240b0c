"""The only place that prints: data to stdout, words to stderr."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from tq3 import events
from tq3.cli import stops, tables
from tq3.cli.progress import ProgressLine
from tq3.cli.verification_tables import of_verification
from tq3.errors import StorageError, Tq3Error, is_lack_of_memory
from tq3.format.parts import make_part
from tq3.pipelines.standing import Standing
from tq3.publication.result import Publication
from tq3.storage.drafts import WORK_FOLDER
from tq3.storage.parts import part_folder
from tq3.units import counted, printable, share, size
from tq3.verification.checks import Verification

_PIPE_WIDTH = 1000


class Screen:
    """Shows events, results and errors; turns an error into its sentence and exit code."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self._json = json
        self._quiet = quiet
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self._out = Console(highlight=False, markup=False, emoji=False, width=width)
        self._err = Console(highlight=False, markup=False, emoji=False, stderr=True)
        self._progress = ProgressLine(self._err, self._say)
        self._work_folder: Path | None = None

    def __enter__(self) -> Screen:
        stops.interrupt_runs()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        stops.restore_signals(failed=error is not None)
        if isinstance(error, OSError) and _is_hangup(error):
            error = KeyboardInterrupt()
        elif isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            error = StorageError(
                f"can't be read or written: {error.strerror or error}", file=error.filename
            )
        if error is not None and is_lack_of_memory(error):
            error = StorageError("not enough memory", fix="fewer --workers need less")
        if isinstance(error, Tq3Error):
            self._end(f"tq3: error: {error}", error.exit_code, error.repeatable)
        if isinstance(error, KeyboardInterrupt):
            self._end(stops.SENTENCE, stops.INTERRUPTED, repeatable=True)
        self._progress.stop()

    def watch(
        self, out: Path | None = None, part: str | tuple[int, int] | None = None
    ) -> events.OnEvent:
        """What shows the events of a run; `out`: the folder that it writes, or `part` of it."""

        def show(event: events.Event) -> None:
            if isinstance(event, events.Planned) and out:
                asked = make_part(part)
                # Now it is this run's.
                self._work_folder = part_folder(out, asked) if asked else out / WORK_FOLDER
            if not self._quiet:
                self._show(event)

        return show

    @property
    def draws(self) -> bool:
        """Whether a progress bar has a place to be drawn in."""
        return self._err.is_terminal and not self._quiet

    def agrees(self, reasons: Sequence[str]) -> bool:
        """Whether somebody is there to be asked, and says yes to a public push all the same."""
        if not (sys.stdin.isatty() and self._err.is_terminal):
            return False
        self._progress.stop()
        for reason in reasons if self._quiet else ():  # else they were told as notices
            self._say(reason, style="yellow")
        self._say("Make a copy public all the same? Type yes:")
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def document(self, text: str) -> None:
        """A file's content: in UTF-8, whatever the locale, where it may become a file."""
        if sys.stdout.isatty():
            print(text, end="", flush=True)
        else:
            sys.stdout.flush()
            # A folder after which the model is named need not be called in UTF-8.
            sys.stdout.buffer.write(text.encode("utf-8", "replace"))
            sys.stdout.buffer.flush()

    def description(self, description: Any, *, tensors: bool) -> None:
        """Show a plan or a checkpoint; with `tensors` a line for each one."""
        shown = tables.of_description(description, tensors=tensors)
        self._result(description.to_dict(), shown)
        for text in () if self._json or self._quiet else description.notices:
            self._say(f"notice: {text}", style="yellow")

    def evaluation(self, evaluation: Any, shown: Iterable[Table]) -> None:
        """Show what an evaluation found, as one object or as these tables."""
        self._result(evaluation.to_dict(), shown)

    def _show(self, event: events.Event) -> None:
        if isinstance(event, events.Planned):
            plan = event.plan
            self._say(
                f"{counted(len(plan.tasks), 'tensor')}, {size(plan.bytes_in)} -> "
                f"{size(plan.bytes_out)}, {counted(event.workers, 'worker')}, "
                f"backend {event.backend}"
            )
            self._warn_of_numpy(event.backend)
        elif isinstance(event, events.Checking):
            against = ", checksums" if event.checksums else ""
            against += ", beside the source" if event.source else ""
            self._say(
                f"{counted(event.n_tensors, 'tensor')}, {size(event.bytes_total)} to read"
                f"{against}, {counted(event.workers, 'worker')}, backend {event.backend}"
            )
            if event.source:
                self._warn_of_numpy(event.backend)
        elif isinstance(event, events.Notice):
            self._say(f"notice: {event.text}", style="yellow")
        elif isinstance(event, events.Progress):
            self._progress.show(event)
        elif isinstance(event, events.Uploading):
            self._uploading(event)

    def _uploading(self, event: events.Uploading) -> None:
        self._progress.stop()  # huggingface_hub draws its own
        first, more = event.files[0], len(event.files) - 1
        names = f"{first} and {counted(more, 'other')}" if more else first
        done = share(event.bytes_done, event.bytes_total)
        self._say(f"{done} done, uploading {size(event.n_bytes)}: {names}")

    def _warn_of_numpy(self, backend: str) -> None:
        if backend == "numpy" and _nothing_compiled():
            self._say(
                "no compiled codec: numpy gives the same bytes, some hundred times slower; "
                "install a C++ compiler and then tq3 again",
                style="yellow",
            )

    def report(self, report: events.Report, out: Path) -> None:
        """Show the figures of a finished run, which wrote `out`."""
        figures = {"ratio": report.ratio, "gb_per_second": report.gb_per_second}
        shown = tables.of_report(report, out)
        self._result({"out": str(out), **asdict(report), **figures}, [shown])

    def standing(self, standing: Standing) -> None:
        """Show which parts of a divided run stand."""
        self._result(standing.to_dict(), [tables.of_standing(standing)])

    def verification(self, verification: Verification) -> None:
        """Show what was found; raise VerificationFailed where that is a fault."""
        self._result(verification.to_dict(), of_verification(verification))
        if not verification.ok:
            raise verification.refusal()

    def publication(self, publication: Publication) -> None:
        """Show what a push did, or would do."""
        self._result(publication.to_dict(), [tables.of_publication(publication)])

    def _say(self, text: str, style: str | None = None) -> None:
        self._err.print(printable(text), style=style, soft_wrap=True)

    def _end(self, sentence: str, exit_code: int, repeatable: bool) -> None:
        # A terminal that was closed takes no last words; the exit code is still right.
        with suppress(OSError):
            self._progress.stop()
            self._say(sentence, style="bold red")
            self._say_what_is_left(repeatable)
        raise typer.Exit(exit_code)

    def _say_what_is_left(self, repeatable: bool) -> None:
        folder = self._work_folder
        if folder and folder.exists():
            goes_on = ", and the same command goes on from there" if repeatable else ""
            self._say(
                f"what is done so far is kept in {folder}{goes_on}; "
                "remove that folder to give it up"
            )

    def _table(self, table: Table) -> None:
        """Print a table as wide as the terminal, in a pipe as wide as it needs to be, for grep."""
        if self._out.is_terminal:
            self._out.print(table)
            return
        with self._out.capture() as captured:
            self._out.print(table)
        # Now, not when the process ends: it may fail.
        print("\n".join(line.rstrip() for line in captured.get().splitlines()), flush=True)

    def _result(self, figures: dict[str, Any], shown: Iterable[Table]) -> None:
        """The figures as one JSON object, or as tables for people."""
        self._progress.stop()
        if self._json:
            print(json.dumps(figures, indent=2), flush=True)
        for table in () if self._json or self._quiet else shown:
            self._table(table)


def _is_hangup(error: OSError) -> bool:
    """A write to a terminal that was closed: it may fail before the signal of it arrives."""
    return error.errno == errno.EIO and error.filename is None


def _nothing_compiled() -> bool:
    from tq3.codec.backend import available_backends  # noqa: PLC0415  --help needs no numpy

    return available_backends() == ("numpy",)
