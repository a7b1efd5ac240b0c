"""No tensor is in memory twice, neither while a model is loaded nor while it generates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tq3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="asks /proc"),
]

# Prints by how much the process grows at most, while it loads each folder and while it then
# generates: bytes over what it had before. The first N folders are for what comes once with any.
GROWING = """
import gc, json, re, sys, torch, tq3, tq3.integrations.transformers
from pathlib import Path

def memory(kind):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{kind}:\\s+(\\d+) kB", status)[1])

torch.set_num_threads(1)
grown = []
for folder in sys.argv[2:]:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
    before = memory("VmRSS")
    model = tq3.load(folder)
    loading = memory("VmHWM") - before
    model.generate(torch.tensor([[1, 2, 3], [4, 5, 6]]), max_new_tokens=2, do_sample=False)
    grown.append((loading, memory("VmHWM") - before))
    del model
print(json.dumps(grown[int(sys.argv[1]) :]))
"""
# Blocks of any size are given back when they are freed.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}
LAYERS = 4
SIZES: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 1, "eos_token_id": None}


def gemma(folder: Path, vocabulary: int) -> Path:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}
    config = transformers.Gemma3TextConfig(**SIZES, **sizes, vocab_size=vocabulary)
    transformers.Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def mixture(folder: Path, n_experts: int) -> Path:
    sizes = {"hidden_size": 512, "moe_intermediate_size": 512, "vocab_size": 256}
    config = transformers.Qwen3MoeConfig(
        **SIZES, **sizes, intermediate_size=256, num_experts=n_experts, num_experts_per_tok=2
    )
    transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def packed(source: Path, out: Path, **options) -> Path:
    tq3.compress(source, out, **options)
    return out


def growths(first: list[Path], folders: list[Path]) -> list[tuple[float, float]]:
    """Of loading, and of loading and generating: parts of the files' sizes."""
    command = [sys.executable, "-c", GROWING, str(len(first)), *map(str, [*first, *folders])]
    environment = {**os.environ, **GIVES_BACK}
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    sizes = [sum(file.stat().st_size for file in path.glob("*.safetensors")) for path in folders]
    return [
        (loading / size, generating / size)
        for size, (loading, generating) in zip(sizes, json.loads(run.stdout), strict=True)
    ]


def test_no_tensor_is_held_twice(tmp_path):
    """A table in F16 in a bfloat16 model, as the published recipe has it; in the model's own type;
    packed. And experts that the host joins: it does that for one layer at a time.
    """
    wide = gemma(tmp_path / "wide", 2**15)
    options: tuple[dict[str, Any], ...] = ({}, {"recipe": "mixed"}, {"lm_head": 4, "embeddings": 4})
    folders = [packed(wide, tmp_path / str(i), **each) for i, each in enumerate(options)]
    folders += [packed(mixture(tmp_path / "experts", 32), tmp_path / "mixture")]
    small = [gemma(tmp_path / "small", 256), mixture(tmp_path / "few", 2)]
    first = [packed(path, tmp_path / f"{path.name}-tq3") for path in small]
    first += [packed(small[0], tmp_path / "table-tq3", **options[-1])]
    *tables, experts = growths(first, folders)
    for loading, generating in tables:
        assert loading < 1.1
        assert generating < 1.2
    assert max(experts) < 1.6
