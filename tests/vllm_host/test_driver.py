"""What vLLM's layers give the driver of a GPU: its library is the stand-in of tests/cuda."""

from __future__ import annotations

import pytest
from support.cuda import through_driver
from support.vllm_host.checkpoints import make, tiny

pytestmark = pytest.mark.vllm

# What it answers is what was in memory: nothing is computed.
PROGRAM = """
device = through_driver.device()
from pathlib import Path
from support.vllm_host.engine import PROMPTS, engine
from vllm import SamplingParams

sampling = SamplingParams(max_tokens=2, temperature=0, detokenize=False, ignore_eos=True)
for folder in FOLDERS:
    with engine(Path(folder), "bfloat16") as llm:
        llm.generate([{"prompt_token_ids": PROMPTS[1]}], sampling, use_tqdm=False)
"""


def test_layers_experts_and_tied_heads_go_through_the_driver(work, tmp_path):
    llama, only = tiny("llama", {"vocab_size": 500}), ["*proj*", "*embed_tokens*"]
    folders = [
        make(llama, work / "driver", "bfloat16", only=only, sensitive_bits=4).packed,
        make(tiny("qwen3_moe"), work / "driver_of_experts", "bfloat16").packed,
    ]
    found = through_driver.run(PROGRAM.replace("FOLDERS", repr([*map(str, folders)])), tmp_path)
    assert found.given == found.asked
    of_experts = [lines for lines in found.given if lines[-1] != f"pointer {bytes(8).hex()}"]
    assert len(found.given) > len(of_experts) > 0
