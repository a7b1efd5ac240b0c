"""What a user can do wrong: one sentence on stderr, a documented exit code, no traceback."""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from support.factories import random_tensor, spoiled, tiny_checkpoint

import tq3 as library
from tq3.cli.progress import ProgressLine
from tq3.cli.screen import Screen
from tq3.errors import StorageError

Arguments = tuple[object, ...]


def compress(path: Path, *options: object) -> Arguments:
    """Compress a sound checkpoint."""
    return "compress", tiny_checkpoint(path / "in"), path / "out", *options


def refilled(path: Path) -> Arguments:
    """Into a folder with something in it."""
    (path / "out").mkdir()
    (path / "out" / "notes").write_text("mine")
    return compress(path)


def damaged(path: Path) -> Arguments:
    """A source cut short."""
    file = tiny_checkpoint(path / "in") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return "compress", path / "in", path / "out"


def not_finite(path: Path) -> Arguments:
    """A source with a NaN."""
    one = spoiled(random_tensor(4, 128), (2, 77), float("nan"))
    return "compress", tiny_checkpoint(path / "in", {"a.weight": one}), path / "out"


def quantised(path: Path) -> Arguments:
    """A source that is compressed already."""
    library.compress(tiny_checkpoint(path / "first"), path / "in")
    return "compress", path / "in", path / "out"


def unfinished_beside(folder: Path) -> Path:
    """The folder with what an interrupted run leaves in it."""
    (folder / ".tq3.part").mkdir(parents=True)
    (folder / ".tq3.part" / "journal").write_text("{}\n")
    return folder


def unfinished(path: Path) -> Path:
    """What an interrupted run leaves, and nothing else."""
    return unfinished_beside(path / "in")


def unfinished_at_its_end(path: Path) -> Path:
    """What is left of one that was interrupted while the files got their names."""
    library.compress(tiny_checkpoint(path / "first"), path / "in")
    (path / "in" / "tq_config.json").unlink()
    return unfinished(path)


def file_of(path: Path) -> Path:
    """A weights file of a sound checkpoint."""
    return tiny_checkpoint(path / "in") / "model.safetensors"


def broken_config(path: Path) -> Arguments:
    """A TQ3 checkpoint with a tq_config.json that is none."""
    library.compress(tiny_checkpoint(path / "first"), path / "in")
    (path / "in" / "tq_config.json").write_text("{")
    return "inspect", path / "in"


USAGE: dict[str, tuple[Callable[[Path], Arguments], str]] = {
    "bits": (lambda path: compress(path, "--bits", 5), "'5' is not one of '2', '3', '4'"),
    "group size": (lambda path: compress(path, "--group-size", 100), "for '--group-size'"),
    "keep dtype": (lambda path: compress(path, "--keep-dtype", "int8"), "--keep-dtype"),
    "nonfinite": (lambda path: compress(path, "--nonfinite", "hide"), "--nonfinite"),
    "sensitive bits": (lambda path: compress(path, "--sensitive-bits", 9), "--sensitive-bits"),
    "shard size": (lambda path: compress(path, "--max-shard-size", "some"), "not a size"),
    "shard size of 0": (lambda path: compress(path, "--max-shard-size", "0"), "max-shard-size"),
    "workers": (lambda path: compress(path, "--workers", 0), "workers"),
    "backend": (lambda path: compress(path, "--backend", "abacus"), "abacus"),
    "an unknown option": (lambda path: compress(path, "--colour"), "--colour"),
    "a word for a number": (lambda path: compress(path, "--bits", "three"), "--bits"),
    "backend, dry run": (lambda p: compress(p, "--dry-run", "--backend", "abacus"), "abacus"),
    "sensitive pattern alone": (
        lambda path: compress(path, "--sensitive-pattern", "o_proj"),
        "add --sensitive-bits",
    ),
    "bits beside a recipe": (
        lambda path: compress(path, "--bits", 3, "--recipe", "best"),
        "leave --bits out",
    ),
    "sensitive bits beside a target": (
        lambda path: compress(path, "--sensitive-bits", 4, "--target-bpw", 3.5),
        "leave --sensitive-bits out",
    ),
    "a switch both ways": (
        lambda path: compress(path, "--equalize", "--no-equalize"),
        "tq3: error: --equalize and --no-equalize exclude each other; see `",
    ),
    "no such recipe": (lambda path: compress(path, "--recipe", "worst"), "best, mixed, native"),
    "a recipe that is not there": (
        lambda path: compress(path, "--recipe", path / "mine.toml"),
        "No such file",
    ),
    "target size": (lambda path: compress(path, "--target-size", "some"), "not a size"),
    "a target out of reach": (
        lambda path: compress(path, "--target-size", "1kB"),
        "the target can't be reached (found 1,000 bytes, expected ",
    ),
    "lm head": (
        lambda path: compress(path, "--lm-head", 5),
        "tq3: error: invalid value for '--lm-head': '5' is not one of '2', '3', '4'; see `",
    ),
    "tensors of no dry run": (lambda path: compress(path, "--tensors"), "add --dry-run"),
    "no target": (lambda path: ("compress", path), "missing argument OUT"),
    "a target that is not empty": (refilled, "--overwrite"),
    "a target inside the source": (lambda path: (*compress(path)[:2], path / "in" / "x"), "inside"),
    "an unknown command": (lambda _: ("explode",), "explode"),
    "dtype": (lambda path: ("restore", path, path / "out", "--dtype", "int8"), "--dtype"),
}

GOES_ON = "an unfinished run; the tq3 command that began it goes on from there"
BAD_INPUT: dict[str, tuple[Callable[[Path], Arguments], str]] = {
    "no folder": (lambda path: ("compress", path / "none", path / "out"), "no such folder"),
    "no folder to inspect": (lambda path: ("inspect", path / "none"), "no such folder"),
    "no folder to restore": (lambda path: ("restore", path / "none", path / "o"), "no such folder"),
    "a file": (
        lambda p: ("compress", file_of(p), p / "out"),
        "a file, not a folder; give the path",
    ),
    "a file to inspect": (lambda path: ("inspect", file_of(path)), "a file, not a folder"),
    "a file to restore": (lambda p: ("restore", file_of(p), p / "out"), "a file, not a folder"),
    "a file to verify": (lambda path: ("verify", file_of(path)), "a file, not a folder"),
    "unfinished": (lambda path: ("compress", unfinished(path), path / "out"), GOES_ON),
    "unfinished, to inspect": (lambda path: ("inspect", unfinished(path)), GOES_ON),
    "unfinished, to restore": (lambda p: ("restore", unfinished(p), p / "out"), GOES_ON),
    "nearly finished": (lambda p: ("restore", unfinished_at_its_end(p), p / "out"), GOES_ON),
    "no weights": (lambda path: ("inspect", path), "no safetensors weights"),
    "damaged": (damaged, "do not fill the file"),
    "not finite": (not_finite, "nan at row 2, column 77"),
    "quantised": (quantised, "already quantised"),
    "quantised, dry run": (lambda path: (*quantised(path), "--dry-run"), "already quantised"),
    "broken config": (broken_config, "tq_config.json"),
    "not TQ3": (lambda path: ("restore", compress(path)[1], path / "o"), "not a TQ3 checkpoint"),
}


def check_error(result, code: int, words: str) -> None:
    """One sentence, the code, and neither data nor a traceback."""
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("tq3: error: ") or code != 2
    assert words in re.sub(r"\s+", " ", result.stderr)


@pytest.mark.parametrize(("make", "words"), USAGE.values(), ids=USAGE)
def test_a_wrong_request_ends_with_2(tq3, tmp_path, make, words):
    check_error(tq3(*make(tmp_path)), 2, words)


@pytest.mark.parametrize(("make", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_ends_with_3_and_one_line(tq3, tmp_path, make, words):
    result = tq3(*make(tmp_path))
    check_error(result, 3, words)
    assert result.stderr.splitlines()[-1].startswith("tq3: error: ")
    assert not (tmp_path / "out").exists()


def test_what_an_unfinished_run_shall_replace_can_still_be_read(tq3, tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    assert tq3("inspect", unfinished_beside(source)).exit_code == 0
    library.compress(source, tmp_path / "tq3")
    assert tq3("inspect", unfinished_beside(tmp_path / "tq3")).exit_code == 0
    assert tq3("restore", tmp_path / "tq3", tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_an_error_is_the_same_sentence_in_every_mode(tq3, tmp_path, option):
    result = tq3("compress", tmp_path / "none", tmp_path / "out", option)
    check_error(result, 3, "no such folder")


def test_no_room_ends_with_4(tq3, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 9, 1))
    check_error(tq3(*compress(tmp_path), "--quiet"), 4, "not enough free space")
    assert not (tmp_path / "out").exists()


def test_a_failed_write_ends_with_4(tq3, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise StorageError("can't be written: Input/output error", file="x")

    monkeypatch.setattr("tq3.storage.shard_file.ShardFile.write", fail)
    check_error(tq3(*compress(tmp_path), "--quiet"), 4, "x: can't be written")


@pytest.mark.parametrize("command", ["compress", "inspect", "restore"])
def test_an_unreadable_source_ends_with_4(tq3, tmp_path, monkeypatch, command):
    source = tiny_checkpoint(tmp_path / "in")

    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    # As for a user who is not root: the root of a test machine may read everything.
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    monkeypatch.setattr("tq3.storage.local.LocalFiles.names", refuse)
    arguments = (command, source) if command == "inspect" else (command, source, tmp_path / "out")
    check_error(tq3(*arguments), 4, f"{source.name}: can't be read")


def test_an_error_of_the_system_that_nobody_foresaw_ends_with_4(tq3, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error", "disk.bin")

    monkeypatch.setattr("tq3.pipelines.work.Worker.carry_out", fail)
    check_error(tq3(*compress(tmp_path), "--quiet"), 4, "disk.bin: can't be read or written")


@pytest.mark.parametrize(
    ("what", "at", "begun"), [(Screen, "_show", False), (ProgressLine, "show", True)]
)
def test_an_interrupt_while_something_is_printed_closes_the_run(tq3, tmp_path, what, at, begun):
    """The pipeline is then suspended between two events, and somebody must close it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = compress(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(what, at, interrupt)
        result = tq3(*arguments)
    assert (result.exit_code, result.stdout) == (130, "")
    assert "tq3: interrupted" in result.stderr
    assert ("the same command goes on" in result.stderr) == begun
    assert (tmp_path / "out").exists() == begun
    assert tq3(*arguments).exit_code == 0  # while the error and its frames are still held


def test_a_fault_of_the_program_is_not_hidden(tq3, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("tq3.pipelines.work.Worker.carry_out", fail)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        tq3(*compress(tmp_path))
