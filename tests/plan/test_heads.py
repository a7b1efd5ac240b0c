"""Output heads by other names than tq3 knows, and a width asked for a head that may be a table."""

from __future__ import annotations

from typing import Any

import pytest
from support.plan.listings import checkpoint

from tq3.errors import UsageError
from tq3.format.header import TensorInfo
from tq3.format.request import make_recipe
from tq3.plan.compressing import plan_compression
from tq3.plan.heads import AS_A_HEAD

TABLE = TensorInfo("model.tok_embeddings.weight", "BF16", (512, 256))
LAYER = TensorInfo("model.layers.0.mlp.up_proj.weight", "BF16", (512, 256))
UNKNOWN = TensorInfo("model.to_words.weight", "BF16", (512, 256))
CONNECTOR = TensorInfo("connector.weight", "BF16", (256, 512))


def packed(*infos: TensorInfo, config: dict[str, Any] | None = None, **options: Any):
    plan = plan_compression(checkpoint(*infos, config=config), make_recipe(**options))
    return {task.name: task.layout.bits for task in plan.tasks if task.layout}, plan


def test_a_matrix_outside_of_layers_that_is_as_large_as_the_token_table_is_the_head():
    widths, plan = packed(TABLE, LAYER, UNKNOWN, CONNECTOR)
    assert widths == {LAYER.name: 3, CONNECTOR.name: 3}
    assert {task.name: task.reason for task in plan.tasks}[UNKNOWN.name] == AS_A_HEAD


def test_only_takes_what_it_names():
    assert packed(TABLE, LAYER, UNKNOWN, only="*to_words*")[0] == {UNKNOWN.name: 3}


def test_a_width_for_the_head_is_the_tables_where_the_table_is_the_head():
    tied = {"tie_word_embeddings": True}
    assert packed(TABLE, LAYER, config=tied, lm_head=4)[0] == {TABLE.name: 4, LAYER.name: 3}


@pytest.mark.parametrize(
    "config",
    [{"tie_word_embeddings": False}, {"text_config": {"tie_word_embeddings": False}}],
    ids=["at the top", "of the text model"],
)
def test_a_width_for_a_head_that_nobody_knows_is_refused_where_the_table_is_none(config):
    with pytest.raises(UsageError, match="knows no output head in this model"):
        packed(TABLE, LAYER, config=config, lm_head=4)


def test_a_width_for_a_head_of_an_unknown_name_is_refused_by_that_name():
    with pytest.raises(UsageError, match="'model.to_words.weight', whose name may be one"):
        packed(TABLE, LAYER, UNKNOWN, lm_head=4)
