"""Tiny models of families that are published quantised, in the names and layouts of these."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from transformers import FineGrainedFP8Config, PreTrainedConfig, PreTrainedModel
from transformers.integrations.finegrained_fp8 import Fp8Quantize

from support.dequantization.quantised import Floats, Quantised
from support.dequantization.quantising import (
    Quantiser,
    fp4_of_deepseek,
    fp4_of_gpt_oss,
    fp8,
    int4,
    nvfp4,
)
from support.factories import Tensor, Tensors, read_tensors, tensor, tiny_checkpoint

BLOCKS = [128, 128]
OF_BLOCKS = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": BLOCKS,
}
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
LATENT = {
    "q_lora_rank": 128,
    "kv_lora_rank": 512,  # as the published ones; vLLM knows no other
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "num_key_value_heads": 4,
}
_LINEAR = r"\.(q|k|v|o|up|gate|down|q_a|q_b|kv_a|kv_b)_proj(_with_mqa)?\.weight$"


def by_transformers(stem: str, values: Floats) -> Quantised:
    """FP8 as Transformers saves it; `values` of the result are its own, rounded to BF16."""
    config = FineGrainedFP8Config(weight_block_size=BLOCKS)
    made = Fp8Quantize(SimpleNamespace(quantization_config=config)).convert(
        {f"{stem}.weight": torch.from_numpy(values.copy())}
    )
    codes, scales = made[f"{stem}.weight"], made[f"{stem}.weight_scale_inv"]
    wide = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    stored = {
        f"{stem}.weight": Tensor(
            "F8_E4M3", values.shape, codes.view(torch.uint8).numpy().tobytes()
        ),
        f"{stem}.weight_scale_inv": tensor(scales.numpy(), "F32"),
    }
    return Quantised(stored, f"{stem}.weight", (codes.float() * wide).numpy())


@dataclass(frozen=True)
class Family:
    """How to make one tiny model in the form in which its family is published.

    layouts: pattern of names -> how such a weight is stored; the first one that is found counts
    said: what config.json says of it
    renames: from the names that Transformers saves to those that are published
    """

    name: str
    model_class: type[PreTrainedModel]
    config: PreTrainedConfig
    layouts: Mapping[str, Quantiser]
    said: Mapping[str, Any]
    renames: Mapping[str, str] = field(default_factory=dict)


def _groups(weights: Mapping[str, Any], layout: str) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": dict(weights), "format": layout}}
    method = {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups}
    return {"quantization_config": method}


_NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FAMILIES = (
    Family(
        "qwen3",
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(**SIZES),
        {_LINEAR: by_transformers},
        {"quantization_config": OF_BLOCKS},
    ),
    Family(
        "qwen3_moe",
        transformers.Qwen3MoeForCausalLM,
        transformers.Qwen3MoeConfig(
            **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128
        ),
        {_LINEAR: by_transformers},
        {"quantization_config": OF_BLOCKS},
    ),
    Family(  # the last block of kv_a_proj_with_mqa is cut off
        "deepseek_v3",
        transformers.DeepseekV3ForCausalLM,
        transformers.DeepseekV3Config(**(SIZES | LATENT)),
        {_LINEAR: fp8((128, 128))},
        {"quantization_config": OF_BLOCKS},
    ),
    Family(
        "kimi_k2",
        transformers.DeepseekV3ForCausalLM,
        transformers.DeepseekV3Config(**(SIZES | LATENT)),
        {r"\.experts\.\d+\..*\.weight$": int4},
        _groups(_INT4, "pack-quantized"),
    ),
    Family(
        "gpt_oss",
        transformers.GptOssForCausalLM,
        transformers.GptOssConfig(
            **(SIZES | {"intermediate_size": 128}), num_local_experts=4, num_experts_per_tok=2
        ),
        {r"\.experts\.(gate_up|down)_proj$": fp4_of_gpt_oss},
        {"quantization_config": {"quant_method": "mxfp4"}},
    ),
    Family(
        "deepseek_v4",
        transformers.DeepseekV4ForCausalLM,
        transformers.DeepseekV4Config(
            vocab_size=512,
            hidden_size=256,
            moe_intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            head_dim=128,
            q_lora_rank=128,
            num_experts_per_tok=2,
            n_routed_experts=4,
            o_groups=2,
            o_lora_rank=128,
            index_n_heads=2,
            index_head_dim=128,
            index_topk=8,
            hc_mult=2,
            layer_types=[
                "heavily_compressed_attention",
                "compressed_sparse_attention",
                "sliding_attention",
            ],
            mlp_layer_types=["hash_moe", "moe", "moe"],
            sliding_window=16,
            qk_rope_head_dim=64,
            max_position_embeddings=512,
        ),
        {
            r"\.experts\.\d+\.w\d\.weight$": fp4_of_deepseek,
            r"\.(attn|indexer)\.w(q_a|q_b|kv|o_a|o_b)\.weight$|shared_experts\.w\d\.weight$": fp8(
                (128, 128), "F8_E8M0", ".scale"
            ),
        },
        {"quantization_config": {**OF_BLOCKS, "scale_fmt": "ue8m0"}, "expert_dtype": "fp4"},
        {r"^model\.": "", r"^embed_tokens\.": "embed.", r"^hc_head\.hc_": "hc_head_"},
    ),
    Family(
        "nvfp4_of_modelopt",
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**SIZES),
        {_LINEAR: nvfp4(is_divided=False)},
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
    ),
    Family(
        "nvfp4_of_compressed_tensors",
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**SIZES),
        {_LINEAR: nvfp4(is_divided=True)},
        _groups(_NVFP4, "nvfp4-pack-quantized"),
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}


def write(family: Family, folder: Path) -> None:
    """`source` as published, in three shards, and `dense`: the same weights as F32."""
    torch.manual_seed(0)
    model = family.model_class(family.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.to(torch.bfloat16).save_pretrained(folder / "saved")
    config = json.loads((folder / "saved" / "config.json").read_text())
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, one in _published(family, read_tensors(folder / "saved")):
        quantised = _quantised(family, name, one)
        stored |= quantised.tensors if quantised else {name: one}
        meant |= {name: _meant(quantised, one)} if quantised else {name: one}
    tiny_checkpoint(folder / "source", stored, 3, config | dict(family.said))
    tiny_checkpoint(folder / "dense", meant, 1, config)


def _published(family: Family, saved: Tensors) -> Iterator[tuple[str, Tensor]]:
    for saved_name, one in saved.items():
        name = saved_name
        for pattern, other in family.renames.items():
            name = re.sub(pattern, other, name)
        yield name, one


def _quantised(family: Family, name: str, one: Tensor) -> Quantised | None:
    for pattern, quantise in family.layouts.items():
        if re.search(pattern, name):
            values = one.values  # of gpt-oss (experts, columns, rows), quantised the other way
            values = values.swapaxes(1, 2) if values.ndim == 3 else values
            return quantise(name.removesuffix(".weight"), np.ascontiguousarray(values))
    return None


def _meant(quantised: Quantised, saved: Tensor) -> Tensor:
    """As Transformers would save what remains of it."""
    values = quantised.values
    return tensor(values.swapaxes(1, 2) if len(saved.shape) == 3 else values, "F32")
