"""Which option of each item, so that the loss is least and the cost within a budget: exactly.

A multiple-choice knapsack in whole numbers. A price on cost (the best one for fractions of
items) bounds what any solution can reach; options that the bound excludes are left out, and what
remains is tried in full, the best loss for every cost. Nothing is rounded: the answer is the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from operator import itemgetter
from typing import NamedTuple

_BEAM = 100


class WidthOption(NamedTuple):
    """One choice: its cost and its loss, in whole numbers."""

    cost: int
    loss: int


class Item(NamedTuple):
    """`copies` things that each need one of `options`, alike for all."""

    options: tuple[WidthOption, ...]
    copies: int = 1


# Cost and loss of the copies that are decided; the state before the latest one, and its option.
_State = tuple[int, int, "tuple[_State, int] | None"]
_BY_COST = itemgetter(0, 1)
Choice = list[list[int]]  # for each item, the options of its copies: the costliest first


def solve(items: Sequence[Item], budget: int) -> Choice | None:
    """The choice of least loss whose cost is within `budget`, and of those the cheapest.

    None where even the cheapest choice costs more. Of choices equal in both, always the same.
    """
    allowed = [_undominated(item.options) for item in items]
    if sum(_base(item, f).cost for item, f in zip(items, allowed, strict=True)) > budget:
        return None
    price, loss = _fill(items, allowed, budget)
    # A good choice first: the less it loses, the fewer options the bound lets pass.
    for at_most in (_BEAM, None):
        allowed, gap = _within_bound(items, allowed, budget, price, loss)
        best = _search(items, allowed, budget, price, gap, at_most)
        loss = min(loss, _total_loss(items, best))
    return best


def _undominated(options: Sequence[WidthOption]) -> list[int]:
    """Options in order of cost, each of which loses less than all cheaper ones."""
    found: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: (options[i], i)):
        if not found or options[i].loss < options[found[-1]].loss:
            found.append(i)
    return found


def _hull(options: Sequence[WidthOption], frontier: Sequence[int]) -> list[int]:
    """Options that are best at some price: each step saves less for its cost than the last one."""
    hull: list[int] = []
    for i in frontier:
        while len(hull) > 1 and _saving(options, hull[-1], i) >= _saving(
            options, hull[-2], hull[-1]
        ):
            hull.pop()
        hull.append(i)
    return hull


def _saving(options: Sequence[WidthOption], old: int, new: int) -> Fraction:
    """Loss saved for each unit of cost by going from one option to a costlier one."""
    return Fraction(options[old].loss - options[new].loss, options[new].cost - options[old].cost)


def _fill(items: Sequence[Item], allowed: Sequence[list[int]], budget: int) -> tuple[Fraction, int]:
    """Take the steps that save most, as many as fit.

    Returns the saving of the first step that did not fit everywhere, which is the best price on
    cost (0 where all fit), and the loss that is reached.
    """
    hulls = [_hull(item.options, f) for item, f in zip(items, allowed, strict=True)]
    steps = sorted(
        (
            (-_saving(items[n].options, hull[k], hull[k + 1]), n, k)
            for n, hull in enumerate(hulls)
            for k in range(len(hull) - 1)
        ),
    )
    at = [[item.copies] + [0] * len(hull) for item, hull in zip(items, hulls, strict=True)]
    room = budget - sum(_base(item, hull).cost for item, hull in zip(items, hulls, strict=True))
    loss = sum(_base(item, hull).loss for item, hull in zip(items, hulls, strict=True))
    price = None
    for saving, n, k in steps:
        old, new = (items[n].options[i] for i in hulls[n][k : k + 2])
        fit = min(at[n][k], room // (new.cost - old.cost))
        if fit < at[n][k] and price is None:
            price = -saving
        at[n][k] -= fit
        at[n][k + 1] += fit
        room -= fit * (new.cost - old.cost)
        loss -= fit * (old.loss - new.loss)
    return price or Fraction(0), loss


def _base(item: Item, hull: Sequence[int]) -> WidthOption:
    """The choice of the cheapest option for all copies."""
    option = item.options[hull[0]]
    return WidthOption(option.cost * item.copies, option.loss * item.copies)


def _within_bound(
    items: Sequence[Item], allowed: Sequence[list[int]], budget: int, price: Fraction, loss: int
) -> tuple[list[list[int]], int]:
    """The options with which a choice can still be as good as one that loses `loss`.

    Also how far that one lies above what any choice must lose: both priced, as `_priced` says.
    """
    least = [_least(item, those, price) for item, those in zip(items, allowed, strict=True)]
    must = sum(m * item.copies for m, item in zip(least, items, strict=True))
    gap = _priced(WidthOption(budget, loss), price) - must
    left = [
        [i for i in those if _priced(item.options[i], price) - m <= gap]
        for item, those, m in zip(items, allowed, least, strict=True)
    ]
    return left, gap


def _priced(option: WidthOption, price: Fraction) -> int:
    """Loss and the price of the cost, as a multiple of 1 / price.denominator."""
    return price.denominator * option.loss + price.numerator * option.cost


def _least(item: Item, allowed: Sequence[int], price: Fraction) -> int:
    return min(_priced(item.options[i], price) for i in allowed)


def _search(
    items: Sequence[Item],
    allowed: Sequence[list[int]],
    budget: int,
    price: Fraction,
    gap: int,
    at_most: int | None = None,
) -> Choice:
    """Decide copy after copy, keeping every state that may become the best choice.

    at_most: keep so many only, for a good choice in little time
    """
    per_loss, per_cost = price.denominator, price.numerator
    cheapest = [_base(item, those) for item, those in zip(items, allowed, strict=True)]
    # What a state may cost and lose, so that the copies after it can still be decided.
    max_cost = budget - sum(base.cost for base in cheapest)
    max_priced = gap
    states: list[_State] = [(0, 0, None)]
    for item, those in zip(items, allowed, strict=True):
        least, low = _least(item, those, price), item.options[those[0]].cost
        for _ in range(item.copies):
            max_cost += low
            max_priced += least
            states = _undominated_states(
                state
                for state in _extended(states, item, those)
                if state[0] <= max_cost and per_loss * state[1] + per_cost * state[0] <= max_priced
            )
            if at_most and len(states) > at_most:
                states.sort(key=lambda state: per_loss * state[1] + per_cost * state[0])
                states = sorted(states[:at_most], key=_BY_COST)
    return _choice(states[-1], items)


def _extended(states: list[_State], item: Item, allowed: Sequence[int]) -> Iterator[_State]:
    """Every state with every option of one more copy."""
    for i in allowed:
        cost, loss = item.options[i]
        for state in states:
            yield state[0] + cost, state[1] + loss, (state, i)


def _undominated_states(states: Iterable[_State]) -> list[_State]:
    """The states that lose less than all cheaper ones, in order of cost."""
    kept: list[_State] = []
    for state in sorted(states, key=_BY_COST):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept


def _choice(state: _State, items: Sequence[Item]) -> Choice:
    chosen: list[int] = []
    while link := state[2]:
        state, option = link
        chosen.append(option)
    taken = iter(reversed(chosen))
    return [
        sorted((next(taken) for _ in range(item.copies)), key=lambda i: -item.options[i].cost)
        for item in items
    ]


def _total_loss(items: Sequence[Item], choice: Choice) -> int:
    pairs = zip(items, choice, strict=True)
    return sum(item.options[i].loss for item, chosen in pairs for i in chosen)
