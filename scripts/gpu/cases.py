"""Small calls of every kernel that may be launched, with inputs drawn on the processor."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import torch

from tq3.format.recipe import GROUP_SIZES
from tq3.format.widths import WIDTHS
from tq3.runtime.cuda.calls import DTYPES, MOST_COLUMNS

# Fields of a case, by name.
Given = dict[str, Any]
TYPES = tuple(DTYPES)
ROWS = (1, 31, 32, 70, 107)
GROUPS_A_ROW = (1, 3, 9, 41)
# Of the last group: a row may end anywhere in it.
MISSING_COLUMNS = (0, 1, 8, 31)
# By the products of four tokens that a block does for them.
TOKENS = {1: (1, 2, 3, 4), 2: (5, 7, 8), 4: (9, 13, 16), 8: (17, 33, 40)}
EXPERTS = 6
# Multiprocessors for which every layer is large, and for which these are small: blocks then share
# a tile, if it has this many groups.
FEW, MANY = 1, 1000
GROUPS_TO_SHARE = 71
# Rows and columns, of layers of a 27B model.
REAL_SHAPES = ((5120, 17408), (17408, 5120), (5120, 6144), (1024, 5120))
# What models are served with, mostly.
SERVING_BITS = (3, 4)
SERVING: Given = {"group": 128, "dtype": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Case:
    """What is called, on what. number: a seed; n: groups of a row; missing: columns of the last."""

    number: int
    kind: str
    bits: int
    group: int
    rotation: int
    dtype: torch.dtype
    rows: int
    n: int
    missing: int
    tokens: int
    processors: int = FEW

    def __str__(self) -> str:
        shape = f"{self.rows}x{self.columns}, {self.tokens} tokens"
        widths = f"{self.bits} bits, groups of {self.group}, rotations of {self.rotation}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.kind} {self.number}: {shape}, {widths}, {dtype}"

    @property
    def is_served(self) -> bool:
        """Whether models are served so."""
        found = {"group": self.group, "dtype": self.dtype}
        return found == SERVING and self.bits in SERVING_BITS and self.rotation in (0, self.group)

    @property
    def columns(self) -> int:
        """Of the activations."""
        return self.n * self.group - self.missing

    @property
    def layers(self) -> int:
        """How many there are of the layer's shape."""
        return EXPERTS if "experts" in self.kind else 1


class Inputs(NamedTuple):
    """x: (tokens, columns); packed: (layers, rows * n, bytes); norms: (layers, rows, n)

    experts: (tokens,) int64, of which the last never occurs
    """

    x: torch.Tensor
    packed: torch.Tensor
    norms: torch.Tensor
    experts: torch.Tensor


def draw(case: Case) -> Inputs:
    """Any codes, and activations of which the first token may be special."""
    rng = torch.Generator().manual_seed(case.number)
    lead = case.layers, case.rows * case.n, case.group * case.bits // 8
    packed = torch.randint(0, 256, lead, dtype=torch.uint8, generator=rng)
    norms = torch.randn(case.layers, case.rows, case.n, generator=rng).exp()
    scales = torch.randn(case.columns, generator=rng).exp()
    x = torch.randn(case.tokens, case.columns, generator=rng) * scales
    # Zeros, and below the smallest block that counts; then what is not finite.
    x[0] *= (1.0, 1.0, 0.0, 2.0**-118)[case.number % 4]
    x = x.to(case.dtype)
    if case.number % 5 > 2:
        x[0, -1] = (torch.inf, torch.nan)[case.number % 2]
    experts = torch.randint(0, max(1, case.layers - 1), (case.tokens,), generator=rng)
    return Inputs(x, packed, norms, experts)


def all_cases() -> list[Case]:
    """Every instance of every kernel; shapes are drawn, always the same ones."""
    chosen = [
        *_of_activations(),
        *_of_products(),
        *_of_decoding(),
        *_of_modules(),
        *_of_real_shapes(),
    ]
    return [_filled(number, **given) for number, given in enumerate(chosen)]


def one_of_each_kind() -> list[Case]:
    """Small ones, as models are served."""
    first = {case.kind: case for case in reversed(all_cases())}
    few: Given = {"bits": 3, "rotation": 128, "rows": 70, "tokens": 3} | SERVING
    large = {"split": GROUPS_TO_SHARE}
    return [
        replace(case, **few, n=large.get(kind, 3), missing=0 if kind == "real shape" else 5)
        for kind, case in reversed(first.items())
    ]


def _filled(number: int, **given: Any) -> Case:
    rng = random.Random(number)
    group = given.get("group") or rng.choice(GROUP_SIZES)
    drawn: Given = {
        "bits": rng.choice(WIDTHS),
        "group": group,
        "rotation": rng.choice([size for size in GROUP_SIZES if size <= group]),
        "dtype": rng.choice(TYPES),
        "rows": rng.choice(ROWS),
        "n": rng.choice(GROUPS_A_ROW),
        "missing": rng.choice(MISSING_COLUMNS),
        "tokens": rng.randint(1, 40),
    }
    return Case(number, **drawn | given)


def _of_activations() -> list[Given]:
    chosen = product(("quantise", "rotate"), TYPES, GROUP_SIZES, GROUP_SIZES)
    return [
        {"kind": kind, "dtype": dtype, "group": group, "rotation": rotation}
        for kind, dtype, group, rotation in chosen
        if rotation <= group
    ]


def _of_products() -> list[Given]:
    widths = list(product(WIDTHS, GROUP_SIZES))
    plain = [
        {"kind": "multiply", "bits": bits, "group": group, "dtype": dtype, "tokens": tokens}
        for (bits, group), dtype, columns in product(widths, TYPES, TOKENS)
        if columns <= MOST_COLUMNS[group]
        for tokens in (TOKENS[columns][(bits + group // 32) % len(TOKENS[columns])],)
    ]
    shared = [
        {"kind": "split", "bits": bits, "group": group, "dtype": dtype, "tokens": 1 + bits % 4}
        | {"n": GROUPS_TO_SHARE, "processors": MANY}
        for (bits, group), dtype in product(widths, TYPES)
    ]
    experts = [{"kind": "experts", "bits": bits, "group": group} for bits, group in widths]
    return plain + shared + experts


def _of_decoding() -> list[Given]:
    widths = list(product(WIDTHS, TYPES))
    decoded = [
        {"kind": "decode", "bits": bits, "group": group, "dtype": dtype}
        for (bits, dtype), group in product(widths, GROUP_SIZES)
    ]
    return decoded + [{"kind": "decoded product", "bits": bits, "dtype": of} for bits, of in widths]


def _of_modules() -> list[Given]:
    kinds = ("module", "module of experts", "module of rows", "saved module")
    return [
        {"kind": kind, "bits": bits, "rotation": 0} | (SERVING if bits in SERVING_BITS else {})
        for kind, bits in product(kinds, WIDTHS)
    ]


def _of_real_shapes() -> list[Given]:
    return [
        {"kind": "real shape", "bits": bits, "group": 128, "rows": rows, "n": columns // 128}
        | {"missing": 0, "tokens": tokens, "dtype": torch.bfloat16, "rotation": 128}
        for (rows, columns), bits, tokens in product(REAL_SHAPES, (3, 4), (1, 4, 33))
    ]
