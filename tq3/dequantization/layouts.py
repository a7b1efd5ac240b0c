"""The ways to store a quantised weight that can be decoded: which tensors make one, by their names.

docs/sources.md describes each. A weight is known by the dtype of its codes and by the name and
dtype of its scales, never by config.json alone: that may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from tq3.format.checkpoint import Located
from tq3.format.header import FLOATS, TensorInfo

_EXPONENTS = ("F8_E8M0", "U8")


@dataclass(frozen=True, slots=True)
class Layout:
    """One layout; what stands before `codes` in a name is the stem of the others, too.

    kind: one of `format.quantised.KINDS`
    codes, dtypes: how the name of the codes ends, and the types that they may have
    scales, scale_dtypes: the same of the scales, of which a weight has one
    name: what follows the stem in the name of the weight
    global_scale, zero_points, width: endings of names; the first has to be there, where one is said
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
        FLOATS,
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
        FLOATS,
        zero_points=".weight_zero_point",
        is_signed=True,
    ),
    Layout("e4m3", ".weight", ("F8_E4M3",), _OF_WEIGHT, (*FLOATS, *_EXPONENTS)),
    Layout(
        "e4m3",
        "",
        ("F8_E4M3",),
        ("_scale_inv", "_scale", ".scale"),
        (*FLOATS, *_EXPONENTS),
        name="",
    ),
)
_WEIGHT, _PACKED = ".weight", ".weight_packed"
# An ending that only parts of a quantised weight have -> what they are, and their codes' endings.
OF_NO_WEIGHT = {
    ".weight_scale_inv": ("a scale", (_WEIGHT,)),
    ".weight_scale": ("a scale", (_WEIGHT, _PACKED)),
    ".qscale_weight": ("a scale", (_WEIGHT,)),
    ".weight_global_scale": ("a scale", (_PACKED,)),
    ".weight_scale_2": ("a scale", (_WEIGHT,)),
    ".weight_shape": ("a shape", (_PACKED,)),
    ".weight_zero_point": ("a zero point", (_WEIGHT, _PACKED)),
    "_scales": ("a scale", ("_blocks",)),
}
# Beside a quantised weight these say that it is not what its codes and scales make.
NOT_ALONE = {
    ".weight_g_idx": "columns of one scale that are no neighbours",
    ".weight_zero_point": "floats with zero points",
    ".pre_quant_scale": "a weight whose inputs are scaled before it",
    ".svdquant_lora_a": "a weight with a part of low rank beside it",
}
# Of queries, keys and values, which a host quantises as it computes.
_CACHE = re.compile(r"\.([qkv]_(scale|zero_point)|(q|k|v|qkv)_proj\.output_scale)$")
_HEADS = ("num_key_value_heads", "num_attention_heads")


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


def of_a_cache(info: TensorInfo, counts: Set[int]) -> bool:
    """Whether this scales queries, keys or values, in a model that is quantised.

    counts: of heads; a learned parameter of such a name has as many elements as a head or a row
    """
    is_float = info.dtype in FLOATS or info.name.endswith("_zero_point")
    n_values = info.n_elements
    is_vector = n_values in info.shape and n_values in counts
    return bool(_CACHE.search(info.name)) and is_float and (n_values == 1 or is_vector)


def heads(config: Mapping[str, Any]) -> Iterator[int]:
    """The numbers of heads that config.json has, in whatever config inside of it."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from heads(value)
        elif key in _HEADS and type(value) is int:
            yield value
