"""Parts of config.json that tell how weights are quantised, held against what they may be.

What can't be read is refused: ignored, it would be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tq3.errors import BadInput
from tq3.plan.quantised import says_nothing

_OBJECTS = ("quantization_config", "compression_config")
_TYPES = ("int", "float")
_STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group", "token", "attn_head")
# "weight" orders columns while codes are chosen, and stores them as without it.
_ORDERS = {"group": True, "dynamic": True, "weight": False, "static": False}
_PAIR = re.compile(r"(\d{1,9})x(\d{1,9})")


class Weights(NamedTuple):
    """How one of config_groups stores its weights; None where it does not say.

    block: rows and columns that share a scale, of strategy "block"
    is_reordered: columns of one group are no neighbours
    targets: the modules that it is meant for
    """

    type: str | None
    bits: int | None
    strategy: str | None
    group: int | None
    block: tuple[int, int] | None
    is_symmetric: bool
    is_reordered: bool
    targets: tuple[str, ...]


def check_objects(file: str, config: Mapping[str, Any]) -> None:
    """Raise BadInput where a key that tells of a quantisation has no object, at any depth."""
    for key, value in config.items():
        if key in _OBJECTS and not says_nothing(value):
            _check(isinstance(value, dict), file, key, value, "an object")
        elif isinstance(value, dict):
            check_objects(file, value)


def block_size(file: str, value: object) -> tuple[int, int] | None:
    """The rows and columns of weight_block_size; None for null. Raises BadInput."""
    if value is None:
        return None
    return _pair(file, "weight_block_size", value)


def groups(file: str, value: Mapping[str, Any]) -> Iterator[Weights]:
    """What each of config_groups says of weights. Raises BadInput."""
    of_all = value.get("config_groups")
    if of_all is None:
        return
    _check(isinstance(of_all, dict), file, "config_groups", of_all, "an object")
    for name, group in of_all.items():
        _check(isinstance(group, dict), file, name, group, "an object")
        weights, targets = group.get("weights"), group.get("targets")
        are_named = isinstance(targets, list) and all(isinstance(each, str) for each in targets)
        _check(targets is None or are_named, file, "targets", targets, "a list of names")
        if weights is not None:
            _check(isinstance(weights, dict), file, "weights", weights, "an object")
            yield _weights(file, weights, tuple(targets or ()))


def _weights(file: str, weights: Mapping[str, Any], targets: tuple[str, ...]) -> Weights:
    bits, group = weights.get("num_bits"), weights.get("group_size")
    symmetric = weights.get("symmetric")
    strategy = _word(file, "strategy", weights, _STRATEGIES)
    _check(bits is None or _is_size(bits), file, "num_bits", bits, "a whole number")
    _check(symmetric is None or isinstance(symmetric, bool), file, "symmetric", symmetric, "a bool")
    if strategy in ("group", "tensor_group") or group not in (None, 0, -1):
        _check(_is_size(group), file, "group_size", group, "a number of columns")
    block = weights.get("block_structure")
    if strategy == "block" or block is not None:
        block = _pair(file, "block_structure", block)
    order = weights.get("actorder")
    if isinstance(order, bool):
        order = "group" if order else None
    else:
        order = _word(file, "actorder", weights, tuple(_ORDERS))
    return Weights(
        type=_word(file, "type", weights, _TYPES),
        bits=bits,
        strategy=strategy,
        group=group if _is_size(group) else None,
        block=block,
        is_symmetric=symmetric is not False,
        is_reordered=order is not None and _ORDERS[order],
        targets=targets,
    )


def _word(file: str, key: str, weights: Mapping[str, Any], words: tuple[str, ...]) -> str | None:
    value = weights.get(key)
    if value is None:
        return None
    is_known = isinstance(value, str) and value.lower() in words
    _check(is_known, file, key, value, " or ".join(words))
    return str(value).lower()


def _pair(file: str, key: str, value: object) -> tuple[int, int]:
    if isinstance(value, str) and (told := _PAIR.fullmatch(value)) and key == "block_structure":
        value = [int(each) for each in told.groups()]
    if isinstance(value, list) and len(value) == 2 and all(map(_is_size, value)):
        return value[0], value[1]
    raise _unreadable(file, key, value, "rows and columns, such as [128, 128]")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31


def _check(is_readable: bool, file: str, key: str, value: object, expected: str) -> None:
    if not is_readable:
        raise _unreadable(file, key, value, expected)


def _unreadable(file: str, key: str, value: object, expected: str) -> BadInput:
    told = repr(value)
    return BadInput(
        "what it says of the quantisation can't be read",
        file=file,
        found=f"{key} {told if len(told) < 100 else told[:100] + '...'}",
        expected=expected,
        fix=f"get {file} of the revision that the weights are from",
    )
