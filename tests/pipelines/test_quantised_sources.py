"""Quantised sources from end to end: as the weights that they mean, in every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.dequantization.quantised import around, fp4, fp8, packed_int, plain
from support.factories import (
    Tensor,
    contents,
    random_tensor,
    read_tensors,
    tiny_checkpoint,
    whole_llama,
    whole_llama_config,
)
from support.pipelines.interrupting import BLOCK_BYTES, Stopped, counted_blocks

import tq3
from tq3.errors import BadInput
from tq3.plan.plan import Task

STEM = "model.layers.0"
# A pair of linear layers, experts in pairs of FP4, and a matrix that is too small to compress.
WEIGHTS = (
    fp8(f"{STEM}.self_attn.q_proj", (256, 384)),
    fp4(f"{STEM}.mlp.experts.0.up_proj", (130, 256)),
    fp8(f"{STEM}.mlp.gate_proj", (192, 200), scale="BF16"),
    fp8(f"{STEM}.mlp.small_proj", (16, 64), scale="F8_E8M0"),
)
CONFIG = {
    "architectures": ["SomeForCausalLM"],
    "expert_dtype": "fp4",
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
OTHERS = {f"{STEM}.self_attn.k_scale": random_tensor(1, dtype="F32")}


def quantised(path: Path) -> Path:
    """In three shards, so that scales lie elsewhere than their weights."""
    folder = tiny_checkpoint(path / "source", around(WEIGHTS, **OTHERS), 3, CONFIG)
    (folder / "hf_quant_config.json").write_text("{}")
    return folder


def ordinary(path: Path) -> Path:
    """The same weights as F32 in the same order, without a word of quantisation."""
    first, last = around([]).items()
    tensors = dict([first, *plain(WEIGHTS).items(), last])
    return tiny_checkpoint(path / "plain", tensors, config={"architectures": ["SomeForCausalLM"]})


def coded(folder: Path) -> dict[str, Tensor]:
    return {name: one for name, one in read_tensors(folder).items() if ".tq_" in name}


def test_its_codes_are_those_of_the_weights_that_it_means(tmp_path):
    report = tq3.compress(quantised(tmp_path), tmp_path / "out")
    tq3.compress(ordinary(tmp_path), tmp_path / "same")
    found = read_tensors(tmp_path / "out")
    assert coded(tmp_path / "out") == coded(tmp_path / "same")
    assert sum(name.endswith(".tq_packed") for name in found) == 3
    small = WEIGHTS[-1]
    assert found[small.name].dtype == "F16"  # as of a BF16 source, which has no F32
    np.testing.assert_array_equal(found[small.name].values, small.values)
    stored = sum(len(one.data) for one in around(WEIGHTS).values())
    assert report.source_bytes == stored
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "turboquant"
    assert config.keys() == {"architectures", "transformers_weights"}
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()
    record = json.loads((tmp_path / "out" / "tq_config.json").read_text())["tq3"]
    assert record["source_dtype"] == "bfloat16"
    assert record["source_quantization"] == {
        "quantization_config": CONFIG["quantization_config"],
        "expert_dtype": "fp4",
        "formats": {"FP8 in blocks of 128 x 128": 3, "FP4 in groups of 32": 1},
    }


def test_what_is_said_beside_config_json_is_heeded_recorded_and_gone(tmp_path):
    """As Mistral and ModelOpt say it: a host of Mistral's format reads params.json."""
    some = fp8(f"{STEM}.wq", (256, 384), (256, 384), scales=".qscale_weight", grid=(1,))
    source = tiny_checkpoint(tmp_path / "source", around([some]))
    said = {"quantization": {"qformat_weight": "fp8_e4m3"}}
    (source / "params.json").write_text(
        '{"dim": 384, "quantization": {"qformat_weight": "fp8_e4m3"}}'
    )
    of_modelopt = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (source / "hf_quant_config.json").write_text(json.dumps(of_modelopt))
    tq3.compress(source, tmp_path / "out")
    assert (tmp_path / "out" / "params.json").read_text() == '{"dim": 384}'
    record = json.loads((tmp_path / "out" / "tq_config.json").read_text())["tq3"]
    assert record["source_quantization"] == {
        "params.json": said,
        "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}},
        "formats": {"FP8 with a scale for each tensor": 1},
    }
    assert tq3.verify(tmp_path / "out", source=source).faults == ()
    tq3.compress(source, tmp_path / "without", without=["params.json"])
    assert not (tmp_path / "without" / "params.json").exists()
    of_modelopt["quantization"] = {"quant_algo": "FP8_PB_WO"}
    (source / "hf_quant_config.json").write_text(json.dumps(of_modelopt))
    (source / "params.json").unlink()
    with pytest.raises(BadInput, match="FP8_PB_WO of hf_quant_config.json"):
        tq3.compress(source, tmp_path / "contradiction")


def test_modelopt_under_its_other_key_is_gone_and_a_word_of_others_stays(tmp_path):
    of_codec = {"quantization": {"levels": 8}}
    config = {"quantization": {"quant_algo": "FP8_PB_WO"}, "audio_config": of_codec}
    source = tiny_checkpoint(tmp_path / "source", around([WEIGHTS[0]]), config=config)
    tq3.compress(source, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization" not in written
    assert written["audio_config"] == of_codec


def test_params_json_of_an_ordinary_source_travels_as_it_is(tmp_path):
    source = tiny_checkpoint(tmp_path / "source")
    (source / "params.json").write_text('{"quantization": null, "dim": 4}')
    tq3.compress(source, tmp_path / "out")
    assert (tmp_path / "out" / "params.json").read_text() == '{"quantization": null, "dim": 4}'


def test_what_is_kept_in_the_type_of_the_source_is_bf16(tmp_path):
    tq3.compress(quantised(tmp_path), tmp_path / "out", keep=["*"], keep_dtype="source")
    found = read_tensors(tmp_path / "out")
    assert {one.dtype for one in found.values()} == {"BF16"}
    np.testing.assert_array_equal(found[WEIGHTS[-1].name].values, WEIGHTS[-1].values)


def test_verify_compares_with_what_it_means_and_restore_gives_it_back(tmp_path):
    source = quantised(tmp_path)
    tq3.compress(source, tmp_path / "out")
    assert tq3.verify(tmp_path / "out", source=source).faults == ()
    tq3.compress(ordinary(tmp_path), tmp_path / "same")
    tq3.restore(tmp_path / "out", tmp_path / "restored", dtype="float32")
    tq3.restore(tmp_path / "same", tmp_path / "restored same", dtype="float32")
    one, other = (contents(tmp_path / name) for name in ("restored", "restored same"))
    assert one == other


def test_routers_and_indexers_stay_exact_and_the_output_still_says_why(tmp_path):
    router, indexer = f"{STEM}.mlp.gate.weight", f"{STEM}.self_attn.indexer.wk"
    others = {router: random_tensor(8, 256, seed=3), **fp8(indexer, (128, 256)).tensors}
    source = tiny_checkpoint(tmp_path / "source", around(WEIGHTS, **others), 3, CONFIG)
    tq3.compress(source, tmp_path / "out")
    for described in (tq3.preview(source), tq3.inspect(tmp_path / "out")):
        reasons = {line.name: line.reason for line in described.tensors}
        assert reasons[router].startswith("router of a quantised source")
        assert reasons[f"{indexer}.weight"].startswith("indexer: ")
    assert tq3.verify(tmp_path / "out", source=source).faults == ()


def test_another_scale_is_found_by_verify(tmp_path):
    source = quantised(tmp_path)
    tq3.compress(source, tmp_path / "out")
    random = np.random.default_rng(0)
    tensors = read_tensors(source)
    scale = tensors[f"{STEM}.self_attn.q_proj.weight_scale_inv"]
    changed = scale.values * random.choice([0.5, 2], scale.shape).astype(np.float32)
    tensors[f"{STEM}.self_attn.q_proj.weight_scale_inv"] = scale._replace(data=changed.tobytes())
    tiny_checkpoint(source, tensors, 3, CONFIG)
    (fault,) = tq3.verify(tmp_path / "out", source=source).faults
    assert (fault.check, fault.tensor) == ("TQ505", WEIGHTS[0].name)


def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(Task.blocks, "__defaults__", (BLOCK_BYTES * 10,))
    source = quantised(tmp_path)
    with counted_blocks() as blocks:
        tq3.compress(source, tmp_path / "whole")
    with counted_blocks(len(blocks) // 2), pytest.raises(Stopped):
        tq3.compress(source, tmp_path / "out")
    with counted_blocks() as left:
        tq3.compress(source, tmp_path / "out")
    assert 0 < len(left) < len(blocks)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("part", ["weight", "weight_scale_inv"])
def test_a_code_that_is_no_number_is_refused_as_a_nan_is(tmp_path, part):
    tensors = around([WEIGHTS[0]])
    stored = tensors[f"{STEM}.self_attn.q_proj.{part}"]
    nan = b"\x7f" if part == "weight" else np.float32("nan").tobytes()
    end = len(stored.data) - len(nan)
    tensors[f"{STEM}.self_attn.q_proj.{part}"] = stored._replace(data=stored.data[:end] + nan)
    source = tiny_checkpoint(tmp_path / "source", tensors, 2)
    with pytest.raises(tq3.BadInput, match="not a finite weight.*row "):
        tq3.compress(source, tmp_path / "out")


def test_inspect_and_dry_run_say_what_it_is(tmp_path):
    source = quantised(tmp_path)
    for described in (tq3.inspect(source), tq3.preview(source)):
        told, warned = described.notices[:2]
        assert "FP8 in blocks of 128 x 128 (3 tensors), FP4 in groups of 32 (1 tensor)" in told
        assert "a second loss" in warned
        assert described.source_bytes == sum(len(one.data) for one in around(WEIGHTS).values())


def test_integers_are_compressed_too(tmp_path):
    some = packed_int(f"{STEM}.mlp.up_proj", (130, 256))
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    method = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": weights}}}
    inner = {"text_config": {"quantization_config": method}}
    source = tiny_checkpoint(tmp_path / "source", around([some]), 2, inner)
    tq3.compress(source, tmp_path / "out")
    tq3.compress(tiny_checkpoint(tmp_path / "plain", around([]) | plain([some])), tmp_path / "same")
    assert coded(tmp_path / "out") == coded(tmp_path / "same")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"] == {}


def test_a_config_that_would_mislead_hosts_is_not_left_as_it_is(tmp_path):
    with pytest.raises(tq3.UsageError, match="verbatim-config"):
        tq3.compress(quantised(tmp_path), tmp_path / "out", verbatim_config=True)


def test_columns_are_equalized_as_those_of_the_weights_that_it_means(tmp_path):
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, one in whole_llama(1).items():
        stem = name.removesuffix(".weight")
        if len(one.shape) == 2 and "embed" not in name and "head" not in name:
            some = fp8(stem, one.shape, (64, 96))
            stored, meant = stored | some.tensors, meant | plain([some])
        else:
            stored, meant = stored | {name: one}, meant | {name: one}
    config = whole_llama_config() | {"num_hidden_layers": 1}
    method = {"quant_method": "fp8", "weight_block_size": [64, 96]}
    quantised = tiny_checkpoint(
        tmp_path / "source", stored, 2, config | {"quantization_config": method}
    )
    tq3.compress(quantised, tmp_path / "out", equalize=True)
    tq3.compress(
        tiny_checkpoint(tmp_path / "plain", meant, 1, config), tmp_path / "same", equalize=True
    )
    assert coded(tmp_path / "out") == coded(tmp_path / "same")
    assert tq3.verify(tmp_path / "out", source=quantised).faults == ()
