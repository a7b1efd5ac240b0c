"""Every architecture of the table answers packed as its dense weights do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.vllm_host.architectures import TABLE
from support.vllm_host.checkpoints import make, write_tokenizer
from support.vllm_host.engine import PROMPTS, agreement, engine, greedy

from tq3.integrations.vllm import config, decoding

pytestmark = pytest.mark.vllm

FLOAT32 = "float32"
FEW = 8
# With all of them in agreement there are 48 tokens; of undecided models some are compared.
AT_LEAST = 8


@pytest.mark.parametrize("name", TABLE)
def test_an_architecture_answers_as_its_dense_weights_do(name, work, monkeypatch):
    served = TABLE[name]
    options: dict[str, Any] = {"keep": served.keep, "expert_groups": served.expert_groups}
    pair = make(served.tiny(name), work / f"table_{name}", FLOAT32, **options)
    decoders = _decoders(monkeypatch)
    dense = _ask(pair.dense, served.asked_for)
    packed = _ask(pair.packed, served.asked_for, load_format=served.load_format)
    if served.asked_for == "text":
        agreed = agreement(packed, dense, FLOAT32)
        assert None not in agreed
        assert sum(filter(None, agreed)) >= AT_LEAST
    else:
        # An output of a packed layer is within 1.1e-3 of the dense one's (docs/kernels.md).
        assert (packed - dense).norm() < 5e-3 * dense.norm()
        assert dense.std(0).norm() > 5e-3 * dense.norm()  # the inputs differ
    # What is said to be decoded is, and nothing else.
    decoded = {name for one in decoders for name, n_bytes in one.n_bytes.items() if n_bytes}
    ends = tuple(f"{end}{suffix}" for end in served.decoded for suffix in ("", ".weight"))
    assert decoded == {name for name in decoders[0].packed if ends and name.endswith(ends)}


def _decoders(monkeypatch) -> list[decoding.Decoder]:
    """Those that the loaders of the packed model will make."""
    made: list[decoding.Decoder] = []

    class Seen(decoding.Decoder):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(config, "Decoder", Seen)
    return made


def _ask(folder, asked_for, **options):
    if asked_for == "text":
        with engine(folder, FLOAT32, **options) as llm:
            return greedy(llm, FEW)
    write_tokenizer(folder)
    options |= {"runner": "pooling", "enable_prefix_caching": False, "max_num_batched_tokens": 64}
    prompts = [{"prompt_token_ids": [3 + i for i in prompt]} for prompt in PROMPTS[:FEW]]
    with engine(folder, FLOAT32, skip_tokenizer_init=False, **options) as llm:
        if asked_for == "a class":
            found = [out.outputs.probs for out in llm.classify(prompts, use_tqdm=False)]
        else:
            found = [out.outputs.embedding for out in llm.embed(prompts, use_tqdm=False)]
    return torch.tensor(found)
