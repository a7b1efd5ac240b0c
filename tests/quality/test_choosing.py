"""scripts/quality: widths are the best ones, slopes and depths what they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quality.allocation import PARTS, Costs, Sensitivity, layer_of, parts
from quality.llama import type_in_mix
from quality.ours import Format
from quality.sensitivity import combined, slope

SHAPES = {
    "self_attn.q_proj": (256, 128),
    "self_attn.k_proj": (128, 128),
    "self_attn.v_proj": (128, 128),
    "self_attn.o_proj": (128, 256),
    "mlp.gate_proj": (192, 128),
    "mlp.up_proj": (192, 128),
    "mlp.down_proj": (128, 192),
}
ALPHAS = {"q": 1.0, "k": 1.0, "v": 9.0, "o": 2.0, "gate_up": 8.0, "down": 9.0}


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        f"model.layers.{layer}.{part}.weight": torch.randn(shape, generator=generator)
        for layer in range(3)
        for part, shape in SHAPES.items()
    }


def test_the_ends_of_a_model_are_an_eighth_of_its_layers_and_at_least_one():
    assert [list(layers) for layers in parts(3).values()] == [[0], [1], [2]]
    assert [len(layers) for layers in parts(32).values()] == [4, 24, 4]


def test_a_roles_layers_share_its_alpha():
    depth = {"down": {"first eighth": 1.0, "middle": 1.0, "last eighth": 3.0}}
    shares = Sensitivity({"down": 10.0, "q": 1.0}, depth).of_layers("down", 32)
    assert shares["last eighth"] == pytest.approx(3 * shares["middle"])
    total = sum(shares[part] * len(layers) for part, layers in parts(32).items())
    assert total == pytest.approx(10.0)


def test_the_widths_fit_and_no_swap_is_better(weights):
    base = Format(3)
    costs, sensitivity = Costs(weights, base), Sensitivity(ALPHAS, {})
    plan = costs.best(sensitivity, 3.5)
    assert plan is not None
    way = plan.way(base)
    coded = {name: way(name, weight) for name, weight in weights.items()}
    n_weights = sum(weight.numel() for weight in weights.values())
    bits = [each.bits for each in coded.values() if each]
    assert len(bits) == len(weights)
    assert 3.3 < sum(bits) / n_weights <= 3.5
    # v: the most sensitivity in the fewest weights
    assert all(plan.widths[layer, "v"] == 4 for layer in range(3))
    tighter = costs.best(sensitivity, 3.4)
    assert tighter is not None
    assert plan.loss < tighter.loss
    assert costs.best(sensitivity, 2.0) is None


def test_bits_of_uniform_widths_are_the_formats(weights):
    square = {name: weight for name, weight in weights.items() if "down" not in name}
    assert Costs(square, Format(3)).uniform(4) == pytest.approx(4.25)


def test_the_last_layers_get_the_bits_that_they_are_worth(weights):
    depth = {"down": dict(zip(PARTS, (1.0, 1.0, 50.0), strict=True))}
    plan = Costs(weights, Format(3)).best(Sensitivity(ALPHAS | {"down": 1.0}, depth), 3.4)
    assert plan is not None
    widths = [plan.widths[layer, "down"] for layer in range(3)]
    assert widths[2] > widths[0]


def test_the_slope_goes_through_the_origin():
    class Point:
        def __init__(self, error, kl):
            self.error, self.kl, self.kl_error = error, kl, 0.1

    points: list[Any] = [Point(0.01, 0.05), Point(0.03, 0.15)]
    found = slope(points)
    assert found["alpha"] == pytest.approx(5)
    assert found["se"] == pytest.approx(0.1 / 0.001**0.5)


def test_models_count_alike_however_sensitive_they_are():
    one = {role: {"alpha": alpha} for role, alpha in ALPHAS.items()}
    ten = {role: {"alpha": alpha * 10} for role, alpha in ALPHAS.items()}
    found = combined({"one": one, "ten": ten})
    assert sum(found.values()) == pytest.approx(1)
    assert found["v"] == pytest.approx(9 / 30)


@pytest.mark.parametrize(
    ("mix", "role", "layer", "kind"),
    [
        ("Q3_K_M", "v", 1, "Q5_K"),
        ("Q3_K_M", "v", 2, "Q4_K"),
        ("Q3_K_M", "down", 0, "Q5_K"),
        ("Q3_K_M", "down", 2, "Q4_K"),
        ("Q3_K_M", "o", 9, "Q4_K"),
        ("Q3_K_M", "q", 9, "Q3_K"),
        ("IQ4_XS", "v", 9, "Q5_K"),
        ("IQ4_XS", "down", 3, "Q5_K"),
        ("IQ4_XS", "down", 4, "IQ4_XS"),
    ],
)
def test_a_mix_has_the_types_that_llama_quantize_chooses(mix, role, layer, kind):
    assert type_in_mix(mix, role, layer, 32) == kind


def test_layers_are_read_from_names(weights):
    assert {layer_of(name) for name in weights} == {0, 1, 2}
