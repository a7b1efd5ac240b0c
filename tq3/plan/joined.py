"""What hosts join is stored alike: an exception for one expert of a layer holds for its set.

Hosts stack the gate and up matrices of all experts of a layer, and so their down matrices. Such a
stack is packed with one width, or not at all. Dense matrices that hosts join (q, k and v, gate and
up) may differ: each is stored as it was asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.format.widths import Width
from tq3.plan.plan import Plan
from tq3.plan.policy import Decision, decide
from tq3.plan.roles import expert_set_of, name_in_layer

_SHOWN = 4


def decide_together(
    infos: Iterable[TensorInfo],
    recipe: Recipe,
    source_dtype: str | None,
    exact: Collection[str] = (),
) -> dict[str, Decision]:
    """The decision on each tensor by name: the policy's, kept together.

    source_dtype: as `policy.decide` takes it
    exact: as `keep_together` takes them
    """
    return keep_together({info.name: decide(info, recipe, source_dtype) for info in infos}, exact)


def keep_together(
    decisions: Mapping[str, Decision], exact: Collection[str] = ()
) -> dict[str, Decision]:
    """The decisions by name, of which those change that hosts join with a kept tensor.

    decisions: those of the policy, which looks at one tensor at a time
    exact: names of those that keep their type for their values' sake; their decisions are left
    """
    found = dict(decisions)
    packed = {name for name, each in found.items() if each.compress and name not in exact}
    for members in _sets(found).values():
        kept = [name for name in members if name not in packed]
        for name in packed.intersection(members) if kept else ():
            found[name] = Decision(False, _because("kept with", kept[0]), is_joined=True)
    return found


def widen(widths: Mapping[str, Width]) -> tuple[dict[str, Width], dict[str, str]]:
    """Each set with the largest width in it, and why, by the names whose width that changes.

    widths: of all that is compressed, as asked for; None is for all of a set, or for none
    """
    found, reasons = dict(widths), {}
    differ = len(set(widths.values())) > 1
    for members in _sets(widths).values() if differ else ():
        widest = max(members, key=lambda name: widths[name] or 0)
        for name in members:
            if widths[name] != widths[widest]:
                found[name] = widths[widest]
                reasons[name] = _because("as wide as", widest)
    return found, reasons


def in_words(plan: Plan, before: Plan | None = None) -> Iterator[str]:
    """Sentences on what is not as it was asked for, and on what a host will decode.

    before: the plan whose sentences were said already
    """
    known: Mapping[str, str] = before.joined if before else {}
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in plan.joined.items():
        if name not in known:
            alike[reason].append(name)
    groups = list(alike.items())
    for reason, names in groups[:_SHOWN]:
        yield f"{_and_more(names, 'is', 'are')} {reason}"
    if left := sum(len(names) for _, names in groups[_SHOWN:]):
        yield f"{left} more tensors are stored as others that hosts join them with"
    halves = _half_packed(plan)
    if halves and not (before and _half_packed(before)):
        yield (
            f"{_and_more(halves, 'has', 'have')} only gate and up packed, or only down: "
            "Transformers serves that as it is, vLLM decodes the packed half"
        )


def _half_packed(plan: Plan) -> list[str]:
    """Paths of the experts of which gate and up are packed and down is not, or the other way."""
    is_packed = {task.name: task.layout is not None for task in plan.tasks}
    halves: defaultdict[str, set[bool]] = defaultdict(set)
    for key, members in _sets(is_packed).items():
        halves[key.rpartition(":")[0]].update(is_packed[name] for name in members)
    return [path for path, found in halves.items() if len(found) > 1]


def _and_more(names: list[str], one: str, several: str) -> str:
    n = len(names) - 1
    return f"{names[0]} and {n} more {several}" if n else f"{names[0]} {one}"


def _sets(names: Iterable[str]) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        if key := expert_set_of(name):
            found[key].append(name)
    return found


def _because(what: str, name: str) -> str:
    return f"{what} {name_in_layer(name)} of the same layer: hosts join these"
