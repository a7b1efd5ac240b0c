"""Weights that are quantised already: by which tensors and which config.json they are known.

A format is known by the name and dtype of one tensor and by the names of its siblings, never by
config.json alone: tools write that key over weights that are not quantised, and leave it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.files import CONFIG
from tq3.format.header import FLOATS, FLOATS_8
from tq3.format.layout import NORMS, PACKED, TRELLIS
from tq3.plan.classes import EXPERT_STACK

_ORIGINAL = "compress the original, unquantised checkpoint"
_NATIVE = "compress its BF16 checkpoint: the original, or this one decoded by its makers' tool"
_OURS = "compress the checkpoint that it was made from, or what `tq3 restore` makes of it"
_MADE_FROM = "compress the checkpoint that it was made from, which its card names as base_model"
_QAT = "compress the unquantised checkpoint of the same training: Google's end in -unquantized"
_KEYS = ("quantization_config", "compression_config", "quantization")
# `quantization` is an ordinary word, too: these keys make it MLX's, Mistral's or ModelOpt's.
_QUANTIZATION = {"group_size", "quant_method", "quant_algo", "qformat_weight"}
_LOW = (*FLOATS_8, "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4")
_WIDE = (*FLOATS, "F64", "C64")
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
# Positions, indices and masks beside ordinary weights; an integer of another name may be codes.
_BUFFER = re.compile(
    r"(^|\.)(position_ids|token_type_ids|num_batches_tracked|tid2eid|(\w{1,50}_)?mask"
    r"|(\w{1,50}_)?position_index|(attn|attention)\.(masked_)?bias)$"
)
_STACK = re.compile(EXPERT_STACK)


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store quantised weights.

    suffix: of the tensor that tells it; what stands before it is the stem
    beside: endings of stem's other tensors; dtypes: of the one that tells it, any where empty
    """

    label: str
    suffix: str
    beside: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    fix: str = _ORIGINAL


# First match wins: what is told by more comes first.
FORMATS = (
    Format("a TQ3 checkpoint (.tq_packed)", PACKED, fix=_OURS),
    Format("a TQ3 checkpoint (.tq_trellis)", TRELLIS, fix=_OURS),
    Format("a TQ3 checkpoint (.tq_norms)", NORMS, fix=_OURS),
    Format("MXFP4 (_blocks and _scales)", "_blocks", ("_scales",), ("U8",), _NATIVE),
    Format("NVFP4 (weight_scale_2)", ".weight", (".weight_scale", ".weight_scale_2"), ("U8",)),
    Format(
        "NVFP4 of compressed-tensors (weight_packed and weight_global_scale)",
        ".weight_packed",
        (".weight_global_scale",),
    ),
    Format(
        "MXFP4 of compressed-tensors (weight_packed and weight_scale)",
        ".weight_packed",
        (".weight_scale",),
        ("U8",),
        _NATIVE,
    ),
    Format(
        "integers of compressed-tensors (weight_packed)", ".weight_packed", (), ("I32",), _NATIVE
    ),
    Format("block-wise FP8 (weight_scale_inv)", ".weight_scale_inv", fix=_NATIVE),
    Format("block-wise FP8 (_scale_inv)", "_scale_inv", ("",), fix=_NATIVE),
    Format("Mistral's FP8 (qscale_weight)", ".qscale_weight", fix=_NATIVE),
    Format("DeepSeek's FP8 (scale)", ".weight", (".scale",), FLOATS_8, _NATIVE),
    Format("DeepSeek's FP4 (scale)", ".weight", (".scale",), ("I8", "F4"), _NATIVE),
    Format("FP8 (weight_scale)", ".weight", (".weight_scale",), FLOATS_8, _NATIVE),
    Format("INT8 (weight_scale)", ".weight", (".weight_scale",), ("I8",)),
    Format("BitNet or Gemma's QAT (weight_scale)", ".weight", (".weight_scale",), ("U8",), _QAT),
    Format("FP8 or compressed-tensors (weight_scale)", ".weight_scale"),
    Format("GPTQ or AWQ (qweight)", ".qweight", (), _INTEGERS, _MADE_FROM),
    Format("bitsandbytes, 4 bits (weight.absmax)", ".weight.absmax", fix=_MADE_FROM),
    Format("bitsandbytes, 8 bits (SCB)", ".SCB", (".weight",), fix=_MADE_FROM),
    Format("MLX (scales)", ".weight", (".scales",), ("U32",), _MADE_FROM),
    Format("HQQ (W_q)", ".W_q", (), _INTEGERS),
    Format("HQQ, its codes viewed as floats (W_q)", ".W_q", (".scale", ".zero")),
    Format("quanto (weight._data)", ".weight._data"),
    Format("torchao (_weight_qdata)", "._weight_qdata"),
    Format("EETQ (weight_scales)", ".weight", (".weight_scales",), ("I8",)),
    Format("EXL3 (trellis)", ".trellis", (), ("I16", "U16")),
    Format("EXL2 (q_weight)", ".q_weight", (".q_scale",)),
    Format("AQLM (codes and codebooks)", ".codes", (".codebooks",)),
    Format("QuIP# (Qidxs)", ".Qidxs", (), _INTEGERS),
    Format("VPTQ (indices and centroids)", ".indices", (".centroids.weight",)),
    Format("SpQR (dense_weights and row_offsets)", ".dense_weights", (".row_offsets",)),
)
_SUFFIXES = tuple({form.suffix for form in FORMATS if form.suffix != ".weight"})


class _Found(NamedTuple):
    file: str
    text: str
    fix: str


def refuse_quantised(checkpoint: Checkpoint, fix: str | None = None) -> None:
    """Raise BadInput when the weights are quantised already: coding them again would lose twice.

    fix: in place of what helps for the format that was found
    """
    found = _by_tensors(checkpoint)
    declared = next(_declarations(checkpoint.config), None)
    if not found and declared and _all_wide(checkpoint):
        raise BadInput(
            "it says that the weights are quantised, but they are not",
            file=CONFIG,
            found=declared,
            expected=f"no {_KEYS[0]} beside BF16, F16 or F32 weights",
            fix="where they were merged or decoded, and the tool left that key behind: "
            f"take it out of {CONFIG}",
        )
    if found or declared:
        file, text, way = found or _Found(CONFIG, declared or "", _ORIGINAL)
        raise BadInput(
            "the source is already quantised",
            file=file,
            found=f"{text}; {CONFIG} has {declared}" if found and declared else text,
            expected="BF16, F16 or F32 weights",
            fix=fix or way,
        )


def says_nothing(declared: object) -> bool:
    """Whether the value of a quantization key says that there is no quantisation."""
    none = isinstance(declared, dict) and all(value is None for value in declared.values())
    return not declared or none


def declared_quantizations(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each object in config.json, or in a config inside of it, that tells of a quantisation."""
    for key, value in config.items():
        if key in _KEYS:
            is_meant = isinstance(value, dict) and not says_nothing(value)
            if is_meant and (key != _KEYS[2] or is_quantization(value)):
                yield value
        elif isinstance(value, dict):
            yield from declared_quantizations(value)


def _by_tensors(checkpoint: Checkpoint) -> _Found | None:
    """The first format of the table that names and dtypes show, and its first tensor."""
    suspects = [tensor for tensor in checkpoint.tensors if _is_suspect(tensor)]
    if not suspects:
        return None
    names = {tensor.info.name for tensor in checkpoint.tensors}
    for form in FORMATS:
        for tensor in suspects:
            if _tells(form, tensor, names):
                text = f"{form.label}, for example {tensor.info.name!r}"
                return _Found(tensor.file, text, form.fix)
    for tensor in suspects:
        if _is_matrix_of_codes(tensor):
            text = f"{tensor.info.dtype} weights, for example {tensor.info.name!r}"
            return _Found(tensor.file, text, _NATIVE if tensor.info.dtype in _LOW else _ORIGINAL)
    return None


def _is_suspect(tensor: Located) -> bool:
    return tensor.info.dtype not in _WIDE or tensor.info.name.endswith(_SUFFIXES)


def _tells(form: Format, tensor: Located, names: set[str]) -> bool:
    stem = tensor.info.name.removesuffix(form.suffix)
    return (
        stem != tensor.info.name
        and (not form.dtypes or tensor.info.dtype in form.dtypes)
        and all(stem + other in names for other in form.beside)
    )


def _is_matrix_of_codes(tensor: Located) -> bool:
    """Whether this can't be an ordinary matrix: no model computes with such weights."""
    name, dtype, shape = tensor.info.name, tensor.info.dtype, tensor.info.shape
    if dtype in _WIDE or len(shape) < 2:
        return False
    is_weight = name.endswith(".weight") or (len(shape) > 2 and bool(_STACK.search(name)))
    return dtype in _LOW or is_weight


def _all_wide(checkpoint: Checkpoint) -> bool:
    """Whether every tensor is of an ordinary type or a known buffer: nothing can be codes."""
    infos = (tensor.info for tensor in checkpoint.tensors)
    return all(info.dtype in _WIDE or _BUFFER.search(info.name) for info in infos)


def _declarations(config: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """What config.json or a config inside of it says of a quantisation, in words."""
    for key, value in config.items():
        if key in _KEYS:
            if not says_nothing(value) and (key != _KEYS[2] or is_quantization(value)):
                yield within + _declaration(key, value)
        elif isinstance(value, dict):
            yield from _declarations(value, f"{within}{key}.")


def is_quantization(value: object) -> bool:
    """Whether this value of the key `quantization` tells of one: it is an ordinary word, too."""
    return isinstance(value, dict) and not _QUANTIZATION.isdisjoint(value)


def _declaration(key: str, value: object) -> str:
    method = value.get("quant_method") if isinstance(value, dict) else value
    return f"{key} {value}" if method is None else f"{key} with quant_method {method!r}"
