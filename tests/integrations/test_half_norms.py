"""Checkpoints whose norms are float16, all or some of them: widened while they are loaded."""

from __future__ import annotations

import pytest
import torch
from packed_models import Case, changed, load, logits, make_case
from tiny_models import BY_NAME
from tq3_folder import read_tensors

import tq3


def narrowed(tensors, which: str) -> None:
    """Norms of the first layer, or all, to float16."""
    for name in tensors:
        if name.endswith(".tq_norms") and (which == "all" or ".layers.0." in name):
            tensors[name] = tensors[name].half()


def widened(tensors) -> None:
    for name in tensors:
        if name.endswith(".tq_norms"):
            tensors[name] = tensors[name].half().float()


@pytest.fixture(scope="module", params=["llama", "qwen3_moe", "qwen3_5_moe"])
def made(request, tmp_path_factory) -> Case:
    """Qwen3-MoE's norms of single experts are stacked while they are loaded."""
    return make_case(BY_NAME[request.param], tmp_path_factory.mktemp(request.param))


def test_a_model_with_narrow_norms_is_the_one_with_their_values(made, tmp_path):
    narrow = changed(made.compressed, tmp_path / "f16", lambda t: narrowed(t, "all"))
    wide = changed(made.compressed, tmp_path / "f32", widened)
    model = load(made.architecture, narrow)
    norms = [p for name, p in model.named_parameters() if name.endswith("tq_norms")]
    assert {p.dtype for p in norms} == {torch.float32}
    assert torch.equal(logits(model), logits(load(made.architecture, wide)))


def test_narrow_and_wide_norms_may_be_mixed(made, tmp_path):
    """Also in one stack of experts."""

    def some(tensors):
        narrowed(tensors, "first")
        for name in tensors:
            if name.endswith(".tq_norms") and ".experts.1." in name:
                tensors[name] = tensors[name].half()

    def same_values(tensors):
        some(tensors)
        for name in tensors:
            if name.endswith(".tq_norms"):
                tensors[name] = tensors[name].float()

    mixed = changed(made.compressed, tmp_path / "mixed", some)
    wide = changed(made.compressed, tmp_path / "wide", same_values)
    found, wanted = (load(made.architecture, folder) for folder in (mixed, wide))
    assert torch.equal(logits(found), logits(wanted))


def test_they_may_lie_on_the_disk(tmp_path):
    case = make_case(BY_NAME["llama"], tmp_path)
    narrow = changed(case.compressed, tmp_path / "f16", lambda t: narrowed(t, "all"))
    places = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm"), "cpu")
    places |= {"model.layers.0": "disk", "model.layers.1": "cpu", "lm_head": "cpu"}
    model = load(case.architecture, narrow, device_map=places, offload_folder=tmp_path / "off")
    assert torch.equal(logits(model), logits(load(case.architecture, narrow)))


def test_what_is_saved_has_wide_norms_of_the_same_values(made, tmp_path):
    narrow = changed(made.compressed, tmp_path / "f16", lambda t: narrowed(t, "all"))
    load(made.architecture, narrow).save_pretrained(tmp_path / "saved")
    stored, saved = read_tensors(narrow), read_tensors(tmp_path / "saved")
    for name in saved:
        if name.endswith(".tq_norms"):
            assert saved[name].dtype == torch.float32
            assert torch.equal(saved[name], stored[name].float())
    assert tq3.verify(tmp_path / "saved").ok
