"""Families of models whose makers publish them quantised: names as Transformers would save them."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_TABLE = Path(__file__).parents[2] / "plan" / "data" / "families.txt"
_DENSE_AND_SPARSE = {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]}
_FIRST_DENSE = {"num_hidden_layers": 2, "first_k_dense_replace": 1}
_VISION = {"vision_config": {"num_hidden_layers": 1}}
# Family -> class of Transformers and the settings with which few layers have every kind of tensor.
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek v3, kimi k2": ("DeepseekV3ForCausalLM", _FIRST_DENSE),
    "deepseek v3.2": ("DeepseekV32ForCausalLM", _DENSE_AND_SPARSE),
    "deepseek v4": (
        "DeepseekV4Model",
        {
            "num_hidden_layers": 3,
            "layer_types": [
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
            ],
            "mlp_layer_types": ["hash_moe", "moe", "moe"],
        },
    ),
    "kimi k2.5": ("Kimi_K25ForConditionalGeneration", {"text_config": _FIRST_DENSE, **_VISION}),
    "kimi linear": (
        "KimiLinearForCausalLM",
        {**_DENSE_AND_SPARSE, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "minimax m2": ("MiniMaxM2ForCausalLM", {"num_hidden_layers": 1}),
    "minimax m3": (
        "MiniMaxM3SparseForConditionalGeneration",
        {
            "text_config": {
                **_DENSE_AND_SPARSE,
                "layer_types": ["full_attention", "minimax_m3_sparse"],
            },
            **_VISION,
        },
    ),
    "glm 4.5": ("Glm4MoeForCausalLM", _FIRST_DENSE),
    "glm 5": ("GlmMoeDsaForCausalLM", _DENSE_AND_SPARSE),
    "glm 5 next": (
        "Glm5NextForConditionalGeneration",
        {
            "text_config": {
                **_DENSE_AND_SPARSE,
                "layer_types": ["linear_attention", "full_attention"],
            },
            "vision_config": {"depth": 1},
        },
    ),
    "gpt-oss": ("GptOssForCausalLM", {"num_hidden_layers": 1}),
    "mistral large 4": (
        "MistralLarge4ForConditionalGeneration",
        {
            "text_config": {**_DENSE_AND_SPARSE, "first_k_dense_replace": 1},
            **_VISION,
        },
    ),
    "llama 4": (
        "Llama4ForConditionalGeneration",
        {"text_config": {"num_hidden_layers": 2, "moe_layers": [1]}, **_VISION},
    ),
    "qwen3": ("Qwen3MoeForCausalLM", {"num_hidden_layers": 1}),
    "qwen3.5, qwen3.6": (
        "Qwen3_5MoeForConditionalGeneration",
        {
            "text_config": {
                "num_hidden_layers": 2,
                "layer_types": ["linear_attention", "full_attention"],
            },
            "vision_config": {"depth": 1},
        },
    ),
}
# Of these the table has names by hand: no class of Transformers has them.
BY_HAND = ("deepseek v4.1", "kimi k3", "mistral consolidated")


class Row(NamedTuple):
    """A tensor, or all that differ by numbers in their names, and what tq3 does with it.

    name: numbers as `0`; fate: `packed`, or the start of the reason why it stays
    """

    name: str
    shape: tuple[int, ...]
    role: str
    fate: str


def table() -> dict[str, list[Row]]:
    """The rows of tests/plan/data/families.txt by family."""
    found: dict[str, list[Row]] = {}
    for line in _TABLE.read_text().splitlines():
        if line.startswith("["):
            rows = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            name, shape, role, fate = re.split(r" {2,}", line)
            rows.append(Row(name, tuple(map(int, shape.split("x"))), role, fate))
    return found


def saved_by_transformers(family: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors but vectors, numbers as `0`; built on the meta device.

    The test that asks is skipped where Transformers has no such class.
    """
    transformers = pytest.importorskip("transformers")
    name, settings = CLASSES[family]
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    with import_module("torch").device("meta"):
        model = kind(kind.config_class(**settings))
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    }
    loading = import_module("transformers.core_model_loading")
    saved = loading.revert_weight_conversion(model, state)
    return {
        _as_published(name): tuple(tensor.shape)
        for name, tensor in saved.items()
        if tensor.ndim > 1
    }


def _as_published(name: str) -> str:
    """Numbers as `0`. Transformers takes Kimi K2.5's layers for blocks of its tower as it saves."""
    name = re.sub(r"(?<=\.)\d+(?=\.)", "0", name)
    return name.replace("language_model.model.blocks.", "language_model.model.layers.")
