"""The ways to store a quantised weight that can be decoded: which tensors make one, by their names.

docs/sources.md describes each. A weight is known by the dtype of its codes and by the name and
dtype of its scales, never by config.json alone: that may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tq3.format.checkpoint import Located
from tq3.format.header import TensorInfo

_EXPONENTS = ("F8_E8M0", "U8")
_FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout; what stands before `codes` in a name is the stem of the others, too.

    name: what follows the stem in the name of the weight
    scales: endings, one of which is there; scale_dtypes: theirs
    global_scale, zero_points, width: endings; the first has to be there
    transposed: whether hosts have stacks of such weights as [experts, columns, rows]
    """

    kind: str
    codes: str
    dtypes: tuple[str, ...]
    scales: tuple[str, ...]
    scale_dtypes: tuple[str, ...]
    name: str = ".weight"
    global_scale: str = ""
    is_divided: bool = False
    zero_points: str = ""
    width: str = ""
    is_signed: bool = False
    transposed: bool = False


_OF_WEIGHT = (".weight_scale_inv", ".weight_scale", ".scale", ".qscale_weight")
_ACTIVATIONS = (
    ".input_scale",
    ".activation_scale",
    ".qscale_act",
    ".input_global_scale",
    ".input_zero_point",
)
# First match wins: what is told by more comes first.
LAYOUTS = (
    Layout("e2m1", "_blocks", ("U8",), ("_scales",), _EXPONENTS, name="", transposed=True),
    Layout(
        "nvfp4",
        ".weight_packed",
        ("U8",),
        (".weight_scale",),
        ("F8_E4M3",),
        global_scale=".weight_global_scale",
        is_divided=True,
    ),
    Layout("e2m1", ".weight_packed", ("U8",), (".weight_scale",), _EXPONENTS),
    Layout(
        "packed_int",
        ".weight_packed",
        ("I32",),
        (".weight_scale",),
        _FLOATS,
        zero_points=".weight_zero_point",
        width=".weight_shape",
    ),
    Layout(
        "nvfp4",
        ".weight",
        ("U8",),
        (".weight_scale",),
        ("F8_E4M3",),
        global_scale=".weight_scale_2",
    ),
    Layout("e2m1", ".weight", ("I8", "U8", "F4"), _OF_WEIGHT, _EXPONENTS),
    Layout(
        "packed_int",
        ".weight",
        ("I8",),
        (".weight_scale",),
        _FLOATS,
        zero_points=".weight_zero_point",
        is_signed=True,
    ),
    Layout("e4m3", ".weight", ("F8_E4M3",), _OF_WEIGHT, (*_FLOATS, *_EXPONENTS)),
    Layout(
        "e4m3",
        "",
        ("F8_E4M3",),
        ("_scale_inv", "_scale", ".scale"),
        (*_FLOATS, *_EXPONENTS),
        name="",
    ),
)
# An ending that only scales have -> what it belongs to.
OF_NO_WEIGHT = {
    ".weight_scale_inv": ".weight",
    ".qscale_weight": ".weight",
    ".weight_global_scale": ".weight_packed",
    ".weight_scale_2": ".weight",
}
# Beside a quantised weight these say that it is not what its codes and scales make.
NOT_ALONE = {
    ".weight_g_idx": "columns of one scale that are no neighbours",
    ".pre_quant_scale": "a weight whose inputs are scaled before it",
    ".svdquant_lora_a": "a weight with a part of low rank beside it",
}
_CACHE = (".k_scale", ".v_scale")


class Match(NamedTuple):
    """The tensors of one weight."""

    layout: Layout
    stem: str
    codes: Located
    scales: Located
    global_scale: Located | None
    zero_points: Located | None
    width: Located | None


def match(tensor: Located, tensors: Mapping[str, Located]) -> Match | None:
    """The layout whose codes this tensor is, with what belongs to them; None for any other one."""
    name, dtype = tensor.info.name, tensor.info.dtype
    for layout in LAYOUTS:
        if dtype not in layout.dtypes or not name.endswith(layout.codes):
            continue
        stem = name.removesuffix(layout.codes)
        if layout.global_scale and stem + layout.global_scale not in tensors:
            continue
        for ending in layout.scales:
            scales = tensors.get(stem + ending)
            if scales and scales.info.dtype in layout.scale_dtypes:
                others = layout.global_scale, layout.zero_points, layout.width
                found = (tensors.get(stem + other) if other else None for other in others)
                return Match(layout, stem, tensor, scales, *found)
    return None


def of_no_use(found: Match, tensors: Mapping[str, Located]) -> Iterator[str]:
    """Names of what lies beside a weight and says nothing of its values."""
    endings: tuple[str, ...] = _ACTIVATIONS
    if not found.layout.name:  # the names of fused experts go on without a dot
        endings += tuple(ending.replace(".", "_") for ending in _ACTIVATIONS)
    yield from (found.stem + ending for ending in endings if found.stem + ending in tensors)


def scales_a_cache(info: TensorInfo) -> bool:
    """Whether this is a scale of keys or values in a cache, in a model that is quantised."""
    return info.name.endswith(_CACHE) and len(info.shape) < 2
