"""Folders that look like the source of a compression and are none. Their headers are sound."""

from __future__ import annotations

import json
from typing import Any

from support.broken.cases import Case
from support.factories import Tensor, raw_tensor, safetensors_bytes

_WEIGHTS = "model.safetensors"
_READERS = ("compress", "inspect")
_BF16 = raw_tensor("BF16", (128, 128), 16)
_STEM = "model.layers.0.mlp.up_proj"
_QUANTISED = "already quantised"
_SHARDS = {
    "1.safetensors": safetensors_bytes({"a": _BF16}),
    "2.safetensors": safetensors_bytes({"b": _BF16}),
}
_INDEX = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).encode()


def weights(
    words: str, commands: tuple[str, ...] = _READERS, names: str = _WEIGHTS, **tensors: Tensor
) -> Case:
    """These tensors of one matrix, a dot for each double underscore of what follows its stem."""
    stored = {_STEM + "." + end.replace("__", "."): one for end, one in tensors.items()}
    files = {_WEIGHTS: safetensors_bytes(stored), "config.json": b"{}"}
    return Case(files, names, words, commands)


def config(words: str, **keys: Any) -> Case:
    """An ordinary matrix under a config.json that says something else."""
    files = {
        _WEIGHTS: safetensors_bytes({f"{_STEM}.weight": _BF16}),
        "config.json": json.dumps(keys).encode(),
    }
    return Case(files, "config.json", words, _READERS)


def raw(dtype: str, bits: int, *shape: int) -> Tensor:
    """Some codes, or what lies beside them."""
    return raw_tensor(dtype, shape or (4, 4), bits)


_SCALE = raw("BF16", 16, 4, 1)

QUANTISED = {
    "quantised/mlx": weights("MLX", weight=raw("U32", 32), scales=_SCALE, biases=_SCALE),
    "quantised/quanto": weights("quanto", weight___data=raw("I8", 8), weight___scale=_SCALE),
    "quantised/hqq": weights("HQQ", W_q=raw("U8", 8), scale=_SCALE, zero=_SCALE),
    "quantised/bitsandbytes-8-bits": weights("SCB", weight=raw("I8", 8), SCB=raw("F32", 32, 4)),
    "quantised/bitsandbytes-4-bits": weights(
        "absmax", weight=raw("U8", 8, 8, 1), weight__absmax=raw("U8", 8, 1)
    ),
    "quantised/fp8-without-scale": weights("F8_E4M3 weights", weight=raw("F8_E4M3", 8)),
    "quantised/fp8-block-wise": weights(
        "does not fit", weight=raw("F8_E4M3", 8), weight_scale_inv=raw("F32", 32, 2, 1)
    ),
    "quantised/fp8-of-deepseek": weights(
        "does not fit", weight=raw("F8_E4M3", 8), scale=raw("F8_E8M0", 8, 3, 1)
    ),
    "quantised/scale-without-weight": weights(
        "weight_scale_inv", weight_scale_inv=raw("F32", 32, 1, 1)
    ),
    "quantised/nvfp4": weights(
        "does not fit",
        weight=raw("U8", 8),
        weight_scale=raw("F8_E4M3", 8, 4, 2),
        weight_scale_2=raw("F32", 32, 1),
    ),
    "quantised/int4-packed": weights(
        "does not say how", weight_packed=raw("I32", 32), weight_scale=_SCALE
    ),
    "quantised/gptq": weights("GPTQ", qweight=raw("I32", 32), scales=_SCALE),
    "quantised/exl3": weights("EXL3", trellis=raw("I16", 16, 2, 2, 4)),
    "quantised/torchao": weights("torchao", _weight_qdata=raw("I8", 8), _weight_scale=_SCALE),
    "quantised/unheard-of": weights("U16 weights", weight=raw("U16", 16)),
    "quantised/key-left-behind": config(
        "but they are not", quantization_config={"quant_method": "bitsandbytes"}
    ),
    "quantised/key-of-an-inner-model": config(
        "llm_config.quantization_config", llm_config={"quantization_config": {"bits": 4}}
    ),
}

NO_MODEL = {
    "source/adapter": Case(
        {
            "adapter_config.json": b"{}",
            "adapter_model.safetensors": safetensors_bytes({f"{_STEM}.lora_A.weight": _BF16}),
        },
        "adapter",
        "an adapter",
    ),
    "source/adapter-of-another-name": weights("an adapter", lora_A__weight=_BF16),
    "source/no-tensors": weights("no tensors"),
    "source/saved-in-parts": weights("ZeRO-3", weight=raw("BF16", 16, 0)),
    "source/nothing-to-compress": weights(
        "nothing to compress", ("compress",), "nothing-to-compress", odd=_BF16
    ),
    "source/pipeline": Case(
        {"model_index.json": b"{}", "unet/model.safetensors": _SHARDS["1.safetensors"]},
        "pipeline",
        "a pipeline",
    ),
    "source/single-beside-shards": Case(
        {_WEIGHTS: _SHARDS["1.safetensors"], "model.safetensors.index.json": _INDEX, **_SHARDS},
        "single-beside-shards",
        "beside shards with other tensors",
    ),
    "source/two-indices": Case(
        {
            "consolidated.safetensors.index.json": _INDEX,
            "model.safetensors.index.fp16.json": b'{"weight_map": {"a": "1.safetensors"}}',
            **_SHARDS,
            "3.safetensors": _SHARDS["1.safetensors"],
        },
        "consolidated.safetensors.index.json",
        "no telling which files belong together",
    ),
}

CASES = QUANTISED | NO_MODEL
