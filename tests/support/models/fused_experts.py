"""Tiny models whose fused experts have inputs as rows, gpt-oss's in MXFP4, too."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM, Llama4ForCausalLM, Llama4TextConfig

from support.models.tiny_models import SIZES, Architecture, write_checkpoint
from support.models.tq3_folder import read_tensors

# Down is square: its shape does not tell inputs from outputs.
_GPT_OSS = SIZES | {
    "hidden_size": 160,
    "intermediate_size": 160,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "rope_scaling": None,
}
_LLAMA_4 = SIZES | {"intermediate_size_mlp": 256, "num_local_experts": 4}
GPT_OSS = Architecture("gpt_oss", GptOssForCausalLM, GptOssConfig(**_GPT_OSS), frozenset())
LLAMA_4 = Architecture("llama4", Llama4ForCausalLM, Llama4TextConfig(**_LLAMA_4), frozenset())


def write_mxfp4(folder: Path) -> None:
    """A checkpoint of GPT_OSS as such models are published: blocks and scales of random bytes."""
    write_checkpoint(GPT_OSS, folder)
    random = torch.Generator().manual_seed(1)
    tensors = read_tensors(folder)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        grid = experts, outputs, inputs // 32
        codes = torch.randint(0, 256, (*grid, 16), generator=random)
        exponents = torch.randint(118, 124, grid, generator=random)
        tensors |= {f"{name}_blocks": codes.byte(), f"{name}_scales": exponents.byte()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
