"""Fused experts that hosts have with inputs as rows stay packed: gpt-oss and Llama 4."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from support.integrations.packed_models import (
    Case,
    assert_close,
    assert_same_logits,
    load,
    logits,
    make_case,
)
from support.models.fused_experts import GPT_OSS, LLAMA_4, write_mxfp4
from support.models.tq3_folder import read_tensors
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import tq3
from tq3.runtime import direct, generic, ops
from tq3.runtime.modules import PackedExperts

PROMPT = torch.arange(6).reshape(2, 3)
# Relative: of logits where levels are multiplied as they are, and of gradients where they are not.
EXACT, OF_GRADIENTS = 1e-4, 3e-2


@pytest.fixture(scope="module", params=["gpt_oss", "llama4"])
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("turned")
    if request.param == "llama4":
        return make_case(LLAMA_4, folder, expert_groups="inputs")
    made = Case(GPT_OSS, folder / "source", folder / "tq3", folder / "restored")
    write_mxfp4(made.source)
    tq3.compress(made.source, made.compressed)
    tq3.restore(made.compressed, made.restored, dtype="float32")
    return made


@pytest.fixture
def generic_kernels(monkeypatch):
    """As where nothing was compiled."""
    monkeypatch.setattr(ops, "path_for", lambda _: generic)
    monkeypatch.setattr(direct, "ready", lambda *_: None)


def both(case):
    return load(case.architecture, case.compressed), load(case.architecture, case.restored)


def experts_of(model):
    return [module for name, module in model.named_modules() if name.endswith(".experts")]


def packed_experts(model):
    return sum(isinstance(module, PackedExperts) for module in model.modules())


def test_logits_are_those_of_the_restored_model(case):
    packed, dense = both(case)
    assert packed_experts(packed) == 4
    assert_same_logits(case.architecture, packed, dense)


def test_without_compiled_kernels_they_are_so_to_rounding(case, generic_kernels):
    packed, dense = both(case)
    assert_close(logits(packed), logits(dense), EXACT)


@pytest.mark.slow
def test_a_graph_has_no_breaks_and_gives_the_same(case):
    model = load(case.architecture, case.compressed)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(PROMPT).logits, model(PROMPT).logits)


def test_gradients_are_those_of_the_restored_model(case):
    found = []
    for model in both(case):
        x = model.get_input_embeddings()(PROMPT).detach().requires_grad_(True)
        model(inputs_embeds=x).logits.square().mean().backward()
        found.append(x.grad)
    assert_close(found[0], found[1], OF_GRADIENTS)


def test_it_is_saved_as_it_was_read_and_made_dense_as_it_is_restored(case, tmp_path):
    packed, dense = both(case)
    packed.save_pretrained(tmp_path)
    saved, read = read_tensors(tmp_path), read_tensors(case.compressed)
    assert {n: t.shape for n, t in saved.items()} == {n: t.shape for n, t in read.items()}
    assert all(torch.equal(saved[name], read[name]) for name in read if ".tq_" in name)
    assert torch.equal(logits(load(case.architecture, tmp_path)), logits(packed))
    assert tq3.verify(tmp_path, source=case.source).faults == ()
    copy = deepcopy(packed)
    packed.dequantize()
    assert torch.equal(logits(packed), logits(dense))
    kinds = zip(experts_of(packed), experts_of(dense), strict=True)
    assert all(type(one) is type(other) for one, other in kinds)
    assert packed_experts(copy) == 4


def test_one_stack_may_be_kept(case, tmp_path, generic_kernels):
    kept = "*experts.gate_up_proj"
    tq3.compress(case.source, tmp_path / "tq3", keep=kept, expert_groups="inputs")
    tq3.restore(tmp_path / "tq3", tmp_path / "restored", dtype="float32")
    made = case._replace(compressed=tmp_path / "tq3", restored=tmp_path / "restored")
    packed, dense = both(made)
    assert packed_experts(packed) == 2
    assert_close(logits(packed), logits(dense), EXACT)


def test_as_stored_they_are_held_decoded(tmp_path):
    """Square ones, too, whose shape does not tell inputs from outputs."""
    packed, dense = both(make_case(GPT_OSS, tmp_path))
    assert packed_experts(packed) == 0
    assert_same_logits(GPT_OSS, packed, dense)


def test_kept_blocks_are_what_transformers_makes_of_them(tmp_path):
    write_mxfp4(tmp_path / "source")
    tq3.compress(tmp_path / "source", tmp_path / "tq3", keep="*experts*", keep_dtype="source")
    source, kept = read_tensors(tmp_path / "source"), read_tensors(tmp_path / "tq3")
    names = [name.removesuffix("_blocks") for name in source if name.endswith("_blocks")]
    assert len(names) == 4
    for name in names:
        made = convert_moe_packed_tensors(source[f"{name}_blocks"], source[f"{name}_scales"])
        assert torch.equal(kept[name], made)
