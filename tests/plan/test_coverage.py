"""What is said where a plan compresses little of a model, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from support.plan.listings import checkpoint, qwen

from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint
from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.format.request import make_recipe
from tq3.plan.compressing import plan_compression
from tq3.plan.coverage import little_compressed, refuse_nothing
from tq3.plan.learned import NOTHING_LEARNED, Learned


def matrix(name: str, *shape: int) -> TensorInfo:
    """One of BF16."""
    return TensorInfo(name, "BF16", shape or (256, 256))


UP = matrix("model.layers.0.mlp.up_proj.weight")
TABLE = matrix("model.embed_tokens.weight", 4096, 256)
HEAD = matrix("lm_head.weight", 4096, 256)
ELSEWHERE = matrix("model.layers.0.mixture.fused", 8, 256, 256)
ODD = matrix("model.layers.0.odd", 512, 256)


def said(source: Checkpoint, learned: Learned = NOTHING_LEARNED, **recipe: Any) -> str | None:
    """The sentence of a plan of these tensors."""
    request = Recipe(**recipe)
    return little_compressed(plan_compression(source, request, learned), request, learned)


def refuse(source: Checkpoint, **recipe: Any) -> None:
    """Where there is nothing to compress."""
    request = Recipe(**recipe)
    refuse_nothing(plan_compression(source, request), request, "models/tiny")


def test_tables_and_heads_are_kept_by_promise_however_large_they_are():
    assert said(checkpoint(UP, TABLE, HEAD, matrix("model.norm.weight", 256))) is None
    assert said(qwen()) is None


def test_less_than_half_of_the_matrices_is_said_with_the_largest_reasons_and_tensors():
    text = said(checkpoint(UP, TABLE, ELSEWHERE, ODD))
    assert text is not None
    assert text.startswith("only 9% of the matrices' bytes are compressed: 1 tensor of 1.05 MB")
    assert "'model.layers.0.mixture.fused' (3-D, and tq3 knows no experts of this name" in text
    assert "'model.layers.0.odd' (its name does not end in .weight)" in text
    assert "embed_tokens" not in text


def test_half_of_them_is_enough():
    assert said(checkpoint(UP, matrix("odd", 256, 256))) is None
    assert said(checkpoint(UP, matrix("odd", 257, 256))) is not None


def test_only_the_three_largest_reasons_are_named():
    kinds = (ELSEWHERE, ODD, matrix("low.weight", 9000, 5), matrix("a.weight", 100, 100))
    text = said(checkpoint(UP, *kinds))
    assert text is not None
    assert text.count(" such as ") == 3
    assert "'a.weight'" not in text


@pytest.mark.parametrize(
    "recipe", [{"keep": ("*.1.*",)}, {"only": ("*.0.mlp*",)}, {"only": ("*.0.*",)}]
)
def test_what_the_user_keeps_is_not_held_against_the_plan(recipe):
    kept = matrix("model.layers.1.mlp.up_proj.weight", 4096, 256)
    assert said(checkpoint(UP, kept), **recipe) is None


EXPERTS = [
    matrix(f"model.layers.0.mlp.experts.{i}.{part}_proj.weight")
    for i in range(4)
    for part in ("gate", "up", "down")
]


def test_what_is_kept_with_what_the_user_keeps_was_not_asked_for():
    text = said(checkpoint(UP, *EXPERTS), keep=("*.experts.0.*",))
    assert text is not None
    assert text.startswith("only 10% of the matrices' bytes are compressed: ")
    assert "mlp.experts.1." in text
    assert "experts.0.gate_proj.weight'" not in text


def test_what_values_keep_is_counted_and_what_is_kept_with_it():
    learned = Learned({EXPERTS[0].name: "kept as it is: nan", EXPERTS[2].name: "kept as it is: x"})
    text = said(checkpoint(UP, *EXPERTS), learned)
    assert text is not None
    assert text.startswith("only 8% of the matrices' bytes are compressed: ")
    text = said(checkpoint(*EXPERTS), learned)
    assert text is not None
    assert text.startswith("nothing is compressed: ")


def test_what_the_user_keeps_and_its_values_too_was_asked_for():
    learned = Learned({"model.layers.1.mlp.up_proj.weight": "kept as it is: too large"})
    kept = matrix("model.layers.1.mlp.up_proj.weight", 4096, 256)
    assert said(checkpoint(UP, kept), learned, keep=("*.1.*",)) is None
    assert said(checkpoint(UP, kept), learned) is not None


def test_what_a_recipe_leaves_exact_is_not_held_against_the_plan(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[roles]\nothers = 3\ndown = "exact"\n')
    recipe = make_recipe(recipe=str(file))
    source = checkpoint(UP, matrix("model.layers.0.mlp.down_proj.weight", 4096, 256))
    assert little_compressed(plan_compression(source, recipe), recipe) is None


def test_nothing_at_all_is_refused_with_the_reasons():
    with pytest.raises(BadInput, match="nothing to compress") as caught:
        refuse(checkpoint(TABLE, ELSEWHERE))
    assert caught.value.file == "models/tiny"
    assert "knows no experts of this name" in str(caught.value.found)
    assert "token embedding" in str(caught.value.found)
    assert "tq3 inspect" in str(caught.value.fix)


def test_nothing_is_refused_where_the_chosen_ones_are_kept_with_those_that_are_not():
    with pytest.raises(BadInput, match="nothing to compress"):
        refuse(checkpoint(*EXPERTS), only=("*.experts.0.*",))


def test_nothing_but_what_the_user_keeps_is_said_and_not_refused():
    refuse(checkpoint(UP), keep=("*",))
    text = said(checkpoint(UP), keep=("*",))
    assert text is not None
    assert text.startswith("nothing is compressed: 1 tensor of 131.07 kB such as")
    assert "--keep" in text
