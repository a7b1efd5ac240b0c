"""from_pretrained on TQ3 folders: every architecture packed, and saved again as it was."""

from __future__ import annotations

import pytest
import torch
from support.integrations.packed_models import (
    assert_close,
    assert_greedy,
    assert_same_logits,
    generated,
    load,
    logits,
    packed_bytes,
    served,
)
from support.models.tq3_folder import compressed_names, read_tensors

import tq3.integrations.transformers
from tq3.integrations.transformers import Tq3Config
from tq3.runtime.modules import PackedExperts, PackedLinear


@pytest.fixture(scope="module")
def packed(case):
    return load(case.architecture, case.compressed)


@pytest.fixture(scope="module")
def restored(case):
    return load(case.architecture, case.restored)


def test_every_compressed_matrix_stays_packed(case, packed):
    """But the routers: they multiply by their weights themselves, which are held decoded."""
    stored = served(read_tensors(case.compressed))
    n_bytes = sum(
        tensor.nbytes
        for name, tensor in stored.items()
        if name.endswith((".tq_packed", ".tq_norms")) and ".mlp.gate." not in name
    )
    linear = [m for m in packed.modules() if isinstance(m, PackedLinear)]
    experts = [m for m in packed.modules() if isinstance(m, PackedExperts)]
    assert len(linear) + len(experts) > 10
    assert bool(experts) == ("moe" in case.architecture.name)
    assert packed_bytes(packed) == n_bytes


def test_logits_are_those_of_the_restored_model(case, packed, restored):
    assert_same_logits(case.architecture, packed, restored)


def test_a_vision_tower_computes_what_the_restored_one_does(case, packed, restored):
    if not case.architecture.image:
        pytest.skip("no vision tower")
    image = {
        name: t.float() if t.is_floating_point() else t
        for name, t in case.architecture.image.items()
    }
    with torch.no_grad():
        found, wanted = (
            torch.cat(list(model.get_image_features(**image).pooler_output))
            for model in (packed, restored)
        )
    assert_close(found, wanted)


def test_greedy_tokens_are_those_of_the_restored_model(packed, restored):
    assert_greedy(generated(packed, 4), restored)


def test_a_saved_model_has_the_keys_and_the_bytes_of_its_checkpoint(case, tmp_path):
    model = load(case.architecture, case.compressed, torch.float16)
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    stored, saved = served(read_tensors(case.compressed)), read_tensors(tmp_path)
    assert set(saved) == set(stored)
    for name, tensor in stored.items():
        assert saved[name].dtype == tensor.dtype, name
        assert torch.equal(saved[name], tensor), name
    again = load(case.architecture, tmp_path, torch.float16)
    assert torch.equal(logits(again), logits(model))


def test_saved_codes_and_norms_are_the_stored_ones_whatever_the_dtype(case, packed, tmp_path):
    packed.save_pretrained(tmp_path)
    stored, saved = served(read_tensors(case.compressed)), read_tensors(tmp_path)
    for name in compressed_names(stored):
        for part in (f"{name}.tq_packed", f"{name}.tq_norms"):
            assert saved[part].dtype == stored[part].dtype
            assert torch.equal(saved[part], stored[part]), part


def test_registering_again_does_nothing():
    tq3.integrations.transformers.register()
    assert all(map(tq3.integrations.transformers.is_ours, ("turboquant", "tq3")))
    assert Tq3Config(bits=4).to_dict()["quant_method"] == "turboquant"
