"""The moments in a file are those of the inputs of a whole model's matrices."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.calibration.cases import CONTEXT, TOKENS, make_case
from support.models.tq3_folder import read_tensors
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer

import tq3
from tq3.calibration.calibrate import calibrate
from tq3.calibration.tokens import random_tokens
from tq3.errors import BadInput, UsageError
from tq3.evaluation import texts
from tq3.events import Notice, follow
from tq3.moments.reading import open_moments

EXPERTS = "model.layers.1.mlp.experts"


class Products(TorchFunctionMode):
    """Keeps every input together with the matrix that multiplies it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is linear:
            self.seen.append((args[0].flatten(0, -2), args[1]))
        return func(*args, **(kwargs or {}))


def inputs_by_first_row(case):
    """All inputs of each matrix of the whole model, by the values of its first row."""
    tokenizer = AutoTokenizer.from_pretrained(case.source)
    ids = random_tokens(tokenizer, TOKENS)
    model = case.architecture.model_class.from_pretrained(case.source, dtype=torch.float32).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    found = defaultdict(list)
    with torch.no_grad(), Products() as products:
        for batch in texts.sequences(ids, CONTEXT, texts.first_token(tokenizer, model.config)):
            model.model(batch)
    for inputs, weight in products.seen:
        for row in (0, len(weight) // 2):  # where experts are joined, up is the second half
            found[tuple(weight[row].tolist())].append(inputs)
    return {row: torch.cat(parts).double() for row, parts in found.items()}


def assert_moments_are_those_of(case, names):
    inputs = inputs_by_first_row(case)
    tensors: dict[str, torch.Tensor] = {}
    for file in case.source.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    with open_moments(case.moments) as moments:
        for name in names:
            first, columns = tensors[name][0].float(), tensors[name].shape[-1]
            x = inputs[tuple(first.tolist())]
            (source,) = moments.readers[name]
            assert moments.tokens[source] == len(x)
            np.testing.assert_allclose(
                moments.block(source, 0, columns), x.T @ x / len(x), rtol=1e-3, atol=1e-4
            )


def test_they_are_shared_by_what_reads_one_input(llama):
    layer = "model.layers.1."
    parts = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    assert_moments_are_those_of(llama, [f"{layer}{part}.weight" for part in parts])
    with open_moments(llama.moments) as moments:
        readers = {name.removeprefix(layer): each for name, each in moments.readers.items()}
        for one, other in (("q", "k"), ("q", "v")):
            assert (
                readers[f"self_attn.{one}_proj.weight"] == readers[f"self_attn.{other}_proj.weight"]
            )
        assert readers["mlp.gate_proj.weight"] == readers["mlp.up_proj.weight"]
        assert len(moments.tokens) == llama.result.n_inputs == 8
        assert len(moments.readers) == llama.result.n_readers == 14


def test_an_expert_has_the_moments_of_its_own_tokens(tmp_path):
    case = make_case("qwen3_moe", tmp_path)
    names = [f"{EXPERTS}.{n}.{part}_proj.weight" for n in (0, 3) for part in ("gate", "up", "down")]
    assert_moments_are_those_of(case, names)


@pytest.mark.slow
def test_experts_with_few_tokens_have_the_mean_of_all(tmp_path):
    case = make_case("qwen3_5_moe", tmp_path)
    few = tmp_path / "few.safetensors"
    told: list[Any] = []
    run = calibrate(case.source, few, tokens=100, context=CONTEXT)
    found = follow(run, lambda event: told.append(event) if isinstance(event, Notice) else None)
    stack = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    (told_of,) = [each.text for each in told if stack in each.text]
    assert f"{found.scarce[stack]} experts saw few tokens" in told_of
    with open_moments(few) as moments:
        own, mean = moments.readers[stack], f"{stack}.mean"
        assert own.count(mean) == found.scarce[stack] > 0
        assert moments.damping(mean) > moments.facts.damping  # of fewer than 2048
        assert moments.tokens[mean] == 2 * moments.facts.tokens  # two experts a token
        assert all(moments.tokens[each] >= 192 / 4 for each in own if each != mean)
    with open_moments(case.moments) as moments:
        assert len(set(moments.readers[stack])) == 4


def test_the_file_is_one_of_safetensors_that_says_what_it_is(llama):
    with safe_open(llama.moments, "np") as file:
        record = json.loads(file.metadata()["tq3.moments"])
        readers = json.loads(file.metadata()["tq3.readers"])
        assert set(file.keys()) == {name for inputs in readers.values() for name in inputs}
        down = file.get_tensor("model.layers.0.mlp.down_proj.weight")
    assert (record["text"], record["tokens"], record["damping"]) == ("random", TOKENS, 1.0)
    assert down.shape == (1, 344, 344)
    np.testing.assert_allclose(down[0], down[0].T, rtol=1e-4, atol=1e-6)


def test_a_wide_input_is_cut_into_blocks(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("tq3.calibration.watching.BLOCK", 128)
    path = tmp_path / "x.safetensors"
    follow(calibrate(llama.source, path, tokens=TOKENS, context=CONTEXT))
    with open_moments(path) as blocks, open_moments(llama.moments) as whole:
        (name,) = blocks.readers["model.layers.1.mlp.down_proj.weight"]
        full = whole.block(name, 0, 344)
        for number, columns in ((0, 128), (1, 128), (2, 88)):
            here = slice(128 * number, 128 * number + columns)
            block = blocks.block(name, number, columns)
            np.testing.assert_allclose(block, full[here, here], rtol=1e-3, atol=1e-5)


def test_a_text_is_taken_for_what_it_says(llama, tmp_path):
    text, path = tmp_path / "a.txt", tmp_path / "x.safetensors"
    text.write_text("Ein Text, der nicht lang ist. " * 10)
    found = follow(calibrate(llama.source, path, text=str(text), tokens=100, context=CONTEXT))
    assert (found.facts.text, found.facts.tokens, found.facts.damping) == ("a.txt", 100, 0.3)
    with pytest.raises(UsageError, match="the file is there.*--overwrite"):
        follow(calibrate(llama.source, path, tokens=100, context=CONTEXT))
    told: list[Any] = []
    how: dict[str, Any] = {"text": str(text), "tokens": 100, "context": CONTEXT, "reuse": True}
    follow(calibrate(llama.source, path, **how), told.append)
    assert [event for event in told if "already" in getattr(event, "text", "")]
    follow(calibrate(llama.source, path, **{**how, "tokens": 99}), told.append)
    with open_moments(path) as moments:
        assert moments.facts.tokens == 99


def test_an_input_that_is_always_zero_has_no_moments(llama, tmp_path):
    layer, source = "model.layers.1.self_attn", tmp_path / "dead"
    tensors = read_tensors(llama.source)
    tensors[f"{layer}.v_proj.weight"].zero_()
    shutil.copytree(llama.source, source, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "x.safetensors"
    follow(calibrate(source, path, tokens=TOKENS, context=CONTEXT))
    with open_moments(path) as moments, open_moments(llama.moments) as others:
        assert set(others.readers) - set(moments.readers) == {f"{layer}.o_proj.weight"}
    tq3.compress(source, tmp_path / "out", calibrate=path)
    record = json.loads((tmp_path / "out" / "tq_config.json").read_text())["tq3"]["calibration"]
    assert record["without"] == [f"{layer}.o_proj.weight"]


def test_few_tokens_are_told_and_folders_are_made(llama, tmp_path):
    text, path = tmp_path / "a.txt", tmp_path / "new" / "folder" / "x.safetensors"
    text.write_text("abc")
    told: list[Any] = []
    follow(calibrate(llama.source, path, text=str(text), context=CONTEXT), told.append)
    n_tokens = open_facts(path).tokens
    assert any(f"{n_tokens} tokens are few" in getattr(event, "text", "") for event in told)


def open_facts(path):
    with open_moments(path) as moments:
        return moments.facts


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("x.bin", "expected one that ends in .safetensors); name it x.safetensors"),
        ("text/x.safetensors", "text is no folder"),
        (".", "no place for a file: a folder"),
    ],
)
def test_what_is_no_place_for_moments_is_refused(llama, tmp_path, name, complaint):
    (tmp_path / "text").touch()
    with pytest.raises(UsageError, match=re.escape(complaint)):
        follow(calibrate(llama.source, tmp_path / name))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("none.txt", "no such file"), (".", "a folder"), ("empty.txt", "give a longer text")],
)
def test_what_is_no_text_is_refused(llama, tmp_path, text, complaint):
    (tmp_path / "empty.txt").touch()
    with pytest.raises((BadInput, UsageError), match=complaint):
        follow(calibrate(llama.source, tmp_path / "x.safetensors", text=str(tmp_path / text)))


@pytest.mark.parametrize("damage", ["cut", "not one", "not JSON", "another version", "damping"])
def test_a_file_that_is_none_is_refused(llama, tmp_path, damage):
    path, raw = tmp_path / "x.safetensors", llama.moments.read_bytes()
    if damage == "cut":
        path.write_bytes(raw[:-9])
    elif damage == "not one":
        path.write_bytes((llama.source / "model-00001-of-00004.safetensors").read_bytes())
    else:
        old, new = {
            "not JSON": (b'"{', b'"['),
            "another version": (b'\\"version\\": 1', b'\\"version\\": 7'),
            "damping": (b'\\"damping\\": 1.0', b'\\"damping\\": 0.0'),
        }[damage]
        assert old in raw
        path.write_bytes(raw.replace(old, new, 1))
    complaint = f"^{re.escape(str(path))}: .*anew with `tq3 calibrate`$"
    with pytest.raises(BadInput, match=complaint), open_moments(path):
        pass


def test_a_model_can_write_the_text_itself(llama, tmp_path):
    made = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.safetensors"
        found = follow(calibrate(llama.source, path, text="self", tokens=64, context=16))
        made.append(found.facts)
    assert (made[0].text, made[0].tokens, made[0].damping) == ("self", 64, 0.3)
    assert made[0] == made[1]
    told: list[Any] = []
    again: dict[str, Any] = {"text": "self", "tokens": 64, "context": 16, "reuse": True}
    follow(calibrate(llama.source, path, **again), told.append)
    assert [each for each in told if "wrote already" in getattr(each, "text", "")]
