"""How much worse a model is expected to become: the error of each tensor times its sensitivity.

By the linearity theorem of HIGGS (arXiv 2411.17525, equation 4) the loss grows by the sum over
all tensors of alpha * t^2, where t^2 is the relative squared error of the tensor, which width and
group alone decide, and alpha is the tensor's own, whatever its width. It holds for small errors:
at 2 bits it promises too much.

`recipes/sensitivities.toml` has alpha by role, for all tensors of the role together. Each layer has
its part of it, where the first and the last eighth of layers have factors of their own, and each of
several tensors of one role in a layer the part of its weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

from tq3.codec.expected import expected_error
from tq3.format.recipe import Recipe
from tq3.format.widths import SENSITIVITIES, Width, own_toml
from tq3.plan.roles import layer_of, role_of

_TOWERS = ("vision", "mtp")


def relative_error(bits: Width, recipe: Recipe) -> float:
    """t^2 of Gaussian weights that are stored in `bits`; 0 of those that are not compressed."""
    if bits is None:
        return 0.0
    return expected_error(recipe.scale, bits, recipe.group_size, recipe.code_for(bits))


def alphas(sizes: Mapping[str, int]) -> dict[str, float]:
    """The sensitivity of each tensor of a model, from names and numbers of weights.

    Where there is no head, the embeddings are it, too, and have both sensitivities.
    """
    by_role = dict(_table("alpha"))
    places = {name: _place(name) for name in sizes}
    if all(role != "lm_head" for role, _ in places.values()):
        by_role["embeddings"] += by_role["lm_head"]
    layers = sorted({layer for _, layer in places.values() if layer is not None})
    part_of = {role: _parts(role, layers) for role in by_role}
    together: Counter[tuple[str, int | None]] = Counter()
    for name, n_weights in sizes.items():
        together[places[name]] += n_weights
    found = {}
    for name, n_weights in sizes.items():
        role, layer = places[name]
        of_place = by_role[role] * part_of[role].get(layer, 1.0)
        found[name] = of_place * n_weights / max(together[role, layer], 1)
    return found


def _place(name: str) -> tuple[str, int | None]:
    """Role and layer; the layers of towers are not those of the model."""
    role = role_of(name)
    return role, None if role in _TOWERS else layer_of(name)


def _parts(role: str, layers: list[int]) -> dict[int | None, float]:
    """The part of a role's alpha that each layer would have, if all had the role."""
    end = len(layers) // 8
    factors = dict.fromkeys(layers, 1.0)
    factors |= dict.fromkeys(layers[:end], _table("first").get(role, 1.0))
    factors |= dict.fromkeys(layers[len(layers) - end :], _table("last").get(role, 1.0))
    total = sum(factors.values())
    return {layer: factor / total for layer, factor in factors.items()}


@cache
def _table(name: str) -> dict[str, float]:
    return {role: float(value) for role, value in own_toml(SENSITIVITIES)[name].items()}
