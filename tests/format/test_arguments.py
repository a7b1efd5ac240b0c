"""Every option of every function: of its type, or a UsageError that says which type it has."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
from support.factories import contents, tiny_checkpoint

import tq3
from tq3.errors import UsageError
from tq3.format.arguments import of_its_types
from tq3.format.options import RunOptions
from tq3.format.recipe import Recipe
from tq3.format.request import make_recipe
from tq3.hub.options import HubOptions

FUNCTIONS: tuple[Callable[..., Any], ...] = (
    *(tq3.compress, tq3.restore, tq3.verify, tq3.push, tq3.inspect, tq3.preview),
    *(tq3.save_tq3_checkpoint, tq3.compress_checkpoint, tq3.restore_checkpoint),
    *(tq3.verify_checkpoint, tq3.push_checkpoint, tq3.make_card, make_recipe),
)
# One of each kind of value that callers mistake for another.
VALUES = (
    *(None, True, 3, 3.0, 3.5, float("nan"), "3", b"3", Path("3"), ["3"], [3], {3}, {"a": 1}),
    *(object(), np.int64(3), np.float32(3), np.bool_(True), np.array([1, 2]), len, Recipe()),
)

# Where a call needs one; all else that it needs is a text.
SOUND = {"recipe": Recipe(), "may_share": len}


def takes(kind: Any, value: object) -> bool:
    """Whether a type takes a value, said in another way than the program does."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(takes(part, value) for part in get_args(kind))
    is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if kind in (int, float):
        return is_whole or (kind is float and isinstance(value, (float, np.floating)))
    if get_origin(kind) is Sequence:
        return isinstance(value, list) and value == ["3"]
    if get_origin(kind) is Literal:
        return (is_whole or isinstance(value, str)) and value in get_args(kind)
    if get_origin(kind) is Callable:
        return callable(value)
    return isinstance(value, get_origin(kind) or kind)


def options() -> list[tuple[Callable[..., Any], str]]:
    """Every option of every function."""
    return [
        (function, name)
        for function in FUNCTIONS
        for name in inspect.signature(function).parameters
    ]


@pytest.mark.parametrize(
    ("function", "name"), options(), ids=lambda value: getattr(value, "__name__", value)
)
def test_every_option_of_another_type_is_refused_by_its_name(function, name):
    parameters = inspect.signature(function).parameters
    kind = parameters[name].annotation
    required = {
        p.name: SOUND.get(p.name, "none") for p in parameters.values() if p.default is p.empty
    }
    for value in VALUES:
        if takes(kind, value):
            continue
        with pytest.raises(UsageError) as caught:
            function(**{**required, name: value})
        told = str(caught.value)
        assert told.startswith(f"{name} is "), told
        assert "(expected " in told


@pytest.mark.parametrize("settings", [Recipe, RunOptions, HubOptions])
def test_settings_check_every_field(settings):
    for field in fields(settings):
        with pytest.raises(UsageError, match=f"^{field.name} is "):
            settings(**{field.name: object()})


def test_numbers_of_numpy_are_numbers_and_collections_are_sequences(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    tq3.compress(
        source,
        tmp_path / "a",
        bits=np.int8(3),
        group_size=np.int64(64),
        workers=np.uint8(1),
        max_shard_size=np.int64(100_000),
        keep={"*o_proj*"},  # type: ignore[arg-type]
    )
    tq3.compress(
        source, tmp_path / "b", group_size=64, max_shard_size=100_000, keep=["*o_proj*"], workers=1
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert type(Recipe(bits=np.int64(4)).bits) is int


@pytest.mark.parametrize("bits", [3.0, "3", True, None])
def test_a_width_is_a_whole_number(bits):
    with pytest.raises(UsageError, match=r"^bits is .* \(expected one of 2, 3, 4\)"):
        Recipe(bits=bits)


def test_a_signature_shows_the_defaults_that_hold():
    for function in (tq3.compress, tq3.restore):
        parameters = inspect.signature(function).parameters
        for settings in (RunOptions(), HubOptions()):
            for name in {field.name for field in fields(settings)} & set(parameters):
                assert parameters[name].default == getattr(settings, name), name
    assert inspect.signature(tq3.compress).parameters["equalize"].default is Recipe().equalize
    assert inspect.signature(tq3.restore).parameters["dtype"].default == "bfloat16"


def test_what_is_expected_is_said_as_one_says_it():
    with pytest.raises(UsageError, match=r"expected a string, several strings or None\)$"):
        tq3.compress("in", "out", keep=3)  # type: ignore[arg-type]


def test_a_keyword_that_is_none_is_told_beside_the_nearest_one():
    with pytest.raises(TypeError, match=r"^compress\(\) got .* 'bit'; did you mean 'bits'\?$"):
        tq3.compress("in", "out", bit=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^compress\(\) missing .* 'out'$"):
        tq3.compress("in")  # type: ignore[call-arg]


def test_an_argument_that_is_not_there_is_a_type_error_as_in_python():
    @of_its_types
    def double(number: int) -> int:
        """Twice as much."""
        return 2 * number

    assert (double(4), double.__doc__) == (8, "Twice as much.")
    with pytest.raises(TypeError, match="unexpected keyword"):
        double(4, numbre=4)  # type: ignore[call-arg]
