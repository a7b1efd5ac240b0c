"""Which width each tensor gets: for the least expected loss within a size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from tq3.errors import UsageError
from tq3.format.command_line import flag
from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.format.widths import BY_NAME, WIDTHS, Width, Widths
from tq3.plan.knapsack import Item, WidthOption, solve
from tq3.plan.plan import Plan, Task
from tq3.plan.policy import may_compress
from tq3.plan.precision import main_dtype
from tq3.plan.roles import fused_set_of, role_of
from tq3.plan.sensitivity import alphas, relative_error
from tq3.units import exact_size, size

Chosen: TypeAlias = dict[str, Width]
# Of a tensor's dtype, shape and width.
StoredBytes: TypeAlias = Callable[[str, tuple[int, ...], Width], int]
# Losses are counted in this part of the largest possible one: far below what alphas are known to.
_LOSS_UNIT = 10**12


@dataclass(frozen=True, slots=True)
class _Set:
    """Tensors that have one width: their choices, and bytes and expected loss of each choice.

    bit_bytes, no_bits_bytes: what one bit of every code costs, and what is beside the codes
    """

    names: tuple[str, ...]
    choices: tuple[Width, ...]
    n_bytes: tuple[int, ...]
    losses: tuple[float, ...]
    n_weights: int
    bit_bytes: int
    no_bits_bytes: int


class Allocation:
    """The tensors that a recipe may compress, with its choices for each."""

    def __init__(
        self,
        infos: Iterable[TensorInfo],
        sizes: Mapping[str, int],
        recipe: Recipe,
        stored_bytes: StoredBytes,
    ) -> None:
        """infos: what may be compressed; sizes: weights of every tensor of the model by name."""
        assert recipe.widths, "without widths by role there is nothing to allocate"
        self._widths = recipe.widths
        self._norms = recipe.norms
        alpha = alphas(sizes)
        together: dict[str, list[TensorInfo]] = {}
        for info in infos:
            key = fused_set_of(info.name, split_qkv=self._widths.split_qkv)
            together.setdefault(key, []).append(info)
        self._sets = [
            _make_set(members, self._widths, recipe, alpha, stored_bytes)
            for members in together.values()
        ]

    def at(self, end: Callable[[tuple[int, ...]], int]) -> Chosen:
        """Every set at one end of its sizes: `min` or `max`."""
        return self._chosen(one.n_bytes.index(end(one.n_bytes)) for one in self._sets)

    def n_bytes(self, chosen: Chosen) -> int:
        """Stored bytes of all sets."""
        return sum(one.n_bytes[one.choices.index(chosen[one.names[0]])] for one in self._sets)

    def best(self) -> Chosen:
        """The best choice for the recipe's target in bits; without any, the only choice.

        Raises UsageError where that is too few.
        """
        if not self._widths.targets:
            return self.at(min)
        if self._widths.target_width is not None:
            counted = [one for one in self._sets if len(one.choices) > 1]
            budget = sum(
                one.no_bits_bytes + int(one.bit_bytes * self._widths.target_width)
                for one in counted
            )
        else:
            counted = [one for one in self._sets if any(one.choices)]
            n_weights = sum(one.n_weights for one in counted)
            budget = int((self._widths.target_bpw or 0.0) * n_weights / 8)
        others = self.n_bytes(self.at(min)) - sum(min(one.n_bytes) for one in counted)
        chosen = self.best_within(budget + others)
        if chosen is None:
            raise self._out_of_reach(counted, budget)
        return chosen

    def _out_of_reach(self, counted: list[_Set], budget: int) -> UsageError:
        n_weights = max(sum(one.n_weights for one in counted), 1)
        ends = (sum(end(one.n_bytes) for one in counted) * 8 / n_weights for end in (min, max))
        halves = "; --norms float16 has smaller ones" if self._norms == "float32" else ""
        return UsageError(
            "the target can't be reached",
            found=f"{budget * 8 / n_weights:.3f} bits a weight",
            expected=" to ".join(f"{bits:.3f}" for bits in ends)
            + f" with recipe {self._widths.name!r}",
            fix="ask for what is possible: norms, padding of rows and small groups count, too"
            + halves,
        )

    def best_within(self, budget: int) -> Chosen | None:
        """The choice of least expected loss whose stored bytes are within `budget`, if any is."""
        unit = max((max(one.losses) for one in self._sets), default=0.0) / _LOSS_UNIT or 1.0
        alike: dict[tuple[WidthOption, ...], list[int]] = {}
        for i, one in enumerate(self._sets):
            pairs = zip(one.n_bytes, one.losses, strict=True)
            options = tuple(WidthOption(n_bytes, round(loss / unit)) for n_bytes, loss in pairs)
            alike.setdefault(options, []).append(i)
        found = solve([Item(options, len(those)) for options, those in alike.items()], budget)
        if found is None:
            return None
        of_set = dict(
            pair
            for those, options in zip(alike.values(), found, strict=True)
            for pair in zip(those, options, strict=True)
        )
        return self._chosen(of_set[i] for i in range(len(self._sets)))

    def _chosen(self, options: Iterable[int]) -> Chosen:
        pairs = zip(self._sets, options, strict=True)
        return {name: one.choices[option] for one, option in pairs for name in one.names}


def _make_set(
    members: list[TensorInfo],
    widths: Widths,
    recipe: Recipe,
    alpha: Mapping[str, float],
    stored_bytes: StoredBytes,
) -> _Set:
    choices = _choices_that_save(members, widths, recipe, stored_bytes)
    together = sum(alpha[info.name] for info in members)
    narrower, wider = (
        sum(stored_bytes(info.dtype, info.shape, bits) for info in members) for bits in WIDTHS[:2]
    )
    return _Set(
        names=tuple(info.name for info in members),
        choices=choices,
        n_bytes=tuple(
            sum(stored_bytes(info.dtype, info.shape, bits) for info in members) for bits in choices
        ),
        losses=tuple(together * relative_error(bits, recipe) for bits in choices),
        n_weights=sum(info.n_elements for info in members),
        bit_bytes=wider - narrower,
        no_bits_bytes=narrower - WIDTHS[0] * (wider - narrower),
    )


def _choices_that_save(
    members: list[TensorInfo], widths: Widths, recipe: Recipe, stored_bytes: StoredBytes
) -> tuple[Width, ...]:
    """Without those that take more bytes than what is stored uncompressed: rows may be short."""
    choices = widths.choices(role_of(members[0].name), only=bool(recipe.only))
    n_bytes = {
        bits: sum(stored_bytes(info.dtype, info.shape, bits) for info in members)
        for bits in (None, *choices)
    }
    return tuple(b for b in choices if b is None or n_bytes[b] < n_bytes[None]) or choices


def advice_on_target(infos: Iterable[TensorInfo], recipe: Recipe) -> str:
    """Advice where even the smallest output is too large.

    infos: all tensors of the model
    """
    by_role = {role: [info for info in infos if role_of(info.name) == role] for role in BY_NAME}
    left = [
        f"{flag(role)} 4"
        for role in sorted(BY_NAME, reverse=True)
        if any(_would_be_compressed(info, role, recipe) for info in by_role[role])
    ]
    if not left:
        return "name a recipe that allows fewer bits, or a larger size"
    save = "saves" if len(left) == 1 else "save"
    return f"{' and '.join(left)} {save} most: docs/recipes.md says who can read that"


def _would_be_compressed(info: TensorInfo, role: str, recipe: Recipe) -> bool:
    """Whether a width for the role would change what becomes of the tensor."""
    assert recipe.widths
    asked = replace(recipe.widths, roles={**recipe.widths.roles, role: (4,)})
    return may_compress(info, replace(recipe, widths=asked)) and not may_compress(info, recipe)


def fit(
    allocation: Allocation, target: int, plan_with: Callable[[Chosen], Plan], advice: str
) -> Chosen:
    """The best choice whose weight files together have at most `target` bytes.

    plan_with: the output of a choice. What lies in the files beside the sets (kept tensors,
    headers) hardly depends on the choice, so it is found in a few steps: best for all but the few
    bytes by which headers differ.
    advice: of the UsageError that is raised where even the smallest output is larger
    """
    chosen, besides = allocation.at(min), 0
    smallest = plan_with(chosen).file_bytes
    if smallest > target:
        largest = plan_with(allocation.at(max)).file_bytes
        raise UsageError(
            "the target can't be reached",
            found=f"{target:,} bytes",
            expected=f"{smallest:,} to {largest:,} bytes with this recipe",
            fix=advice,
        )
    file_bytes = smallest
    while True:
        besides = max(besides, file_bytes - allocation.n_bytes(chosen))
        better = allocation.best_within(target - besides)
        if better is None:  # the headers of anything but the smallest output are too long
            return allocation.at(min)
        chosen, file_bytes = better, plan_with(better).file_bytes
        if file_bytes <= target:
            break
    # Headers are shorter where tensors stay exact: these bytes, too, may be worth something.
    better = allocation.best_within(target - (file_bytes - allocation.n_bytes(chosen)))
    fits = better is not None and plan_with(better).file_bytes <= target
    return better if better is not None and fits else chosen


def unreachable_target(plan: Plan, recipe: Recipe) -> str | None:
    """A sentence that the recipe allows nothing as wide as its target; None where it does.

    plan: the one that was made for `recipe`
    """
    widths = recipe.widths
    if not widths:
        return None
    main = main_dtype(task.sources[0].nominal for task in plan.tasks)
    allowed = [
        task
        for task in plan.tasks
        if task.layout or may_compress(task.sources[0].nominal, recipe, main)
    ]
    if not all(_is_widest(task, widths, only=bool(recipe.only)) for task in allowed):
        return None
    n_weights = sum(task.sources[0].info.n_elements for task in allowed)
    bpw = sum(task.bytes_out for task in allowed) * 8 / max(n_weights, 1)
    but = f"but the widest output that recipe {widths.name!r} allows has"
    if (widths.target_bytes or 0) > plan.file_bytes:
        return f"{exact_size(widths.target_bytes or 0)}, {but} {size(plan.file_bytes)}"
    if (widths.target_bpw or 0) > bpw:
        return f"{widths.target_bpw:g} bits a weight, {but} {bpw:.3f}"
    return None


def _is_widest(task: Task, widths: Widths, *, only: bool) -> bool:
    choices = widths.choices(role_of(task.name), only=only)
    widest = None if None in choices else max(bits for bits in choices if bits)
    return len(choices) == 1 or widest == (task.layout.bits if task.layout else None)
