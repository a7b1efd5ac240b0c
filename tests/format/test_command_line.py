"""A run that can't be continued says which option is another one, as it was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tq3.format.command_line import option_changes
from tq3.format.config import recipe_record
from tq3.format.request import make_recipe


def asked(**options: Any) -> Any:
    """What a journal keeps of such a request."""
    return json.loads(json.dumps(recipe_record(make_recipe(**options))))


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "recipe": (
        {"recipe": "mixed"},
        {"recipe": "best"},
        ["--recipe mixed became --recipe best"],
    ),
    "a recipe for bits": (
        {"bits": 4},
        {"recipe": "best"},
        ["--bits 4 became --recipe best"],
    ),
    "bits": (
        {"bits": 3, "lm_head": 4},
        {"bits": 4, "lm_head": 4},
        ["--bits 3 became --bits 4"],
    ),
    "size": (
        {"target_size": "13GiB"},
        {"target_size": "14GiB"},
        ["--target-size 13GiB became --target-size 14GiB"],
    ),
    "bits a weight": (
        {"recipe": "mixed", "target_bpw": 3.5},
        {"recipe": "mixed", "target_bpw": 3.4},
        ["--target-bpw 3.5 became --target-bpw 3.4"],
    ),
    "another kind of target": (
        {"target_bpw": 3.5},
        {"target_size": 10**9},
        ["--target-bpw 3.5 became no --target-bpw", "no --target-size became --target-size 1GB"],
    ),
    "the target of a file": (
        {"recipe": "mixed"},
        {"recipe": "mixed", "target_bpw": 3.5},
        ["target_width 3.25 became no target_width", "no --target-bpw became --target-bpw 3.5"],
    ),
    "head": ({}, {"lm_head": 4}, ["no --lm-head became --lm-head 4"]),
    "embeddings": (
        {"recipe": "best", "embeddings": 3},
        {"recipe": "best"},
        ["--embeddings 3 became --embeddings 4"],
    ),
    "several": (
        {"bits": 2, "keep": ["a.*", "b.*"]},
        {"bits": 2, "keep": "a.*", "norms": "float16"},
        ["--keep a.* --keep b.* became --keep a.*", "--norms float32 became --norms float16"],
    ),
    "nothing": ({"recipe": "best"}, {"recipe": "best"}, []),
}


@pytest.mark.parametrize(("old", "new", "told"), CHANGES.values(), ids=CHANGES)
def test_what_changed_is_told_in_the_words_of_the_command_line(old, new, told):
    assert [*option_changes(asked(**old), asked(**new))] == told


def test_an_edited_recipe_file_is_told_by_role(tmp_path):
    def of_file(text: str) -> Any:
        path = Path(tmp_path / "mine.toml")
        path.write_text(text)
        return asked(recipe=str(path))

    old = of_file("target_width = 3.5\n[roles]\nothers = [3, 4]\nrouter = 'exact'\n")
    new = of_file("target_width = 3.5\nsplit_qkv = false\n[roles]\nothers = [2, 3]\nlm_head = 4\n")
    assert [*option_changes(old, new)] == [
        "split_qkv true became split_qkv false",
        "roles.others 3, 4 became roles.others 2, 3",
        "roles.router exact became no roles.router",
        "no --lm-head became --lm-head 4",
    ]


def test_options_of_restore_are_told_the_same_way():
    old = {"dtype": "bfloat16", "max_shard_bytes": 5 * 2**30}
    assert [*option_changes(old, {**old, "dtype": "float32"})] == [
        "--dtype bfloat16 became --dtype float32"
    ]
