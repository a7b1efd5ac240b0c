"""Families that are published quantised answer packed as the weights that their codes stand for."""

from __future__ import annotations

import pytest
from support.models.quantised_models import BY_NAME, write
from support.vllm_host.engine import agreement, engine, greedy

import tq3

pytestmark = pytest.mark.vllm

FLOAT32 = "float32"
NAMES = ("qwen3", "qwen3_moe", "deepseek_v3", "kimi_k2", "gpt_oss", "nvfp4_of_modelopt")
# Of 48 tokens; random models are undecided, and then some are not compared.
AT_LEAST = 8


@pytest.mark.parametrize("name", NAMES)
def test_what_was_published_quantised_answers_packed_as_it_is_restored(name, work):
    folder = work / f"quantised_{name}"
    write(BY_NAME[name], folder)
    tq3.compress(folder / "source", folder / "packed")
    tq3.restore(folder / "packed", folder / "restored", dtype="float32")
    with engine(folder / "packed", FLOAT32) as llm:
        packed = greedy(llm, 8)
    with engine(folder / "restored", FLOAT32) as llm:
        restored = greedy(llm, 8)
    agreed = agreement(packed, restored, FLOAT32)
    assert None not in agreed
    assert sum(filter(None, agreed)) >= AT_LEAST
