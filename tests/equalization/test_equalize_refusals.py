"""What --equalize can't equalize is refused by plan and run alike, before a pass begins."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.factories import (
    Tensor,
    contents,
    random_tensor,
    tiny_checkpoint,
    whole_llama,
    whole_llama_config,
)
from support.pipelines.interrupting import Stopped, counted_blocks

import tq3
from tq3.errors import BadInput, Tq3Error, UsageError
from tq3.events import Notice, Progress

WIDTH, INNER = 128, 192
CONFIG = whole_llama_config()
LAYER = "model.layers.0."
llama = whole_llama


def with_tensor(name: str, found: Tensor | None) -> dict[str, Tensor]:
    tensors = llama() | ({name: found} if found else {})
    return {each: tensors[each] for each in tensors if found or each != name}


MISFITS: dict[str, tuple[Any, Any, Any]] = {
    "this architecture feed which": (llama(), {"model_type": "gpt2"}, UsageError),
    "found model_type 'bert'": (llama(), CONFIG | {"text_config": {"model_type": "bert"}}, None),
    "no token embeddings": ({"x.weight": random_tensor(8, 128)}, CONFIG, None),
    "no layers": (
        {"x.weight": random_tensor(8, 128), "model.embed_tokens.weight": random_tensor(32, 128)},
        CONFIG,
        None,
    ),
    "no head_dim": (llama(), {"model_type": "llama"}, None),
    "hidden_size and num_attention_heads, as whole": (
        llama(),
        {"model_type": "llama", "hidden_size": "128", "num_attention_heads": 4},
        BadInput,
    ),
    "found no such file, or nothing in it": (llama(), None, UsageError),
    "found no model_type": (llama(), {"architectures": []}, UsageError),
    "heads of 48": (llama(), CONFIG | {"head_dim": 48}, None),
    "is missing": (with_tensor(LAYER + "mlp.up_proj.weight", None), CONFIG, None),
    "not known what": (with_tensor(LAYER + "mlp.extra.weight", random_tensor(8, 8)), CONFIG, None),
    "127 columns": (
        with_tensor(LAYER + "mlp.gate_proj.weight", random_tensor(INNER, 127)),
        CONFIG,
        None,
    ),
    "130 rows": (
        with_tensor(LAYER + "mlp.down_proj.weight", random_tensor(130, 192)),
        CONFIG,
        None,
    ),
    "191 rows": (
        with_tensor(LAYER + "mlp.gate_proj.weight", random_tensor(191, 128)),
        CONFIG,
        None,
    ),
    r"\[128\], expected \[100\]": (
        with_tensor("model.embed_tokens.weight", random_tensor(32, 100)),
        CONFIG,
        None,
    ),
    "a matrix": (with_tensor("model.embed_tokens.weight", random_tensor(128)), CONFIG, None),
    r"\[128, 2\], expected \[128\]": (
        with_tensor(LAYER + "input_layernorm.weight", random_tensor(128, 2)),
        CONFIG,
        None,
    ),
    r"\[63\], expected \[64\]": (
        llama() | {LAYER + "self_attn.v_proj.bias": random_tensor(63)},
        CONFIG,
        None,
    ),
    "expected 190": (
        with_tensor(LAYER + "mlp.up_proj.weight", random_tensor(190, WIDTH)),
        CONFIG,
        None,
    ),
}


@pytest.mark.parametrize("message", MISFITS)
def test_what_can_not_be_equalized_is_refused_and_nothing_written(message, tmp_path):
    tensors, config, error = MISFITS[message]
    path = tiny_checkpoint(tmp_path / "source", tensors, config=config)
    for run in (
        lambda: tq3.preview(path, recipe=tq3.Recipe(equalize=True)),
        lambda: next(tq3.compress_checkpoint(path, tmp_path / "out", tq3.Recipe(equalize=True))),
    ):
        with pytest.raises(error or Tq3Error, match=message):
            run()  # which says nothing before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("message", MISFITS)
def test_nobody_asked_for_it_so_the_source_is_compressed_as_it_is(message, tmp_path):
    tensors, config, _ = MISFITS[message]
    path = tiny_checkpoint(tmp_path / "source", tensors, config=config)
    events: list[Any] = []
    tq3.compress(path, tmp_path / "out", on_event=events.append)
    told = [each.text for each in events if isinstance(each, Notice)]
    assert [text for text in told if re.search(f"columns are not equalized: .*{message}", text)]
    planned = tq3.preview(path)
    assert set(told) == set(planned.notices)
    assert not planned.equalized
    tq3.compress(path, tmp_path / "same", equalize=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "same")


def test_an_adapter_that_travels_was_trained_beside_other_weights(tmp_path):
    path = tiny_checkpoint(tmp_path / "source", llama(), config=CONFIG)
    (path / "vision-lora").mkdir()
    (path / "vision-lora" / "adapter_config.json").write_text("{}")
    (path / "vision-lora" / "adapter_model.safetensors").write_bytes(b"any")
    with pytest.raises(UsageError, match="adapter_config.json: columns can't be equalized"):
        tq3.preview(path, equalize=True)
    planned = tq3.preview(path)
    assert not planned.equalized
    assert "columns are not equalized: vision-lora/adapter_config.json" in planned.notices[-1]
    assert tq3.preview(path, without="vision-lora").equalized


def test_where_nothing_is_compressed_that_would_gain_nothing_is_scaled(tmp_path):
    path = tiny_checkpoint(
        tmp_path / "source", llama() | {"mtp.weight": random_tensor(128, 128)}, config=CONFIG
    )
    assert "no matrix is compressed that" in tq3.preview(path, only="mtp.*").notices[-1]
    with pytest.raises(UsageError, match="no matrix is compressed that"):
        tq3.preview(path, only="mtp.*", equalize=True)


@pytest.fixture
def unfinished(tmp_path):
    """A target with a run that was stopped after some blocks, and its source."""
    path = tiny_checkpoint(tmp_path / "source", llama(), config=CONFIG)
    with counted_blocks(5), pytest.raises(Stopped):
        tq3.compress(path, tmp_path / "out", equalize=True, workers=1)
    return path, tmp_path / "out"


CHANGED: dict[str, dict[str, Any]] = {
    "--norms float32 became --norms float16": {"norms": "float16", "equalize": True},
    "--bits 3 became --bits 4": {"bits": 4, "equalize": True},
    "--equalize became --no-equalize": {"equalize": False},
}


@pytest.mark.parametrize("message", CHANGED)
def test_a_run_that_can_not_go_on_is_refused_before_a_weight_is_read(unfinished, message):
    source, out = unfinished
    before = contents(out)
    events: list[Any] = []
    with pytest.raises(UsageError, match=message):
        tq3.compress(source, out, on_event=events.append, **CHANGED[message])
    assert events == []
    assert contents(out) == before


def test_nor_does_a_equalized_run_go_on_with_another(tmp_path):
    path = tiny_checkpoint(tmp_path / "source", llama(), config=CONFIG)
    with counted_blocks(5), pytest.raises(Stopped):
        tq3.compress(path, tmp_path / "out", equalize=False, workers=1)
    with pytest.raises(UsageError, match="--no-equalize became --equalize"):
        next(tq3.compress_checkpoint(path, tmp_path / "out", tq3.Recipe(equalize=True)))


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": False}])
def test_a_run_that_gives_the_other_up_begins_its_pass(unfinished, options):
    source, out = unfinished
    tq3.compress(source, out, equalize=True, bits=4, **options)
    tq3.compress(source, out.with_name("alone"), equalize=True, bits=4)
    assert contents(out) == contents(out.with_name("alone"))


def test_the_same_equalized_run_goes_on(unfinished):
    source, out = unfinished
    events: list[Any] = []
    assert tq3.compress(source, out, equalize=True, on_event=events.append).share_before > 0
    assert any(isinstance(event, Progress) for event in events)
    tq3.compress(source, out.with_name("alone"), equalize=True)
    assert contents(out) == contents(out.with_name("alone"))
