"""What each role of tensors gets, and what that is expected to cost: the reasons of a choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Protocol

from tq3.format.config import TqConfig
from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.format.widths import ROLES, WIDTHS, Width
from tq3.plan.policy import decide, may_compress
from tq3.plan.readers import obstacles
from tq3.plan.roles import OTHER, role_of
from tq3.plan.sensitivity import alphas, relative_error


class Line(Protocol):
    """A tensor as asked for: name, width, type, shape, weights, bytes, type of its norms, order."""

    @property
    def name(self) -> str: ...
    @property
    def bits(self) -> Width: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def n_weights(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def norm_dtype(self) -> str | None: ...
    @property
    def transposed(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class RoleLine:
    """The tensors of one role and width.

    bits: None for uncompressed
    loss_share: of the expected loss of the whole model
    saved: what part of that loss a bit more for these would save, for each part of the
    checkpoint's size that it costs
    """

    role: str
    bits: Width
    n_tensors: int
    n_weights: int
    n_bytes: int
    loss_share: float
    saved: float | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The width of one role, and why it was chosen.

    recipe: its name, where widths go by role
    allowed_bits_per_weight: over the tensors that may be compressed, which --target-bpw is about
    loss: expected, beside that of the published recipe (3 bits throughout)
    obstacles: why readers other than ours can't read it
    """

    recipe: str | None
    roles: tuple[RoleLine, ...]
    allowed_bits_per_weight: float | None
    loss: float | None
    obstacles: tuple[str, ...]


def describe_choice(tensors: Sequence[Line], recipe: Recipe, config: TqConfig) -> Choice:
    """The widths of a checkpoint's tensors, that are there or planned, by role."""
    allowed = [line for line in tensors if line.bits or may_compress(*_asked(line, recipe, config))]
    n_weights = sum(line.n_weights for line in allowed)
    n_bytes = sum(line.n_bytes for line in allowed)
    alpha = alphas({line.name: line.n_weights for line in tensors})
    # Correctly rounded sums: a checkpoint on disk has its tensors in another order.
    loss = fsum(alpha[line.name] * relative_error(line.bits, recipe) for line in tensors)
    published = replace(recipe, widths=None, bits=3)
    usual = fsum(
        alpha[line.name] for line in tensors if decide(*_asked(line, published, config)).compress
    )
    return Choice(
        recipe=recipe.widths.name if recipe.widths else None,
        roles=_role_lines(tensors, recipe, alpha, loss),
        allowed_bits_per_weight=n_bytes * 8 / n_weights if n_weights else None,
        loss=loss / (usual * relative_error(3, recipe)) if usual else None,
        obstacles=obstacles(
            {line.name: line.bits for line in tensors if len(line.shape) > 1},
            {line.norm_dtype for line in tensors if line.norm_dtype},
            config,
            transposed=any(line.transposed for line in tensors),
        ),
    )


def _asked(line: Line, recipe: Recipe, config: TqConfig) -> tuple[TensorInfo, Recipe, str | None]:
    """A tensor of the source as policy asks for it; its type says whether it stays F32."""
    dtype = "F32" if line.dtype == "F32" else "F16"
    return TensorInfo(line.name, dtype, line.shape), recipe, config.source_dtype


def _role_lines(
    tensors: Sequence[Line], recipe: Recipe, alpha: Mapping[str, float], loss: float
) -> tuple[RoleLine, ...]:
    """One line for each role and width, in the order of roles; vectors are left out."""
    together: defaultdict[tuple[str, Width], list[Line]] = defaultdict(list)
    for line in tensors:
        role = role_of(line.name)
        if len(line.shape) > 1 and (line.bits or role != OTHER):
            together[role, line.bits].append(line)
    n_bytes = sum(line.n_bytes for line in tensors)
    found = []
    for role, bits in ((role, bits) for role in ROLES for bits in (*WIDTHS, None)):
        members = together.get((role, bits), [])
        n_weights = sum(line.n_weights for line in members)
        share = fsum(alpha[line.name] for line in members) / (loss or 1.0)
        error = relative_error(bits, recipe)
        saved = None
        if bits and bits + 1 in WIDTHS and n_weights:
            cost = n_weights / 8 / n_bytes
            saved = share * (error - relative_error(bits + 1, recipe)) / cost
        line_bytes = sum(line.n_bytes for line in members)
        found.append(
            RoleLine(role, bits, len(members), n_weights, line_bytes, share * error, saved)
        )
    return tuple(line for line in found if line.n_tensors)
