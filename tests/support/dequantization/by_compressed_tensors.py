"""Tiny checkpoints as compressed-tensors writes them, and the weights that it makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import compressed_tensors
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file
from torch import nn

ROWS, COLUMNS = 20, 96
WRITER = f"compressed-tensors {compressed_tensors.__version__}"
Scheme = dict[str, Any]
# A scheme; the type of the model; rows and columns of its first layer.
Case = tuple[Scheme, torch.dtype, tuple[int, int]]


class Model(nn.Module):
    """Linear layers named as those of a model: two that are quantised, one that is not."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(rows + columns)
        self.mlp = nn.ModuleDict(
            {
                "up_proj": nn.Linear(columns, rows, bias=False, dtype=dtype),
                "down_proj": nn.Linear(columns - 32, rows // 2, bias=False, dtype=dtype),
            }
        )
        self.lm_head = nn.Linear(32, 4, bias=False, dtype=dtype)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.mlp["up_proj"](values)
        return result


def weights(bits: int, **options: Any) -> Scheme:
    """A scheme of compressed-tensors for whole numbers."""
    options = {"type": "int", "strategy": "group", "group_size": 32, "symmetric": True} | options
    return {"weights": QuantizationArgs(num_bits=bits, **options)}


def floats(strategy: str, **options: Any) -> Scheme:
    return weights(8, type="float", strategy=strategy, group_size=None, **options)


def preset(name: str) -> Scheme:
    scheme = preset_name_to_scheme(name, ["Linear"])
    return {"weights": scheme.weights, "input_activations": scheme.input_activations}


def _case(
    scheme: Scheme, dtype: torch.dtype = torch.bfloat16, rows: int = ROWS, columns: int = COLUMNS
) -> Case:
    return scheme, dtype, (rows, columns)


CASES = {
    "int3": _case(weights(3)),
    "int4": _case(weights(4)),
    "int4-asymmetric": _case(weights(4, symmetric=False)),
    "int4-row": _case(weights(4, strategy="channel", group_size=None)),
    "int4-odd": _case(weights(4, strategy="channel", group_size=None), columns=108),
    "int5-asymmetric-row": _case(
        weights(5, strategy="channel", group_size=None, symmetric=False), torch.float16
    ),
    "int8": _case(weights(8, group_size=16)),
    "int8-asymmetric": _case(weights(8, symmetric=False), torch.float32),
    "int8-bytes": _case(preset("W8A8")),
    "fp8-tensor": _case(floats("tensor"), torch.float32),
    "fp8-block": _case(floats("block", block_structure=[32, 32]), rows=40, columns=88),
    "fp8-block-f32": _case(floats("block", block_structure=[16, 64]), torch.float32),
    "fp8-dynamic": _case(preset("FP8_DYNAMIC")),
    "fp8-static": _case(preset("FP8")),
    "nvfp4": _case(preset("NVFP4")),
    "nvfp4a16": _case(preset("NVFP4A16"), torch.float32),
    "mxfp4": _case(preset("MXFP4A16")),
    "mxfp6": _case(preset("MXFP6A16")),
    "mxfp8": _case(preset("MXFP8A16")),
}


@torch.no_grad()
def write(folder: Path, case: Case) -> dict[str, torch.Tensor]:
    """As llm-compressor does: observe, compress, save. Returns what is decompressed."""
    scheme, dtype, shape = case
    model = Model(*shape, dtype)
    group = QuantizationScheme(targets=["Linear"], **scheme)
    apply_quantization_config(
        model, QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"])
    )
    for layer in model.mlp.values():
        observe(layer, group.weights)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text('{"architectures": ["SomeForCausalLM"]}')
    compressor.update_config(str(folder))
    compressor.decompress_model(model)
    return {name: one for name, one in model.state_dict().items() if name.endswith("_proj.weight")}


def observe(layer: Any, args: QuantizationArgs) -> None:
    """Set the parameters of one layer from the least and largest weight of each block."""
    least, largest = (blocked(layer.weight, args, reduce) for reduce in (torch.amin, torch.amax))
    scale = None
    if hasattr(layer, "weight_global_scale"):
        scale = generate_gparam(layer.weight.amin(), layer.weight.amax())
        layer.weight_global_scale.copy_(scale)
    scales, points = calculate_qparams(least, largest, args, scale)
    layer.weight_scale.copy_(scales.reshape(layer.weight_scale.shape))
    if hasattr(layer, "weight_zero_point"):
        layer.weight_zero_point.copy_(points.reshape(layer.weight_zero_point.shape))
    if hasattr(layer, "input_scale"):
        layer.input_scale.fill_(0.02)
    if hasattr(layer, "input_global_scale"):
        layer.input_global_scale.fill_(30.0)


def blocked(
    weight: torch.Tensor, args: QuantizationArgs, reduce: Callable[..., torch.Tensor]
) -> torch.Tensor:
    rows, columns = weight.shape
    block = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "block": tuple(args.block_structure or ()),
    }.get(args.strategy, (1, args.group_size))
    lines = [reduce(part, 0) for part in weight.split(block[0])]
    return torch.stack(
        [torch.stack([reduce(part, 0) for part in line.split(block[1])]) for line in lines]
    )
