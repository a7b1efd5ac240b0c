"""Tiny models whose channels are uneven, and their checkpoints with equalized columns.

The first is saved in float32, so that scaling it changes logits by rounding alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from support.models.tiny_models import (
    ARCHITECTURES,
    EXPERTS,
    GATED_DELTANET,
    SHARED_EXPERT,
    SIZES,
    Architecture,
)
from tq3.equalization.estimate import estimate_factors
from tq3.equalization.scaled_source import equalized
from tq3.equalization.scalings import plan_scalings
from tq3.events import follow
from tq3.format.checkpoint import read_checkpoint
from tq3.format.equalization import Factors
from tq3.storage.local import LocalFiles

_HYBRID = SIZES | GATED_DELTANET
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}
_KEPT: frozenset[str] = frozenset()
EQUALIZED = (
    *ARCHITECTURES,
    Architecture(
        "llama with biases",
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
        _KEPT,
    ),
    Architecture(
        "mistral", transformers.MistralForCausalLM, transformers.MistralConfig(**SIZES), _KEPT
    ),
    Architecture(  # its config says nothing of head_dim
        "qwen2",
        transformers.Qwen2ForCausalLM,
        transformers.Qwen2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"}),
        _KEPT,
    ),
    Architecture(  # the second layer has an MLP
        "qwen3_moe, one layer dense",
        transformers.Qwen3MoeForCausalLM,
        transformers.Qwen3MoeConfig(**SIZES, **EXPERTS, mlp_only_layers=[1]),
        _KEPT,
    ),
    Architecture(
        "qwen3_next",
        transformers.Qwen3NextForCausalLM,
        transformers.Qwen3NextConfig(**_HYBRID, **EXPERTS, **SHARED_EXPERT),
        _KEPT,
    ),
    Architecture(
        "qwen3_5_text",
        transformers.Qwen3_5ForCausalLM,
        transformers.Qwen3_5TextConfig(**_HYBRID),
        _KEPT,
    ),
    Architecture(
        "qwen3_5_moe_text",
        transformers.Qwen3_5MoeForCausalLM,
        transformers.Qwen3_5MoeTextConfig(**_HYBRID, **EXPERTS, **SHARED_EXPERT),
        _KEPT,
    ),
    Architecture(
        "gemma3_text",
        transformers.Gemma3ForCausalLM,
        transformers.Gemma3TextConfig(**SIZES),
        _KEPT,
    ),
)


def write_uneven_checkpoint(
    architecture: Architecture, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Save a random model whose rows, columns, gains and biases are of very different sizes."""
    torch.manual_seed(0)
    model = architecture.model_class(architecture.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
            if "layers." in name and parameter.ndim > 1:
                parameter.mul_(torch.exp(0.7 * torch.randn(parameter.shape[-1])))
                parameter.mul_(torch.exp(0.7 * torch.randn(parameter.shape[-2], 1)))
            elif name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
    model.to(dtype).save_pretrained(folder, **architecture.save_options)


def factors_of_folder(folder: Path) -> Factors:
    """The factors that compress would choose."""
    with LocalFiles(folder) as files:
        checkpoint = read_checkpoint(files)
        run = estimate_factors(files, checkpoint, plan_scalings(checkpoint), workers=2)
        return follow(run)


def write_equalized(source: Path, out: Path, factors: Factors) -> None:
    """The source with equalized columns, as an ordinary checkpoint."""
    out.mkdir()
    (out / "config.json").write_bytes((source / "config.json").read_bytes())
    with LocalFiles(source) as files:
        scaled = equalized(files, read_checkpoint(files), factors)
        tensors = {}
        for tensor in read_checkpoint(scaled).tensors:
            info = tensor.info
            raw = np.frombuffer(scaled.read(tensor.file, tensor.offset, info.n_bytes), np.uint8)
            words = torch.from_numpy(raw.copy())
            tensors[info.name] = words.view(_TYPES[info.dtype]).reshape(info.shape)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
