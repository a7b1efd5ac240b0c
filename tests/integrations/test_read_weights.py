"""Models whose code reads the weights of its layers by itself: served, and said."""

from __future__ import annotations

import re

import pytest
import transformers
from packed_models import GPT2, assert_close, load, logits, make_case
from tiny_models import Architecture
from torch import nn

from tq3.integrations.transformers.reading import is_only_read
from tq3.runtime.modules import PackedLinear

SIZES = {"hidden_size": 256, "num_hidden_layers": 1, "vocab_size": 512}
MAMBA = Architecture(
    "mamba",
    transformers.MambaForCausalLM,
    transformers.MambaConfig(**SIZES, time_step_rank=160),
    frozenset(),
)
FALCON = Architecture(
    "falcon",
    transformers.FalconForCausalLM,
    transformers.FalconConfig(**SIZES, num_attention_heads=4),
    frozenset(),
)
WARNINGS = {
    "mamba": (MAMBA, 3, "1 of 4 packed weights .* code of MambaMixer reads them"),
    "falcon": (FALCON, 0, "4 of 4 packed weights .* code of FalconLinear reads them"),
    "gpt2": (GPT2, 0, "8 of 8 packed weights .* code of Conv1D reads them"),
}


@pytest.mark.parametrize("architecture, n_packed, text", WARNINGS.values(), ids=WARNINGS)
def test_a_model_that_reads_weights_is_served_and_its_memory_said(
    architecture, n_packed, text, tmp_path, caplog
):
    case = make_case(architecture, tmp_path)
    model = load(architecture, case.compressed)
    assert sum(isinstance(part, PackedLinear) for part in model.modules()) == n_packed
    (said,) = (line for line in caplog.messages if "held decoded" in line)
    assert re.search(text, said)
    assert_close(logits(model), logits(load(architecture, case.restored)))


class Reading(nn.Module):
    """Uses each of its layers in another way."""

    def __init__(self):
        super().__init__()
        self.called, self.read, self.both, self.asked = (nn.Linear(2, 2) for _ in range(4))

    def forward(self, x):
        x = self.called(x).to(self.asked.weight.dtype) @ self.read.weight
        return self.both(x) if self.asked.weight.shape[0] else x @ self.both.weight


class Derived(Reading):
    """Calls what its base only reads."""

    def forward(self, x):
        return self.read(super().forward(x))


def test_a_layer_is_only_read_if_no_method_of_its_owner_calls_it():
    found = {name for name, _ in Reading().named_children() if is_only_read(Reading(), name)}
    assert found == {"read"}
    assert not is_only_read(Derived(), "read")
    assert not is_only_read(type("Sourceless", (nn.Module,), {})(), "read")
