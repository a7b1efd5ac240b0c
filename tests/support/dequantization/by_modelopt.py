"""Tiny checkpoints as NVIDIA's ModelOpt writes them, and the weights that it makes of them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import modelopt
import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.qtensor import (
    FP8QTensor,
    MXFP4QTensor,
    MXFP8QTensor,
    NVFP4QTensor,
)
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

WRITER = f"nvidia-modelopt {modelopt.__version__}"
SHOWN = ("mlp.down_proj", "self_attn.k_proj")
Tensors = dict[str, torch.Tensor]

# Name -> configuration of ModelOpt, the class that decodes, rows and columns that share a scale.
CASES: dict[str, tuple[str, Any, dict[int, int]]] = {
    "nvfp4": ("NVFP4_DEFAULT_CFG", NVFP4QTensor, {-1: 16}),
    "nvfp4a16": ("W4A16_NVFP4_CFG", NVFP4QTensor, {-1: 16}),
    "fp8": ("FP8_DEFAULT_CFG", FP8QTensor, {}),
    "fp8-row": ("FP8_PER_CHANNEL_PER_TOKEN_CFG", FP8QTensor, {-1: 0}),
    "mxfp4": ("MXFP4_DEFAULT_CFG", MXFP4QTensor, {-1: 32}),
    "mxfp8": ("MXFP8_DEFAULT_CFG", MXFP8QTensor, {-1: 32}),
}


def model() -> LlamaForCausalLM:
    """A Llama of one layer, in BF16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=16,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def write(folder: Path, case: tuple[str, Any, dict[int, int]]) -> Tensors:
    """Calibrate, export. Returns some weights as the same program decodes them, in float32."""
    name, kind, block_sizes = case
    quantised = model()
    config = deepcopy(getattr(mtq, name))
    mtq.quantize(quantised, config, lambda found: found(torch.arange(12)[None]))
    export_hf_checkpoint(quantised, export_dir=folder)
    (folder / "generation_config.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    stems = (f"model.layers.0.{stem}" for stem in SHOWN)
    return {f"{stem}.weight": decoded(tensors, stem, kind, block_sizes) for stem in stems}


def decoded(tensors: Tensors, stem: str, kind: Any, block_sizes: dict[int, int]) -> torch.Tensor:
    codes, scale = tensors[f"{stem}.weight"], tensors[f"{stem}.weight_scale"]
    shape = torch.Size(
        (*codes.shape[:-1], codes.shape[-1] * (2 if codes.dtype == torch.uint8 else 1))
    )
    options: dict[str, Any] = {"scale": scale, "block_sizes": block_sizes}
    if f"{stem}.weight_scale_2" in tensors:
        options["double_scale"] = tensors[f"{stem}.weight_scale_2"]
    if block_sizes == {-1: 0}:  # one scale for a row
        options = {"scale": scale[:, None]}
    found: torch.Tensor = kind(shape, torch.float32, codes).dequantize(torch.float32, **options)
    return found
