"""Every command on every kind of nonsense: one sentence and a documented code, no traceback."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.factories import llama_tensors, tiny_checkpoint
from typer.testing import Result

import tq3 as library
from tq3.errors import Tq3Error

CODES = {kind.exit_code for kind in Tq3Error.__subclasses__()}
Made = Callable[[Path], object]


def text_files(path: Path) -> Path:
    """A folder of notes."""
    path.mkdir()
    for name in ("README.md", "notes.txt", "LICENSE"):
        (path / name).write_text("mine\n")
    return path


def fifo(path: Path) -> Path:
    """A pipe that nobody writes to."""
    os.mkfifo(path)
    return path


def link(target: str) -> Made:
    """A link to somewhere."""

    def make(path: Path) -> Path:
        path.symlink_to(target)
        return path

    return make


def listener(path: Path) -> Path:
    """A socket."""
    place = os.getcwd()
    os.chdir(path.parent)  # whose whole path is too long for one
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(place)
    return path


def checkpoint_with(name: str, make: Made) -> Made:
    """A TQ3 checkpoint in which a file is something else."""

    def spoiled(path: Path) -> Path:
        library.compress(tiny_checkpoint(path.with_name("whole"), llama_tensors(1)), path)
        (path / name).unlink()
        make(path / name)
        return path

    return spoiled


def as_it_is(value: str) -> Made:
    """A text that names nothing."""
    return lambda path: value


def folder(path: Path) -> Path:
    """An empty one."""
    path.mkdir()
    return path


def file(path: Path) -> Path:
    """Of no kind."""
    path.write_text("x")
    return path


def shards_without_index(path: Path) -> Path:
    """Two weight files."""
    tiny_checkpoint(path, shards=2)
    (path / "model.safetensors.index.json").unlink()
    return path


PLACES: dict[str, Made] = {
    "nothing": lambda path: path,
    "an empty text": as_it_is(""),
    "blanks": as_it_is("  "),
    "a tilde": as_it_is("~nobody-of-this-name/model"),
    "a name too long": as_it_is("/" + "x" * 300),
    "a path too long": as_it_is("/x" * 3000),
    "half a surrogate pair": as_it_is("./\udcff"),
    "an address": as_it_is("https://huggingface.co/org/name"),
    "a file": file,
    "a device": as_it_is("/dev/null"),
    "a pipe": fifo,
    "a socket": listener,
    "a link to nothing": link("nowhere"),
    "a link to itself": link("path"),
    "an empty folder": folder,
    "a folder of texts": text_files,
    "shards without an index": shards_without_index,
    "a pipe for tq_config.json": checkpoint_with("tq_config.json", fifo),
    "a folder for tq_config.json": checkpoint_with("tq_config.json", folder),
    "a link to nothing for the weights": checkpoint_with("model.safetensors", link("nowhere")),
    "a link to itself for the weights": checkpoint_with(
        "model.safetensors", link("model.safetensors")
    ),
    "a device for the weights": checkpoint_with("model.safetensors", link("/dev/zero")),
    "a text for the weights": checkpoint_with("model.safetensors", file),
    "nothing for the weights": checkpoint_with("model.safetensors", lambda path: path),
}
COMMANDS: dict[str, Callable[[object, Path], tuple[object, ...]]] = {
    "compress": lambda one, path: ("compress", one, path / "out"),
    "compress, dry": lambda one, path: ("compress", one, "--dry-run"),
    "compress, equalized": lambda one, path: ("compress", one, path / "out", "--equalize"),
    "inspect": lambda one, path: ("inspect", one),
    "restore": lambda one, path: ("restore", one, path / "out"),
    "verify": lambda one, path: ("verify", one),
    "verify beside it": lambda one, path: ("verify", path / "whole-tq3", "--source", one),
    "card": lambda one, path: ("card", one),
    "push": lambda one, path: ("push", one, "org/name", "--dry-run"),
    "as a template": lambda one, path: ("card", path / "whole-tq3", "--template", one),
    "as a recipe": lambda one, path: ("compress", path / "whole", path / "o", "--recipe", one),
}
# A template may be any text, also none.
TEMPLATES = ("a folder of texts", "a file", "a device")
# What lies beside a checkpoint's weights.
GARBAGE = (
    *(b"", b'{"a": ', b"[]", b"null", b"1e999", b"\xff\xfe\0", b"<html>404</html>", b'"x"'),
    *(b'{"a": NaN}', b"[" * 5000, b"{}", b'{"weight_map": 3, "files": 3, "tq3": 3}'),
)


def check(result: Result, *, may_work: bool = False) -> None:
    """The sentence and the code; the fixture raises what is neither."""
    if may_work and result.exit_code == 0:
        return
    assert result.exit_code in CODES, result.output
    told = [line for line in result.stderr.splitlines() if line.startswith("tq3: error: ")]
    assert len(told) == 1, result.stderr
    assert "Traceback" not in result.output


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound checkpoint, one made of it, and no Hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    library.compress(tiny_checkpoint(tmp_path / "whole", llama_tensors(1)), tmp_path / "whole-tq3")
    return tmp_path


@pytest.mark.parametrize("kind", PLACES)
def test_each_command_refuses_each_kind_of_nonsense_with_a_sentence(tq3, whole, kind):
    (whole / "in").mkdir()
    one = PLACES[kind](whole / "in" / "path")
    for name, command in COMMANDS.items():
        if (kind, name) == ("a pipe", "as a template"):
            continue  # as any program, it waits for who writes
        check(tq3(*command(one, whole)), may_work=kind in TEMPLATES and name == "as a template")
        assert not (whole / "out" / "tq_config.json").exists()


@pytest.mark.parametrize("name", ["tq_config.json", "config.json", "tq3_manifest.json", "index"])
def test_garbage_in_any_json_file_is_a_sentence_or_does_not_matter(tq3, whole, name):
    sharded = tiny_checkpoint(whole / "in", llama_tensors(1), shards=2)
    library.compress(sharded, whole / "tq3", max_shard_size=40_000)
    file_name = "model.safetensors.index.json" if name == "index" else name
    readers = {
        sharded: ("compress", "compress, dry", "inspect"),
        whole / "tq3": ("inspect", "restore", "verify", "card"),
    }
    for folder, commands in readers.items():
        for garbage in GARBAGE:
            (folder / file_name).write_bytes(garbage)
            for command in commands:
                check(tq3(*COMMANDS[command](folder, whole)), may_work=True)


@pytest.mark.parametrize(
    "command", ["compress", "inspect", "restore", "verify", "card", "push", "eval", "calibrate"]
)
def test_a_command_without_its_arguments_is_a_wrong_request(tq3, command):
    result = tq3(command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "tq3: error: missing argument" in result.stderr


def test_an_empty_name_is_not_the_current_folder(tq3, whole, monkeypatch):
    monkeypatch.chdir(whole / "whole")
    for command in ("compress, dry", "inspect"):
        result = tq3(*COMMANDS[command]("", whole))
        assert (result.exit_code, "is empty (expected a path)" in result.stderr) == (2, True)
    assert tq3("inspect", ".").exit_code == 0
