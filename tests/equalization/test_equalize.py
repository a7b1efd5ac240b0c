"""--equalize: tensors are scaled as recorded; what can't be scaled is refused.

tests/models/test_equalized_models.py: that models compute the same.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from support.factories import (
    Tensor,
    contents,
    random_tensor,
    tensor,
    tiny_checkpoint,
    visible,
    whole_llama,
    whole_llama_config,
)
from support.pipelines.interrupting import Stopped, counted_blocks
from support.pipelines.spoiling import change_tensors, read_shard, set_key

import tq3
from tq3.codec import reference
from tq3.equalization import column_stats
from tq3.equalization.scaled_source import SCALED, equalized, storable
from tq3.errors import BadInput, UsageError
from tq3.events import Notice
from tq3.format.checkpoint import read_checkpoint
from tq3.format.equalization import STEPS, factors_from_record
from tq3.storage.local import LocalFiles

WIDTH, HEAD = 128, 32
CONFIG = whole_llama_config()
LAYER = "model.layers.0."
NORM = LAYER + "input_layernorm.weight"
llama = whole_llama


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "source", llama(), config=CONFIG)


def recorded(folder: Path) -> dict[str, bytes]:
    """The exponents, by link."""
    record = json.loads((folder / "tq_config.json").read_text())["tq3"]["equalization"]
    return factors_from_record(record, "tq_config.json")


def recorded_factors(folder: Path) -> dict[str, np.ndarray]:
    return {n: 2.0 ** (np.frombuffer(e, np.int8) / STEPS) for n, e in recorded(folder).items()}


def scaled_tensors(source: Path, factors: dict[str, bytes]) -> dict[str, Tensor]:
    """What is compressed: every tensor of the source, scaled."""
    with LocalFiles(source) as files:
        checkpoint = read_checkpoint(files)
        scaled = equalized(files, checkpoint, factors)
        return {
            each.info.name: Tensor(
                each.info.dtype,
                each.info.shape,
                scaled.read(each.file, each.offset, each.info.n_bytes),
            )
            for each in checkpoint.tensors
        }


def test_columns_are_multiplied_and_what_feeds_them_is_divided(source, tmp_path):
    tq3.compress(source, tmp_path / "tq3", equalize=True)
    before, after = llama(), scaled_tensors(source, recorded(tmp_path / "tq3"))
    factors = recorded_factors(tmp_path / "tq3")
    attention, mlp = factors[NORM], factors[LAYER + "post_attention_layernorm.weight"]
    inner = factors[LAYER + "mlp.down_proj.weight"]
    values = factors[LAYER + "self_attn.o_proj.weight"]
    # Two heads of queries read each head of values.
    heads = values.reshape(2, 1, HEAD).repeat(2, axis=1).ravel()
    expected = {
        "input_layernorm": 1 / attention,
        "self_attn.q_proj": attention,
        "self_attn.k_proj": attention,
        "self_attn.v_proj": attention / values[:, None],
        "self_attn.o_proj": heads,
        "post_attention_layernorm": 1 / mlp,
        "mlp.gate_proj": mlp,
        "mlp.up_proj": mlp / inner[:, None],
        "mlp.down_proj": inner,
    }
    for part, scale in expected.items():
        name = f"{LAYER}{part}.weight"
        wanted = before[name].values * scale
        assert np.ptp(np.broadcast_to(scale, wanted.shape)) > 0.1, part
        np.testing.assert_allclose(after[name].values, wanted, rtol=2**-8)
    embeddings = "model.embed_tokens.weight"
    assert after[embeddings] == before[embeddings]


def test_codes_are_those_of_the_scaled_weights(source, tmp_path):
    tq3.compress(source, tmp_path / "tq3", equalize=True)
    scaled = scaled_tensors(source, recorded(tmp_path / "tq3"))
    stored = read_shard(tmp_path / "tq3" / "model.safetensors")
    for part in ("self_attn.v_proj", "mlp.down_proj"):
        name = f"{LAYER}{part}.weight"
        packed, norms = reference.encode(scaled[name].words, "BF16", 3, 128, "search")
        assert stored[f"{name}.tq_packed"].data == packed.tobytes()
        assert stored[f"{name}.tq_norms"].data == norms.tobytes()


def test_factors_do_not_depend_on_workers_or_on_who_is_first(source, tmp_path, monkeypatch):
    monkeypatch.setattr(column_stats, "_PIECE_WEIGHTS", 1000)
    for workers in (1, 4):
        tq3.compress(source, tmp_path / str(workers), equalize=True, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "4")


@pytest.mark.parametrize("length", [2, 6, 254, 256, 258, 1000])
def test_any_stretch_of_a_tensor_is_scaled_as_the_whole(source, tmp_path, length):
    tq3.compress(source, tmp_path / "tq3", equalize=True)
    with LocalFiles(source) as files:
        scaled = equalized(files, read_checkpoint(files), recorded(tmp_path / "tq3"))
        for located in read_checkpoint(scaled).tensors:
            info = located.info
            if "layers.1.self_attn" not in info.name:
                continue
            whole = scaled.read(located.file, located.offset, info.n_bytes)
            parts = [
                scaled.read(located.file, located.offset + at, min(length, info.n_bytes - at))
                for at in range(0, info.n_bytes, length)
            ]
            assert b"".join(parts) == whole, info.name


def test_a_tensor_without_elements_is_not_taken_for_the_one_that_begins_where_it_does(
    source, tmp_path
):
    """Its name comes later in the alphabet, and so does it among tensors of one offset."""
    tensors = llama()
    names = list(tensors)
    names.insert(names.index(NORM), "z.empty")
    layout = {name: tensors.get(name, random_tensor(0)) for name in names}
    beside = tiny_checkpoint(tmp_path / "beside", layout, config=CONFIG)
    stored = {}
    for path in (source, beside):
        out = tmp_path / f"{path.name}-tq3"
        tq3.compress(path, out, equalize=True)
        stored[path] = {n: t.data for n, t in read_shard(out / "model.safetensors").items()}
    assert stored[beside] == stored[source] | {"z.empty": b""}


def test_a_checkpoint_is_sound_beside_its_source(source, tmp_path):
    tq3.compress(source, tmp_path / "tq3", equalize=True)
    result = tq3.verify(tmp_path / "tq3", source=source)
    assert result.faults == ()
    assert SCALED in result.notices
    assert SCALED not in tq3.verify(tmp_path / "tq3").notices
    kept = [line for line in result.comparisons if line.bits is None]
    assert all(line.exact or line.n_rounded for line in kept)  # rounded: tiny values


def test_restore_says_that_the_weights_are_equalized(source, tmp_path):
    tq3.compress(source, tmp_path / "tq3", equalize=True)
    events = list(tq3.restore_checkpoint(tmp_path / "tq3", tmp_path / "restored"))
    assert any(isinstance(e, Notice) and "equalized" in e.text for e in events)
    stored = read_shard(tmp_path / "tq3" / "model.safetensors")[NORM].values
    restored = read_shard(tmp_path / "restored" / "model.safetensors")[NORM].values
    np.testing.assert_allclose(restored, stored, rtol=2**-8)


def test_a_norm_that_was_not_scaled_is_found(source, tmp_path):
    tq3.compress(source, tmp_path / "tq3", equalize=True)

    def put_back(tensors: dict[str, Tensor]) -> None:
        tensors[NORM] = tensor(llama()[NORM].values, "F16")

    change_tensors(tmp_path / "tq3", put_back)
    faults = tq3.verify(tmp_path / "tq3", source=source).faults
    assert ("TQ504", NORM) in {(fault.check, fault.tensor) for fault in faults}


def test_a_equalized_checkpoint_is_not_taken_for_another_models(source, tmp_path):
    tq3.compress(source, tmp_path / "tq3", equalize=True)
    other = tiny_checkpoint(tmp_path / "other", llama(layers=1), config=CONFIG)
    with pytest.raises(BadInput, match="does not fit the source"):
        tq3.verify(tmp_path / "tq3", source=other)


@pytest.mark.parametrize("text", ["?", "gYGB", 3])
def test_damaged_factors_are_a_fault(source, tmp_path, text):
    tq3.compress(source, tmp_path / "tq3", equalize=True)
    set_key("tq_config.json", "tq3.equalization", {NORM: text})(tmp_path / "tq3")
    faults = tq3.verify(tmp_path / "tq3", structure=True).faults
    assert "TQ103" in {fault.check for fault in faults}


def test_an_interrupted_run_goes_on_to_the_same_bytes(source, tmp_path):
    tq3.compress(source, tmp_path / "whole", equalize=True)
    with counted_blocks(limit=5), pytest.raises(Stopped):
        tq3.compress(source, tmp_path / "out", equalize=True, workers=1)
    with counted_blocks() as carried:
        tq3.compress(source, tmp_path / "out", equalize=True)
    assert len(carried) == len(llama()) - 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("first", [True, False])
def test_a_run_with_another_choice_is_not_continued(source, tmp_path, first):
    with counted_blocks(limit=5), pytest.raises(Stopped):
        tq3.compress(source, tmp_path / "out", equalize=first, workers=1)
    words = {True: "--equalize", False: "--no-equalize"}
    with pytest.raises(UsageError, match=f"{words[first]} became {words[not first]}"):
        tq3.compress(source, tmp_path / "out", equalize=not first)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({"equalize": False}, "--no-equalize became --equalize"),
        ({"equalize": True, "bits": 4}, "--bits 4 became --bits 3"),
        ({"equalize": True, "norms": "float16"}, "--norms float16 became --norms float32"),
    ],
)
def test_an_impossible_continuation_is_refused_before_the_pass(source, tmp_path, first, words):
    with counted_blocks(limit=5), pytest.raises(Stopped):
        tq3.compress(source, tmp_path / "out", **first, workers=1)
    recipe = tq3.Recipe(equalize=True)
    with pytest.raises(UsageError, match=words):
        next(tq3.compress_checkpoint(source, tmp_path / "out", recipe))
    anew = next(tq3.compress_checkpoint(source, tmp_path / "out", recipe, resume=False))
    assert isinstance(anew, Notice)
    assert "first pass" in anew.text


def test_a_target_that_is_not_free_is_refused_before_the_pass(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        next(tq3.compress_checkpoint(source, tmp_path / "out", tq3.Recipe(equalize=True)))


def gains_of(file: Path, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """(1 + what the first norm stores) * scale  (WIDTH,)"""
    return (1 + read_shard(file)[NORM].values.astype(np.float64)) * scale


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_gains_that_are_stored_less_one_are_divided_by_what_their_readers_are_multiplied_by(
    tmp_path, dtype
):
    """Next to -1 BF16 has steps of 2**-8: of 0.3 / 16 that is a fifth, and 0.02 / 16 is lost."""
    tensors = llama(layers=1)
    random = np.random.default_rng(5)
    gains = random.choice([0.02, 0.3, 1.0], WIDTH)
    tensors[NORM] = tensor(gains - 1, dtype)
    for part in "qkv":
        name = f"{LAYER}self_attn.{part}_proj.weight"
        columns = 2.0 ** random.uniform(-6, 6, WIDTH)
        tensors[name] = tensor(tensors[name].values * columns)
    config = CONFIG | {"model_type": "qwen3_5"}
    source = tiny_checkpoint(tmp_path / "source", tensors, config=config)
    tq3.compress(source, tmp_path / "tq3", equalize=True)
    factors = recorded_factors(tmp_path / "tq3")[NORM]
    assert factors.max() > 8 and factors.min() < 1 / 8
    stored = gains_of(tmp_path / "tq3" / "model.safetensors", factors)
    source_gains = gains_of(source / "model.safetensors")
    scaled = factors != 1
    np.testing.assert_allclose(stored[scaled], source_gains[scaled], rtol=2**-8)
    # Most channels of ordinary gains still have about the factor that is best for them.
    assert np.mean(scaled[gains == 1]) > 0.9


def test_a_factor_is_the_nearest_by_which_its_gain_can_be_divided():
    """Of the gains 1, 0.5, 0 and NaN."""
    stored = tensor(np.array([0, -0.5, -1, np.nan])).words.reshape(-1)
    wanted = np.array([32, 26, 20, 9], np.int8)
    found = np.frombuffer(storable(wanted.tobytes(), stored, "BF16", 1.0), np.int8)
    # 1 / 16 and 0.5 / 8 are steps, what is near 0.5 / 8 is none. NaN stays as it is.
    assert found.tolist() == [32, 24, 20, 0]
    ordinary = storable(wanted.tobytes(), tensor(np.full(4, 0.3)).words.reshape(-1), "BF16", 0.0)
    assert ordinary == wanted.tobytes()


def test_a_nan_is_told_by_the_run_and_not_by_the_pass(tmp_path):
    tensors = llama()
    name = LAYER + "mlp.up_proj.weight"
    values = tensors[name].values.copy()
    values[3, 4] = np.nan
    tensors[name] = tensor(values)
    path = tiny_checkpoint(tmp_path / "source", tensors, config=CONFIG)
    with pytest.raises(BadInput, match="not a finite weight"):
        tq3.compress(path, tmp_path / "out", equalize=True)
    tq3.compress(path, tmp_path / "kept", equalize=True, nonfinite="keep", overwrite=True)
    assert visible(tmp_path / "kept")


def test_a_run_that_is_left_in_the_pass_leaves_nothing(source, tmp_path):
    run = tq3.compress_checkpoint(source, tmp_path / "out", tq3.Recipe(equalize=True))
    assert len(list(islice(run, 4))) == 4
    run.close()
    assert not (tmp_path / "out").exists()


def test_it_is_what_happens_by_default_and_told_in_a_line(source, tmp_path):
    events: list[object] = []
    tq3.compress(source, tmp_path / "tq3", on_event=events.append)
    tq3.compress(source, tmp_path / "asked", equalize=True)
    assert contents(tmp_path / "tq3") == contents(tmp_path / "asked")
    told = [each.text for each in events if isinstance(each, Notice)]
    assert len(told) == 1
    assert told[0].startswith("columns are equalized (--no-equalize ")
    assert tq3.preview(source).equalized
    assert tq3.inspect(source).equalized
    assert tq3.inspect(tmp_path / "tq3").equalized


def test_a_run_that_was_begun_without_it_goes_on_with_no_equalize(source, tmp_path):
    """As one that an earlier version began, whose record says equalize: false."""
    with counted_blocks(limit=5), pytest.raises(Stopped):
        tq3.compress(source, tmp_path / "out", equalize=False, workers=1)
    with pytest.raises(UsageError, match="--no-equalize became --equalize"):
        tq3.compress(source, tmp_path / "out")
    report = tq3.compress(source, tmp_path / "out", equalize=False)
    assert report.share_before > 0


def test_what_is_kept_stays_as_it_is_where_nothing_compressed_would_gain(source, tmp_path):
    kept = "*layers.0.self_attn*"
    tq3.compress(source, tmp_path / "tq3", keep=kept)
    links = set(recorded(tmp_path / "tq3"))
    assert LAYER + "mlp.down_proj.weight" in links
    assert not links & {NORM, LAYER + "self_attn.o_proj.weight"}
    stored = read_shard(tmp_path / "tq3" / "model.safetensors")
    for name in (NORM, LAYER + "self_attn.q_proj.weight"):
        values = llama()[name].values.astype(np.float16)
        np.testing.assert_array_equal(stored[name].values, values)
    assert tq3.verify(tmp_path / "tq3", source=source).faults == ()


def test_a_model_that_was_saved_without_its_head_has_names_without_a_prefix(source, tmp_path):
    tensors = {name.removeprefix("model."): each for name, each in llama().items()}
    bare = tiny_checkpoint(tmp_path / "bare", tensors, config=CONFIG)
    for path in (source, bare):
        tq3.compress(path, tmp_path / f"{path.name}-tq3")
    of_all, found = recorded(tmp_path / "source-tq3"), recorded(tmp_path / "bare-tq3")
    assert found == {name.removeprefix("model."): each for name, each in of_all.items()}


def test_layers_beyond_those_that_config_json_counts_are_left_alone(tmp_path):
    """DeepSeek and GLM number the layer that predicts further tokens like the others."""
    source = tiny_checkpoint(tmp_path / "in", llama(3), config=CONFIG | {"num_hidden_layers": 2})
    tq3.compress(source, tmp_path / "tq3")
    links = recorded(tmp_path / "tq3")
    assert {name.split(".")[2] for name in links} == {"0", "1"}
    assert tq3.verify(tmp_path / "tq3", source=source).faults == ()


def test_no_equalize_keeps_every_weight_and_records_nothing(source, tmp_path):
    tq3.compress(source, tmp_path / "tq3", equalize=False)
    assert (
        "equalization" not in json.loads((tmp_path / "tq3" / "tq_config.json").read_text())["tq3"]
    )
    assert not tq3.inspect(tmp_path / "tq3").equalized
    assert not tq3.preview(source, equalize=False).notices
    stored = read_shard(tmp_path / "tq3" / "model.safetensors")
    np.testing.assert_array_equal(stored[NORM].values, llama()[NORM].values.astype(np.float16))
