"""Which parameter each compressed tensor fills: from headers, by the host's own renaming."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from tq3.errors import BadInput
from tq3.format.header import Header, TensorInfo, read_header
from tq3.format.layout import NORM_DTYPES, NORMS, PACKED, GroupLayout, exchanged
from tq3.format.widths import WIDTHS

# Rows of codes can be stacked, joined and cut as rows of weights can; nothing else can be done to
# them. By name: the classes have come and gone between releases.
_ROW_OPERATIONS = {"MergeModulelist", "SplitModulelist", "Concatenate", "Chunk", "Split"}


@dataclass(frozen=True, slots=True)
class Pair:
    """The codes and norms of one tensor, as their file's header describes them."""

    name: str
    file: str
    packed: TensorInfo
    norms: TensorInfo

    def bits(self, group: int) -> int:
        """The width that the sizes imply. Raises BadInput where they imply none."""
        weights = self.norms.n_elements * group
        bits = self.packed.n_bytes * 8 // max(weights, 1)
        is_whole = bits in WIDTHS and bits * weights == self.packed.n_bytes * 8
        if not is_whole or self.norms.dtype not in NORM_DTYPES:
            raise self.bad(f"codes and norms of groups of {group}", found=_shapes(self))
        return bits

    def bad(self, expected: object, found: object) -> BadInput:
        """An error of this tensor."""
        return BadInput(
            "its codes and norms do not fit",
            file=self.file,
            tensor=self.name,
            found=found,
            expected=expected,
            fix="fetch checkpoint and config.json again, from one revision",
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A parameter of the model, and how the checkpoint holds it.

    converted: the host joins or cuts the stored tensors while loading
    tensor: the name of one that is stored
    """

    parameter: str
    layout: GroupLayout
    converted: bool
    tensor: str = field(compare=False)


def read_pairs(files: Iterable[str]) -> tuple[dict[str, Pair], set[str]]:
    """All compressed tensors of these safetensors files, and the names of all others.

    Raises BadInput for half of a pair.
    """
    found: dict[str, tuple[TensorInfo, str]] = {}
    for path in map(Path, files):
        found |= {name: (info, path.name) for name, info in _header(path).tensors.items()}
    pairs = {}
    for name, (info, home) in found.items():
        for suffix, partner in ((PACKED, NORMS), (NORMS, PACKED)):
            stem = name.removesuffix(suffix)
            if stem != name and stem + partner not in found:
                fix = "fetch the checkpoint again"
                raise BadInput(f"its {partner} is missing", file=home, tensor=name, fix=fix)
        stem = name.removesuffix(PACKED)
        if stem != name:
            pairs[stem] = Pair(stem, home, info, found[stem + NORMS][0])
    return pairs, {name for name in found if not name.endswith((PACKED, NORMS))}


class Renaming:
    """The names that the host will look for, for the names in the checkpoint."""

    def __init__(self, model: PreTrainedModel) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._prefix = model.base_model_prefix

    def __call__(
        self, name: str, state: dict[str, torch.Tensor]
    ) -> tuple[list[str], WeightConverter | None]:
        """The parameters that tensor `name` ends up in, and what else is done to it."""
        renamed, pattern = rename_source_key(
            name, self._renamings, self._converters, self._prefix, state
        )
        if renamed not in state and name in state:  # as the host does it
            renamed, pattern = rename_source_key(name, [], [], self._prefix, state)
        if pattern is None:
            return [renamed], None
        converter = next(c for c in self._converters if pattern in c.source_patterns)
        first, *others = converter.target_patterns
        return [renamed, *(renamed.replace(first, other) for other in others)], converter


def find_places(
    model: PreTrainedModel, pairs: dict[str, Pair], kept: Mapping[str, str], group: int
) -> list[Place]:
    """The parameters of `model`, still on meta, that compressed tensors fill.

    A tensor that the model has no parameter for is left to the host, which ignores or reports it.
    kept: as `find_kept` gives them
    Raises BadInput where the host joins what is packed in different ways, or only in part.
    """
    rename, state = Renaming(model), model.state_dict()
    places: dict[str, Place] = {}
    first: dict[str, Pair] = {}
    for pair in pairs.values():
        names, converter = rename(pair.name, state)
        for name in names:
            if name not in state:
                continue
            place = _place(pair, name, state[name], converter, group)
            bits = place.layout.bits
            if places.setdefault(name, place) != place:
                other = f"{places[name].layout.bits} in {first[name].name!r}"
                raise _mixture(pair, f"{bits} bits, and {other}")
            if place.converted and name in kept:
                raise _mixture(pair, f"{bits} bits, and {kept[name]!r} not packed")
            first.setdefault(name, pair)
    return list(places.values())


def _mixture(pair: Pair, found: str) -> BadInput:
    what = "experts of one layer" if "experts" in pair.name.split(".") else "what it joins"
    return BadInput(
        f"Transformers can't load it, for {what} must be packed alike",
        file=pair.file,
        tensor=pair.name,
        found=found,
        expected="one width for all, or none packed",
        fix="compress the source again with the same --keep and width for all of these, or "
        "`tq3 restore` this checkpoint",
    )


def find_kept(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """The parameters of `model` that these tensors fill, which are not compressed: each with one of
    them.
    """
    rename, state = Renaming(model), model.state_dict()
    return {parameter: name for name in names for parameter in rename(name, state)[0]}


def check_names(model: PreTrainedModel, pairs: dict[str, Pair]) -> None:
    """Raise BadInput where the host would look for other names than the packed modules have.

    It would only warn, and leave those modules as they were allocated.
    """
    rename, state = Renaming(model), model.state_dict()
    filled = {
        name
        for pair in pairs.values()
        for suffix in (PACKED, NORMS)
        for name in rename(pair.name + suffix, state)[0]
    }
    empty = sorted(name for name in state if name.endswith((PACKED, NORMS)) and name not in filled)
    if empty:
        raise BadInput(
            "this release of Transformers would not load it",
            tensor=empty[0],
            fix="use a tested release (5.16 to 5.23), or `tq3 restore` the checkpoint",
        )


def _header(path: Path) -> Header:
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        return read_header(read, path.stat().st_size, path.name)


def _place(
    pair: Pair,
    name: str,
    parameter: torch.Tensor,
    converter: WeightConverter | None,
    group: int,
) -> Place:
    shape, is_transposed = tuple(parameter.shape), len(pair.norms.shape) == 3
    if is_transposed and len(shape) == 3:
        shape = exchanged(shape)
    layout = GroupLayout(shape, pair.bits(group), group, transposed=is_transposed)
    if converter is None:
        packed, norms = layout.tensors(pair.name)
        fits = pair.packed == packed and pair.norms.shape == norms.shape
    else:
        fits = layout.groups_per_row == pair.norms.shape[-1]
        impossible = _impossible_steps(converter, layout)
        if impossible:
            raise BadInput(
                "Transformers rearranges this tensor while loading, which codes do not allow",
                file=pair.file,
                tensor=pair.name,
                found=", ".join(sorted(impossible)),
                fix="`tq3 restore` the checkpoint, or compress it with --keep for such tensors",
            )
    if not fits:
        raise pair.bad(f"those of {name} {list(layout.shape)}", found=_shapes(pair))
    return Place(name, layout, converter is not None, pair.name)


def _impossible_steps(converter: WeightConverter, layout: GroupLayout) -> set[str]:
    steps = {type(step).__name__ for step in converter.operations}
    # The rows of a stored stack lie one after the other: only single experts can be joined to one.
    is_stored_stack = len(layout.shape) == 3 and "MergeModulelist" not in steps
    return steps if is_stored_stack else steps - _ROW_OPERATIONS


def _shapes(pair: Pair) -> str:
    codes, norms = pair.packed, pair.norms
    return f"codes {codes.dtype} {list(codes.shape)}, norms {norms.dtype} {list(norms.shape)}"
