"""`tq3 inspect`, `tq3 restore` and `tq3` itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.factories import contents, llama_tensors, random_tensor, tiny_checkpoint
from typer.testing import CliRunner

import tq3 as library
from tq3.cli.app import COMMANDS, app


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "my-model")


@pytest.fixture
def compressed(source: Path, tmp_path: Path) -> Path:
    library.compress(source, tmp_path / "tq3")
    return tmp_path / "tq3"


def test_inspect_of_a_tq3_checkpoint_says_what_it_holds(tq3, compressed):
    result = tq3("inspect", compressed)
    assert (result.exit_code, result.stderr) == (0, "")
    for fact in ("TQ3 checkpoint", "tq3_native, 3 bits, groups of 128", "my-model", "bfloat16"):
        assert fact in result.stdout
    for fact in ("attention", "MLP", "embeddings", "output head", "6 compressed, 5 kept"):
        assert fact in result.stdout
    assert f"tq3 {library.__version__}" in result.stdout


def test_inspect_of_another_checkpoint_says_what_compress_would_do(tq3, source):
    before = contents(source)
    result = tq3("inspect", source)
    assert result.exit_code == 0
    assert "what compress would write" in result.stdout
    assert contents(source) == before


@pytest.mark.parametrize("kind", ["source", "compressed"])
def test_inspect_lists_every_tensor_only_when_asked(tq3, request, kind):
    path = request.getfixturevalue(kind)
    listed = [
        line.split()[0] for line in tq3("inspect", path, "--tensors").stdout.splitlines() if line
    ]
    assert set(llama_tensors()) <= set(listed)
    unlisted = tq3("inspect", path).stdout
    assert not any(name in unlisted for name in llama_tensors())


@pytest.mark.parametrize("kind", ["source", "compressed"])
def test_inspect_in_json_is_the_librarys_description(tq3, request, kind):
    path = request.getfixturevalue(kind)
    found = json.loads(tq3("inspect", path, "--json").stdout)
    assert found == json.loads(json.dumps(library.inspect(path).to_dict()))
    assert found["planned"] == (kind == "source")


def test_inspect_of_an_empty_folder_is_an_error(tq3, tmp_path):
    (tmp_path / "empty").mkdir()
    assert tq3("inspect", tmp_path / "empty").exit_code == 3


def test_inspect_explains_what_compress_refuses_since_nothing_would_be_compressed(tq3, tmp_path):
    bare = tiny_checkpoint(tmp_path / "bare", {"a.bias": random_tensor(256)})
    result = tq3("inspect", bare)
    assert result.exit_code == 0
    assert "notice: nothing is compressed: 1 tensor" in result.stderr
    assert json.loads(tq3("inspect", bare, "--json").stdout)["notices"]
    for command in (("compress", bare, "--dry-run"), ("compress", bare, tmp_path / "out")):
        result = tq3(*command)
        assert result.exit_code == 3
        assert "nothing to compress" in result.stderr


def test_a_plan_that_leaves_most_of_the_matrices_is_told_before_and_by_the_run(tq3, tmp_path):
    tensors = {"a.weight": random_tensor(2, 128), "mixture.fused": random_tensor(4, 128, 128)}
    source = tiny_checkpoint(tmp_path / "in", tensors)
    for command in (
        ("inspect", source),
        ("compress", source, "--dry-run"),
        ("compress", source, tmp_path / "out"),
    ):
        result = tq3(*command)
        assert result.exit_code == 0
        words = " ".join(result.stderr.split())  # which a narrow terminal breaks anywhere
        assert "notice: only 0% of the matrices' bytes are compressed" in words
        assert "'mixture.fused' (3-D, and tq3 knows no experts of this name" in words
    assert tq3("inspect", tmp_path / "out").stderr == ""


def test_restore_writes_what_the_library_writes(tq3, compressed, tmp_path):
    options = ("--dtype", "float32", "--max-shard-size", "100KB", "--workers", 2)
    result = tq3("restore", compressed, tmp_path / "back", *options)
    assert result.exit_code == 0
    assert "6 decoded, 5 copied" in result.stdout
    library.restore(compressed, tmp_path / "same", dtype="float32", max_shard_size=100_000)
    assert contents(tmp_path / "back") == contents(tmp_path / "same")
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 1


def test_restore_has_json_quiet_overwrite_and_backend(tq3, compressed, tmp_path):
    result = tq3("restore", compressed, tmp_path / "back", "--json", "--backend", "numpy")
    figures = json.loads(result.stdout)
    assert (figures["restored"], figures["backend"]) == (True, "numpy")
    assert tq3("restore", compressed, tmp_path / "back").exit_code == 2
    result = tq3("restore", compressed, tmp_path / "back", "--overwrite", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_version_is_that_of_the_package(tq3):
    result = tq3("--version")
    assert (result.exit_code, result.stdout) == (0, f"tq3 {library.__version__}\n")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help_of_80_columns(tq3, command):
    result = tq3(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_shows_what_most_people_need_first_and_the_rest_by_what_it_is_about(tq3):
    panels = re.split(r"^(\w.*):$", tq3("compress", "--help").stdout, flags=re.MULTILINE)
    titles = ["Arguments", "Options", "What to make small", "What to keep exact", "How to run"]
    assert panels[1::2] == [*titles, "Output"]
    first = re.findall(r"^  (--\S+)", panels[4], re.MULTILINE)
    assert first == ["--bits", "--recipe", "--target-size", "--dry-run", "--help"]
    assert "<norm|search>" in panels[6] or "[norm|search]" in panels[6]
    assert "[default: 128]" in panels[6] and "[default: 3]" in panels[4]


@pytest.mark.parametrize(
    ("words", "completions"), [("compress --scale", "norm\nsearch"), ("compress --bits", "2\n3\n4")]
)
def test_the_shell_completes_choices(words, completions):
    asked = {"_TQ3_COMPLETE": "complete_bash", "COMP_WORDS": f"tq3 {words} ", "COMP_CWORD": "3"}
    result = CliRunner().invoke(app, [], prog_name="tq3", env=asked)
    assert result.stdout.strip() == completions


def test_without_a_command_there_is_help(tq3):
    result = tq3()
    assert "compress" in result.output
    assert "restore" in result.output


def test_restore_says_what_it_does_not_check(tq3):
    words = " ".join(tq3("restore", "--help").stdout.split())
    assert "Headers and norms are checked, codes are not: run `tq3 verify PATH` first." in words
