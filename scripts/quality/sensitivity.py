"""How much quality an error costs in each role: alpha, and whether costs add up.

HIGGS' linearity: KL = sum over roles of alpha * t^2, with t^2 the relative squared error of the
role's matrices. Each role is written alone, all else exact. alpha is the slope through the origin
over 3 and 4 bits, sum of KL t^2 / sum of t^4; what 2 bits cost is reported beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from quality.allocation import PARTS, layer_of, parts
from quality.bench import Bench, Figure
from quality.models import TWINS
from quality.ours import Coded, Format, Way, by_role
from quality.texts import NO_TEXT, TUNING
from tq3.plan.roles import role_of

ROLES = ("q", "k", "v", "o", "gate_up", "down")
PARTED = ("v", "o", "gate_up", "down")
MIXED = {
    "v down 4, rest 3": {"v": 4, "down": 4},
    "gate_up 4, rest 3": {"gate_up": 4},
    "q k 3, rest 4": {"q": 3, "k": 3, "v": 4, "o": 4, "gate_up": 4, "down": 4},
}


def measure(bench: Bench) -> dict[str, Any]:
    """By model: alpha of each role and of the models' ends, predictions beside measurements."""
    models = {model: {role: _role(bench, model, role) for role in ROLES} for model in TWINS}
    depth = {model: {role: _depth(bench, model, role) for role in PARTED} for model in TWINS}
    return {
        "models": models,
        "combined": combined(models),
        "depth": depth,
        "combined_depth": combined_depth(depth),
        "additivity": [row for model in TWINS for row in _additivity(bench, model, models[model])],
    }


def combined(models: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """alpha of each role as a share of all roles' sum, mean of the models."""
    sums = {model: sum(each["alpha"] for each in roles.values()) for model, roles in models.items()}
    return {
        role: sum(roles[role]["alpha"] / sums[model] for model, roles in models.items()) / len(sums)
        for role in ROLES
    }


def combined_depth(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Geometric mean of the models' factors, by role and part."""
    return {
        role: {
            part: prod(roles[role][part] for roles in models.values()) ** (1 / len(models))
            for part in PARTS
        }
        for role in PARTED
    }


def _role(bench: Bench, model: str, role: str) -> dict[str, Any]:
    points = {bits: _alone(bench, model, role, bits, TUNING) for bits in (2, 3, 4)}
    random = slope([_alone(bench, model, role, 3, NO_TEXT)])
    return slope([points[3], points[4]]) | {
        "alpha_on_random_tokens": random["alpha"],
        "se_on_random_tokens": random["se"],
        "kl_by_bits": {bits: point.kl for bits, point in points.items()},
        "share_of_weights": points[3].n_weights / bench.n_weights(model),
    }


def _alone(bench: Bench, model: str, role: str, bits: int, text: str) -> Figure:
    way = by_role({role: Format(bits)})
    return bench.figures(model, f"only {role} {bits}", way, (text,))[text]


def slope(points: list[Figure]) -> dict[str, float]:
    """alpha = sum of KL t^2 / sum of t^4, and its standard error from those of the KLs."""
    whole = sum(point.error**2 for point in points)
    alpha = sum(point.kl * point.error for point in points) / whole
    variance = sum((point.kl_error * point.error) ** 2 for point in points)
    return {"alpha": alpha, "se": variance**0.5 / whole}


def _depth(bench: Bench, model: str, role: str) -> dict[str, float]:
    """alpha of one layer in each part of the model, at 3 bits, over that of one in its middle."""
    alphas = {}
    for part, layers in parts(bench.n_layers(model)).items():
        way = _in_layers(role, layers)
        figure = bench.figures(model, f"only {role} 3, {part}", way, (TUNING,))[TUNING]
        alphas[part] = figure.kl / figure.error / len(layers)
    return {part: alphas[part] / alphas["middle"] for part in PARTS}


def _in_layers(role: str, layers: range) -> Way:
    def code(name: str, weight: Tensor) -> Coded | None:
        here = role_of(name) == role and layer_of(name) in layers
        return Format(3).code(weight) if here else None

    return code


def _additivity(bench: Bench, model: str, roles: dict[str, Any]) -> list[dict[str, Any]]:
    """KL that the slopes predict, and KL measured, of mixed widths."""
    rows = []
    for label, widths in MIXED.items():
        formats = {role: Format(widths.get(role, 3)) for role in ROLES}
        figure = bench.figures(model, label, by_role(formats), (TUNING,))[TUNING]
        errors = {
            role: _alone(bench, model, role, each.bits, TUNING).error
            for role, each in formats.items()
        }
        predicted = sum(roles[role]["alpha"] * error for role, error in errors.items())
        rows.append({"model": model, "widths": label, "predicted": predicted, "kl": figure.kl})
    return rows
