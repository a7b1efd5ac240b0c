"""Transformers with a GPU's kernels: whole models whose layers lie in tiles."""

from __future__ import annotations

import pytest
import torch
from packed_models import load, logits, make_case
from tiny_models import BY_NAME
from tq3_folder import read_tensors

from tq3.runtime.modules import PackedWeight

# Tied packed embeddings; and a mixture of experts with a Gated DeltaNet.
TIED = {"only": ["*proj*", "*embed_tokens*"], "sensitive_bits": 4, "sensitive_patterns": ["embed"]}
CASES = {"llama": TIED, "qwen3_5_moe": {}}
TOKENS = torch.arange(12).reshape(2, 6) * 7 % 128


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return make_case(BY_NAME[request.param], folder, **CASES[request.param])


def test_a_model_computes_what_it_computes_on_a_processor(case, gpu, monkeypatch):
    in_tiles = load(case.architecture, case.compressed)
    weights = [part for part in in_tiles.modules() if isinstance(part, PackedWeight)]
    assert all(weight.is_tiled for weight in weights)
    found = logits(in_tiles, TOKENS)
    monkeypatch.undo()
    on_processor = load(case.architecture, case.compressed)
    assert not any(getattr(part, "is_tiled", False) for part in on_processor.modules())
    assert torch.equal(found, logits(on_processor, TOKENS))


def test_a_model_in_tiles_is_saved_as_it_was_loaded(case, gpu, tmp_path):
    load(case.architecture, case.compressed).save_pretrained(tmp_path)
    found, wanted = read_tensors(tmp_path), read_tensors(case.compressed)
    wanted = {name: each for name, each in wanted.items() if not name.startswith("mtp.")}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], each) for name, each in wanted.items())
