"""What decides by its low bits comes through compress, verify, inspect and restore as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.factories import (
    Tensor,
    Tensors,
    of_another_writer,
    random_tensor,
    read_tensors,
    tensor,
    tiny_checkpoint,
)
from support.pipelines.beside import checks, compare
from support.pipelines.kinds import as_float16
from support.pipelines.spoiling import change_tensors

import tq3
from tq3.events import Event, Notice

BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
ROUTER = "model.layers.1.mlp.gate.weight"
EMBEDDING = "model.embed_tokens.weight"
INV_FREQ = "model.rotary_emb.inv_freq"


def glm(**others: Tensor) -> dict[str, Tensor]:
    """Matrices in BF16; beside them a bias and a router in F32, as they are published."""
    narrow_band = 34.5 + 0.28 * (np.random.default_rng(0).random(128) - 0.5)
    return {
        "model.layers.1.mlp.up_proj.weight": random_tensor(512, 256, seed=1),
        "model.layers.1.input_layernorm.weight": random_tensor(256, seed=2),
        BIAS: tensor(narrow_band, "F32"),
        ROUTER: random_tensor(128, 256, dtype="F32", seed=3),
        INV_FREQ: tensor(5e6 ** -(np.arange(0, 128, 2) / 128), "F32"),
        **others,
    }


def compressed(path: Path, tensors: Tensors, **options: object) -> Path:
    """The folder that compress makes of them; the source lies beside it."""
    tiny_checkpoint(path / "in", tensors)
    tq3.compress(path / "in", path / "out", **options)  # type: ignore[arg-type]
    return path / "out"


def routed(bias: Tensor) -> set[tuple[int, ...]]:
    """Which 8 of 128 experts each of 512 tokens gets, by the rule of these models."""
    scores = 1 / (1 + np.exp(-0.05 * np.random.default_rng(1).normal(size=(512, 128))))
    chosen = np.argsort(scores.astype(np.float32) + bias.values)[:, -8:]
    return {(token, *sorted(map(int, experts))) for token, experts in enumerate(chosen)}


def test_a_router_in_f32_sends_every_token_to_the_experts_of_the_source(tmp_path):
    source, stored = glm(), read_tensors(compressed(tmp_path, glm()))
    assert len(np.unique(source[BIAS].values)) == 128
    assert {name: stored[name] for name in (BIAS, ROUTER, INV_FREQ)} == {
        name: source[name] for name in (BIAS, ROUTER, INV_FREQ)
    }
    assert routed(stored[BIAS]) == routed(source[BIAS])
    # What the test is about: F16 has 9 values in that band.
    assert len(routed(as_float16(source[BIAS])) & routed(source[BIAS])) < 256


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_restore_leaves_in_f32_what_the_checkpoint_keeps_in_f32(tmp_path, dtype):
    tq3.restore(compressed(tmp_path, glm()), tmp_path / "back", dtype=dtype)
    back, source = read_tensors(tmp_path / "back"), glm()
    for name in (BIAS, ROUTER, INV_FREQ):
        assert back[name] == source[name]


@pytest.mark.parametrize(("dtype", "told"), [("bfloat16", True), ("float16", False)])
def test_restore_says_where_it_rounds_what_a_float16_source_kept(tmp_path, dtype, told):
    path = compressed(tmp_path, {"a.weight": random_tensor(128, 128, dtype="F16")})
    events: list[Event] = []
    tq3.restore(path, tmp_path / "back", dtype=dtype, on_event=events.append)
    texts = [event.text for event in events if isinstance(event, Notice)]
    assert any("--dtype float16" in text for text in texts) == told


def test_plan_and_checkpoint_say_what_each_kept_tensor_loses(tmp_path):
    path = compressed(tmp_path, glm())
    f16 = {tmp_path / "in": "bits below 2^-24", path: "nothing, or what F16 can't hold"}
    for place, of_16_bits in f16.items():
        described = tq3.inspect(place)
        lines = {line.name: line for line in described.tensors}
        loses = {name: line.loses for name, line in lines.items()}
        assert loses == {
            "model.layers.1.mlp.up_proj.weight": None,
            "model.layers.1.input_layernorm.weight": of_16_bits,
            BIAS: "nothing",
            ROUTER: "nothing",
            INV_FREQ: "nothing",
        }
        assert "decides which experts run" in lines[ROUTER].reason
        assert json.loads(json.dumps(described.to_dict()))["tensors"][0]["loses"] in loses.values()


def rounded_by_another(path: Path, *names: str, dtype: str = "F16") -> Path:
    """The checkpoint as a writer makes it that stores every kept float in one 16-bit type."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in names:
            one = tensors[name]
            tensors[name] = as_float16(one) if dtype == "F16" else tensor(one.values, dtype)

    change_tensors(path, change)
    return of_another_writer(path)


def test_verify_finds_a_router_bias_that_another_writer_rounded(tmp_path):
    path = rounded_by_another(compressed(tmp_path, glm()), BIAS)
    result = compare(path, tmp_path / "in")
    (fault,) = result.faults
    assert (fault.check, fault.tensor) == ("TQ507", BIAS)
    assert "of 128 values are rounded to F16" in fault.message
    assert "compress again" in fault.fix
    (line,) = result.rounded()
    assert (line.tensor, line.exact, line.stored) == (BIAS, False, "F16")
    assert line.n_rounded is not None and line.n_rounded > 120
    assert line.largest_change == pytest.approx(2**-6, rel=0.05)
    assert line.largest_relative_change == pytest.approx(2**-6 / 34.5, rel=0.05)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_kept_tensor_is_exact_by_its_values_whatever_its_type(tmp_path, dtype):
    norm = "model.layers.1.input_layernorm.weight"
    tensors = glm() | {norm: tensor(np.ones(256), "F32")}
    path = rounded_by_another(compressed(tmp_path, tensors), norm, dtype=dtype)
    result = compare(path, tmp_path / "in")
    assert checks(result) == []
    assert {line.tensor for line in result.comparisons if line.exact} >= {norm, BIAS, ROUTER}


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_router_of_any_size_that_was_rounded_is_found(tmp_path, dtype):
    tensors = glm() | {ROUTER: random_tensor(1025, 1024, dtype="F32")}
    tensors["model.layers.1.mlp.up_proj.weight"] = random_tensor(4096, 1024)
    path = rounded_by_another(compressed(tmp_path, tensors), ROUTER, dtype=dtype)
    found = compare(path, tmp_path / "in").faults
    # `tensor` cuts where a writer of BF16 would round: then it is no rounding at all.
    assert [(fault.check, fault.tensor) for fault in found] == [
        ("TQ507" if dtype == "F16" else "TQ504", ROUTER)
    ]


def tiny_values(*shape: int, dtype: str = "BF16") -> Tensor:
    return tensor(np.random.default_rng(5).normal(0, 1e-7, shape), dtype)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_tensor_of_tiny_values_keeps_its_type_and_everybody_is_told(tmp_path, workers):
    tensors = {
        "model.embed_tokens.weight": random_tensor(32, 128),
        "a.bias": tiny_values(300),
        "lm_head.weight": tiny_values(1025, 1024, dtype="F32"),
    }
    events: list[Event] = []
    path = compressed(tmp_path, tensors, keep="*", workers=workers, on_event=events.append)
    stored = read_tensors(path)
    assert {name: stored[name] for name in ("a.bias", "lm_head.weight")} == {
        name: tensors[name] for name in ("a.bias", "lm_head.weight")
    }
    assert stored["model.embed_tokens.weight"] == as_float16(tensors["model.embed_tokens.weight"])
    recorded = json.loads((path / "tq_config.json").read_text())["tq3"]["kept_source_dtype"]
    assert recorded.keys() == {"a.bias", "lm_head.weight"}
    told = [event.text for event in events if isinstance(event, Notice)]
    for name, why in recorded.items():
        assert "F16 loses too many of its values" in why
        assert f"{name} {why}" in told
    assert compare(path, tmp_path / "in").ok


def test_a_few_tiny_values_are_rounded_and_verify_says_how_many(tmp_path):
    values = random_tensor(64, 128).values.copy()
    values[np.abs(values) < 2**-16] = 0
    values[3, :7] = 3e-8
    path = compressed(tmp_path, {EMBEDDING: tensor(values)}, keep="*")
    assert read_tensors(path)[EMBEDDING].dtype == "F16"
    result = compare(path, tmp_path / "in")
    assert result.ok
    (line,) = result.rounded()
    assert (line.tensor, line.n_rounded, line.exact) == (EMBEDDING, 7, False)
    assert 0 < line.largest_change < 2**-24


def test_verify_finds_tiny_values_that_another_writer_lost(tmp_path):
    tensors = {"a.bias": tiny_values(300), "b.bias": random_tensor(300)}
    path = compressed(tmp_path, tensors, keep="*")
    result = compare(rounded_by_another(path, "a.bias"), tmp_path / "in")
    (fault,) = result.faults
    assert (fault.check, fault.tensor) == ("TQ507", "a.bias")
    assert "F16 loses too many of" in fault.message


def test_restoring_tiny_values_to_float16_is_refused(tmp_path):
    path = compressed(tmp_path, {"a.bias": tiny_values(300)}, keep="*")
    with pytest.raises(tq3.BadInput, match="F16 loses too many of its values") as caught:
        tq3.restore(path, tmp_path / "back", dtype="float16")
    assert "wider --dtype" in str(caught.value.fix)


@pytest.mark.parametrize("workers", [1, 4])
def test_the_place_of_a_block_or_a_worker_changes_nothing(tmp_path, set_block_bytes, workers):
    """Blocks hold whole stretches, so each is judged as the format says."""
    values = np.full((5, 2**19), 0.25, np.float32)
    values[2, : 2**16] = 1e-7
    values[3, 0] = 1e-7  # one more than a 16th of the second stretch
    set_block_bytes(7 * 2**20)
    tensors = {EMBEDDING: tensor(values, "F32")}
    path = compressed(tmp_path, tensors, keep="*", workers=workers)
    assert read_tensors(path)[EMBEDDING].dtype == "F32"
    recorded = json.loads((path / "tq_config.json").read_text())["tq3"]["kept_source_dtype"]
    assert "1e-07 at row 2, column 0" in recorded[EMBEDDING]
