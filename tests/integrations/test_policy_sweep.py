"""scripts/sweep_policy.py on the installed Transformers: some models of each kind."""

from __future__ import annotations

import pytest
import sweep_policy
from sweep_policy import HEAD, STACK, TABLE, Found

MODELS = [
    *("bert", "ctrl", "gpt2", "led", "llama", "modernbert", "musicgen", "t5", "tapas", "whisper"),
    *("dbrx", "gemma4", "gpt_oss", "granitemoehybrid", "jetmoe", "qwen3_vl_moe", "step3p7"),
]


@pytest.mark.parametrize("model", MODELS)
def test_the_policy_judges_every_tensor_of_a_model_by_what_its_module_is(model):
    classes = list(sweep_policy.model_classes([model]))
    built = {}
    for kind in classes:
        try:
            built[kind.__name__] = sweep_policy.tensors_of(kind)
        except (TypeError, ValueError, AttributeError, KeyError, ImportError):
            continue  # needs settings that its default configuration lacks
    assert len(built) >= len(classes) / 2
    tensors = [tensor for found in built.values() for tensor in found]
    assert [tensor for tensor in tensors if tensor.misjudged] == []
    assert any(tensor.kind == TABLE for tensor in tensors)


def test_a_sweep_sees_what_the_policy_would_do_wrong():
    def wrong(name: str, kind: str, *shape: int) -> str | None:
        return Found(name, "BF16", shape, kind, "").misjudged

    assert wrong("odd.weight", TABLE, 256, 256) == "a table compressed unasked"
    assert wrong("odd.weight", HEAD, 256, 256) == "a head compressed unasked"
    assert wrong("odd.weight", STACK, 4, 256, 256) == "experts kept"
    assert wrong("experts.weight", "other", 4, 256, 64) == "3-D and no experts, but compressed"
    assert wrong("wte.weight", "matrix", 256, 256) == "a matrix taken for a table"
    assert wrong("odd.weight", "matrix", 256, 256) is None
    assert wrong("odd.weight", TABLE, 16, 16) is None
