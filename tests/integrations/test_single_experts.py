"""Experts that are stored each for itself: whatever is asked for one, the layer loads."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support.integrations.packed_models import (
    assert_same_logits,
    changed,
    load,
    make_case,
)
from support.models.tiny_models import BY_NAME
from support.models.tq3_folder import read_tensors

import tq3
from tq3.errors import BadInput

MOE = BY_NAME["qwen3_moe"]
EXPERT = "model.layers.0.mlp.experts.1."
ASKED: dict[str, dict[str, Any]] = {
    "a matrix": {"keep": EXPERT + "up_proj.weight"},
    "an expert": {"keep": "*experts.3.*"},
    "up": {"keep": "*up_proj*"},
    "down": {"keep": "*experts*down_proj*"},
    "only some": {"only": ("*gate_proj*", "*self_attn*")},
    "a wider expert": {"sensitive_bits": 4, "sensitive_patterns": "experts.0."},
    "wider up": {"sensitive_bits": 4, "sensitive_patterns": "up_proj"},
}


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return make_case(MOE, tmp_path_factory.mktemp("moe"))


@pytest.mark.parametrize("options", ASKED.values(), ids=ASKED)
def test_what_is_asked_for_one_expert_is_served(moe, tmp_path, options):
    tq3.compress(moe.source, tmp_path / "tq3", **options)
    tq3.restore(tmp_path / "tq3", tmp_path / "back", dtype="float32")
    packed, dense = load(MOE, tmp_path / "tq3"), load(MOE, tmp_path / "back")
    assert_same_logits(MOE, packed, dense)


def test_a_layer_of_which_one_expert_is_not_finite_is_served(moe, tmp_path):
    def spoil(tensors):
        tensors[EXPERT + "down_proj.weight"][3, 7] = float("nan")

    spoiled = changed(moe.source, tmp_path / "spoiled", spoil)
    tq3.compress(spoiled, tmp_path / "tq3", nonfinite="keep")
    model = load(MOE, tmp_path / "tq3")
    found = model.model.layers[0].mlp.experts.down_proj
    assert found.isnan().sum() == 1
    stored = read_tensors(tmp_path / "tq3")[EXPERT.replace(".1.", ".2.") + "down_proj.weight"]
    assert torch.equal(found[2], stored.float())


@pytest.mark.parametrize(("expert", "other"), [("0", "1"), ("3", "0")])
def test_a_folder_with_a_kept_expert_is_refused_by_the_names_of_both(moe, tmp_path, expert, other):
    """As writers make it that know nothing of it, such as an older tq3."""
    name = f"model.layers.1.mlp.experts.{expert}.down_proj.weight"

    def keep(tensors):
        del tensors[name + ".tq_norms"]
        tensors[name] = tensors.pop(name + ".tq_packed").new_zeros(160, 128).to(torch.float16)

    folder = changed(moe.compressed, tmp_path / "mixed", keep)
    with pytest.raises(BadInput, match="experts of one layer must be packed alike") as caught:
        load(MOE, folder)
    assert caught.value.tensor == f"model.layers.1.mlp.experts.{other}.down_proj.weight"
    assert caught.value.found == f"3 bits, and {name!r} not packed"
    assert "tq3 restore" in str(caught.value.fix)
    assert "fetch" not in str(caught.value)


def test_a_folder_with_a_wider_expert_is_refused_by_the_names_of_both(moe, tmp_path):
    tq3.compress(moe.source, tmp_path / "wide", bits=4)
    wide = read_tensors(tmp_path / "wide")
    name = EXPERT + "up_proj.weight"

    def widen(tensors):
        for part in (".tq_packed", ".tq_norms"):
            tensors[name + part] = wide[name + part]

    folder = changed(moe.compressed, tmp_path / "mixed", widen)
    with pytest.raises(BadInput, match="experts of one layer must be packed alike") as caught:
        load(MOE, folder)
    assert name in str(caught.value)
    assert {"3", "4"} <= set(str(caught.value.found).split())
    assert "fetch" not in str(caught.value)


def test_the_recorded_widths_are_those_of_the_bytes(moe, tmp_path):
    options = ASKED["a wider expert"]
    tq3.compress(moe.source, tmp_path / "tq3", **options)
    config = json.loads((tmp_path / "tq3" / "tq_config.json").read_text())
    assert config["tq3"]["recipe"]["sensitive_patterns"] == ["experts.0."]
    assert not tq3.verify(tmp_path / "tq3").faults
