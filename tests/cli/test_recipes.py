"""`--recipe`, `--target-size`, `--target-bpw`, `--lm-head`, `--embeddings`: from option to file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.factories import contents, random_tensor, read_tensors, tiny_checkpoint

import tq3 as library

STEM = "model.layers.{}.{}.weight"
SHAPES = {
    "self_attn.q_proj": (256, 128),
    "self_attn.k_proj": (128, 128),
    "self_attn.v_proj": (128, 128),
    "self_attn.o_proj": (128, 256),
    "mlp.gate_proj": (256, 128),
    "mlp.up_proj": (256, 128),
    "mlp.down_proj": (128, 256),
}
MINE = """
target_bpw = 3.4
[roles]
others = [2, 3, 4]
o = "exact"
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model of three layers with all parts of attention, embeddings and a head."""
    tensors = {
        STEM.format(i, part): random_tensor(*shape, seed=9 * i + n)
        for i in range(3)
        for n, (part, shape) in enumerate(SHAPES.items())
    }
    tensors["model.embed_tokens.weight"] = random_tensor(256, 128, seed=98)
    tensors["lm_head.weight"] = random_tensor(256, 128, seed=99)
    return tiny_checkpoint(tmp_path / "in", tensors, shards=2)


def widths(folder: Path) -> dict[str, int]:
    """Name -> width of what is packed, from the stored shapes."""
    suffix = ".tq_packed"
    return {
        name.removesuffix(suffix): tensor.shape[1] * 8 // 128
        for name, tensor in read_tensors(folder).items()
        if name.endswith(suffix)
    }


def weight_bytes(folder: Path) -> int:
    """All safetensors files together."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_the_native_recipe_writes_the_weights_that_no_recipe_writes(tq3, source, tmp_path):
    assert tq3("compress", source, tmp_path / "a", "--recipe", "native").exit_code == 0
    assert tq3("compress", source, tmp_path / "b").exit_code == 0
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert [name for name in a if a[name] != b[name]] == ["tq3_manifest.json", "tq_config.json"]


def test_command_and_library_write_the_same(tq3, source, tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    options = ("--recipe", tmp_path / "mine.toml", "--target-bpw", 3.6, "--lm-head", 4)
    result = tq3("compress", source, tmp_path / "a", *options, "--embeddings", 2)
    assert result.exit_code == 0
    library.compress(
        source,
        tmp_path / "b",
        recipe=tmp_path / "mine.toml",
        target_bpw=3.6,
        lm_head=4,
        embeddings=2,
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    found = widths(tmp_path / "a")
    assert found["lm_head.weight"] == 4
    assert found["model.embed_tokens.weight"] == 2
    assert not any("o_proj" in name for name in found)


@pytest.mark.parametrize("size", ["350kB", 375_000, 400_000])
def test_the_weight_files_are_no_larger_than_the_size_asked_for(tq3, source, tmp_path, size):
    options = ("--target-size", size, "--max-shard-size", "100kB")
    assert tq3("compress", source, tmp_path / "out", *options).exit_code == 0
    n_bytes = 350_000 if size == "350kB" else int(size)
    assert n_bytes - 20_000 < weight_bytes(tmp_path / "out") <= n_bytes
    assert tq3("verify", tmp_path / "out", "--source", source).exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--target-bpw", 3.1),
        ("--recipe", "mixed", "--lm-head", 4),
        ("--target-bpw", 3.1, "--norms", "float16"),
    ],
)
def test_what_a_dry_run_shows_is_what_is_written_and_what_inspect_shows(
    tq3, source, tmp_path, options
):
    planned = json.loads(tq3("compress", source, "--dry-run", "--json", *options).stdout)
    asked = json.loads(tq3("inspect", source, "--json", *options).stdout)
    assert asked == planned
    assert tq3("compress", source, tmp_path / "out", *options).exit_code == 0
    stored = json.loads(tq3("inspect", tmp_path / "out", "--json").stdout)
    assert stored["choice"] == planned["choice"]
    assert stored["widths"] == planned["widths"] == sorted(set(widths(tmp_path / "out").values()))
    assert sum(line["loss_share"] for line in planned["choice"]["roles"]) == pytest.approx(1)
    assert sum(planned["shards"].values()) == weight_bytes(tmp_path / "out")


def test_a_dry_run_shows_the_choice_and_why(tq3, source):
    shown = tq3("compress", source, "--dry-run", "--target-bpw", 3.1, "--lm-head", 4).stdout
    for word in ("recipe", "best", "share of loss", "next bit saves", "gate_up", "% for 1 %"):
        assert word in shown
    bpw = shown.partition(" where it may be compressed")[0].rpartition("(")[2]
    assert 3.0 < float(bpw) <= 3.1
    assert "readers        tq3's own: tq3.load, vLLM with its plugin, tq3 restore\n" in shown
    assert "others can't: lm_head.weight is packed" in shown
    assert "q, k and v of a layer differ" in shown
    assert "norms are F16" in shown
    known = tq3("compress", source, "--dry-run").stdout
    assert "readers        tq3's own, and others of the published format\n" in known


def test_a_target_beyond_all_that_the_recipe_allows_is_told_by_plan_and_run(tq3, source, tmp_path):
    options = ("--recipe", "mixed", "--target-size", "14GiB")
    told = "14 GiB, but the widest output that recipe 'mixed' allows has"
    shown = " ".join(tq3("compress", source, "--dry-run", *options).stdout.split())
    assert f"target {told}" in shown
    result = tq3("compress", source, tmp_path / "out", *options)
    assert f"the target is {told}" in " ".join(result.stderr.split())
    # So large, and no larger: a byte less is a target to choose by.
    n_bytes = weight_bytes(tmp_path / "out")
    for size in (n_bytes, n_bytes - 1):
        found = tq3("compress", source, "--dry-run", "--recipe", "mixed", "--target-size", size)
        assert "but the widest" not in found.stdout


def test_without_a_recipe_nothing_is_said_of_roles(tq3, source):
    assert "share of loss" not in tq3("compress", source, "--dry-run").stdout


def test_a_checkpoint_of_several_widths_goes_there_and_back(tq3, source, tmp_path):
    options = ("--target-bpw", 3.0, "--lm-head", 4, "--embeddings", 4)
    assert tq3("compress", source, tmp_path / "out", *options).exit_code == 0
    assert len(set(widths(tmp_path / "out").values())) == 3
    assert tq3("verify", tmp_path / "out", "--source", source).exit_code == 0
    assert tq3("restore", tmp_path / "out", tmp_path / "back").exit_code == 0
    assert read_tensors(tmp_path / "back").keys() == read_tensors(source).keys()


def test_a_width_other_than_the_recorded_one_is_a_fault(tq3, source, tmp_path):
    assert tq3("compress", source, tmp_path / "out").exit_code == 0
    path = tmp_path / "out" / "tq_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bits": 4}))
    result = tq3("restore", tmp_path / "out", tmp_path / "back")
    assert result.exit_code == 3
    assert "its width is not the recorded one" in result.stderr


def test_config_json_names_the_usual_width(tq3, source, tmp_path):
    assert tq3("compress", source, tmp_path / "out", "--target-bpw", 4.2).exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    recorded = json.loads((tmp_path / "out" / "tq_config.json").read_text())
    assert config["quantization_config"]["bits"] == recorded["bits"] == 4


def test_options_of_a_plan_are_refused_for_what_is_compressed(tq3, source, tmp_path):
    assert tq3("compress", source, tmp_path / "out").exit_code == 0
    options = ("--recipe", "best", "--lm-head", 4, "--norms", "float32")
    result = tq3("inspect", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert "--recipe, --lm-head, --norms" in result.stderr


def test_another_recipe_does_not_continue_what_one_began(tq3, source, tmp_path):
    class Stop(Exception):
        pass

    def stop(event: object) -> None:
        if type(event).__name__ == "Progress":
            raise Stop

    with pytest.raises(Stop):
        library.compress(source, tmp_path / "out", recipe="mixed", workers=1, on_event=stop)
    result = tq3("compress", source, tmp_path / "out", "--recipe", "best")
    assert result.exit_code == 2
    assert "--recipe mixed became --recipe best" in result.stderr
    assert tq3("compress", source, tmp_path / "out", "--recipe", "mixed").exit_code == 0


def test_a_card_tells_the_widths_and_the_command(tq3, source, tmp_path):
    options = ("--recipe", "mixed", "--target-bpw", 3.6, "--embeddings", 4)
    assert tq3("compress", source, tmp_path / "out", *options).exit_code == 0
    card = tq3("card", tmp_path / "out").stdout
    assert "--recipe mixed --target-bpw 3.6 --embeddings 4" in card
    assert "3 and 4 bits" in card
