"""What the policy does with the tensors of all model classes of Transformers."""

from __future__ import annotations

import pytest
from support.plan.listings import NAMES

from tq3.format.header import TensorInfo
from tq3.format.recipe import Recipe
from tq3.plan.policy import Decision, decide
from tq3.plan.roles import role_of

MATRIX, STACK = (1024, 1024), (8, 1024, 1024)
MEANT = (
    *("output head", "patch embedding", "indexer", "compressor"),
    "first half of an output projection in groups",
)
# Small matrices of nine models that are called as tables are.
CALLED_AS_TABLES = {
    "decoder.decoder_embed.weight",
    "embedder.input_embedding.weight",
    "embeddings.predictor_embeddings.weight",
    "flow_net.cond_embed.weight",
    "layout_embeddings.box_linear_embeddings.weight",
    "msa_encoder.embed.weight",
    "rel_pos.embed.weight",
    "self_attn.relative_pos_embeddings.weight",
    "xpath_embeddings.xpath_unitseq2_embeddings.weight",
}


def fate(name: str, shape: tuple[int, ...]) -> Decision:
    """The policy's decision, without any option."""
    return decide(TensorInfo(name.replace("{}", "0"), "BF16", shape), Recipe())


def compressed(kind: str, shape: tuple[int, ...]) -> list[str]:
    return [name for name in NAMES[kind] if fate(name, shape).compress]


def kept(kind: str, shape: tuple[int, ...]) -> list[str]:
    return [name for name in NAMES[kind] if not fate(name, shape).compress]


def test_the_names_are_those_of_hundreds_of_models():
    counts = {kind: len(names) for kind, names in NAMES.items() if kind != "transformers"}
    assert all(counts.values())
    assert counts["tables"] > 500
    assert counts["matrices"] > 1000


def test_no_table_is_compressed_unasked():
    assert compressed("tables", MATRIX) == []


def test_no_output_head_is_compressed_unasked_tied_or_not():
    assert compressed("heads", MATRIX) == []


def test_every_stack_of_experts_is_compressed():
    assert kept("stacks", STACK) == []
    assert kept("rows of experts", MATRIX) == []


def test_every_stack_of_experts_has_a_role():
    matrices = NAMES["stacks"] + NAMES["rows of experts"]
    roles = {name: role_of(name.replace("{}", "0")) for name in matrices}
    assert [name for name, role in roles.items() if role == "other"] == []


def test_nothing_else_that_is_3_d_is_compressed():
    assert compressed("no stacks", STACK) == []


def test_every_matrix_of_a_linear_layer_is_compressed():
    assert kept("matrices", MATRIX) == []


def test_matrices_that_are_kept_are_known_ones_but_for_a_few():
    reasons = {
        name: fate(name, MATRIX).reason.split(":")[0] for name in kept("matrices kept", MATRIX)
    }
    others = {name for name, reason in reasons.items() if reason not in MEANT}
    assert {".".join(name.split(".")[-3:]) for name in others} - CALLED_AS_TABLES == set()


@pytest.mark.parametrize("name", ["language_model.shared.weight", "led.shared.weight"])
def test_a_component_that_is_exactly_shared_is_a_table(name):
    assert fate(name, MATRIX).reason.startswith("token embedding")
    assert fate(name.replace("shared", "shared_expert.up_proj"), MATRIX).compress
