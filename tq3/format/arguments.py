"""Callers give what a signature says, or a UsageError says what it does: the one rule on types."""

from __future__ import annotations

import inspect
import operator
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from numbers import Real
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from tq3.errors import UsageError

P = ParamSpec("P")
Result = TypeVar("Result")
_WORDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    type(None): "None",
    os.PathLike: "a path",
    Sequence: "several texts",
    tuple: "a tuple of texts",
    Callable: "a function",
}


class _Unfit(Exception):
    """Not of this type."""


def of_its_types(function: Callable[P, Result]) -> Callable[P, Result]:
    """The function, which raises UsageError for an argument that is not of the type it is said to.

    Whole numbers of numpy or torch are taken for what they are, and any collection for a sequence.
    """
    signature = inspect.signature(function)

    @cache
    def kinds() -> dict[str, Any]:
        return get_type_hints(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Result:
        bound = signature.bind(*args, **kwargs)  # its TypeErrors are Python's own
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                is_option = parameter.default is not inspect.Parameter.empty
                shown = f"--{name.replace('_', '-')}" if is_option else name
                bound.arguments[name] = _as(kinds()[name], value, shown)
        return function(*bound.args, **bound.kwargs)

    return checked


def check_fields(settings: Any, **unresolved: object) -> None:
    """Raise UsageError for a field of a frozen dataclass that is not of the type it is said to be.

    unresolved: types that the module of the dataclass can't name
    """
    kinds = _field_types(settings.__class__, **unresolved)
    for field in fields(settings):
        value = getattr(settings, field.name)
        found = _as(kinds[field.name], value, f"--{field.name.replace('_', '-')}")
        if found is not value:
            object.__setattr__(settings, field.name, found)


@cache
def _field_types(dataclass: type, **unresolved: object) -> dict[str, Any]:
    return get_type_hints(dataclass, localns=unresolved)


def _as(kind: Any, value: Any, name: str) -> Any:
    members = _members(kind)
    if isinstance(value, str) and not value and os.PathLike in members:
        # To the system it is the current folder: a variable of a shell that nobody set.
        raise UsageError(f"{name} is empty", expected="a path")
    for member in members:
        try:
            return _FITS.get(member, _instance)(member, value)
        except _Unfit:
            continue
    expected = " or ".join(dict.fromkeys(_WORDS.get(one, str(one)) for one in members))
    raise UsageError(f"{name} is {value!r}", expected=expected)


def _members(kind: Any) -> list[Any]:
    """The types of a union, without what they hold."""
    if get_origin(kind) in (Union, types.UnionType):
        return [member for part in get_args(kind) for member in _members(part)]
    return [get_origin(kind) or kind]


def _anything(_: Any, value: Any) -> Any:
    return value


def _instance(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise _Unfit
    return value


def _flag(_: Any, value: Any) -> bool:
    if not isinstance(value, bool):  # a text such as "no" would be true
        raise _Unfit
    return value


def _whole(_: Any, value: Any) -> int:
    if isinstance(value, bool):
        raise _Unfit
    try:
        return operator.index(value)
    except TypeError:
        raise _Unfit from None


def _number(_: Any, value: Any) -> float:
    if hasattr(value, "__index__"):
        return _whole(int, value)
    if not isinstance(value, Real):
        raise _Unfit
    return float(value)


def _texts(_: Any, value: Any) -> tuple[str, ...]:
    is_collection = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
    texts = tuple(value) if is_collection else (None,)
    if not all(isinstance(text, str) for text in texts):
        raise _Unfit
    return texts


def _tuple_of_texts(_: Any, value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple):
        raise _Unfit
    return _texts(tuple, value)


def _function(_: Any, value: Any) -> Any:
    if not callable(value):
        raise _Unfit
    return value


_FITS: dict[object, Callable[[Any, Any], Any]] = {
    Any: _anything,
    bool: _flag,
    int: _whole,
    float: _number,
    Sequence: _texts,
    tuple: _tuple_of_texts,
    Callable: _function,
}
