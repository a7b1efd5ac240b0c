"""Which tensor has which width, in a few lines however many tensors there are.

Names that differ in the number of their layer alone share a line: `model.layers.{}.mlp.down_proj`
with the numbers that have the width, "0-3 60-63", or "all". Experts of a layer are alike: their
number is `*`. A line for one name alone has `=` before it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

ALL = "all"
# Width -> pattern of names -> numbers.
WidthRecord = Mapping[int, Mapping[str, str]]

_EXPERT = re.compile(r"((?:^|\.)experts)\.\d+(?=\.|$)")
# What would look like a pattern, and is a name.
_LITERAL = re.compile(r"^=|(?:^|\.)(?:\{\}|\*)(?:\.|$)")
_NUMBER = re.compile(r"(?:(?<=\.)|^)(\d{1,9})(?=\.|$)")
_NUMBERS = re.compile(r"\d{1,9}(-\d{1,9})?( \d{1,9}(-\d{1,9})?)*")


def record_widths(widths: Mapping[str, int], sizes: Mapping[str, int]) -> tuple[int, WidthRecord]:
    """The width that holds most weights, and a record of all others.

    widths, sizes: name -> width and number of weights of each compressed tensor; at least one
    """
    weights: Counter[int] = Counter()
    for name, bits in widths.items():
        weights[bits] += sizes[name]
    main = max(weights, key=lambda bits: (weights[bits], -bits))
    alike: defaultdict[str, defaultdict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name, bits in widths.items():
        pattern, number = _pattern(name)
        alike[pattern][number].add(bits)
    record: dict[int, dict[str, str]] = {bits: {} for bits in sorted(weights) if bits != main}
    for pattern, by_number in alike.items():
        for bits, numbers in _by_width(by_number).items():
            if bits != main:
                record[bits][pattern] = ALL if len(numbers) == len(by_number) else _text(numbers)
    for name, bits in widths.items():
        pattern, number = _pattern(name)
        if len(alike[pattern][number]) > 1 and bits != main:
            record[bits][f"={name}"] = ALL
    return main, record


def width_reader(main: int, record: WidthRecord) -> Callable[[str], int]:
    """The recorded width of a name."""
    ranges = {
        bits: {pattern: _ranges(numbers) for pattern, numbers in patterns.items()}
        for bits, patterns in record.items()
    }

    def width_of(name: str) -> int:
        pattern, number = _pattern(name)
        for bits, patterns in ranges.items():
            if f"={name}" in patterns:
                return bits
            if any(low <= number <= high for low, high in patterns.get(pattern, ())):
                return bits
        return main

    return width_of


def is_numbers(text: str) -> bool:
    """Whether a record may say this of a pattern: "all", "7", "0-3 60-63"."""
    return text == ALL or _NUMBERS.fullmatch(text) is not None


def _pattern(name: str) -> tuple[str, int]:
    """The line of a name, without the number of its layer, and that number; -1 for none."""
    if _LITERAL.search(name):
        return f"={name}", -1
    name = _EXPERT.sub(r"\1.*", name)
    found = _NUMBER.search(name)
    if not found:
        return name, -1
    return f"{name[: found.start()]}{{}}{name[found.end() :]}", int(found[1])


def _by_width(by_number: Mapping[int, set[int]]) -> dict[int, list[int]]:
    """Width -> numbers that have it; those of experts that are not alike are left out."""
    found: defaultdict[int, list[int]] = defaultdict(list)
    for number, widths in sorted(by_number.items()):
        if len(widths) == 1:
            found[next(iter(widths))].append(number)
    return found


def _text(numbers: Iterable[int]) -> str:
    """Sorted numbers as ranges."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _ranges(numbers: str) -> list[tuple[int, int]]:
    if numbers == ALL:
        return [(-1, 10**9)]
    ends = (part.partition("-") for part in numbers.split())
    return [(int(low), int(high or low)) for low, _, high in ends]
