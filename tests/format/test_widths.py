"""Recipes as files: those that come with tq3, and every fault that a user's own may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tq3.errors import BadInput, UsageError
from tq3.format.config import recipe_from_record, recipe_record
from tq3.format.recipe import Recipe
from tq3.format.widths import ROLES, Widths, load_widths, parse_widths, recipe_names


def written(folder: Path, text: str) -> str:
    """The path of a recipe file."""
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_three_recipes_come_along_and_each_is_sound():
    assert recipe_names() == ["best", "mixed", "native"]
    for name in recipe_names():
        widths = load_widths(name)
        widths.check()
        assert widths.name == name
        expected = (4,) if name == "best" else (None,)
        assert widths.choices("lm_head") == widths.choices("embeddings") == expected


def test_native_has_one_width():
    assert load_widths("native") == Widths("native", others=(3,))


def test_a_file_says_what_each_role_may_be(tmp_path):
    text = """
summary = "mine"
target_size = "13GiB"
split_qkv = false
[roles]
others = [3, "exact"]
down = 4
lm_head = [4, "exact"]
"""
    widths = load_widths(written(tmp_path, text))
    assert widths.name == "mine.toml"
    assert widths.choices("q") == (3, None)
    assert widths.choices("down") == (4,)
    assert widths.choices("lm_head") == (4, None)
    assert widths.choices("embeddings") == (None,)
    assert (widths.target_bytes, widths.target_bpw) == (13 * 2**30, None)
    assert not widths.split_qkv


def test_the_file_that_the_docs_show_is_a_recipe(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    widths = load_widths(written(tmp_path, text.partition("```toml\n")[2].partition("```")[0]))
    widths.check()
    assert widths.choices("lm_head") == (4,)


def test_the_docs_name_every_role_and_every_recipe():
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    assert all(f"`{name}`" in text for name in (*ROLES, *recipe_names()))


FAULTS = {
    "no TOML": ("[roles", "not TOML"),
    "a key twice": ("[roles]\nq = 3\nq = 4\n", "not TOML"),
    "nested without end": ("a = " + "[" * 100_000, "not TOML"),
    "a number without end": ("a = " + "9" * 10_000, "not TOML"),
    "an unknown key": ("bits = 3\n[roles]\nothers = 3\n", "unknown key 'bits'"),
    "a table that is none": ("roles = 3\n", "roles.*found 3, expected a table"),
    "no roles": ("", "roles.others is missing"),
    "no others": ("[roles]\nq = 3\n", "roles.others is missing"),
    "an unknown role": ("[roles]\nothers = 3\nv_proj = 4\n", "no role 'v_proj'.*expected.*gate_up"),
    "a width of no code": ("[roles]\nothers = 5\n", "roles.others.*found 5, expected 2, 3, 4 or"),
    "a width that is true": ("[roles]\nothers = true\n", "roles.others.*found True"),
    "a width with a point": ("[roles]\nothers = 3.0\n", "roles.others"),
    "another word": ('[roles]\nothers = "fp16"\n', "roles.others.*fp16"),
    "no choice": ("[roles]\nothers = []\n", "roles.others"),
    "a choice twice": ("[roles]\nothers = [3, 3]\n", "roles.others"),
    "a list in a list": ("[roles]\nothers = [[3]]\n", "roles.others"),
    "a target that is a text": (
        'target_bpw = "3"\n[roles]\nothers = [3, 4]\n',
        "target_bpw.*number",
    ),
    "a target without end": (
        "target_width = " + "9" * 400 + "\n[roles]\nothers = [3, 4]\n",
        "target_width.*found 99999.*at most 32",
    ),
    "a target that is no number": (
        "target_bpw = nan\n[roles]\nothers = [3, 4]\n",
        "target_bpw.*found nan.*above 0",
    ),
    "a size that is none": (
        'target_size = "big"\n[roles]\nothers = [3, 4]\n',
        "target_size.*13GiB|5GiB",
    ),
    "a size that is a list": ("target_size = []\n[roles]\nothers = [3, 4]\n", "target_size"),
    "a width and bits": (
        "target_width = 3\ntarget_bpw = 3.5\n[roles]\nothers = [3, 4]\n",
        "target_bpw and target_width.*expected one of them",
    ),
    "two targets": (
        "target_size = 9\ntarget_bpw = 3.5\n[roles]\nothers = [3, 4]\n",
        "target_size and target_bpw.*expected one of them",
    ),
    "a size that is a number with a point": (
        "target_size = 1.5\n[roles]\nothers = [3, 4]\n",
        "target_size.*found 1.5, expected a size",
    ),
    "a summary that is none": ("summary = 5\n[roles]\nothers = 3\n", "summary.*found 5.*a text"),
    "norms of another type": (
        'norms = "bfloat16"\n[roles]\nothers = 3\n',
        "norms.*found 'bfloat16', expected float32 or float16",
    ),
    "a split that is a number": (
        "split_qkv = 1\n[roles]\nothers = 3\n",
        "split_qkv.*true or false",
    ),
    "q and v apart": ("split_qkv = false\n[roles]\nothers = 3\nv = 4\n", "split_qkv is false"),
}


@pytest.mark.parametrize(("text", "complaint"), FAULTS.values(), ids=FAULTS)
def test_every_fault_of_a_file_is_named_with_the_file(tmp_path, text, complaint):
    path = written(tmp_path, text)
    with pytest.raises(BadInput, match=complaint) as caught:
        load_widths(path)
    assert caught.value.file == path


def test_the_ending_may_be_in_capitals_and_the_file_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "MINE.TOML"
    path.write_text("\N{BYTE ORDER MARK}[roles]\r\nothers = 4\r\n", "utf-8")
    assert load_widths(str(path)) == Widths("MINE.TOML", (4,))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        load_widths(str(tmp_path / "x.toml"))
    (tmp_path / "x.toml").write_text("[roles]\nothers = 4\n", "utf-16")
    with pytest.raises(BadInput, match="not UTF-8.*save it as UTF-8"):
        load_widths(str(tmp_path / "x.toml"))


@pytest.mark.parametrize("recipe", ["none", "sensitivities", "../native", "", "missing.toml", "."])
def test_what_is_no_recipe_is_refused_with_the_names_of_those_that_are(recipe):
    with pytest.raises(UsageError, match="best, mixed, native"):
        load_widths(recipe)


INCOMPLETE = {
    "choices without a target": (Widths("x", (3, 4)), "leaves widths open"),
    "a target without choices": (Widths("x", (3,), target_bpw=3.5), "nothing to choose"),
    "no bits": (Widths("x", (3, 4), target_bpw=0.0), "a target of 0.0"),
    "no width": (Widths("x", (3, 4), target_width=-1.0), "a target of -1.0"),
    "not a number": (Widths("x", (3, 4), target_bpw=float("nan")), "a target of nan"),
}


@pytest.mark.parametrize(("widths", "complaint"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_a_recipe_refuses_widths_that_decide_nothing(widths, complaint):
    with pytest.raises(UsageError, match=complaint):
        Recipe(widths=widths)


@pytest.mark.parametrize(
    "widths",
    [
        load_widths("best"),
        Widths("a", (3,), {"down": (4,), "router": (None,)}, split_qkv=False),
        Widths("b", (2, None), {"lm_head": (4,)}, target_bytes=5),
    ],
)
def test_a_record_gives_the_same_widths_again(widths):
    recipe = Recipe(widths=widths)
    assert recipe_from_record(recipe_record(recipe)) == recipe


ENDLESS = {"roles": {"others": [3, 4]}, "target_width": 10**400}


@pytest.mark.parametrize("widths", [5, [], "best", {"roles": {"others": 9}}, {"name": 5}, ENDLESS])
def test_a_record_that_is_none_is_refused(widths):
    with pytest.raises(BadInput, match=r"tq3.recipe is not a recipe: .*; compress again") as caught:
        recipe_from_record({"widths": widths})
    assert "docs/recipes.md" not in str(caught.value)  # that is for who writes a recipe


def test_every_role_can_be_named():
    raw = {"roles": dict.fromkeys((*ROLES, "others"), 4)}
    assert set(parse_widths(raw, "x", "x.toml").roles) == set(ROLES)
