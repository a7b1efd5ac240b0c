"""The best choice within a budget, beside trying them all."""

from __future__ import annotations

import random
import time
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tq3.plan.knapsack import Item, WidthOption, solve

OPTIONS = st.lists(
    st.builds(WidthOption, st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4
)
ITEMS = st.lists(st.builds(Item, OPTIONS.map(tuple), st.integers(1, 3)), max_size=4)


def total(items: list[Item], choice: list[list[int]]) -> tuple[int, int]:
    """Loss and cost of a choice."""
    taken = [item.options[i] for item, those in zip(items, choice, strict=True) for i in those]
    return sum(option.loss for option in taken), sum(option.cost for option in taken)


def best_of_all(items: list[Item], budget: int) -> tuple[int, int] | None:
    """Loss and cost of the best choice, by trying every one."""
    copies = [item.options for item in items for _ in range(item.copies)]
    totals = (
        (sum(o.loss for o in taken), sum(o.cost for o in taken)) for taken in product(*copies)
    )
    return min((t for t in totals if t[1] <= budget), default=None)


@settings(max_examples=400, deadline=None)
@given(
    items=ITEMS.filter(lambda items: sum(i.copies for i in items) <= 6), budget=st.integers(0, 120)
)
def test_no_choice_within_the_budget_is_better(items, budget):
    choice = solve(items, budget)
    best = best_of_all(items, budget)
    assert (choice and total(items, choice)) == best if items else choice == []


def test_of_equal_losses_the_cheapest_is_taken():
    assert solve([Item((WidthOption(5, 1), WidthOption(3, 1), WidthOption(1, 9)))], 10) == [[1]]


def test_copies_are_alike_and_the_first_ones_get_the_costlier_option():
    item = Item((WidthOption(1, 10), WidthOption(2, 0)), 4)
    assert solve([item], 6) == [[1, 1, 0, 0]]


def test_what_does_not_fit_at_all_has_no_choice():
    assert solve([Item((WidthOption(3, 0), WidthOption(4, 0)))], 2) is None


def test_an_option_between_two_better_ones_is_taken_where_only_it_fits():
    """It is best at no price, so what goes by prices alone never finds it."""
    item = Item((WidthOption(0, 100), WidthOption(5, 90), WidthOption(10, 0)))
    assert solve([item], 7) == [[1]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alike", [True, False])
def test_a_model_of_80_layers_is_decided_at_once(seed, alike):
    chance = random.Random(seed)
    sizes = [(chance.randrange(1, 400) << 16, chance.random() + 0.05) for _ in range(9)]
    items = []
    for layer in range(1 if alike else 80):
        for n_weights, alpha in sizes:
            worth = alpha if alike else alpha * (1 + layer / 100 + chance.random() / 10)
            options = [
                WidthOption(n_weights * bits // 8 + n_weights // 32, round(worth * error * 1e12))
                for bits, error in ((2, 0.12), (3, 0.032), (4, 0.008), (16, 0))
            ]
            items.append(Item(tuple(options), 80 if alike else 1))
    budget = sum(
        item.options[0].cost * item.copies * chance.randrange(110, 180) // 100 for item in items
    )
    started = time.process_time()
    assert solve(items, budget)
    assert time.process_time() - started < 3
