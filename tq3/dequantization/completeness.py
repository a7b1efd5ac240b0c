"""Whether each quantised weight has all that makes it, and nothing else that would change it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tq3.dequantization.layouts import LAYOUTS, NOT_ALONE, OF_NO_WEIGHT, Match
from tq3.errors import BadInput
from tq3.format.checkpoint import Located
from tq3.format.header import FLOATS_8

MADE_FROM = "compress the checkpoint that it was made from"
_FETCH = "fetch the checkpoint again: without it a weight can't be known"
# What stands at the end of the names of codes, and of no other tensors that lie with them.
_CODES = ("_blocks", ".weight_packed", ".weight", "")
_NAMED = _CODES[:2]


def check_complete(tensors: Mapping[str, Located], matches: Iterable[Match]) -> None:
    """Raise BadInput for a weight that lacks a part or has one too many, and for a part alone."""
    matches = list(matches)
    codes = {found.codes.info.name for found in matches}
    scales = {found.scales.info.name for found in matches}
    _check_alone(tensors, matches)
    for name, tensor in tensors.items():
        if name not in codes | scales:
            _check_codes(tensor, tensors)
    for name, tensor in tensors.items():
        if tensor.info.dtype in FLOATS_8 and name not in codes | scales:
            raise BadInput(
                "8-bit floats without a scale"
                if tensor.info.dtype == "F8_E4M3"
                else "unknown codes",
                file=tensor.file,
                tensor=name,
                found=told(tensor),
                expected="F8_E4M3 with a scale beside it, such as weight_scale_inv",
                fix="fetch the checkpoint again: without its scale a weight can't be known",
            )
        if name not in scales:
            _check_part(tensor, tensors, codes)


def _check_alone(tensors: Mapping[str, Located], matches: Iterable[Match]) -> None:
    """Raise BadInput for weights that need more than their codes and scales, or have two scales."""
    for found in matches:
        for ending, what in NOT_ALONE.items():
            other = tensors.get(found.stem + ending)
            if other and ending != found.layout.zero_points:
                raise BadInput(
                    f"{what} can't be decoded",
                    file=other.file,
                    tensor=other.info.name,
                    found=told(other),
                    expected="codes and scales alone",
                    fix=MADE_FROM,
                )
        for ending in found.layout.scales:
            other = tensors.get(found.stem + ending)
            # A plain "scale" may be a parameter of its own.
            if other and other.info.name != found.scales.info.name and ending != ".scale":
                raise BadInput(
                    "two scales for one weight",
                    file=other.file,
                    tensor=other.info.name,
                    found=f"{told(other)}, and {found.scales.info.name!r} "
                    f"{told(found.scales)} in {found.scales.file}",
                    expected="one of them",
                    fix="fetch the checkpoint again, or take the wrong one out of it",
                )


def _check_codes(tensor: Located, tensors: Mapping[str, Located]) -> None:
    """Raise BadInput for what must be codes, where a scale is missing or is none that is read."""
    name, dtype = tensor.info.name, tensor.info.dtype
    ending = next(each for each in _CODES if name.endswith(each))
    stem = name.removesuffix(ending)
    layouts = [each for each in LAYOUTS if each.codes == ending]
    fitting = [each for each in layouts if dtype in each.dtypes]
    endings = dict.fromkeys(end for each in fitting or layouts for end in each.scales)
    scale = next((tensors[stem + end] for end in endings if stem + end in tensors), None)
    if dtype in FLOATS_8 and scale and not fitting:
        raise BadInput(
            "8-bit floats of a type that can't be decoded",
            file=tensor.file,
            tensor=name,
            found=f"{told(tensor)} with {scale.info.name!r} {told(scale)}",
            expected="F8_E4M3",
            fix=MADE_FROM,
        )
    if not fitting or len(tensor.info.shape) < 2:
        return
    if not scale:
        of_two = [
            each for each in fitting if each.global_scale and stem + each.global_scale in tensors
        ]
        if of_two or ending in _NAMED:
            named = dict.fromkeys(stem + end for each in of_two or fitting for end in each.scales)
            raise _lacks("codes without their scales", tensor, list(named))
        return
    of_scale = [each for each in fitting if scale.info.name.removeprefix(stem) in each.scales]
    readable = dict.fromkeys(kind for each in of_scale for kind in each.scale_dtypes)
    if scale.info.dtype not in readable:
        raise BadInput(
            "a scale of a type that can't be decoded",
            file=scale.file,
            tensor=scale.info.name,
            found=f"{told(scale)}, of {name!r} {told(tensor)}",
            expected=" or ".join(readable),
            fix=MADE_FROM,
        )
    if whole := [stem + each.global_scale for each in of_scale if each.global_scale]:
        raise _lacks("NVFP4 without its global scale", tensor, whole)


def _check_part(tensor: Located, tensors: Mapping[str, Located], codes: set[str]) -> None:
    """Raise BadInput for what belongs to codes that are not there."""
    name = tensor.info.name
    for ending, (what, weights) in OF_NO_WEIGHT.items():
        stem = name.removesuffix(ending)
        owners = [stem + weight for weight in weights]
        if stem == name or not codes.isdisjoint(owners):
            continue
        if ending == "_scales" and tensor.info.dtype not in ("U8", "F8_E8M0"):
            continue
        other = next((tensors[owner] for owner in owners if owner in tensors), None)
        missing = " or ".join(map(repr, owners))
        raise BadInput(
            f"{what}, but its weight is not quantised" if other else f"{what} without its weight",
            file=tensor.file,
            tensor=name,
            found=f"{told(other)} in {other.info.name!r}" if other else f"no tensor {missing}",
            expected="both, or none of them",
            fix=f"fetch the checkpoint again, or take {what.replace('a ', 'the ', 1)} out of it",
        )


def check_names(
    virtual: Mapping[str, Located], tensors: Mapping[str, Located], consumed: set[str]
) -> None:
    """Raise BadInput where decoded weights, by the names of their codes, take others' names."""
    for codes, tensor in virtual.items():
        name = tensor.info.name
        other = tensors.get(name)
        if name != codes and other and name not in consumed:
            raise BadInput(
                "there twice: quantised and as it is",
                file=other.file,
                tensor=name,
                found=f"{codes!r} in {tensor.file}, too",
                expected="one of them",
                fix="fetch the checkpoint again, or take the wrong one out of it",
            )
    for name in sorted(consumed & virtual.keys()):
        raise BadInput(
            "codes of one weight, and scales of another one",
            file=tensors[name].file,
            tensor=name,
            found=told(tensors[name]),
            expected="one of both",
            fix="fetch the checkpoint again",
        )


def _lacks(what: str, codes: Located, names: list[str]) -> BadInput:
    named = " or ".join(map(repr, names))
    return BadInput(
        what,
        file=codes.file,
        tensor=codes.info.name,
        found=f"{told(codes)}, no tensor {named}",
        expected=named,
        fix=_FETCH,
    )


def told(tensor: Located) -> str:
    """A tensor's dtype and shape, as messages show them."""
    return f"{tensor.info.dtype} {list(tensor.info.shape)}"
