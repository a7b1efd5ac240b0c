"""Every tensor of a TQ3 checkpoint is what the reference codec and numpy make of its source."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support.factories import contents, llama_tensors, random_tensor, read_tensors, tiny_checkpoint
from support.pipelines.kinds import (
    COMPRESSED,
    EVERY_KIND,
    FLOATS,
    OTHERS,
    assert_same_tensors,
    compressed_output,
    encoded,
)

import tq3
from tq3.codec.backend import available_backends
from tq3.errors import BadInput


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [32, 128, 256])
@pytest.mark.parametrize("scale", ["norm", "search"])
def test_every_kind_of_tensor_is_stored_as_the_reference_says(tmp_path, bits, group, scale):
    source = tiny_checkpoint(tmp_path / "in", EVERY_KIND)
    options = {"bits": bits, "group_size": group, "scale": scale}
    tq3.compress(source, tmp_path / "out", keep=["large.*"], **options)
    expected = compressed_output(bits, group, scale)
    for part in ("tq_packed", "tq_norms"):
        del expected[f"large.f32.mlp.w2.weight.{part}"]
    found = read_tensors(tmp_path / "out")
    assert found.pop("large.f32.mlp.w2.weight") == COMPRESSED["large.f32.mlp.w2.weight"]
    assert_same_tensors(found, expected)


# Thousands of calls of the slow codec by many workers would show nothing more.
RUNS = [
    (backend, workers, block_bytes)
    for backend in available_backends()
    for workers in (1, 2, 5)
    for block_bytes in (1, 1000, 20_000, 4 * 2**20)
    if not (backend == "numpy" and block_bytes == 1 and workers > 1)
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "in", EVERY_KIND, shards=3)


@pytest.fixture(scope="module")
def by_numpy(source: Path) -> Callable[[int], dict[str, bytes]]:
    """The files that one worker makes of the source in blocks of the size that is set. Their
    measured error is that of first blocks.
    """

    @cache
    def files(block_bytes: int) -> dict[str, bytes]:
        out = source.with_name(f"numpy {block_bytes}")
        tq3.compress(source, out, max_shard_size=20_000, backend="numpy", workers=1)
        return contents(out)

    return files


@pytest.mark.parametrize(("backend", "workers", "block_bytes"), RUNS)
def test_no_backend_number_of_workers_or_block_size_changes_a_byte(
    tmp_path, set_block_bytes, source, by_numpy, backend, workers, block_bytes
):
    set_block_bytes(block_bytes)
    report = tq3.compress(
        source, tmp_path / "out", max_shard_size=20_000, workers=workers, backend=backend
    )
    assert (report.backend, report.workers) == (backend, workers)
    assert_same_tensors(read_tensors(tmp_path / "out"), compressed_output())
    assert contents(tmp_path / "out") == by_numpy(block_bytes)


def test_smaller_blocks_are_more_blocks(tmp_path, set_block_bytes):
    source = tiny_checkpoint(tmp_path / "in")
    steps: list[object] = []
    tq3.compress(source, tmp_path / "large", on_event=steps.append)
    n_large = len(steps)
    set_block_bytes(1000)
    tq3.compress(source, tmp_path / "small", on_event=steps.append)
    assert len(steps) - n_large > 5 * n_large


def test_keep_dtype_source_keeps_the_very_bytes(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", EVERY_KIND)
    tq3.compress(source, tmp_path / "out", keep_dtype="source")
    found = read_tensors(tmp_path / "out")
    kept = FLOATS | OTHERS
    assert_same_tensors({name: found[name] for name in kept}, kept)


def test_a_source_sharded_in_any_way_gives_the_same_tensors(tmp_path):
    for shards in (1, 2, 7):
        source = tiny_checkpoint(tmp_path / f"in{shards}", EVERY_KIND, shards=shards)
        tq3.compress(source, tmp_path / f"out{shards}")
        assert_same_tensors(read_tensors(tmp_path / f"out{shards}"), compressed_output())


def test_sensitive_tensors_have_their_own_width(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    tq3.compress(source, tmp_path / "out", bits=3, sensitive_bits=4)
    found, tensors = read_tensors(tmp_path / "out"), llama_tensors()
    for name, bits in (("mlp.up_proj", 3), ("mlp.down_proj", 4), ("self_attn.o_proj", 4)):
        full = f"model.layers.1.{name}.weight"
        for stored, one in encoded(full, tensors[full], bits).items():
            assert found[stored] == one


def test_keep_and_only_choose_by_name(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    tq3.compress(source, tmp_path / "out", keep=["*.1.*"], only=["*.up_proj.*", "lm_head.weight"])
    packed = {n for n in read_tensors(tmp_path / "out") if n.endswith(".tq_packed")}
    assert packed == {
        "model.layers.0.mlp.up_proj.weight.tq_packed",
        "lm_head.weight.tq_packed",
    }


def test_a_shard_closes_before_the_tensor_that_would_pass_the_limit(tmp_path):
    source = tiny_checkpoint(tmp_path / "in", {f"t{i}": random_tensor(500) for i in range(5)})
    tq3.compress(source, tmp_path / "out", keep="*", max_shard_size="2KB")
    names = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert names == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}


@pytest.mark.parametrize("tensors", [{}, {"a.bias": random_tensor(256)}])
def test_a_source_with_nothing_to_compress_is_refused(tmp_path, tensors):
    with pytest.raises(BadInput, match="nothing to compress|no tensors"):
        tq3.compress(tiny_checkpoint(tmp_path / "in", tensors), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_any_alphabet_are_kept(tmp_path):
    tensors = {f"{name}.weight": random_tensor(2, 128) for name in ("größe", "重", "a b", "🦙")}
    tq3.compress(tiny_checkpoint(tmp_path / "in", tensors), tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    for name, one in tensors.items():
        assert encoded(name, one).items() <= found.items()


@pytest.mark.parametrize("shards", [1, 3])
def test_the_source_is_never_changed(tmp_path, shards):
    source = tiny_checkpoint(tmp_path / "in", shards=shards)
    before, times = contents(source), {p.name: p.stat().st_mtime_ns for p in source.iterdir()}
    tq3.compress(source, tmp_path / "out")
    tq3.inspect(source)
    assert contents(source) == before
    assert {path.name: path.stat().st_mtime_ns for path in source.iterdir()} == times


def test_the_report_adds_up(tmp_path):
    source = tiny_checkpoint(tmp_path / "in")
    report = tq3.compress(source, tmp_path / "out", workers=1)
    found = read_tensors(tmp_path / "out")
    assert report.source_bytes == sum(len(one.data) for one in llama_tensors().values())
    assert report.output_bytes == sum(len(one.data) for one in found.values())
    assert (report.n_compressed, report.n_kept, report.restored) == (6, 5, False)
    assert report.compressed_bits_per_weight == pytest.approx(3.25)
    n_weights = report.source_bytes / 2
    assert report.bits_per_weight == pytest.approx(report.output_bytes * 8 / n_weights)
    assert report.mean_error is not None and report.worst_error is not None
    assert 0.02 < report.mean_error < 0.05 and report.worst_error >= report.mean_error
    assert report.worst_tensor in llama_tensors()
    assert report.peak_memory_bytes > 2**20
    assert report.ratio == report.source_bytes / report.output_bytes


def test_progress_ends_with_all_bytes_and_never_exceeds_them(tmp_path, set_block_bytes):
    set_block_bytes(500)
    source = tiny_checkpoint(tmp_path / "in", EVERY_KIND)
    seen: list[tq3.events.Event] = []
    tq3.compress(source, tmp_path / "out", on_event=seen.append)
    steps = [e for e in seen if isinstance(e, tq3.events.Progress)]
    done = [step.bytes_done for step in steps]
    assert done == sorted(done)
    assert done[-1] == steps[0].bytes_total == sum(len(t.data) for t in EVERY_KIND.values())
    assert steps[-1].weights_done == sum(t.words.size for t in COMPRESSED.values())
