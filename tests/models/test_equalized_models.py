"""Equalized columns in each architecture: the same logits, other weights, a sound checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.models.equalized_models import (
    EQUALIZED,
    factors_of_folder,
    write_equalized,
    write_uneven_checkpoint,
)
from support.models.more_architectures import QUICK, SLOW
from support.models.tiny_models import ARCHITECTURES, SIZES, Architecture, write_checkpoint
from support.models.tq3_folder import read_tensors

import tq3
from tq3.equalization.families import FAMILIES

# What no factor touches, spelled out a second time: anywhere, and by model_type.
ASIDE = (
    *("vision", "visual", "mtp.", "q_norm", "k_norm", "q_proj.bias", "k_proj.bias", "o_proj.bias"),
    *("gate_proj.bias", "down_proj.bias", "conv1d", "A_log", "dt_bias"),
    *("linear_attn.norm", "linear_attn.out_proj", "e_score_correction_bias", "key_layernorm"),
    *("q_a_proj.bias", "kv_a_proj_with_mqa.bias", "query_layernorm"),
)
BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")
NO_NORM = ("q_proj", "k_proj", "gate_proj")
GEMMA_4 = (*BEHIND, "o_proj", "per_layer_", "layer_scalar", ".router.")
ASIDE_IN = {
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), BEHIND),
    **dict.fromkeys(("gemma4", "gemma4_text"), GEMMA_4),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    "olmo": NO_NORM,
    **dict.fromkeys(("olmo2", "olmo3"), (*NO_NORM, *BEHIND)),
    "olmoe": ("o_proj",),
}


@torch.no_grad()
def logits(architecture: Architecture, folder: Path) -> torch.Tensor:
    model, info = architecture.model_class.from_pretrained(
        folder,
        output_loading_info=True,
        dtype=torch.float64,
        experts_implementation="eager",  # the others have no float64
    )
    assert {key: found for key, found in info.items() if found} == {}
    text = torch.arange(40).reshape(2, 20) * 7 % SIZES["vocab_size"]
    return model.eval()(text).logits


def test_every_architecture_that_is_known_is_tested():
    configs = [each.config for each in (*EQUALIZED, *QUICK, *SLOW)]
    tested = {config.model_type for config in configs}
    inner = [each.text_config for each in configs if "text_config" in each.sub_configs]
    tested |= {config.model_type for config in inner}
    assert tested == set(FAMILIES)


@pytest.mark.parametrize(
    "architecture",
    [*EQUALIZED, *QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)],
    ids=lambda a: a.name,
)
def test_a_equalized_model_computes_the_same(architecture, tmp_path):
    """In float64, from weights of float32, which the factors round."""
    write_uneven_checkpoint(architecture, tmp_path / "source")
    factors = factors_of_folder(tmp_path / "source")
    write_equalized(tmp_path / "source", tmp_path / "equalized", factors)
    exact, found = (logits(architecture, tmp_path / name) for name in ("source", "equalized"))
    lost = (found - exact).abs() / exact.std()
    assert float(lost.mean()) < 1e-5
    assert float(lost.max()) < 1e-3

    before, after = (read_tensors(tmp_path / name) for name in ("source", "equalized"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    unchanged = (*ASIDE, *ASIDE_IN.get(architecture.config.model_type, ()))
    assert changed == {n for n in before if ".layers." in n and not any(p in n for p in unchanged)}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_compress_equalize_writes_a_checkpoint_that_verify_finds_sound(architecture, tmp_path):
    """With vision towers and MTP layers, which are left alone."""
    write_checkpoint(architecture, tmp_path / "source")
    tq3.compress(tmp_path / "source", tmp_path / "tq3", equalize=True)
    result = tq3.verify(tmp_path / "tq3", source=tmp_path / "source")
    assert result.faults == ()
    # Tiny values of an embedding in BF16 may be rounded; nothing else is.
    assert all(line.exact is not False or line.n_rounded for line in result.comparisons)
    assert tq3.inspect(tmp_path / "tq3").equalized
