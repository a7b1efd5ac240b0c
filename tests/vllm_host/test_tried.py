"""Features of vLLM beside plain text: with them the packed model says what the dense one says."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from checkpoints import make, tiny
from engine import Token, answers, assert_same, engine, greedy
from safetensors.torch import save_file
from vllm.lora.request import LoRARequest

pytestmark = pytest.mark.vllm

FLOAT32 = "float32"
RANK = 8
# Columns and rows of what the adapter adapts, in Llama of tiny_models.SIZES.
ADAPTED = {
    "self_attn.q_proj": (192, 256),
    "self_attn.v_proj": (192, 128),
    "self_attn.o_proj": (256, 192),
    "mlp.down_proj": (344, 192),
}


@pytest.fixture(scope="module")
def llama(work):
    return make(tiny("llama"), work / "tried", FLOAT32)


@pytest.fixture(scope="module")
def adapter(work):
    """A folder as PEFT writes it, of noise that is large enough to change answers."""
    folder = work / "adapter"
    folder.mkdir()
    noise, tensors = torch.Generator().manual_seed(0), {}
    for layer in range(2):
        for name, (columns, rows) in ADAPTED.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            for part, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                tensors[f"{path}.lora_{part}.weight"] = 0.1 * torch.randn(shape, generator=noise)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    settings["target_modules"] = [name.rpartition(".")[2] for name in ADAPTED]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return LoRARequest("noise", 1, str(folder))


def test_an_adapter_on_packed_layers_answers_as_on_dense_ones(llama, adapter):
    options = {"enable_lora": True, "max_lora_rank": RANK, "max_loras": 1}
    with engine(llama.dense, FLOAT32, **options) as llm:
        dense = greedy(llm, lora_request=adapter)
    with engine(llama.packed, FLOAT32, **options) as llm:
        assert_same(greedy(llm, lora_request=adapter), dense, FLOAT32)
        assert_same(greedy(llm), answers(llama.dense, FLOAT32), FLOAT32)
    without = answers(llama.dense, FLOAT32)
    assert sum(a[0].id != b[0].id for a, b in zip(without, dense, strict=True)) > len(dense) / 2


def test_a_folder_that_nobody_may_write_into_is_served_and_left_as_it_is(llama, tmp_path):
    folder = tmp_path / "read_only"
    shutil.copytree(llama.packed, folder)
    before = {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())}
    for path in reversed(before):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with engine(folder, FLOAT32) as llm:
            assert_same(greedy(llm), answers(llama.dense, FLOAT32), FLOAT32)
        assert {path: path.stat().st_mtime_ns for path in (folder, *folder.iterdir())} == before
    finally:
        folder.chmod(0o755)


def test_drafts_of_tokens_that_a_prompt_had_before_change_no_answer(llama):
    # A process of its own: after llvmlite, which drafts are looked up with, vLLM's kernels for
    # processors can't be registered a second time.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(_with_drafts, llama.packed).result()
    assert_same(found, answers(llama.dense, FLOAT32), FLOAT32)


def _with_drafts(folder: Path) -> list[list[Token]]:
    speculative = {"method": "ngram", "num_speculative_tokens": 2}
    speculative |= {"prompt_lookup_min": 1, "prompt_lookup_max": 2}
    with engine(folder, FLOAT32, speculative_config=speculative) as llm:
        return greedy(llm)
