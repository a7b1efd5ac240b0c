"""Every folder of the corpus is refused with one sentence that names file and fault."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.broken import make
from support.broken.cases import ALL, Case
from support.factories import contents
from typer.testing import CliRunner, Result

from tq3.cli.app import app


def run(command: str, source: Path, out: Path) -> Result:
    """One command on a folder."""
    target = [] if command == "inspect" else [str(out)]
    return CliRunner().invoke(app, [command, str(source), *target])


def published(out: Path) -> list[Path]:
    """Files that have their names."""
    return [path for path in out.rglob("*") if path.is_file() and ".tq3.part" not in path.parts]


def check_refusal(result: Result, case: Case) -> None:
    """The exit code, and one short sentence of the file and the fault."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (case.exit_code, "")
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    (sentence,) = [line for line in lines if line.startswith("tq3: error: ")]
    assert re.match(rf"tq3: error: (/.*/)?{re.escape(case.names)}: ", sentence), sentence
    assert case.words in sentence
    assert len(sentence) < 1500


@pytest.mark.parametrize("name", make.CASES)
def test_a_broken_folder_is_refused_by_file_and_fault_and_nothing_is_published(tmp_path, name):
    case, source = make.CASES[name], make.FOLDER / name
    for command in ALL:
        result = run(command, source, tmp_path / command)
        if command in case.commands:
            check_refusal(result, case)
        else:
            # What one command can't know is found by another, or is refused for what it is.
            assert isinstance(result.exception, SystemExit | None)
        if result.exit_code:
            assert not published(tmp_path / command)


def test_the_committed_corpus_is_what_its_maker_writes(tmp_path):
    make.write(tmp_path)
    folders = [path for path in make.FOLDER.iterdir() if path.is_dir() and path.name[0] not in "._"]
    committed = {
        f"{folder.name}/{file}": content
        for folder in folders
        for file, content in contents(folder).items()
    }
    assert committed == contents(tmp_path)
