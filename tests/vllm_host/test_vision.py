"""A packed vision tower makes of an image what the dense one does.

The tower is called by itself: an engine that takes images wants a processor, and so torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from support.models.tiny_models import QWEN_IMAGE
from support.vllm_host.checkpoints import make, tiny
from vllm.config import set_current_vllm_config
from vllm.distributed.parallel_state import (
    ensure_model_parallel_initialized,
    init_distributed_environment,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model

pytestmark = pytest.mark.vllm


def test_a_packed_vision_tower_computes_what_the_dense_one_does(work):
    pair = make(tiny("qwen3_5"), work / "qwen3_5_vision", "bfloat16")
    # A process of its own: engines without images leave rotary tables without data in vLLM's cache.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(_look_at_an_image, [pair.packed, pair.dense], work / "rank").result()
    (packed, names), (dense, _) = found
    assert (packed - dense).norm() < 0.02 * dense.norm()
    # Each matrix of the tower, among them one of 200 columns, and of the merger behind it.
    parts = ["blocks.1.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.linear_fc1"]
    parts += ["blocks.1.mlp.linear_fc2", "merger.linear_fc1", "merger.linear_fc2"]
    assert {f"{part}.weight_packed" for part in parts} <= names


def _look_at_an_image(
    folders: Sequence[Path], rendezvous: Path
) -> list[tuple[torch.Tensor, set[str]]]:
    """What each model's tower makes of the image, and the names of the tower's parameters."""
    torch.accelerator.empty_cache = lambda: None  # on a CPU it raises; vLLM's worker does this, too
    return [_look(folder, rendezvous) for folder in folders]


def _look(folder: Path, rendezvous: Path) -> tuple[torch.Tensor, set[str]]:
    arguments = EngineArgs(
        model=str(folder), dtype="bfloat16", max_model_len=64, skip_tokenizer_init=True
    )
    config = arguments.create_engine_config()
    with set_current_vllm_config(config), torch.no_grad():
        init_distributed_environment(1, 0, f"file://{rendezvous}", 0, "gloo")
        ensure_model_parallel_initialized(1, 1)
        tower = get_model(vllm_config=config).visual
        grid = QWEN_IMAGE["image_grid_thw"].tolist()
        names = {name for name, _ in tower.named_parameters()}
        return tower(QWEN_IMAGE["pixel_values"], grid_thw=grid), names
