"""Matrices that no layer of vLLM takes packed are decoded while they are loaded, if used."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from vllm.model_executor.models.utils import WeightsMapper

from tq3.codec import reference
from tq3.format.config import TqConfig
from tq3.integrations.stored import Matrix
from tq3.integrations.vllm.decoding import CheckpointMapper, Decoder
from tq3.integrations.vllm.names import suffixes

pytestmark = pytest.mark.vllm

ROWS, COLUMNS = 4, 200


def codes_and_values(seed):
    """Codes and norms of a matrix, and the numbers that they stand for."""
    words = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS), np.float32).view(np.uint32)
    packed, norms = reference.encode(words, "F32", 3, 128)
    values = reference.decode(packed, norms, 3, 128, COLUMNS)
    return torch.from_numpy(packed), torch.from_numpy(norms), torch.from_numpy(values)


@pytest.fixture
def log(monkeypatch, caplog):
    """What vLLM's loggers say, which keep it to themselves otherwise."""
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def test_what_no_layer_takes_is_decoded_when_it_is_used_and_told(log):
    names = ["a.up.weight", "head.weight", "pooler.weight"]
    matrices = {name: codes_and_values(seed) for seed, name in enumerate(names)}
    packed = {name: Matrix(ROWS, 3, 2, name) for name in names}
    record = TqConfig(3, 128, original_in_dims=dict.fromkeys(names, COLUMNS))
    decoder = Decoder(packed, ["a.up.weight"], 128, lambda: record)
    # As vLLM's loader joins them.
    mapper = WeightsMapper(orig_to_new_prefix={"head": "lm_head"})
    mapper |= CheckpointMapper(orig_to_new_suffix=suffixes(""), decoder=decoder)
    mapper |= WeightsMapper(orig_to_new_substr={"inv_freq": None})
    stream = [
        (f"{name}.tq_{part}", tensor)
        for name, (codes, norms, _) in matrices.items()
        for part, tensor in (("norms", norms), ("packed", codes))
    ]
    given, used = {}, torch.empty(COLUMNS, ROWS)
    for name, tensor in mapper.apply([*stream, ("rotary.inv_freq", torch.ones(1))]):
        given[name] = tensor
        if name == "lm_head.weight":
            used.copy_(tensor.t())
    of_layer = ["a.up.weight_norms", "a.up.weight_packed"]
    assert list(given) == [*of_layer, "lm_head.weight", "pooler.weight"]
    assert torch.equal(used.t(), matrices["head.weight"][2])
    assert given["pooler.weight"].shape == (ROWS, COLUMNS)
    assert decoder.n_bytes == {"head.weight": ROWS * COLUMNS * 4, "pooler.weight": 0}
    assert "1 of 3 packed matrices are held decoded" in log.text
    assert "1 of 3 packed matrices belong to no layer" in log.text


@pytest.mark.parametrize("stem", ["up.weight", "model.a.up.weight"])
def test_a_component_that_a_model_takes_or_gives_does_not_hide_a_matrix(stem):
    codes, norms, values = codes_and_values(0)
    record = TqConfig(3, 128, shapes={"a.up.weight": (2, ROWS // 2, COLUMNS)})
    decoder = Decoder({"a.up.weight": Matrix(ROWS, 3, 2)}, [], 128, lambda: record)
    stream = [(f"{stem}.tq_packed", codes), ("norm.weight", norms), (f"{stem}.tq_norms", norms)]
    (_, norm), (name, decoded) = decoder.apply(stream)
    assert norm is norms
    assert name == stem
    assert torch.equal(decoded + 0, values.view(2, ROWS // 2, COLUMNS))
