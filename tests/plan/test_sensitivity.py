"""How the sensitivity of a role is shared out among its tensors."""

from __future__ import annotations

import pytest

from tq3.format.widths import ROLES, SENSITIVITIES, own_toml
from tq3.plan.sensitivity import alphas

TABLES = own_toml(SENSITIVITIES)


def down(i: int) -> str:
    """The name of a layer's down projection."""
    return f"model.layers.{i}.mlp.down_proj.weight"


def test_every_role_has_a_sensitivity_and_nothing_else_has():
    assert set(TABLES["alpha"]) == set(ROLES)
    assert set(TABLES["first"]) | set(TABLES["last"]) <= set(ROLES)


def test_the_layers_of_a_role_have_its_sensitivity_together_whatever_their_size():
    found = alphas({down(i): 1000 + i for i in range(16)})
    assert sum(found.values()) == pytest.approx(TABLES["alpha"]["down"])


def test_the_ends_have_factors_of_their_own():
    found = alphas({down(i): 1000 for i in range(16)})
    assert found[down(0)] == pytest.approx(found[down(1)])
    assert found[down(0)] / found[down(2)] == pytest.approx(TABLES["first"]["down"])
    assert found[down(15)] / found[down(13)] == pytest.approx(TABLES["last"]["down"])


def test_a_role_that_some_layers_lack_has_less_together():
    norms = {f"model.layers.{i}.input_layernorm.weight": 8 for i in range(4)}
    found = alphas({**norms, down(0): 1000, down(3): 10})
    assert found[down(0)] == found[down(3)] == pytest.approx(TABLES["alpha"]["down"] / 4)


def test_tensors_of_one_role_in_a_layer_share_by_their_weights():
    stem = "model.layers.0.mlp."
    found = alphas({stem + "gate_proj.weight": 300, stem + "up_proj.weight": 100})
    assert found[stem + "gate_proj.weight"] == pytest.approx(0.75 * TABLES["alpha"]["gate_up"])


def test_embeddings_that_are_the_head_have_both_sensitivities():
    name, alpha = "model.embed_tokens.weight", TABLES["alpha"]
    assert alphas({name: 5})[name] == pytest.approx(alpha["embeddings"] + alpha["lm_head"])
    assert alphas({name: 5, "lm_head.weight": 5})[name] == pytest.approx(alpha["embeddings"])


def test_what_lies_in_no_layer_has_its_role_alone():
    assert alphas({"lm_head.weight": 5}) == pytest.approx(
        {"lm_head.weight": TABLES["alpha"]["lm_head"]}
    )
    tower = alphas({f"visual.blocks.{i}.attn.proj.weight": 5 for i in range(4)})
    assert sum(tower.values()) == pytest.approx(TABLES["alpha"]["vision"])
