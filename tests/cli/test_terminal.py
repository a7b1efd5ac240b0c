"""What a terminal shows: one line of progress at any width, nothing steered by a name."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console
from support.factories import random_tensor, slow_checkpoint, tiny_checkpoint, visible

import tq3 as library
from tq3.cli.progress import ProgressLine
from tq3.cli.screen import Screen
from tq3.events import Notice, Planned, Progress, Rates

PROGRAM = str(Path(sys.executable).with_name("tq3"))
NASTY = "a\x1b[31m\r\n\u202e\x07.weight"
SHOWN = r"a\x1b[31m\r\n\u202e\x07.weight"

FIGURES = r" 45%  6\.91/15\.35 GB  0\.12 GB/s  0\.06 G weights/s  1:11 left"
HALFWAY = Progress(
    bytes_done=6_910 * 10**6,
    bytes_before=0,
    bytes_total=15_350 * 10**6,
    weights_done=3_455 * 10**6,
    seconds=58.0,
    tensor="model." + 30 * "layer.",
)


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> tuple[Screen, StringIO]:
    """A screen on a terminal that keeps what it is sent, and what it was sent."""
    screen, sent = Screen(), StringIO()
    console = Console(
        file=sent, force_terminal=True, width=width, highlight=False, markup=False, emoji=False
    )
    monkeypatch.setattr(screen, "_err", console)
    monkeypatch.setattr(screen, "_progress", ProgressLine(console, screen._say))
    return screen, sent


def frames(sent: str) -> list[str]:
    """The lines that were drawn, without their colours and cursor movements."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent)
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize(("width", "bar"), [(80, 10), (100, 20), (160, 20)])
def test_the_line_of_progress_has_bar_and_figures_and_as_much_of_the_name_as_fits(
    monkeypatch, width, bar
):
    screen, sent = terminal(monkeypatch, width)
    with screen:
        screen._show(HALFWAY)
    drawn = frames(sent.getvalue())
    assert drawn
    for line in drawn:  # the first frame too
        assert len(line) <= width
        found = re.fullmatch(rf"([━╸╺]+) {FIGURES}  (m\S*…)", line)
        assert found, line
        assert len(found[1]) == bar


def test_on_80_columns_a_run_from_the_hub_shows_how_long_it_takes(monkeypatch):
    screen, sent = terminal(monkeypatch, 80)
    with screen:
        screen._show(replace(HALFWAY, rates=Rates(118.2e6, 2.9e9)))
    begin = r" 45%  6\.91/15\.35 GB  1:11 left  network 118\.20 MB/s, encoder 2\.90 GB/s"
    assert all(re.search(begin, line) for line in frames(sent.getvalue()))


def test_the_first_second_guesses_nothing(monkeypatch):
    screen, sent = terminal(monkeypatch, 100)
    with screen:
        screen._show(replace(HALFWAY, seconds=0.5))
    assert "left" not in sent.getvalue()


@pytest.mark.parametrize("width", [1, 20, 40])
def test_a_narrow_terminal_still_gets_one_line(monkeypatch, width):
    screen, sent = terminal(monkeypatch, width)
    with screen:
        screen._show(HALFWAY)
    assert all(len(line) <= width for line in frames(sent.getvalue()))
    assert "\x1b[1A" not in sent.getvalue().split("\x1b[?25h")[0]  # never up, so never two lines


def test_names_are_shown_escaped_in_progress_and_notices(monkeypatch):
    screen, sent = terminal(monkeypatch, 200)
    with screen:
        screen._show(Notice(f"{NASTY} is kept"))
        screen._show(replace(HALFWAY, tensor=NASTY))
    notice, *progress = frames(sent.getvalue())
    assert notice == f"notice: {SHOWN} is kept"
    assert progress
    assert all(SHOWN in line for line in progress)


def test_names_are_shown_escaped_in_tables_and_errors(tq3, tmp_path):
    folder = tmp_path / "in\x1b[2J"
    tiny_checkpoint(folder, {NASTY: random_tensor(4, 128), "b.weight": random_tensor(4, 128)})
    (folder / "x\x1b].bin").write_text("")
    out = tmp_path / "out\x1b[2J"
    seen = tq3("inspect", folder, "--tensors").output
    seen += tq3("compress", folder, out).output + tq3("compress", folder, out).output
    seen += tq3("inspect", out, "--tensors").output + tq3("inspect", tmp_path / "no\x1b").output
    assert "\x1b" not in seen
    for shown in (SHOWN, r"in\x1b[2J", r"out\x1b[2J", r"x\x1b].bin", r"no\x1b: no such folder"):
        assert shown in seen


@pytest.mark.parametrize(("backends", "said"), [(("numpy",), True), (("avx2", "numpy"), False)])
def test_a_missing_codec_is_told_only_where_it_is_missing(monkeypatch, tmp_path, backends, said):
    monkeypatch.setattr("tq3.codec.backend.available_backends", lambda: backends)
    screen, sent = terminal(monkeypatch, 200)
    source = tiny_checkpoint(tmp_path / "in")
    events = library.compress_checkpoint(
        source, tmp_path / "out", library.Recipe(), backend="numpy"
    )
    with screen:
        screen._show(next(event for event in events if isinstance(event, Planned)))
    events.close()
    assert ("no compiled codec" in sent.getvalue()) == said


@contextmanager
def in_a_terminal(
    *command: object, wrapper: str = ""
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A program as the leader of its own terminal, and our end of that."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    make_it_ours = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    make_it_ours += f"{wrapper}os.execv(sys.argv[1], sys.argv[1:])"
    arguments = [sys.executable, "-c", make_it_ours, *map(str, command)]
    with subprocess.Popen(
        arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as run:
        os.close(theirs)
        try:
            yield run, ours
        finally:
            run.kill()


def wait_for_progress(ours: int) -> None:
    """Until a line of progress was drawn."""
    seen, end = b"", time.monotonic() + 30
    while b"GB/s" not in seen and time.monotonic() < end:
        seen += os.read(ours, 1 << 16)
    assert b"GB/s" in seen


def test_a_closed_terminal_ends_the_run_so_that_it_can_go_on(tmp_path):
    source, out = slow_checkpoint(tmp_path / "in"), tmp_path / "out"
    with in_a_terminal(PROGRAM, "compress", source, out, "--backend", "numpy") as (run, ours):
        wait_for_progress(ours)
        os.close(ours)
        assert run.wait(timeout=30) == 130
    assert visible(out) == {}
    assert (out / ".tq3.part" / "journal").exists()


def test_a_write_to_a_closed_terminal_is_an_interruption(monkeypatch):
    screen, _ = terminal(monkeypatch, 100)
    with pytest.raises(typer.Exit) as ended, screen:
        raise OSError(errno.EIO, "Input/output error")
    assert ended.value.exit_code == 130


def test_nohup_keeps_its_word(tmp_path):
    source, out = slow_checkpoint(tmp_path / "in"), tmp_path / "out"
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    command = (PROGRAM, "compress", source, out, "--backend", "numpy")
    with in_a_terminal(*command, wrapper=ignore) as (run, ours):
        wait_for_progress(ours)
        run.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert run.poll() is None
        os.close(ours)
