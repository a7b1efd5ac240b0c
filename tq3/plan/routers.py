"""Routers of a quantised source stay exact, also in the recipe that packs those of others."""

from __future__ import annotations

from collections.abc import Mapping

from tq3.format.recipe import Recipe
from tq3.plan.policy import Decision
from tq3.plan.roles import part_role_of

_LEFT_EXACT = "router of a quantised source: it decides which experts run"


def why_router_stays(name: str, recipe: Recipe, *, is_quantised: bool) -> str | None:
    """Why this tensor stays where it is a router, and the recipe says nothing of routers.

    Of other sources the published recipe packs them, as other writers do.
    is_quantised: whether some weights of the source are
    """
    is_published = recipe.widths is None and not recipe.only
    stays = is_published and is_quantised and part_role_of(name) == "router"
    return _LEFT_EXACT if stays else None


def keep_routers(
    decisions: Mapping[str, Decision], recipe: Recipe, *, is_quantised: bool
) -> dict[str, Decision]:
    """The decisions by name, of which those on routers change where the source is quantised."""
    found = dict(decisions)
    for name, decision in decisions.items():
        why = why_router_stays(name, recipe, is_quantised=is_quantised)
        if why and decision.compress:
            found[name] = Decision(False, why)
    return found
