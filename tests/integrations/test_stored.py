"""Which layers are packed, how parts fill a fused layer, and how ranks share groups."""

from __future__ import annotations

import pytest

from tq3.errors import BadInput, UsageError
from tq3.integrations.stored import (
    Matrix,
    Stored,
    groups_of_a_rank,
    largest_parallelism,
    read_shapes,
    runs,
    spread,
)

THREE = Matrix(rows=4, bits=3, groups=2)
KEPT = Matrix(rows=6)


def pair(name: str, rows: int, n: int, bits: int, group: int = 128) -> dict[str, list[int]]:
    """Names and shapes of one packed matrix, as headers have them."""
    packed = [rows * n, group * bits // 8]
    return {f"{name}.tq_packed": packed, f"{name}.tq_norms": [rows, n]}


def test_packed_matrices_have_the_width_of_their_bytes_and_others_have_none():
    shapes = pair("a.weight", 4, 2, 3) | pair("b.weight", 5, 1, 4)
    stored = read_shapes(shapes | {"c.weight": [6, 200], "c.bias": [6]}, 128)
    assert stored.matrices == {"a.weight": THREE, "b.weight": Matrix(5, 4, 1), "c.weight": KEPT}
    assert stored.n_packed == 2


@pytest.mark.parametrize("group", [32, 64, 128, 256])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_width_and_group_is_read(bits, group):
    stored = read_shapes(pair("a.weight", 7, 3, bits, group), group)
    assert stored.matrices["a.weight"] == Matrix(7, bits, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"a.weight.tq_norms": [4, 3]},
        {"a.weight.tq_norms": [8]},
        {"a.weight.tq_packed": [8, 47]},
        {"a.weight.tq_packed": [8, 96]},
        {"a.weight.tq_packed": [8]},
    ],
)
def test_a_pair_that_contradicts_itself_is_refused_by_its_name(change):
    with pytest.raises(BadInput, match=r"a\.weight.*contradict"):
        read_shapes(pair("a.weight", 4, 2, 3) | change, 128)


def test_a_code_tensor_without_norms_is_refused():
    with pytest.raises(BadInput, match="contradict"):
        read_shapes({"a.weight.tq_packed": [8, 48]}, 128)


def test_names_follow_a_host_and_what_it_drops_is_gone():
    stored = Stored({"model.a": THREE, "mtp.b": KEPT}, 128)
    names = {"model.a": "language_model.a", "mtp.b": None}
    assert stored.renamed(names.get).matrices == {"language_model.a": THREE}


def test_a_longer_name_finds_the_only_kind_of_matrix_with_its_tail():
    layers = {f"model.layers.{i}.mlp.up_proj.weight": THREE for i in range(2)}
    stored = Stored(layers | {"vision.layers.0.mlp.fc.weight": KEPT}, 128)
    assert stored.find("model.layers.1.mlp.up_proj.weight") == THREE
    assert stored.find("language_model.model.layers.1.mlp.up_proj.weight") == THREE
    assert stored.find("draft.layers.0.mlp.up_proj.weight") == THREE
    assert stored.find("model.layers.1.mlp.down_proj.weight") is None
    assert stored.find("model.layers.1.mlp.xup_proj.weight") is None


def test_an_ambiguous_tail_finds_nothing():
    stored = Stored({"a.layers.0.fc.weight": THREE, "b.layers.0.fc.weight": KEPT}, 128)
    assert stored.find("c.layers.0.fc.weight") is None


def test_names_that_lack_a_component_are_found_by_their_end_and_numbers():
    layers = {f"model.layers.{i}.self_attn.q_proj.weight": m for i, m in enumerate((THREE, KEPT))}
    stored = Stored(layers, 128)
    assert stored.named("model.layers.1.q_proj.weight") == []
    assert stored.resembling("model.layers.1.q_proj.weight") == [*layers][1:]
    assert stored.resembling("model.layers.1.attention.output.q_proj.weight") == [*layers][1:]


def test_names_with_numbers_of_their_own_are_found_by_their_end_where_all_are_alike():
    layers = {f"model.layers.{i}.mamba.in_proj.weight": THREE for i in range(2)}
    stored = Stored(layers | {"model.layers.0.mlp.fc.weight": KEPT}, 128)
    meant = stored.resembling("model.2.mixer.in_proj.weight")
    assert stored.common(meant) == THREE
    mixed = Stored(layers | {"model.layers.2.mamba.in_proj.weight": KEPT}, 128)
    assert mixed.common(mixed.resembling("model.3.mixer.in_proj.weight")) is None
    assert stored.resembling("model.2.mixer.out_proj.weight") == []


@pytest.mark.parametrize(
    "name", ["model.embed_tokens", "transformer.wte", "word_embeddings", "gpt_neox.embed_in"]
)
def test_embeddings_without_a_name_are_found_by_their_size(name):
    table, head = Matrix(rows=512, bits=4, groups=2), Matrix(rows=512, bits=3, groups=2)
    others = {"lm_head.weight": head, "embed_out.weight": head, "h.0.mlp.up.weight": head}
    stored = Stored({f"{name}.weight": table, "position_embeddings.weight": KEPT} | others, 128)
    assert stored.tables(512, 200) == stored.tables(512, 256) == [f"{name}.weight"]
    assert stored.tables(512, 257) == stored.tables(513, 200) == []
    two_towers = Stored({**stored.matrices, "decoder.embed_tokens.weight": Matrix(rows=512)}, 128)
    assert two_towers.common(two_towers.tables(512, 200)) is None


def test_experts_are_found_below_their_layer_only():
    stored = Stored({"l.1.experts.0.up.weight": THREE, "l.10.experts.0.up.weight": KEPT}, 128)
    assert stored.below("l.1") == {"experts.0.up.weight": THREE}


@pytest.mark.parametrize(
    ("parts", "sizes", "filled"),
    [
        ([4, 6], [4, 6], [4, 6]),
        ([16], [8, 4, 4], [16, 16, 16]),  # fused in the checkpoint, too
        ([16, 8], [4, 4, 8, 8], [16, 16, 16, 8]),  # in_proj_qkv and in_proj_z
        ([8, 4, 4], [16, 4, 4], [8, 4, 4]),  # as many parts as partitions: heads may be replicated
    ],
)
def test_parts_fill_the_partitions_of_a_fused_layer(parts, sizes, filled):
    found = spread([Matrix(rows, 3, 1) for rows in parts], sizes)
    assert [part.rows for part in found] == filled


@pytest.mark.parametrize("sizes", [[4, 4, 8], [4, 4, 4, 4, 16]])
def test_parts_that_do_not_fill_the_layer_are_none(sizes):
    assert spread([Matrix(16, 3, 1), Matrix(8, 3, 1)], sizes) == []


@pytest.mark.parametrize(
    ("columns", "of_a_rank", "groups"),
    [(256, 256, 2), (200, 200, 2), (1, 1, 1), (256, 128, 1), (1024, 256, 2)],
)
def test_a_rank_holds_whole_groups_and_a_whole_row_may_be_padded(columns, of_a_rank, groups):
    assert groups_of_a_rank(columns, of_a_rank, 128, "layer") == groups


def test_a_split_group_is_refused_with_the_largest_size_that_works():
    with pytest.raises(UsageError, match=r"down_proj.*4 ranks.*768 columns.*layer is 3"):
        raise_for(768, 4)
    with pytest.raises(UsageError, match="layer is 1"):
        raise_for(576, 3)


def raise_for(columns: int, ranks: int) -> None:
    groups_of_a_rank(columns, columns // ranks, 128, "model.layers.0.mlp.down_proj")


@pytest.mark.parametrize(
    ("columns", "at_most", "found"), [(1024, 8, 8), (1024, 7, 4), (384, 8, 3), (200, 8, 1)]
)
def test_the_largest_parallelism_shares_out_whole_groups(columns, at_most, found):
    assert largest_parallelism(columns, at_most, 128) == found


def test_neighbours_of_one_width_are_one_run():
    assert runs([(3, 2), (3, 4), (0, 1), (4, 1), (3, 5)]) == [(3, 6), (0, 1), (4, 1), (3, 5)]
