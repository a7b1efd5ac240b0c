"""Real models by the names and shapes of their tensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.header import TensorInfo

DATA = Path(__file__).parents[2] / "plan" / "data"


# Of all model classes of Transformers, by what their modules are: written by
# scripts/sweep_policy.py, numbers as `{}`; of matrices and convolutions only the ends of the names.
NAMES: dict[str, Any] = json.loads((DATA / "transformers.json").read_text())


def qwen() -> Checkpoint:
    """The model as one source file would hold it."""
    listing = json.loads((DATA / "qwen3.6-27b.json").read_text())
    tensors, offset = [], 0
    for template, shape, *layers in listing["tensors"]:
        for layer in listing["layers"][layers[0]] if layers else [None]:
            info = TensorInfo(template.format(layer), listing["dtype"], tuple(shape))
            tensors.append(Located(info, "model.safetensors", offset))
            offset += info.n_bytes
    return Checkpoint(tuple(tensors), {"model.safetensors": "as it was"}, {})


def checkpoint(*infos: TensorInfo, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """A model of these tensors, in one source file."""
    tensors = tuple(Located(info, "model.safetensors", 0) for info in infos)
    return Checkpoint(tensors, {"model.safetensors": "as it was"}, config or {})
