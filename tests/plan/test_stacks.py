"""Which stacks have inputs as rows: by architecture, name and shape."""

from __future__ import annotations

import pytest

from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.header import TensorInfo
from tq3.plan.stacks import with_inputs_as_rows

GPT_OSS = {"model_type": "gpt_oss", "hidden_size": 160}
LLAMA = {"model_type": "llama4", "text_config": {"model_type": "llama4_text", "hidden_size": 160}}
ARIA = {"model_type": "aria_text", "hidden_size": 160}
IN_MLP, IN_FEED_FORWARD = "model.layers.0.mlp.experts.", "l.3.feed_forward.experts."


def found(config, name, shape, dtype="BF16", *, transposed=False):
    tensor = Located(TensorInfo(name, dtype, shape), "f", 0, transposed=transposed)
    return list(with_inputs_as_rows(Checkpoint((tensor,), {}, config))) == [name]


@pytest.mark.parametrize(
    ("config", "gate_up", "down"),
    [
        (GPT_OSS, IN_MLP + "gate_up_proj", IN_MLP + "down_proj"),
        (LLAMA, IN_FEED_FORWARD + "gate_up_proj", IN_FEED_FORWARD + "down_proj"),
        (ARIA, IN_MLP + "fc1.weight", IN_MLP + "fc2.weight"),
    ],
    ids=["gpt-oss", "llama 4", "aria"],
)
def test_gate_and_up_read_the_hidden_channels_and_down_writes_them(config, gate_up, down):
    assert found(config, gate_up, (4, 160, 320))
    assert found(config, down, (4, 96, 160))
    assert found(config, down, (4, 160, 160))
    assert not found(config, gate_up, (4, 320, 160))
    assert not found(config, down, (4, 160, 96))


@pytest.mark.parametrize(
    ("config", "name", "shape", "about"),
    [
        (GPT_OSS, IN_MLP + "gate_up_proj_bias", (4, 320), {}),
        (GPT_OSS, IN_MLP + "gate_up_proj", (160, 320), {}),
        (GPT_OSS, IN_MLP + "gate_up_proj", (4, 160, 320), {"dtype": "U8"}),
        (GPT_OSS, IN_MLP + "gate_up_proj", (4, 160, 320), {"transposed": True}),
        (GPT_OSS, IN_FEED_FORWARD + "gate_up_proj", (4, 160, 320), {}),
        (GPT_OSS, "model.layers.0.mlp.more_experts.gate_up_proj", (4, 160, 320), {}),
        ({"model_type": "gpt_oss"}, IN_MLP + "gate_up_proj", (4, 160, 320), {}),
        ({**GPT_OSS, "model_type": "qwen3_5_moe"}, IN_MLP + "gate_up_proj", (4, 160, 320), {}),
        ({}, IN_MLP + "gate_up_proj", (4, 160, 320), {}),
    ],
)
def test_others_are_left_as_they_are(config, name, shape, about):
    assert not found(config, name, shape, **about)
