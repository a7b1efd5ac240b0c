"""Pipes, devices, links that lead nowhere or away: never waited for, never written through."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.factories import contents, random_tensor, tiny_checkpoint, write_index
from typer.testing import CliRunner, Result

from tq3.cli.app import app

COMMANDS = ("compress", "inspect", "restore")


def run(command: str, source: Path, out: Path, *options: str) -> Result:
    """One command on a folder."""
    target = [] if command == "inspect" else [str(out), *options]
    return CliRunner().invoke(app, [command, str(source), *target])


def folder(path: Path) -> Path:
    """One shard with an index, config.json, tq_config.json."""
    source = tiny_checkpoint(path / "in", {"a.weight": random_tensor(4, 128)}, names=("1.weights",))
    write_index(source, {"a.weight": "1.weights"})
    return source


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path)


def nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


KINDS = {
    "a pipe": (pipe, 3, "not a regular file (found a pipe)"),
    "a device": (device, 3, "not a regular file (found a device)"),
    "a loop of links": (loop, 4, "can't be read"),
    "a broken link": (nowhere, 4, "a link whose file is missing"),
}
NAMES = ("model.safetensors", "model.safetensors.index.json", "1.weights", "config.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("make", "code", "words"), KINDS.values(), ids=KINDS)
def test_what_is_no_file_is_refused_by_its_name_and_never_waited_for(
    tmp_path, name, make, code, words
):
    source = folder(tmp_path)
    (source / name).unlink(missing_ok=True)
    make(source / name)
    for command in COMMANDS:
        result = run(command, source, tmp_path / "out")
        assert (result.exit_code, result.stdout) == (code, "")
        assert f"{source / name}: " in result.stderr
        assert words in result.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [pipe, device])
def test_a_tq_config_that_is_no_file_is_refused(tmp_path, make):
    source = folder(tmp_path)
    make(source / "tq_config.json")
    for command in ("inspect", "restore"):
        result = run(command, source, tmp_path / "out")
        assert (result.exit_code, result.stdout) == (3, "")
        assert f"{source / 'tq_config.json'}: not a regular file" in result.stderr


@pytest.mark.parametrize("make", [pipe, device])
def test_a_side_file_that_is_no_file_stays_behind(tmp_path, make):
    source = folder(tmp_path)
    make(source / "tokenizer.json")
    result = run("compress", source, tmp_path / "out")
    assert result.exit_code == 0
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_links_to_files_anywhere_are_read_and_neither_they_nor_their_files_change(tmp_path):
    source = folder(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for name in ("1.weights", "config.json"):
        (source / name).rename(tmp_path / "elsewhere" / name)
        (source / name).symlink_to(tmp_path / "elsewhere" / name)
    before = contents(source) | contents(tmp_path / "elsewhere")
    assert run("compress", source, tmp_path / "out").exit_code == 0
    assert run("inspect", source, tmp_path).exit_code == 0
    assert contents(source) | contents(tmp_path / "elsewhere") == before
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


def link_a_file(out: Path, elsewhere: Path) -> None:
    """A side file of the target is a link."""
    (out / "notes").symlink_to(elsewhere / "notes")


def link_a_folder(out: Path, elsewhere: Path) -> None:
    """A folder of the target is a link."""
    (out / "sub").symlink_to(elsewhere)


@pytest.mark.parametrize("link", [link_a_file, link_a_folder])
def test_no_link_in_the_target_is_written_through(
    tmp_path, link: Callable[[Path, Path], None]
) -> None:
    source, out, elsewhere = folder(tmp_path), tmp_path / "out", tmp_path / "elsewhere"
    for path in (source / "sub", out, elsewhere):
        path.mkdir()
    (source / "notes").write_text("theirs")
    (source / "sub" / "notes").write_text("theirs")
    (elsewhere / "notes").write_text("mine")
    link(out, elsewhere)
    run("compress", source, out, "--overwrite")
    assert contents(elsewhere) == {"notes": b"mine"}
