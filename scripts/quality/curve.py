"""KL over bits a weight: ours, llama.cpp's quantisers and HIGGS, the same tokens for all.

Widths are chosen as a recipe chooses them, with what both models' sensitivities on the handbook
have in common; the history is aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from quality import higgs, llama
from quality.allocation import Costs, Sensitivity, layer_of
from quality.bench import Bench
from quality.equalize import Factors
from quality.models import TWINS
from quality.ours import Coded, Format, Way, by_role, everywhere
from quality.sensitivity import ROLES
from quality.texts import ASIDE, TUNING
from tq3.plan.roles import role_of

TEXTS = (TUNING, ASIDE)
JOINT_BUDGETS = (3.44, 3.85)
BUDGETS = (3.2, 3.3, 3.44, 3.6, 3.85, 4.06)
# What all readers know, half-size norms, and the bits that those save spent on smaller groups.
KNOWN = "F32 norms of 128"
SMALL = "F16 norms of 64"
BASES = {
    KNOWN: Format(3),
    "F16 norms of 128": Format(3, norms="float16"),
    SMALL: Format(3, 64, norms="float16"),
}
EQUALIZED = ("F16 norms of 128", SMALL)
CHECKED = {"gemma": "F16 norms of 128", "smollm2": SMALL, "smollm2-twin30": SMALL}
CHECKED_PEERS = ("Q3_K", "mix Q3_K_M", "IQ4_XS")
EQUALIZED_PEERS = ("Q3_K", "IQ4_XS", "HIGGS 4 bits")
# The widths that the first experiments tried by hand; all other roles have 3 bits.
BY_HAND = {"v4": ("v",), "v4 down4": ("v", "down")}


@dataclass(frozen=True)
class Point:
    """One way to write all linear layers, and to which line of the picture it belongs."""

    family: str
    label: str
    way: Way


def measure(bench: Bench, sensitivity: Sensitivity) -> list[dict[str, Any]]:
    """A row for each model, point and text."""
    return [
        {"model": model, "text": text, "family": point.family, "label": point.label}
        | {"bits": figure.bits, "error": figure.error, "kl": figure.kl}
        | {"kl_error": figure.kl_error, "agreement": float(figure.reading.same.mean())}
        for model in TWINS
        for point in points(bench, model, sensitivity)
        for text, figure in bench.figures(model, point.label, point.way, TEXTS).items()
    ]


def check(bench: Bench, sensitivity: Sensitivity) -> list[dict[str, Any]]:
    """What twins change: models as they came, and SmolLM2 off its grid by more; the handbook."""
    rows = []
    for model, family in CHECKED.items():
        chosen = [
            point
            for point in (
                *_chosen(bench, model, sensitivity, family),
                *_equalized(bench, model, sensitivity),
            )
            if point.label.endswith((f"{family}, 3.44 bits", f"{family}, 3.85 bits"))
            or point.label == f"equalized, {SMALL}, 4 bits"
        ]
        small = replace(BASES[SMALL], bits=4)
        uniform = Point(f"tq3, {SMALL}", f"uniform {small}", everywhere(small))
        peers = [each for each in _peers(bench.n_layers(model)) if each.label in CHECKED_PEERS]
        for point in (*chosen, uniform, *peers):
            figure = bench.figures(model, point.label, point.way, (TUNING,))[TUNING]
            row = {"model": model, "family": point.family, "label": point.label}
            rows.append(row | {"bits": figure.bits, "kl": figure.kl, "kl_error": figure.kl_error})
    return rows


def points(bench: Bench, model: str, sensitivity: Sensitivity) -> Iterator[Point]:
    """Everything on the picture of one model."""
    for bits in (3, 4):
        written = Format(bits, scale="norm")
        yield Point("published encoder", f"uniform {written}", everywhere(written))
    for family, base in BASES.items():
        for bits in (3, 4):
            written = replace(base, bits=bits)
            yield Point(f"tq3, {family}", f"uniform {written}", everywhere(written))
    for family in BASES:
        if family != KNOWN:
            yield from _chosen(bench, model, sensitivity, family)
    yield from _joint(bench, model, sensitivity)
    yield from _by_hand()
    yield from _equalized(bench, model, sensitivity)
    yield from _by_default(bench, model, sensitivity)
    yield from _peers(bench.n_layers(model))
    yield from _equalized_peers(bench, model)


def _chosen(bench: Bench, model: str, sensitivity: Sensitivity, family: str) -> Iterator[Point]:
    """The best widths for each budget between those of 3 and of 4 bits everywhere."""
    base = BASES[family]
    costs = Costs(bench.subject(model, TUNING).weights, base)
    for budget in BUDGETS:
        if costs.uniform(3) < budget < costs.uniform(4):
            plan = costs.best(sensitivity, budget)
            if plan is not None:
                yield Point(f"tq3, {family}", f"{family}, {budget} bits", plan.way(base))


def _equalized(bench: Bench, model: str, sensitivity: Sensitivity) -> Iterator[Point]:
    """Half-size norms again, with equalized columns: chosen widths, and 4 bits everywhere."""
    factors = Factors(bench.folder(model))
    for family in EQUALIZED:
        uniform = Point("", f"{family}, 4 bits", everywhere(replace(BASES[family], bits=4)))
        for point in (*_chosen(bench, model, sensitivity, family), uniform):
            name = f"equalized, {point.label}"
            yield Point(f"tq3 --equalize, {family}", name, factors.way(point.way))


def _by_default(bench: Bench, model: str, sensitivity: Sensitivity) -> Iterator[Point]:
    """What the first command writes, 4 bits of the same kind, and the best of the first's size."""
    factors = Factors(bench.folder(model))
    for bits in (3, 4):
        way = everywhere(replace(BASES[KNOWN], bits=bits))
        label = f"equalized, {KNOWN}, {bits} bits"
        yield Point(f"tq3 --equalize, {KNOWN}", label, factors.way(way))
    weights = bench.subject(model, TUNING).weights
    family = CHECKED[model.removesuffix("-twin")]
    budget = round(Costs(weights, BASES[KNOWN]).uniform(3), 2)
    plan = Costs(weights, BASES[family]).best(sensitivity, budget)
    if plan is not None:
        label = f"equalized, {family}, {budget} bits"
        yield Point(f"tq3 --equalize, {family}", label, factors.way(plan.way(BASES[family])))


def _equalized_peers(bench: Bench, model: str) -> Iterator[Point]:
    """What other schemes would gain by the same factors, which their tools don't use."""
    factors = Factors(bench.folder(model))
    for peer in _peers(bench.n_layers(model)):
        if peer.label in EQUALIZED_PEERS:
            yield Point("others, equalized", f"equalized, {peer.label}", factors.way(peer.way))


def _joint(bench: Bench, model: str, sensitivity: Sensitivity) -> Iterator[Point]:
    """The smaller groups again, with one width for q, k and v of a layer."""
    base = BASES[SMALL]
    costs = Costs(bench.subject(model, TUNING).weights, base, split=False)
    for budget in JOINT_BUDGETS:
        plan = costs.best(sensitivity.joint(), budget)
        if plan is not None:
            yield Point("q, k, v at one width", f"joint, {budget} bits", plan.way(base))


def _by_hand() -> Iterator[Point]:
    for label, raised in BY_HAND.items():
        formats = {role: Format(4 if role in raised else 3) for role in ROLES}
        yield Point("tq3, by hand", f"by hand, {label}", by_role(formats))


def _peers(n_layers: int) -> Iterator[Point]:
    for kind in ("Q3_K", "IQ3_S", "IQ4_XS", "Q4_K"):
        yield Point("llama.cpp, one type", kind, _llama(kind))
    for mix in ("Q3_K_M", "IQ4_XS"):
        yield Point("llama.cpp, mix", f"mix {mix}", _mix(mix, n_layers))
    for bits in (3, 4):
        yield Point("HIGGS", f"HIGGS {bits} bits", _higgs(bits))


def _llama(kind: str) -> Way:
    return lambda _, weight: llama.code(weight, kind)


def _higgs(bits: int) -> Way:
    return lambda _, weight: higgs.code(weight, bits)


def _mix(mix: str, n_layers: int) -> Way:
    def code(name: str, weight: Tensor) -> Coded:
        kind = llama.type_in_mix(mix, role_of(name), layer_of(name), n_layers)
        return llama.code(weight, kind)

    return code
