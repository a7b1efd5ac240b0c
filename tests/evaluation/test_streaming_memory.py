"""A model is evaluated in the memory of a layer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from support.evaluation.evaluated import TEXT, byte_tokenizer

import tq3
from tq3.codec.backend import available_backends

RUN = """
import json, re, sys
from pathlib import Path
import transformers.models.llama.modeling_llama
from tq3.evaluation.evaluate import evaluate

def memory(kind):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{kind}:\\s+(\\d+) kB", status)[1])

out, source, text = sys.argv[1:]
before = memory("VmRSS")
run = evaluate(out, source, text=Path(text), tokens=64, context=32)
try:
    while True:
        next(run)
except StopIteration as end:
    print(json.dumps({"grown": memory("VmHWM") - before, "kl": end.value.measures.kl}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@pytest.mark.skipif(available_backends() == ("numpy",), reason="minutes without kernels")
def test_a_model_needs_a_fraction_of_its_weights(tmp_path):
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 24}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=8, vocab_size=512)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")  # drawing 230 million normal numbers would take longest of all
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.03, 0.03) if parameter.ndim > 1 else parameter.data.fill_(1)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(tmp_path / "source")
    byte_tokenizer().save_pretrained(tmp_path / "source")
    (tmp_path / "text.txt").write_text(TEXT)
    del model
    tq3.compress(tmp_path / "source", tmp_path / "out")

    command = (sys.executable, "-c", RUN, *(tmp_path / name for name in ("out", "source")))
    run = subprocess.run(
        [*command, tmp_path / "text.txt"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["kl"] > 0
    # In memory whole, in float32, a single one would be twice `weights`.
    assert found["grown"] < 0.75 * weights
