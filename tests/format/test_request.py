"""Options that go together, and options that do not."""

from __future__ import annotations

from typing import Any

import pytest

from tq3.errors import UsageError
from tq3.format.command_line import command_options
from tq3.format.config import recipe_record
from tq3.format.recipe import Recipe
from tq3.format.request import make_recipe
from tq3.format.widths import load_widths


def test_without_options_it_is_the_recipe_without_options():
    assert make_recipe() == Recipe()


def test_a_text_is_one_glob_and_a_list_several():
    recipe = make_recipe(keep="*.x", only=["a", "b"], sensitive_bits=4, sensitive_patterns="v")
    assert (recipe.keep, recipe.only, recipe.sensitive_patterns) == (("*.x",), ("a", "b"), ("v",))


def test_other_options_are_the_recipes_own():
    recipe = make_recipe(group_size=64, nonfinite="keep", max_shard_size="1KiB", bits=4)
    assert recipe == Recipe(bits=4, group_size=64, nonfinite="keep", max_shard_bytes=1024)


def test_a_recipe_is_named():
    assert make_recipe(recipe="mixed").widths == load_widths("mixed")


def test_a_target_alone_asks_for_the_best_recipe():
    widths = make_recipe(target_size="13GiB").widths
    assert widths
    assert (widths.name, widths.targets) == ("best", {"target_size": 13 * 2**30})


def test_a_target_takes_the_place_of_the_recipes_own():
    widths = make_recipe(recipe="mixed", target_bpw=3.4).widths
    assert widths
    assert widths.targets == {"target_bpw": 3.4}


def test_head_and_embeddings_have_widths_beside_uniform_bits_and_beside_a_recipe():
    uniform = make_recipe(bits=2, lm_head=4).widths
    assert uniform
    assert (uniform.others, dict(uniform.roles)) == ((2,), {"lm_head": (4,)})
    mixed = make_recipe(recipe="best", embeddings=3).widths
    assert mixed
    assert mixed.choices("embeddings") == (3,)
    assert mixed.choices("router") == (None,)


CONFLICTS = {
    "bits and a recipe": ({"bits": 3, "recipe": "best"}, "leave --bits out"),
    "bits and a size": ({"bits": 3, "target_size": "1GiB"}, "leave --bits out"),
    "sensitive bits and a recipe": ({"sensitive_bits": 4, "recipe": "best"}, "--sensitive-bits"),
    "sensitive bits and a head": ({"sensitive_bits": 4, "lm_head": 4}, "--sensitive-bits"),
    "two targets": ({"target_size": 1, "target_bpw": 3.4}, "give one of them"),
    "a target of one width": ({"recipe": "native", "target_bpw": 3.4}, "nothing to choose"),
    "a head of 5 bits": ({"lm_head": 5}, "lm_head is 5"),
    "embeddings of 16 bits": ({"embeddings": 16}, "embeddings is 16"),
    "a size that is none": ({"target_size": "big"}, "not a size"),
}


@pytest.mark.parametrize(("options", "complaint"), CONFLICTS.values(), ids=CONFLICTS)
def test_options_that_contradict_each_other_are_refused_with_a_way_out(options, complaint):
    with pytest.raises(UsageError, match=complaint):
        make_recipe(**options)


KEPT_AS: list[tuple[dict[str, Any], str]] = [
    ({}, "float16"),
    ({"bits": 4, "equalize": True}, "float16"),
    ({"recipe": "native"}, "float16"),
    ({"recipe": "native", "keep_dtype": "source"}, "source"),
    ({"recipe": "mixed"}, "source"),
    ({"target_size": "13GiB"}, "source"),
    ({"lm_head": 4}, "source"),
    ({"recipe": "best", "keep_dtype": "float16"}, "float16"),
]


@pytest.mark.parametrize(("options", "kept_as"), KEPT_AS, ids=str)
def test_what_our_own_recipes_keep_has_the_sources_type_and_the_published_one_stores_f16(
    options, kept_as
):
    assert make_recipe(**options).keep_dtype == kept_as


def test_the_best_recipe_packs_head_and_embeddings_and_a_card_need_not_ask_for_it():
    best, other = make_recipe(recipe="best"), make_recipe(recipe="best", lm_head=3)
    assert best.widths is not None
    assert [best.widths.choices(role) for role in ("lm_head", "embeddings")] == [(4,), (4,)]
    assert list(command_options(recipe_record(best))) == ["--recipe", "best"]
    asked = ["--recipe", "best", "--lm-head", "3"]
    assert list(command_options(recipe_record(other))) == asked


@pytest.mark.parametrize(
    "options", [{"recipe": "best"}, {"target_size": 10**10}, {"target_bpw": 3}]
)
def test_the_best_has_half_size_norms_and_so_has_a_target_unless_told_otherwise(options):
    assert make_recipe(**options).norms == "float16"
    full = make_recipe(**options, norms="float32")
    assert full.norms == "float32"
    assert list(command_options(recipe_record(full)))[-2:] == ["--norms", "float32"]


@pytest.mark.parametrize("options", [{}, {"recipe": "mixed", "target_bpw": 3.4}, {"lm_head": 4}])
def test_other_recipes_leave_norms_as_published(options):
    assert make_recipe(**options).norms == "float32"


def test_an_empty_list_is_not_given():
    recipe = make_recipe(bits=2)
    assert make_recipe(recipe=recipe, keep=[], only=()) == recipe
