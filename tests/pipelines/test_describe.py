"""What inspect and the dry run say, from headers alone, and that the run then does just that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.factories import (
    contents,
    expert_tensors,
    file_bytes,
    llama_tensors,
    random_tensor,
    tiny_checkpoint,
)
from support.pipelines.kinds import COMPRESSED, EVERY_KIND

import tq3
from tq3.errors import BadInput
from tq3.events import Notice
from tq3.plan.plan import BLOCK_BYTES


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "in", EVERY_KIND, shards=2)


def test_a_preview_is_what_the_run_then_writes(source, tmp_path):
    recipe = tq3.Recipe(max_shard_bytes=20_000, bits=2, group_size=64)
    planned = tq3.preview(source, recipe=recipe)
    report = tq3.compress(source, tmp_path / "out", max_shard_size=20_000, bits=2, group_size=64)
    written = tq3.inspect(tmp_path / "out")
    assert planned.planned and not written.planned
    assert planned.n_bytes == written.n_bytes == report.output_bytes
    assert planned.source_bytes == written.source_bytes == report.source_bytes
    assert (planned.n_compressed, planned.n_kept) == (report.n_compressed, report.n_kept)
    assert planned.bits_per_weight == pytest.approx(report.bits_per_weight)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}
    assert planned.shards == sizes


def test_a_preview_gives_the_notices_of_the_run(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", expert_tensors())
    (source / "config.json").unlink()
    recipe = tq3.Recipe(keep=("*.experts.0.*",))
    events = tq3.compress_checkpoint(source, tmp_path / "out", recipe)
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert tq3.preview(source, recipe=recipe).notices == tuple(notices)
    assert any("hosts join these" in text for text in notices)
    assert any("config.json" in text for text in notices)


def test_a_tq3_checkpoint_is_described_as_its_original(source, tmp_path):
    tq3.compress(source, tmp_path / "out")
    described, planned = tq3.inspect(tmp_path / "out"), tq3.inspect(source)
    assert (described.original_model, described.source_dtype) == ("in", "bfloat16")
    assert described.writer == f"tq3 {tq3.__version__}"
    assert described.scale == planned.scale == "search"

    def facts(description):
        return {
            line.name: (line.shape, line.bits, line.n_weights, line.n_bytes, line.label)
            for line in description.tensors
        }

    assert facts(described) == facts(planned)
    assert facts(described).keys() == EVERY_KIND.keys()
    assert {line.name for line in described.tensors if line.bits == 3} == COMPRESSED.keys()


def test_each_kept_tensor_has_the_same_reason_in_the_plan_and_in_the_checkpoint(source, tmp_path):
    recipe = tq3.Recipe(keep=("whole.*",), only=("*.weight",), keep_dtype="source")
    planned = tq3.preview(source, recipe=recipe)
    tq3.compress(source, tmp_path / "out", keep=["whole.*"], only=["*.weight"], keep_dtype="source")
    described = tq3.inspect(tmp_path / "out")
    reasons = {line.name: line.reason for line in planned.tensors if line.bits is None}
    assert {t.name: t.reason for t in described.tensors if t.bits is None} == reasons
    assert reasons["whole.bf16.weight"] == "asked for: --keep 'whole.*'"
    assert reasons["a.bias"] == "not chosen by --only"


def test_classes_and_reasons_add_up(source):
    planned = tq3.inspect(source)
    assert sum(line.n_compressed for line in planned.classes) == planned.n_compressed
    assert sum(line.n_kept for line in planned.classes) == planned.n_kept
    assert sum(line.n_bytes for line in planned.classes) == planned.n_bytes
    assert sum(count for count, _ in planned.kept_reasons.values()) == planned.n_kept
    kept = sum(line.n_bytes for line in planned.tensors if line.bits is None)
    assert sum(n_bytes for _, n_bytes in planned.kept_reasons.values()) == kept


def test_a_description_is_plain_data(source, tmp_path):
    tq3.compress(source, tmp_path / "out")
    for path in (source, tmp_path / "out"):
        described = tq3.inspect(path)
        data = json.loads(json.dumps(described.to_dict()))
        assert data["n_bytes"] == described.n_bytes
        assert data["bits_per_weight"] == described.bits_per_weight
        assert len(data["tensors"]) == len(EVERY_KIND)
        assert {line["label"] for line in data["classes"]} == {x.label for x in described.classes}


def test_a_published_checkpoint_of_three_keys_is_described(tmp_path):
    tq3.compress(tiny_checkpoint(tmp_path / "in"), tmp_path / "out", verbatim_config=True)
    published = {"bits": 3, "group_size": 128, "format": "tq3_native"}
    (tmp_path / "out" / "tq_config.json").write_text(json.dumps(published))
    described = tq3.inspect(tmp_path / "out")
    assert (described.n_compressed, described.n_kept) == (6, 5)
    assert (described.original_model, described.source_bytes) == (None, None)
    reasons = {line.name: line.reason for line in described.tensors}
    assert "output head" in reasons["lm_head.weight"]
    assert reasons["model.layers.0.mlp.up_proj.weight"] == "compressed"


def test_what_another_writer_kept_for_its_own_reasons_is_said_to_be_so(tmp_path):
    tensors = {"odd.weight": random_tensor(4, 128, dtype="F16")}
    path = tiny_checkpoint(tmp_path / "in", tensors)
    (path / "tq_config.json").write_text('{"bits": 3, "group_size": 128, "format": "tq3_native"}')
    (line,) = tq3.inspect(path).tensors
    assert line.reason == "kept by its writer"


def test_no_weight_is_read(tmp_path):
    """The file's data is a hole of 200 GB, which no test could read."""
    n_bytes = 200 * 10**9
    entry = {"dtype": "BF16", "shape": [10**8, 1000], "data_offsets": [0, n_bytes]}
    head = file_bytes({"a.weight": entry})
    (tmp_path / "in").mkdir()
    try:
        with (tmp_path / "in" / "model.safetensors").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + n_bytes)
    except OSError:
        pytest.skip("no sparse files here")
    planned = tq3.inspect(tmp_path / "in")
    assert planned.source_bytes == n_bytes
    assert planned.peak_memory_bytes is not None
    assert planned.peak_memory_bytes < 10**9


def test_the_source_stays_as_it_is(source):
    before = contents(source)
    tq3.inspect(source)
    tq3.preview(source)
    assert contents(source) == before


def test_peak_memory_grows_with_workers_and_with_rows_that_cannot_be_cut(tmp_path):
    small = tiny_checkpoint(tmp_path / "small")
    one, eight = (tq3.preview(small, workers=n).peak_memory_bytes or 0 for n in (1, 8))
    assert eight - one == 7 * BLOCK_BYTES
    rows = {"a.weight": random_tensor(1, 4 * 10**6 + 1, dtype="F32")}
    long = tq3.preview(tiny_checkpoint(tmp_path / "long", rows), workers=1).peak_memory_bytes
    assert long is not None
    assert long - one > 17 * 10**6 - BLOCK_BYTES


def test_preview_refuses_what_compress_refuses(tmp_path):
    tq3.compress(tiny_checkpoint(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(BadInput, match="already quantised"):
        tq3.preview(tmp_path / "out")


HOSTILE = ["", "[]", '{"bits": 3}', '{"bits": 3, "group_size": 128, "format": "other"}']


@pytest.mark.parametrize("text", [*HOSTILE, "\x00"])
@pytest.mark.parametrize("command", [tq3.inspect, lambda path: tq3.restore(path, f"{path}-back")])
def test_a_broken_tq_config_is_refused_by_name(tmp_path, text, command):
    tq3.compress(tiny_checkpoint(tmp_path / "in", llama_tensors(1)), tmp_path / "out")
    (tmp_path / "out" / "tq_config.json").write_text(text)
    with pytest.raises(BadInput) as caught:
        command(tmp_path / "out")
    assert caught.value.file == "tq_config.json"
    assert not Path(f"{tmp_path / 'out'}-back").exists()
