"""What is said of a name is said of all that differ in numbers only, and is right of each."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.plan.listings import NAMES

from tq3.plan.classes import class_of
from tq3.plan.names import whatever_its_numbers, without_expert
from tq3.plan.policy import why_kept
from tq3.plan.roles import expert_set_of, role_of

QUESTIONS = (class_of, role_of, why_kept)
REAL = [name for names in NAMES.values() if isinstance(names, list) for name in names]
NUMBERS = ["0", "7", "12", "345", "12345", "0٣", "0_1"]
WORDS = ["experts", "to_out", "mlp", "self_attn", "w1", "embed_tokens", "norm", "norm_2"]
PARTS = [*NUMBERS, *WORDS, "down_proj", "weight", "lm_head", "heads", "conv1d"]


def plain(question):
    """The question without the answers that are remembered."""
    return question.__wrapped__


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_are_those_without_a_memory_for_every_name_of_transformers(question):
    some = random.Random(3)
    for template in REAL:
        name = re.sub(r"\{\}", lambda _: str(some.choice((0, 1, 7, 23, 4711))), template)
        assert question(name) == plain(question)(name), name


@pytest.mark.parametrize("question", QUESTIONS)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=7))
def test_answers_are_those_without_a_memory_for_names_that_no_model_has(question, parts):
    name = ".".join(parts)
    assert question(name) == plain(question)(name)


def test_a_name_is_asked_about_once_for_all_its_numbers_but_a_long_one_is_not_remembered():
    asked: list[str] = []

    @whatever_its_numbers
    def length(name: str) -> int:
        asked.append(name)
        return len(name)

    assert [length(f"layers.{i}.experts.{i}.w{j}") for i in range(10) for j in (1, 2)] == [21] * 20
    assert asked == ["layers.0.experts.0.w1", "layers.0.experts.0.w2"]
    assert length("layers.10.w1") == 12
    long = "layers.1." + "a" * 1000
    assert length(long) == length(long)
    assert asked.count(long) == 2


def test_layers_and_experts_are_told_apart_all_the_same():
    sets = {
        expert_set_of(f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight")
        for layer in (3, 4, 17)
        for expert in (0, 5, 128)
    }
    assert sets == {f"model.layers.{layer}.mlp.experts:expert_gate_up" for layer in (3, 4, 17)}


def test_the_number_of_an_expert_is_left_out_or_replaced():
    name = "model.layers.3.mlp.experts.12.up_proj.weight"
    assert without_expert(name) == "model.layers.3.mlp.experts.up_proj.weight"
    assert without_expert(name, "0") == "model.layers.3.mlp.experts.0.up_proj.weight"
    assert without_expert("my_experts.12.up_proj") == "my_experts.12.up_proj"


@given(
    parts=st.lists(st.sampled_from([*PARTS, "my_experts", "experts.3", "", "1"]), max_size=6),
    instead=st.sampled_from(["", "0"]),
)
def test_an_expert_s_number_is_left_out_as_the_pattern_says(parts, instead):
    name = ".".join(parts)
    pattern = r"((?:^|\.)experts)\.\d+\."
    expected = re.sub(pattern, rf"\1.{instead}." if instead else r"\1.", name)
    assert without_expert(name, instead) == expected
