"""Streams that are closed, full or of a poor encoding: no command ends in a traceback."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from support.factories import llama_tensors, random_tensor, tiny_checkpoint
from support.processes import PROGRAM

import tq3

NAME = "größe.重み.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`in` and what was made of it, `tq3`, with a name that few encodings have."""
    path = tmp_path_factory.mktemp("folders")
    tensors = llama_tensors(1) | {NAME: random_tensor(4, 128)}
    tq3.compress(tiny_checkpoint(path / "in", tensors), path / "tq3")
    return path


def run(
    folders: Path, command: str, streams: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """`tq3 COMMAND` with its streams as a shell has them."""
    line = f"set -o pipefail; {shlex.join(PROGRAM)} {command} {streams}"
    # A bar would wait for a terminal that is not there: no input either.
    return subprocess.run(
        ("bash", "-c", line),
        cwd=folders,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_run_whose_streams_are_closed_does_its_work(folders, tmp_path, streams):
    result = run(folders, f"compress ./in {tmp_path / 'out'}", streams)
    assert (result.returncode, b"Traceback" in result.stderr) == (0, False)
    assert tq3.verify(tmp_path / "out", source=folders / "in").ok


@pytest.mark.parametrize("command", ["verify ./tq3", "inspect ./in", "card ./tq3", "--help"])
def test_nobody_is_told_where_stdout_is_closed(folders, command):
    result = run(folders, command, "<&- >&-")
    assert (result.returncode, b"Traceback" in result.stderr) == (0, False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize(
    "command", ["inspect ./tq3", "card ./tq3", "verify ./tq3 --json", "--help"]
)
def test_data_that_finds_no_room_is_an_error(folders, command):
    result = run(folders, command, ">/dev/full")
    assert result.returncode == 4
    told = result.stderr.decode().splitlines()[-1]
    assert told == "tq3: error: stdout: can't be written: No space left on device"


@pytest.mark.parametrize("streams", ["2>/dev/full", "2> >(exec true)"])
def test_words_that_nobody_hears_do_not_end_a_run(folders, tmp_path, streams):
    result = run(folders, f"compress ./in {tmp_path / 'out'}", streams)
    assert (result.returncode, b"written" in result.stdout) == (0, True)
    assert tq3.verify(tmp_path / "out").ok
    assert run(folders, "compress ./none ./out", streams).returncode == 3


@pytest.mark.parametrize("command", ["inspect ./tq3 --tensors", "card ./tq3", "compress --help"])
def test_a_reader_that_went_away_is_no_word_and_the_code_of_a_broken_pipe(folders, command):
    result = run(folders, command, "| true")
    assert result.returncode in (0, 141)  # 0 where the pipe took all of it before
    assert result.stderr.count(b"\n") == 0


ENCODINGS = {"ascii": "gr\\xf6\\xdfe.\\u91cd\\u307f", "latin-1": "größe.\\u91cd\\u307f"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_character_that_the_encoding_lacks_is_escaped(folders, encoding):
    shown = ENCODINGS[encoding].encode(encoding)
    for command in ("inspect ./tq3 --tensors", "verify ./tq3 --source ./in"):
        result = run(folders, command, PYTHONIOENCODING=encoding)
        assert (result.returncode, shown in result.stdout) == (0, True)
    result = run(folders, "inspect ./größe.重み", PYTHONIOENCODING=encoding)
    assert (result.returncode, shown + b": no such folder" in result.stderr) == (3, True)


def test_what_may_become_a_file_is_the_same_in_every_encoding(folders):
    poor = run(folders, "card ./tq3", PYTHONIOENCODING="ascii").stdout
    assert poor.decode("utf-8") == tq3.make_card(folders / "tq3")
    told = run(folders, "inspect ./tq3 --json --tensors", PYTHONIOENCODING="ascii").stdout
    assert NAME in {line["name"] for line in json.loads(told)["tensors"]}
