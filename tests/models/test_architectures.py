"""Tiny models of real architectures: compressed, read by others, restored, run in Transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from support.models.tiny_models import ARCHITECTURES, SIZES, Architecture, write_checkpoint
from support.models.tq3_folder import (
    assert_same,
    assert_stored_is_reference,
    assert_stored_shapes,
    compressed_names,
    kept,
    read_tensors,
    round_tripped,
)
from transformers import PreTrainedModel

import tq3

SMALLEST_COMPRESSED = 128


class Case(NamedTuple):
    """One architecture's folders: as Transformers saved it, compressed, restored."""

    architecture: Architecture
    source: Path
    compressed: Path
    restored: Path


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda a: a.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param.name)
    made = Case(request.param, folder / "source", folder / "tq3", folder / "restored")
    write_checkpoint(made.architecture, made.source)
    tq3.compress(made.source, made.compressed, equalize=False)
    tq3.restore(made.compressed, made.restored)
    return made


def test_source_is_as_published(case):
    """The cases that this suite is for are really in the files."""
    shapes = {name: tuple(tensor.shape) for name, tensor in read_tensors(case.source).items()}
    if case.architecture.name == "llama":
        assert len(list(case.source.glob("*.safetensors"))) > 1
        assert "lm_head.weight" not in shapes
    if case.architecture.name == "qwen3_moe":
        assert shapes["model.layers.0.mlp.experts.3.down_proj.weight"] == (192, 160)
    if case.architecture.name == "qwen3_5_moe":
        experts = "model.language_model.layers.0.mlp.experts"
        assert shapes[f"{experts}.gate_up_proj"] == (4, 320, 192)
        assert shapes[f"{experts}.down_proj"] == (4, 192, 160)
    if case.architecture.has_mtp:
        assert shapes["mtp.fc.weight"] == (192, 384)
        assert "mtp.layers.0.self_attn.q_proj.weight" in shapes
        assert "model.visual.blocks.0.attn.qkv.weight" in shapes


def test_all_large_matrices_are_compressed_but_embeddings_and_heads(case):
    source = read_tensors(case.source)
    matrices = {name for name, tensor in source.items() if is_large_matrix(name, tensor)}
    assert compressed_names(read_tensors(case.compressed)) == (
        matrices - case.architecture.kept_matrices
    )
    assert case.architecture.kept_matrices <= matrices


def is_large_matrix(name: str, tensor: torch.Tensor) -> bool:
    right_name = {2: name.endswith(".weight"), 3: ".experts." in name}.get(tensor.ndim, False)
    return right_name and max(tensor.shape[-2:]) >= SMALLEST_COMPRESSED


def test_codes_and_norms_equal_the_reference_codec(case):
    source, stored = read_tensors(case.source), read_tensors(case.compressed)
    for name in compressed_names(stored):
        packed, norms = stored[f"{name}.tq_packed"], stored[f"{name}.tq_norms"]
        assert_stored_shapes(source[name], packed, norms)
        assert_stored_is_reference(source[name], packed, norms)


def test_other_tensors_are_kept_in_fp16_unless_it_overflows(case):
    source, stored = read_tensors(case.source), read_tensors(case.compressed)
    compressed = compressed_names(stored)
    others = {name for name in stored if not name.endswith((".tq_packed", ".tq_norms"))}
    assert others == set(source) - compressed
    for name in others:
        assert_same(stored[name], kept(source[name]), name)
    if case.architecture.has_mtp:
        assert stored["mtp.norm.weight"].dtype == torch.bfloat16


def test_restored_tensors_have_the_names_shapes_and_values_of_the_round_trip(case):
    restored, expected = read_tensors(case.restored), expected_tensors(case)
    assert set(restored) == set(read_tensors(case.source))
    for name, tensor in expected.items():
        assert_same(restored[name], tensor, name)


def test_restored_config_is_the_source_config(case):
    assert (case.restored / "config.json").read_bytes() == (
        case.source / "config.json"
    ).read_bytes()
    gained = json.loads((case.compressed / "config.json").read_text())
    assert gained["quantization_config"]["format"] == "tq3_native"


def test_restored_model_computes_what_the_round_tripped_weights_compute(case, tmp_path):
    """Logits are equal, not merely close: Transformers loads the same bf16 words in both."""
    shutil.copytree(case.source, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    save_file(expected_tensors(case), tmp_path / "model.safetensors", metadata={"format": "pt"})

    folders = (case.restored, tmp_path, case.source)
    each = [outputs(case.architecture, load(case.architecture, folder)) for folder in folders]
    for got, wanted, before in zip(*each, strict=True):
        assert torch.equal(got, wanted)
        assert not torch.equal(got, before)


def expected_tensors(case: Case) -> dict[str, torch.Tensor]:
    """Every source tensor after the round trip, as bf16."""
    compressed = compressed_names(read_tensors(case.compressed))
    return {
        name: round_tripped(t) if name in compressed else kept(t).to(torch.bfloat16)
        for name, t in read_tensors(case.source).items()
    }


def load(architecture: Architecture, folder: Path) -> PreTrainedModel:
    """The model in `folder`; no key may be missing, unexpected or of another shape."""
    model, info = architecture.model_class.from_pretrained(folder, output_loading_info=True)
    assert {key: found for key, found in info.items() if found} == {}
    return model.eval()


@torch.no_grad()
def outputs(architecture: Architecture, model: PreTrainedModel) -> list[torch.Tensor]:
    """Logits of two short texts and, where there is a vision tower, what it makes of an image."""
    text = torch.arange(40).reshape(2, 20) * 7 % SIZES["vocab_size"]
    found = [model(text).logits]
    if architecture.image:
        found += model.get_image_features(**architecture.image).pooler_output
    assert all(torch.isfinite(tensor).all() for tensor in found)
    return found
