"""`tq3 verify`: what it says, in words and in JSON, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.factories import llama_tensors, of_another_writer, random_tensor, tiny_checkpoint

import tq3 as library


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "my-model")


@pytest.fixture
def compressed(source: Path, tmp_path: Path) -> Path:
    library.compress(source, tmp_path / "tq3")
    return tmp_path / "tq3"


@pytest.fixture
def damaged(compressed: Path) -> Path:
    """Without its shard's last byte and checksums, and with a stray file."""
    of_another_writer(compressed)
    file = compressed / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    (compressed / "old.bin").write_text("")
    return compressed


def test_a_sound_checkpoint_ends_with_0_and_says_what_was_looked_at(tq3, compressed):
    result = tq3("verify", compressed)
    assert result.exit_code == 0
    for fact in ("6 compressed, 5 kept", "checksums", "peak memory", "sound"):
        assert fact in result.stdout
    assert "not sound" not in result.stdout
    assert "fault" not in result.stdout


def test_a_damaged_one_ends_with_5_and_a_line_for_each_fault(tq3, damaged):
    result = tq3("verify", damaged)
    assert result.exit_code == 5
    assert "not sound" in result.stdout
    faults = re.findall(r"^(TQ\d{3}) +(\S+) +- +(.*)$", result.stdout, re.MULTILINE)
    assert ("TQ108", "old.bin", "weights that are not part of this checkpoint") in faults
    assert any(fault[:2] == ("TQ201", "model.safetensors") for fault in faults)
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"tq3: error: {damaged}: 2 faults, the first TQ108 in old.bin: weights")
    assert last.endswith("; take the file away: a host may load it")
    assert "Traceback" not in result.stderr


def test_beside_the_source_the_worst_tensors_are_listed(tq3, compressed, source):
    result = tq3("verify", compressed, "--source", source, "--workers", 1)
    assert result.exit_code == 0
    assert "11 tensors compared, 4 exact, 1 rounded" in result.stdout
    rounded = r"^model.embed_tokens.weight +F16 +2 +4,096 +3e-08 +0.0074$"
    assert re.search(rounded, result.stdout, re.MULTILINE)
    listed = re.findall(r"^(\S+\.weight) +3 +(0\.\d+) +0\.0316", result.stdout, re.MULTILINE)
    errors = [float(error) for _, error in listed]
    assert len(errors) == 6
    assert errors == sorted(errors, reverse=True)


def test_json_is_the_librarys_answer(tq3, compressed, source):
    result = tq3("verify", compressed, "--source", source, "--json")
    found = json.loads(result.stdout)
    expected = json.loads(json.dumps(library.verify(compressed, source=source).to_dict()))
    for varying in ("seconds", "peak_memory_bytes"):
        assert found.pop(varying) > 0
        del expected[varying]
    assert found == expected
    assert found["ok"] is True
    assert {line["tensor"] for line in found["comparisons"]} == set(llama_tensors())


def test_of_many_faults_of_one_kind_people_see_ten(tq3, compressed, source, tmp_path):
    other = tiny_checkpoint(tmp_path / "wrong", {f"{i:04}": random_tensor(2) for i in range(1088)})
    result = tq3("verify", compressed, "--source", other)
    assert result.exit_code == 5
    shown = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("TQ")]
    assert shown == ["TQ501"] * 11 + ["TQ502"] * 11
    assert "... and 1078 more of TQ501 (--json has all)" in result.stdout
    assert "... and 1 more of TQ502 (--json has all)" in result.stdout
    assert "not sound: 1099 faults" in result.stdout
    assert result.stderr.endswith("; name the right source, or fetch the checkpoint again\n")
    found = json.loads(tq3("verify", compressed, "--source", other, "--json").stdout)
    assert len(found["faults"]) == 1099


def test_json_of_a_damaged_one_is_complete_and_ends_with_5(tq3, damaged):
    result = tq3("verify", damaged, "--json")
    assert result.exit_code == 5
    found = json.loads(result.stdout)
    assert found["ok"] is False
    assert {"TQ108", "TQ201"} <= {fault["check"] for fault in found["faults"]}
    assert set(found["faults"][0]) >= {"check", "file", "tensor", "message", "found", "expected"}
    assert found["checks"]["TQ108"] == "a weights file that the index does not know"


def test_quiet_says_the_fault_and_nothing_else(tq3, compressed):
    result = tq3("verify", compressed, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    (compressed / "tq_config.json").write_text("{")
    result = tq3("verify", compressed, "--quiet")
    assert (result.exit_code, result.stdout) == (5, "")
    assert "TQ103" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("./none",), 3, "no such folder"),
        (("tq3", "--source", "./none"), 3, "no such folder"),
        (("tq3", "--source", "tq3"), 3, "already quantised"),
        (("tq3", "--workers", "0"), 2, "workers"),
        (("tq3", "--backend", "abacus"), 2, "abacus"),
    ],
)
def test_other_endings_are_those_of_every_command(
    tq3, compressed, monkeypatch, options, code, words
):
    monkeypatch.chdir(compressed.parent)
    result = tq3("verify", *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr


def test_an_unfinished_run_says_how_to_go_on(tq3, tmp_path):
    (tmp_path / "out" / ".tq3.part").mkdir(parents=True)
    result = tq3("verify", tmp_path / "out")
    assert result.exit_code == 5
    assert "an unfinished run (found .tq3.part and no tq_config.json)" in result.stderr
    assert "; the tq3 command that began it goes on from there; or delete" in result.stderr
    assert "what is done so far" not in result.stderr  # what compress says of a run of its own
