"""`tq3 compress`: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.factories import (
    contents,
    llama_tensors,
    random_tensor,
    spoiled,
    tiny_checkpoint,
    whole_llama,
    whole_llama_config,
)

import tq3 as library

DRY = ("--equalize", "--dry-run")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "in", shards=2)


def test_nobody_is_sent_to_a_host_that_refuses_trellis_codes(tq3, source, tmp_path):
    options = ("--code", "trellis")
    assert tq3("compress", source, tmp_path / "out", *options).exit_code == 0
    for words in (("compress", source, "--dry-run", *options), ("inspect", tmp_path / "out")):
        shown = " ".join(tq3(*words).stdout.split())
        assert "readers tq3 restore, verify and eval; no host yet others can't: codes are" in shown
        assert "tq3.load" not in shown


def test_it_writes_what_the_library_writes_with_the_same_options(tq3, source, tmp_path):
    options = [
        *("--bits", 4, "--group-size", 64, "--keep", "*.0.*", "--keep", "*.norm.*"),
        *("--keep-dtype", "source", "--max-shard-size", "20KB", "--workers", 2),
        *("--sensitive-bits", 2, "--sensitive-pattern", "up_proj", "--backend", "numpy"),
        *("--scale", "norm", "--norms", "float16"),
    ]
    result = tq3("compress", source, tmp_path / "out", *options, "--verbatim-config")
    assert result.exit_code == 0
    library.compress(
        source,
        tmp_path / "same",
        bits=4,
        group_size=64,
        keep=["*.0.*", "*.norm.*"],
        keep_dtype="source",
        max_shard_size=20_000,
        sensitive_bits=2,
        sensitive_patterns=["up_proj"],
        scale="norm",
        norms="float16",
        verbatim_config=True,
    )
    assert contents(tmp_path / "out") == contents(tmp_path / "same")


def test_equalize_arrives_and_is_shown_and_the_card_says_it(tq3, tmp_path):
    source = tiny_checkpoint(tmp_path / "in", whole_llama(), config=whole_llama_config())
    result = tq3("compress", source, tmp_path / "out", "--equalize")
    assert result.exit_code == 0 and "a first pass" in result.stderr
    library.compress(source, tmp_path / "same", equalize=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "same")
    asked = [("inspect", tmp_path / "out"), ("compress", source, *DRY)]
    for shown in (tq3(*each) for each in (*asked, ("inspect", source, "--equalize"))):
        assert "columns " in shown.stdout and "equalized" in shown.stdout
    assert "found --equalize" in tq3("inspect", tmp_path / "out", "--equalize").stderr
    assert "tq3 compress in OUT --bits 3\n" in library.make_card(tmp_path / "out")


def test_no_equalize_arrives_and_the_card_asks_for_it(tq3, tmp_path):
    source = tiny_checkpoint(tmp_path / "in", whole_llama(), config=whole_llama_config())
    result = tq3("compress", source, tmp_path / "out", "--no-equalize")
    assert result.exit_code == 0 and "a first pass" not in result.stderr
    library.compress(source, tmp_path / "same", equalize=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "same")
    assert "columns " not in tq3("inspect", source, "--no-equalize").stdout
    assert "found --no-equalize" in tq3("inspect", tmp_path / "out", "--no-equalize").stderr
    card = library.make_card(tmp_path / "out")
    assert "tq3 compress in OUT --bits 3 --no-equalize\n" in card


def test_without_options_it_writes_what_the_library_writes_without(tq3, source, tmp_path):
    assert tq3("compress", source, tmp_path / "out").exit_code == 0
    library.compress(source, tmp_path / "same")
    assert contents(tmp_path / "out") == contents(tmp_path / "same")


def test_only_and_nonfinite_arrive(tq3, tmp_path):
    tensors = {"lm_head.weight": random_tensor(4, 128), "b.weight": random_tensor(4, 128)}
    tensors["lm_head.weight"] = spoiled(tensors["lm_head.weight"], (1, 1), float("nan"))
    source = tiny_checkpoint(tmp_path / "in", tensors)
    options = ("--only", "lm_head.*", "--nonfinite", "keep", "--json")
    result = tq3("compress", source, tmp_path / "out", *options)
    assert json.loads(result.stdout)["n_compressed"] == 0
    assert "notice: lm_head.weight" in result.stderr


def test_the_figures_go_to_stdout_and_the_words_to_stderr(tq3, source, tmp_path):
    result = tq3("compress", source, tmp_path / "out")
    for figure in ("ratio", "bits a weight", "6 compressed, 5 kept", "relative error", "GB/s"):
        assert figure in result.stdout
    assert "peak memory" in result.stdout
    assert "11 tensors, " in result.stderr
    assert "100%" in result.stderr


def test_json_is_one_object_with_every_figure(tq3, source, tmp_path):
    result = tq3("compress", source, tmp_path / "out", "--json", "--backend", "numpy")
    figures = json.loads(result.stdout)
    assert figures["out"] == str(tmp_path / "out")
    assert (figures["n_compressed"], figures["n_kept"]) == (6, 5)
    assert figures["ratio"] == figures["source_bytes"] / figures["output_bytes"]
    assert (figures["backend"], figures["left_out"]) == ("numpy", {})


def test_quiet_prints_nothing(tq3, source, tmp_path):
    result = tq3("compress", source, tmp_path / "out", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert (tmp_path / "out" / "tq_config.json").exists()


def test_quiet_still_tells_an_error(tq3, tmp_path):
    result = tq3("compress", tmp_path / "nowhere", tmp_path / "out", "-q")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "no such folder" in result.stderr


def test_what_is_left_behind_is_told_with_its_reason(tq3, source, tmp_path):
    (source / "pytorch_model.bin").write_text("")
    result = tq3("compress", source, tmp_path / "out")
    assert "pytorch_model.bin (other weights of this model)" in result.stdout


def test_globs_say_what_travels_and_what_stays(tq3, source, tmp_path):
    for name in ("model.gguf", "notes.txt", "voices.pt"):
        (source / name).write_text("")
    globs = ("--also", "*.gguf", "--without", "notes*", "--without", "voices.pt")
    result = tq3("compress", source, tmp_path / "out", *globs)
    assert result.exit_code == 0
    assert {"model.gguf"} == contents(tmp_path / "out").keys() & {
        *("model.gguf", "notes.txt", "voices.pt"),
    }
    assert "voices.pt (asked for by --without)" in result.stdout
    asked = "--also '*.gguf' --without 'notes*' --without voices.pt"
    assert asked in library.make_card(tmp_path / "out")
    back = tq3("restore", tmp_path / "out", tmp_path / "back", "--without", "*.gguf")
    assert "model.gguf (asked for by --without)" in back.stdout
    planned = tq3("compress", source, "--dry-run", *globs)
    assert "side files" in planned.stdout
    assert "notes.txt (asked for by --without)" in planned.stdout
    for command in (("compress", source, tmp_path / "more"), ("compress", source, "--dry-run")):
        slip = tq3(*command, "--also", "*.guff")
        assert slip.exit_code == 2
        assert "--also '*.guff' matches no file beside the weights" in slip.stderr


def test_a_dry_run_shows_the_plan_and_writes_nothing(tq3, source, tmp_path):
    before = contents(tmp_path)
    result = tq3("compress", source, tmp_path / "out", "--dry-run", "--max-shard-size", "20KB")
    assert result.exit_code == 0
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()
    for figure in ("what compress would write", "ratio", "model-00001-of-0000", "peak memory"):
        assert figure in result.stdout
    assert "output head: one step before the softmax" in result.stdout
    assert "mlp.up_proj" not in result.stdout


def test_a_dry_run_lists_every_tensor_with_its_reason(tq3, source, tmp_path):
    result = tq3("compress", source, tmp_path / "out", "--dry-run", "--tensors")
    lines = result.stdout.splitlines()
    planned = library.preview(source)
    for tensor in planned.tensors:
        (line,) = [line for line in lines if line.split()[:1] == [tensor.name]]
        assert tensor.reason in line
        assert "x".join(map(str, tensor.shape)) in line
    assert len(planned.tensors) == len(llama_tensors())


def test_a_dry_run_in_json_is_the_library_s_preview(tq3, source, tmp_path):
    options = ("--dry-run", "--json", "--bits", 2, "--workers", 3)
    result = tq3("compress", source, tmp_path / "out", *options)
    expected = library.preview(source, recipe=library.Recipe(bits=2), workers=3).to_dict()
    assert json.loads(result.stdout) == json.loads(json.dumps(expected))


def test_a_dry_run_needs_no_target(tq3, source, tmp_path):
    with_target = tq3("compress", source, tmp_path / "out", "--dry-run")
    without = tq3("compress", source, "--dry-run")
    assert (without.exit_code, without.output) == (0, with_target.output)


def test_a_quiet_dry_run_prints_nothing_but_errors(tq3, source):
    result = tq3("compress", source, "--dry-run", "--tensors", "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert tq3("compress", source / "none", "--dry-run", "-q").exit_code == 3


@pytest.mark.parametrize(("workers", "seen"), [(1, "1 worker,"), (3, "3 workers,")])
def test_the_number_of_workers_is_told(tq3, source, tmp_path, workers, seen):
    assert seen in tq3("compress", source, tmp_path / "out", "--workers", workers).stderr


def test_names_with_markup_and_emoji_codes_are_shown_as_they_are(tq3, tmp_path):
    name = "[bold]a[/bold].:smile:.weight"
    source = tiny_checkpoint(tmp_path / "in", {name: random_tensor(4, 128)})
    result = tq3("compress", source, tmp_path / "out", "--dry-run", "--tensors")
    assert name in result.stdout
    assert name in tq3("compress", source, tmp_path / "out").output


def test_a_source_without_a_config_is_compressed_with_a_notice(tq3, tmp_path):
    source, told = tiny_checkpoint(tmp_path / "in", config=None), "no host will load what is made"
    for command in (("inspect", source), ("compress", source, "--dry-run")):
        assert f"notice: no config.json in {source}: {told}" in tq3(*command).stderr
    shown = json.loads(tq3("inspect", source, "--json").stdout)
    assert told in shown["notices"][0]
    assert told in tq3("compress", source, tmp_path / "out").stderr
    assert told not in tq3("inspect", tiny_checkpoint(tmp_path / "whole")).stderr
    assert tq3("restore", tmp_path / "out", tmp_path / "back").exit_code == 0
