"""The recipe is checked where it enters; sizes are read as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.errors import UsageError
from tq3.format.recipe import Recipe
from tq3.format.sizes import parse_size

SIZES = {
    "5GiB": 5 * 2**30,
    "5 GiB": 5 * 2**30,
    "5gib": 5 * 2**30,
    "1.5KiB": 1536,
    "500 MB": 500_000_000,
    "2kb": 2000,
    "1TB": 10**12,
    "1TiB": 2**40,
    "7": 7,
    "7B": 7,
    " 7 ": 7,
    "0.1KB": 100,
    1000: 1000,
    0: 0,
}


@pytest.mark.parametrize(("text", "n_bytes"), SIZES.items())
def test_a_size_is_a_number_and_a_unit(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "5 apples", "5GiBB", "-1", "1e9", "5,000", "1.GB", "0x10", "5 G iB", "nan"]
)
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="not a size") as caught:
        parse_size(text)
    assert "5GiB" in str(caught.value)


def test_a_size_beyond_any_number_is_refused_too():
    with pytest.raises(UsageError):
        parse_size("9" * 400)


@given(number=st.integers(0, 10**18 - 1))
def test_a_plain_number_of_bytes_is_exact(number):
    assert parse_size(number) == number
    assert parse_size(str(number)) == number


BAD = {
    "bits": (1, 5, 8, "3"),
    "group_size": (0, 100, 512),
    "keep_dtype": ("bfloat16", "", None),
    "sensitive_bits": (0, 5, 8),
    "max_shard_bytes": (0, -1),
    "nonfinite": ("ignore", True),
    "scale": ("best", None),
    "norms": ("float64", "F16"),
    "keep": ("*.weight", ["*.weight"], (5,)),
    "only": ("*.weight",),
}


@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_recipe_refuses_what_it_cannot_do_and_names_the_option(option, value):
    flag = option.replace("_bytes", "-size").replace("_", "-")
    with pytest.raises(UsageError, match=rf"^({option}|--{flag}) is "):
        Recipe(**{option: value})


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
def test_every_width_and_group_of_the_format_is_a_recipe(bits, group_size):
    recipe = Recipe(bits=bits, group_size=group_size)
    assert (recipe.bits, recipe.group_size) == (bits, group_size)


def test_a_recipe_cannot_be_changed():
    with pytest.raises(AttributeError):
        Recipe().bits = 4  # type: ignore[misc]


def test_without_sensitive_bits_every_name_has_the_same_width():
    assert Recipe(bits=2).bits_for("layers.0.self_attn.o_proj.weight") == 2


def test_sensitive_bits_go_to_names_that_contain_a_pattern():
    recipe = Recipe(bits=3, sensitive_bits=4)
    assert recipe.bits_for("layers.0.self_attn.o_proj.weight") == 4
    assert recipe.bits_for("layers.0.mlp.experts.down_proj") == 4
    assert recipe.bits_for("layers.0.mlp.up_proj.weight") == 3
    own = Recipe(bits=3, sensitive_bits=2, sensitive_patterns=("layers.0.",))
    assert own.bits_for("layers.0.mlp.up_proj.weight") == 2
    assert own.bits_for("layers.10.self_attn.o_proj.weight") == 3
