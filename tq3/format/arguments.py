"""Callers give what a signature says, or a UsageError says what it does: the one rule on types."""

from __future__ import annotations

import inspect
import operator
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache, wraps
from numbers import Real
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from tq3.errors import UsageError

if sys.version_info >= (3, 11):
    from typing import Unpack as Unpack  # noqa: PLC0414  for all who take keywords
else:
    from typing_extensions import Unpack as Unpack  # noqa: PLC0414

P = ParamSpec("P")
Result = TypeVar("Result")
Kind = TypeVar("Kind")
_PAIR = tuple[int, int]
_WORDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "True or False",
    type(None): "None",
    os.PathLike: "a path",
    Sequence: "several strings",
    tuple: "a tuple of strings",
    _PAIR: "two whole numbers",
    Callable: "a function",
}


class _Unfit(Exception):
    """Not of this type."""


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function, its `**options: Unpack[TypedDict]` taken apart into keywords.

    Their default is None, or for those that can't be None what their `Option` says, or False. It is
    for readers: what is not given is not passed.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            parameters.append(parameter.replace(annotation=kind))
            continue
        (keywords,) = get_args(kind)
        parameters += [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_default(each),
                annotation=each,
            )
            for name, each in get_type_hints(keywords, include_extras=True).items()
        ]
    return inspect.Signature(parameters, return_annotation=hints["return"])


def of_its_types(function: Callable[P, Result]) -> Callable[P, Result]:
    """The function, which raises UsageError for an argument that is not of the type it is said to.

    Whole numbers of numpy or torch are taken for what they are, and any collection for a sequence.
    """
    full = signature_of(function)
    parameters = [p.replace(annotation=_bare(p.annotation)) for p in full.parameters.values()]
    signature = full.replace(parameters=parameters)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            hint = _nearest(kwargs, signature.parameters)
            raise TypeError(f"{function.__name__}() {error}{hint}") from None
        for name, value in bound.arguments.items():
            bound.arguments[name] = _as(signature.parameters[name].annotation, value, name)
        return function(*bound.args, **bound.kwargs)

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked


def check_fields(settings: Any) -> None:
    """Raise UsageError for a field of a frozen dataclass that is not of its type."""
    kinds = _field_types(settings.__class__)
    for field in fields(settings):
        value = getattr(settings, field.name)
        found = _as(kinds[field.name], value, field.name)
        if found is not value:
            object.__setattr__(settings, field.name, found)


def several(texts: str | Sequence[str] | None) -> tuple[str, ...]:
    """A tuple of the texts of an option that may be given once, often or not at all."""
    return (texts,) if isinstance(texts, str) else tuple(texts or ())


def only(kind: type[Kind], options: Mapping[str, Any]) -> Kind:
    """The part of the options that are keywords of `kind`, a TypedDict."""
    names = get_type_hints(kind)
    return kind(**{name: value for name, value in options.items() if name in names})


@cache
def _field_types(dataclass: type) -> dict[str, Any]:
    return get_type_hints(dataclass)


def _default(kind: Any) -> Any:
    """The default of a keyword of this type, as its function's signature shows it."""
    if type(None) in members(_bare(kind)):
        return None
    shapes = getattr(kind, "__metadata__", ())
    return next((one.default for one in shapes if one.default is not None), False)


def _nearest(given: Iterable[str], known: Iterable[str]) -> str:
    """The end of a sentence on a keyword that is none: the one that was meant, where it is near."""
    names = list(known)
    wrong = next((name for name in given if name not in names), "")
    return "".join(f"; did you mean {near!r}?" for near in get_close_matches(wrong, names, 1))


def _bare(kind: Any) -> Any:
    """A type without what `Annotated` adds to it."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _as(kind: Any, value: Any, name: str) -> Any:
    kinds = members(kind)
    if isinstance(value, str) and not value and os.PathLike in kinds:
        # To the system it is the current folder: a variable of a shell that nobody set.
        raise UsageError(f"{name} is empty", expected="a path")
    for member in kinds:
        fit = _choice if get_origin(member) is Literal else _FITS.get(member, _instance)
        try:
            return fit(member, value)
        except _Unfit:
            continue
    *first, last = dict.fromkeys(map(_expected, kinds))
    expected = f"{', '.join(first)} or {last}" if first else last
    raise UsageError(f"{name} is {value!r}", expected=expected)


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return _WORDS.get(kind) or f"a {kind.__name__}"


def members(kind: Any) -> list[Any]:
    """The types of a union, without what they hold: not so a Literal, and a pair of numbers."""
    if get_origin(kind) in (Union, types.UnionType):
        return [member for part in get_args(kind) for member in members(part)]
    if get_origin(kind) is Literal or kind == _PAIR:
        return [kind]
    return [get_origin(kind) or kind]


def _anything(_: Any, value: Any) -> Any:
    return value


def _instance(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise _Unfit
    return value


def _choice(kind: Any, value: Any) -> Any:
    choices = get_args(kind)
    found = _whole(int, value) if isinstance(choices[0], int) else _instance(str, value)
    if found not in choices:
        raise _Unfit
    return found


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


def _pair(_: Any, value: Any) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise _Unfit
    return tuple(_whole(int, each) for each in value)


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
    _PAIR: _pair,
    Callable: _function,
}
