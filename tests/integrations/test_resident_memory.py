"""A packed model is loaded without a dense copy of its weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers

import tq3

LOADING = """
import json, re, sys, torch, tq3, tq3.integrations.transformers
from pathlib import Path
from transformers import LlamaForCausalLM

def memory(kind):
    # Not getrusage: its peak counts that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{kind}:\\s+(\\d+) kB", status)[1])

before = memory("VmRSS")
model = tq3.load(sys.argv[1], dtype="float32")
peak = memory("VmHWM")
weights = sum(parameter.nbytes for parameter in model.parameters())
print(json.dumps({"grown": peak - before, "weights": weights}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_loading_takes_little_more_memory_than_the_packed_weights(tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=8, vocab_size=512)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    dense_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "source")
    tq3.compress(tmp_path / "source", tmp_path / "tq3")
    command = (sys.executable, "-c", LOADING, tmp_path / "tq3")
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(run.stdout)
    assert found["weights"] < dense_bytes / 8
    # The file is mapped while it is copied, so that its pages may count as well.
    assert found["grown"] < 2 * found["weights"] + 20e6 < dense_bytes / 2
