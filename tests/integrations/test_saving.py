"""What save_pretrained leaves is a TQ3 checkpoint for the commands, too."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from support.integrations.packed_models import load, logits, served
from support.models.tq3_folder import read_tensors

import tq3
from tq3.errors import BadInput


def test_a_saved_folder_is_verified_inspected_and_restored(case, tmp_path):
    saved, restored = tmp_path / "saved", tmp_path / "restored"
    load(case.architecture, case.compressed, torch.float16).save_pretrained(saved)
    assert tq3.verify(saved).ok
    beside = tq3.verify(saved, source=case.source).faults  # by the factors that it records
    assert all(fault.check == "TQ501" and str(fault.tensor).startswith("mtp.") for fault in beside)
    stored = {line.name: (line.bits, line.shape) for line in tq3.inspect(case.compressed).tensors}
    assert {line.name: (line.bits, line.shape) for line in tq3.inspect(saved).tensors} == served(
        stored
    )
    tq3.restore(saved, restored, dtype="float32")
    found, wanted = read_tensors(restored), served(read_tensors(case.restored))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert "quantization_config" not in json.loads((restored / "config.json").read_text())
    load(case.architecture, restored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_saved_in_another_dtype_than_f16_it_is_the_source_rounded_twice(llama, tmp_path, dtype):
    load(llama.architecture, llama.compressed, dtype).save_pretrained(tmp_path)
    beside = tq3.verify(tmp_path, source=llama.source)
    assert beside.ok
    stored = str(dtype).replace("torch.bfloat16", "BF16").replace("torch.float32", "F32")
    rounded = [line for line in beside.rounded() if line.stored == stored]
    assert "model.embed_tokens.weight" in {line.tensor for line in rounded}


def test_saved_over_its_own_folder_nothing_of_the_old_one_is_left(llama, tmp_path):
    for dense in (False, True):
        folder = tmp_path / str(dense)
        shutil.copytree(llama.compressed, folder)
        model = load(llama.architecture, folder)
        expected = logits(model)
        if dense:
            expected = logits(model.dequantize())
        model.save_pretrained(folder)
        assert not {"tq_config.json", "tq3_manifest.json"} & {p.name for p in folder.iterdir()}
        assert torch.equal(logits(load(llama.architecture, folder)), expected)
        assert dense or tq3.verify(folder).ok


def test_what_a_model_without_its_head_saves_is_recorded_by_its_own_names(llama, tmp_path):
    transformers.LlamaModel.from_pretrained(llama.compressed).save_pretrained(tmp_path)
    shapes = {line.name: line.shape for line in tq3.inspect(tmp_path).tensors}
    assert shapes["layers.0.mlp.down_proj.weight"] == (192, 344)
    assert tq3.verify(tmp_path).ok


def test_a_saved_folder_whose_shapes_are_lost_is_refused(llama, tmp_path):
    """A padded row could not be told from a wider one."""
    load(llama.architecture, llama.compressed).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"].pop("tq3")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert [fault.check for fault in tq3.verify(tmp_path).faults] == ["TQ102"]
    with pytest.raises(BadInput, match="not a TQ3 checkpoint"):
        tq3.restore(tmp_path, tmp_path / "restored")
