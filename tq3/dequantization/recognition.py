"""From the headers of a quantised source and its config.json to the weights that are meant by them.

A virtual tensor stands in the place of each weight's codes; the scales and what else makes it are
gone. Nothing is decided here by values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from tq3.codec.quantised import BITS
from tq3.dequantization.blocks import (
    block_of,
    bytes_shape,
    check_others,
    logical_shape,
    packed_integers,
)
from tq3.dequantization.completeness import MADE_FROM, check_complete, check_names, told
from tq3.dequantization.declared import GPT_OSS, Declared, declared, declared_beside, is_left_out
from tq3.dequantization.layouts import Match, heads, match, of_a_cache, of_no_use
from tq3.errors import BadInput
from tq3.format.checkpoint import FIRST_VIRTUAL, Checkpoint, Located, Pieces
from tq3.format.files import CONFIG, Files
from tq3.format.header import TensorInfo
from tq3.format.quantised import Encoding
from tq3.units import counted


def dequantised(checkpoint: Checkpoint, files: Files | None = None) -> Checkpoint:
    """A checkpoint of the weights that are meant; the same one where none is quantised.

    files: where it lies, which may say more of the quantisation than its config.json

    Raises BadInput where the tensors contradict each other, or config.json.
    """
    tensors = {tensor.info.name: tensor for tensor in checkpoint.tensors}
    matches = [found for each in checkpoint.tensors if (found := match(each, tensors))]
    if not matches:
        return checkpoint
    said = declared(checkpoint.config, declared_beside(files) if files else {})
    _check_family(checkpoint.config)
    _check_methods(said, matches)
    check_complete(tensors, matches)
    _check_meant(said)
    virtual = {found.codes.info.name: _virtual(found, said) for found in matches}
    consumed = set(_consumed(matches, tensors, checkpoint.config))
    check_names(virtual, tensors, consumed)
    formats = _formats(virtual.values())
    left = [tensor for name, tensor in tensors.items() if name not in consumed]
    return replace(
        checkpoint,
        tensors=_placed(virtual.get(tensor.info.name, tensor) for tensor in left),
        config=_without_quantization(checkpoint.config),
        notices=(*checkpoint.notices, *_notices(formats, len(consumed), virtual.values())),
        source_quantization={**said.record, "formats": dict(formats)},
    )


def _virtual(found: Match, said: Declared) -> Located:
    layout, codes = found.layout, found.codes
    groups = None
    if layout.is_signed:
        bits, shape = 8, bytes_shape(found, said)
    elif layout.kind == "packed_int":
        bits, groups, shape = packed_integers(found, said)
    else:
        (bits,), shape = BITS[layout.kind], logical_shape(found)
    encoding = Encoding(
        layout.kind,
        bits,
        block_of(found, shape, said, groups),
        found.scales.info.dtype,
        is_divided=layout.is_divided,
        has_zero_points=found.zero_points is not None,
        is_signed=layout.is_signed,
    )
    check_others(found, shape, encoding)
    info = TensorInfo(found.stem + layout.name, "F32", shape)
    others = found.global_scale, found.zero_points, found.width
    pieces = Pieces(encoding, codes, found.scales, *others)
    transposed = layout.transposed and len(shape) == 3
    return Located(info, codes.file, codes.offset, pieces, transposed)


def _placed(tensors: Iterable[Located]) -> tuple[Located, ...]:
    """Virtual tensors get places of their own, one after the other in each file."""
    free: Counter[str] = Counter()
    placed = []
    for tensor in tensors:
        if tensor.pieces:
            placed.append(replace(tensor, offset=FIRST_VIRTUAL + free[tensor.file]))
            free[tensor.file] += tensor.info.n_bytes
        else:
            placed.append(tensor)
    return tuple(placed)


def _consumed(
    matches: Iterable[Match], tensors: Mapping[str, Located], config: Mapping[str, Any]
) -> Iterator[str]:
    for found in matches:
        parts = found.scales, found.global_scale, found.zero_points, found.width
        yield from (part.info.name for part in parts if part)
        yield from of_no_use(found, tensors)
    counts = set(heads(config))
    yield from (name for name, tensor in tensors.items() if of_a_cache(tensor.info, counts))


def _check_methods(said: Declared, matches: Iterable[Match]) -> None:
    """Raise BadInput where config.json names a method that has no such weights."""
    found = {GPT_OSS if each.layout.transposed else each.layout.kind: each for each in matches}
    for kind, example in found.items():
        if kind in said.against or not said.allows(kind):
            words = said.against.get(
                kind, f"{CONFIG} says quant_method {', '.join(said.methods)!r}"
            )
            raise BadInput(
                f"{CONFIG} and the tensors contradict each other, or it is a method unknown to tq3",
                file=example.codes.file,
                tensor=example.codes.info.name,
                found=f"{example.codes.info.dtype} with {example.scales.info.name!r} "
                f"{told(example.scales)}; {words}",
                expected="codes of that method",
                fix=f"get {CONFIG} and weights from one revision, or compress the checkpoint that "
                "it was made from",
            )
    experts, has_fp4 = said.experts, not {"e2m1", GPT_OSS}.isdisjoint(found)
    if experts == "fp4" and not has_fp4 or experts == "fp8" and has_fp4:
        example = next(iter(found.values()))
        raise BadInput(
            "what it says and the tensors contradict each other",
            file=CONFIG,
            found=f"expert_dtype {experts!r}; {'FP4' if has_fp4 else 'no FP4'} among the "
            f"tensors of {example.codes.file}",
            expected="the same of both",
            fix=f"get {CONFIG} and weights from one revision",
        )


def _check_meant(said: Declared) -> None:
    """Raise BadInput where config.json says that weights need more than codes and scales."""
    for what in said.beyond:
        raise BadInput(
            "weights that can't be decoded",
            file=CONFIG,
            found=what,
            expected="codes and scales alone",
            fix=MADE_FROM,
        )


def _check_family(config: Mapping[str, Any]) -> None:
    inner = (value for value in config.values() if isinstance(value, dict))
    for each in (config, *inner):
        model_type = each.get("model_type")
        if isinstance(model_type, str) and model_type.startswith("mimo_v2"):
            raise BadInput(
                "its queries, keys and values are quantised in parts that tensors don't show",
                file=CONFIG,
                found=f"model_type {model_type!r}",
                fix="compress a BF16 checkpoint of it: decoded by these scales alone, values would "
                "be wrong by factors",
            )


def _without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's content without what tells of the source's quantisation, at any depth."""
    return {
        key: _without_quantization(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not is_left_out(key, value)
    }


def _formats(tensors: Iterable[Located]) -> Counter[str]:
    """Count the tensors of each format, told in words, the most frequent first."""
    words = Counter(_format(tensor) for tensor in tensors)
    return Counter(dict(words.most_common()))


def _format(tensor: Located) -> str:
    assert tensor.pieces
    encoding = tensor.pieces.encoding
    rows, columns = encoding.block
    shape = (1, *tensor.info.shape)
    if (rows, columns) == shape[-2:]:
        return f"{encoding.label} with a scale for each tensor"
    if (rows, columns) == (1, shape[-1]):
        return f"{encoding.label} with a scale for each row"
    if rows == 1:
        return f"{encoding.label} in groups of {columns}"
    return f"{encoding.label} in blocks of {rows} x {columns}"


def _notices(
    formats: Mapping[str, int], n_consumed: int, tensors: Iterable[Located]
) -> Iterator[str]:
    found = ", ".join(f"{form} ({counted(n, 'tensor')})" for form, n in formats.items())
    left = f"{counted(n_consumed, 'tensor')} of scales, zero points and shapes"
    yield f"the source is quantised: {found}; left behind: {left}"
    if any(t.pieces and t.pieces.encoding.bits < 8 for t in tensors):
        yield (
            "weights of fewer than 8 bits are coded again: a second loss, for a gain of about a "
            "quarter; a checkpoint of more bits gives a better model of the same size"
        )
