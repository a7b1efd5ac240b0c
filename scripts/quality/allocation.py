"""Which width for which layer's role: the least predicted loss at a number of bits, exactly.

One layer's matrices of one role have one width. The n layers of a model share alpha of a role, the
ends of the model (an eighth of the layers each) by their own factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from quality.ours import Coded, Format, Way
from tq3.plan.knapsack import Item, WidthOption, solve
from tq3.plan.roles import role_of

WIDTHS = (2, 3, 4)
JOINT = "qkv"
PARTS = ("first eighth", "middle", "last eighth")
_LOSS_UNIT = 1e-9  # the solver counts in whole numbers


@dataclass(frozen=True)
class Sensitivity:
    """alphas: of each role; depth: by role and part, one layer's over a middle one's, else 1"""

    alphas: Mapping[str, float]
    depth: Mapping[str, Mapping[str, float]]

    def joint(self) -> Sensitivity:
        """With q, k and v as one: their alphas add up, the depth is that of v, which has most."""
        alphas = dict(self.alphas) | {JOINT: sum(self.alphas[role] for role in JOINT)}
        return Sensitivity(alphas, dict(self.depth) | {JOINT: self.depth.get("v", {})})

    def of_layers(self, role: str, n_layers: int) -> dict[str, float]:
        """alpha of one layer in each part; those of all layers add up to the role's."""
        factors = {part: self.depth.get(role, {}).get(part, 1.0) for part in PARTS}
        total = sum(factors[part] * len(layers) for part, layers in parts(n_layers).items())
        return {part: self.alphas[role] * factor / total for part, factor in factors.items()}


@dataclass(frozen=True)
class Plan:
    """A width for each layer's role, and the loss that is expected of it."""

    widths: Mapping[tuple[int, str], int]
    loss: float

    def way(self, base: Format) -> Way:
        """Writes every matrix as `base`, at the width of its place."""

        def code(name: str, weight: Tensor) -> Coded:
            layer, role = layer_of(name), role_of(name)
            width = self.widths.get((layer, role)) or self.widths[layer, JOINT]
            return replace(base, bits=width).code(weight)

        return code


class Costs:
    """What the roles of one model cost at each width, measured on its weights."""

    def __init__(self, weights: Mapping[str, Tensor], base: Format, *, split: bool = True) -> None:
        """weights: by name, each (rows, cols) float32; base: all but the width

        split: whether q, k and v of a layer may have different widths; else they are one, JOINT
        """
        self._n_weights = sum(weight.numel() for weight in weights.values())
        self._n_layers = 1 + max(layer_of(name) for name in weights)
        matrices: dict[str, list[Tensor]] = {}
        for name, weight in weights.items():
            role = role_of(name)
            matrices.setdefault(role if split or role not in "qkv" else JOINT, []).append(weight)
        self._costs = {
            (role, bits): _cost(each, replace(base, bits=bits))
            for role, each in matrices.items()
            for bits in WIDTHS
        }
        self._places = [
            (role, part, layers)
            for role in matrices
            for part, layers in parts(self._n_layers).items()
        ]

    def uniform(self, width: int) -> float:
        """Bits a weight with one width everywhere."""
        return (
            sum(bits for (_, each), (bits, _) in self._costs.items() if each == width)
            / self._n_weights
        )

    def best(self, sensitivity: Sensitivity, budget: float) -> Plan | None:
        """The least sum of alpha * error within `budget` bits a weight; None where none fits.

        Where only some layers of a part get the larger width, the later ones do.
        """
        items = [
            Item(tuple(self._options(sensitivity, role, part)), len(layers))
            for role, part, layers in self._places
        ]
        choice = solve(items, int(budget * self._n_weights))
        if choice is None:
            return None
        widths, loss = {}, 0
        for (role, _, layers), item, picked in zip(self._places, items, choice, strict=True):
            for layer, option in zip(reversed(layers), picked, strict=True):
                widths[layer, role] = WIDTHS[option]
                loss += item.options[option].loss
        return Plan(widths, loss * _LOSS_UNIT)

    def _options(self, sensitivity: Sensitivity, role: str, part: str) -> Iterator[WidthOption]:
        alpha = sensitivity.of_layers(role, self._n_layers)[part]
        for width in WIDTHS:
            bits, error = self._costs[role, width]
            yield WidthOption(bits // self._n_layers, round(alpha * error / _LOSS_UNIT))


def parts(n_layers: int) -> dict[str, range]:
    """An eighth of the layers at each end, at least one, and those between."""
    end = max(1, round(n_layers / 8))
    ends = range(end), range(end, n_layers - end), range(n_layers - end, n_layers)
    return dict(zip(PARTS, ends, strict=True))


def layer_of(name: str) -> int:
    """7 of `model.layers.7.mlp.up_proj.weight`"""
    return int(name.split(".layers.")[1].partition(".")[0])


def _cost(matrices: list[Tensor], written: Format) -> tuple[int, float]:
    """Bits, and mean relative squared error, each matrix counted by its weights."""
    bits, error = 0, 0.0
    for weight in matrices:
        coded = written.code(weight)
        bits += coded.bits
        error += float(((coded.weight - weight).norm() / weight.norm()) ** 2) * weight.numel()
    return bits, error / sum(weight.numel() for weight in matrices)
