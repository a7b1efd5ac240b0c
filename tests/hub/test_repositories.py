"""compress, inspect, verify and restore on the id of a repository."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from support.dequantization.quantised import around, fp4, fp8
from support.factories import (
    contents,
    random_tensor,
    tiny_checkpoint,
    whole_llama,
    whole_llama_config,
)
from support.hub.hubs import Hub

import tq3
from tq3.errors import BadInput, NetworkError, StorageError, UsageError
from tq3.events import Progress
from tq3.format.config import parse_tq_config, stand_in
from tq3.format.recipe import Recipe
from tq3.format.repositories import is_repository_name
from tq3.format.weight_files import INDEX, SINGLE
from tq3.hub.cache import needed
from tq3.hub.options import HubOptions
from tq3.pipelines.opening import is_repository_id, options_of_both
from tq3.plan.plan import Task

MODEL = "some-org/some-model"
LAYERS = 4
NAMES = (
    *(
        "a",
        "a/b",
        "_a/b_",
        "a.b/c-d",
        "a" * 96,
        "a" * 96 + "/b",
        "é",
        "a/b/c",
        "a b",
        "",
        "/",
        "a/",
    ),
    *("-a", "a-", ".a", "a.", "a--b", "a..b", "a.git", "a.git/b", "a" * 97, "a/" + "b" * 97, "a\n"),
)
IMPATIENT = HubOptions(patience_seconds=0.3, first_wait_seconds=0.01, longest_wait_seconds=0.05)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 34 MB in two shards, with files of all kinds beside them."""
    path = tmp_path_factory.mktemp("models")
    values = random_tensor(2048, 2048)
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": values for i in range(LAYERS)}
    tensors |= {"model.norm.weight": random_tensor(2048, seed=9)}
    folder = tiny_checkpoint(path / MODEL, tensors, shards=2)
    (folder / "tokenizer.json").write_text(json.dumps({"tokens": list(range(1000))}))
    (folder / "README.md").write_text("# A model\n")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(np.random.default_rng(0).bytes(1000))
    return path


@pytest.fixture
def hub(start_hub, models) -> Hub:
    return start_hub("--seed", models)


@pytest.fixture
def snapshot(hub, models, tmp_path) -> Path:
    """The same files in a folder that is named as the Hub cache's."""
    commit = HfApi(endpoint=hub.endpoint).model_info(MODEL).sha
    path = tmp_path / f"models--{MODEL.replace('/', '--')}" / "snapshots" / str(commit)
    shutil.copytree(models / MODEL, path)
    return path


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_compressing_by_id_gives_the_bytes_of_compressing_the_folder(hub, snapshot, tmp_path):
    tq3.compress(MODEL, tmp_path / "by-id")
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "by-id") == contents(tmp_path / "by-path")
    config = json.loads((tmp_path / "by-id" / "tq_config.json").read_text())
    assert config["tq3"]["source_revision"] == snapshot.name
    assert config["original_model"] == MODEL
    assert not (tmp_path / "cache").exists(), "nothing of the source is on the disk"


def test_parts_by_id_give_the_bytes_of_one_run_and_fetch_what_it_fetches(hub, snapshot, tmp_path):
    whole = tq3.compress(MODEL, tmp_path / "whole", max_shard_size=40_000)
    parts = [
        tq3.compress(MODEL, tmp_path / "out", max_shard_size=40_000, part=(n, 2)) for n in (1, 2)
    ]
    tq3.finish(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert all(part.source_bytes for part in parts)
    received = [part.bytes_received or 0 for part in parts]
    assert sum(received) <= 1.1 * (whole.bytes_received or 0)


def test_no_byte_of_the_source_is_fetched_in_vain(hub, snapshot, tmp_path):
    tq3.compress(MODEL, tmp_path / "out")
    needed = weights_bytes(snapshot) + (snapshot / "tokenizer.json").stat().st_size
    assert hub.sent() <= 1.02 * needed


def test_planning_and_inspecting_read_next_to_nothing(hub, snapshot):
    plan, description = tq3.preview(MODEL), tq3.inspect(MODEL)
    assert plan.path == description.path == f"{MODEL} at {snapshot.name[:12]}"
    assert plan.n_bytes == tq3.preview(snapshot).n_bytes
    assert hub.sent() < 0.02 * weights_bytes(snapshot)  # both together


def test_a_tq3_repository_is_inspected_verified_and_restored(hub, start_hub, models, tmp_path):
    tq3.compress(str(models / MODEL), tmp_path / "models" / "org" / "tq3")
    there = start_hub("--seed", tmp_path / "models")
    assert tq3.inspect("org/tq3").bits == 3
    verification = tq3.verify("org/tq3", structure=True)
    assert verification.ok
    assert (verification.bytes_read, verification.checksums) == (0, False)
    assert there.sent() < 0.02 * weights_bytes(tmp_path / "models" / "org" / "tq3")
    assert tq3.verify("org/tq3").ok
    tq3.restore("org/tq3", tmp_path / "restored")
    tq3.restore(tmp_path / "models" / "org" / "tq3", tmp_path / "restored-locally")
    assert contents(tmp_path / "restored") == contents(tmp_path / "restored-locally")


def test_what_stands_for_tq_config_in_config_json_is_found_on_the_hub_too(
    hub, start_hub, models, tmp_path
):
    folder = tmp_path / "models" / "org" / "saved"
    tq3.compress(str(models / MODEL), folder)
    shapes = parse_tq_config((folder / "tq_config.json").read_text()).shapes
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["tq3"] = stand_in(shapes, {})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tq_config.json").unlink()
    (folder / "tq3_manifest.json").unlink()
    start_hub("--seed", tmp_path / "models")
    assert tq3.inspect("org/saved").classes == tq3.inspect(folder).classes
    assert tq3.verify("org/saved", structure=True).ok
    assert tq3.verify("org/saved").ok


def test_a_checkpoint_is_verified_beside_its_original_on_the_hub(hub, tmp_path):
    tq3.compress(MODEL, tmp_path / "out")
    verification = tq3.verify(tmp_path / "out", source=MODEL)
    assert verification.ok
    assert len(verification.comparisons) == LAYERS + 1


def test_a_network_that_fails_all_the_time_does_not_change_a_byte(hub, snapshot, tmp_path):
    hub.control(
        address_uses=3,
        fail={"GET /cdn/": [503, 5], "HEAD .*/resolve/": [429, 2]},
        truncate={"00001-of-00002.safetensors": 100_000, "00002-of-00002.safetensors": 100_000},
        lie={".safetensors": ["size", 2]},
    )
    list(tq3.compress_checkpoint(MODEL, tmp_path / "by-id", Recipe(), workers=2))
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "by-id") == contents(tmp_path / "by-path")


def test_a_run_that_the_network_ended_is_continued(hub, snapshot, tmp_path):
    run = tq3.compress_checkpoint(MODEL, tmp_path / "out", Recipe(), workers=1, hub=IMPATIENT)
    with pytest.raises(NetworkError, match=r"the Hub fails \(503\)") as caught:
        for event in run:
            if isinstance(event, Progress) and event.bytes_done > 10 * 2**20:
                hub.control(fail={"GET /cdn/": [503, 10**6]})
    assert caught.value.repeatable
    hub.control(fail={})
    before = hub.sent()
    report = tq3.compress(MODEL, tmp_path / "out")
    assert report.share_before > 0.25
    assert hub.sent() - before < (1.02 - report.share_before) * weights_bytes(snapshot)
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "out") == contents(tmp_path / "by-path")


def test_a_run_whose_branch_moved_goes_on_at_its_commit_only(hub, snapshot, tmp_path):
    run = tq3.compress_checkpoint(MODEL, tmp_path / "out", Recipe(), workers=1)
    next(event for event in run if isinstance(event, Progress) and event.bytes_done > 10 * 2**20)
    run.close()
    hub.move(MODEL, {"README.md": b"moved\n"})
    with pytest.raises(UsageError, match=f"commit {snapshot.name} became") as caught:
        tq3.compress(MODEL, tmp_path / "out")
    moved = HfApi(endpoint=hub.endpoint).model_info(MODEL).sha
    assert f"bytes of commit {moved}" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    tq3.compress(MODEL, tmp_path / "out", revision=snapshot.name)
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "out") == contents(tmp_path / "by-path")


def test_a_branch_that_moves_during_the_run_changes_nothing(hub, snapshot, tmp_path):
    run = tq3.compress_checkpoint(MODEL, tmp_path / "out", Recipe(), workers=1)
    for event in run:
        if isinstance(event, Progress):
            hub.move(MODEL, {"README.md": b"moved\n", "tokenizer.json": b"{}"})
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "out") == contents(tmp_path / "by-path")


def test_what_the_hub_cache_has_is_not_fetched(hub, snapshot, tmp_path):
    shard = sorted(snapshot.glob("*.safetensors"))[0]
    snapshot_download(
        MODEL, cache_dir=constants.HF_HUB_CACHE, allow_patterns=[shard.name], endpoint=hub.endpoint
    )
    before = hub.sent()
    tq3.compress(MODEL, tmp_path / "out")
    assert hub.sent() - before < 1.02 * weights_bytes(snapshot) - shard.stat().st_size
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "out") == contents(tmp_path / "by-path")


def test_a_cut_file_in_the_hub_cache_is_not_taken_for_the_whole(hub, snapshot, tmp_path):
    shard = sorted(snapshot.glob("*.safetensors"))[0]
    found = snapshot_download(
        MODEL, cache_dir=constants.HF_HUB_CACHE, allow_patterns=[shard.name], endpoint=hub.endpoint
    )
    with (Path(found) / shard.name).open("r+b") as file:
        file.truncate(1000)
    tq3.compress(MODEL, tmp_path / "out")
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "out") == contents(tmp_path / "by-path")


def test_download_fetches_what_is_needed_first_and_reads_that(hub, snapshot, tmp_path):
    tq3.compress(MODEL, tmp_path / "out", download=True)
    cached = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert cached >= {"config.json", "tokenizer.json", "README.md"}
    assert "model.onnx" not in {path.name for path in (tmp_path / "cache").rglob("*")}
    ranges = [line for line in hub.trace() if "/cdn/" in line.get("p", "") and line.get("range")]
    assert ranges == []
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "out") == contents(tmp_path / "by-path")


def test_an_index_of_any_name_is_needed_with_its_shards():
    indices = ("consolidated.safetensors.index.json", "model.safetensors.index.fp16.json")
    shard, others = "consolidated-1.safetensors", ("onnx/model.safetensors", "model.bin.index.json")
    assert needed((*indices, shard, *others)) == (*indices, shard)


def test_where_all_is_in_the_hub_cache_no_network_binds(hub, tmp_path):
    events: list[object] = []
    tq3.compress(MODEL, tmp_path / "out", download=True, on_event=events.append)
    assert {event.rates for event in events if isinstance(event, Progress)} == {None}


def test_a_download_beside_a_folder_fetches_the_other(hub, models, tmp_path):
    tq3.compress(MODEL, tmp_path / "out")
    cache = Path(constants.HF_HUB_CACHE, f"models--{MODEL.replace('/', '--')}")
    assert not list(cache.rglob("*.safetensors"))
    assert tq3.verify(tmp_path / "out", source=MODEL, download=True).ok
    assert list(cache.rglob("*.safetensors"))
    for source in (None, models / MODEL):
        with pytest.raises(UsageError, match="out: --revision and --download are for"):
            tq3.verify(tmp_path / "out", source=source, download=True)


@pytest.mark.parametrize(
    ("path", "source", "fetched"),
    [
        ("a/b", "c/d", (True, True)),
        ("a/b", "./d", (True, False)),
        ("./b", "c/d", (False, True)),
        ("./b", "./d", (True, False)),  # and is refused
        ("a/b", None, (True, False)),
    ],
)
def test_a_download_is_of_every_repository_that_is_named(path, source, fetched):
    found = options_of_both(path, source, {"download": True, "source_revision": "v1"})
    assert tuple(each.download for each in found) == fetched
    assert tuple(each.revision for each in found) == (None, "v1")


def test_a_download_that_fails_is_begun_again(hub, snapshot, tmp_path):
    hub.control(fail={"GET /cdn/": [503, 1], "HEAD .*/resolve/": [503, 1]})
    options = HubOptions(download=True, first_wait_seconds=0.01)
    list(tq3.compress_checkpoint(MODEL, tmp_path / "out", Recipe(), hub=options))
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "out") == contents(tmp_path / "by-path")


def test_offline_the_cache_is_read_and_the_hub_is_not_asked(hub, snapshot, tmp_path, monkeypatch):
    snapshot_download(MODEL, cache_dir=constants.HF_HUB_CACHE, endpoint=hub.endpoint)
    asked = len(hub.requests())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tq3.compress(MODEL, tmp_path / "out")
    assert len(hub.requests()) == asked
    tq3.compress(snapshot, tmp_path / "by-path")
    assert contents(tmp_path / "out") == contents(tmp_path / "by-path")


def test_offline_what_download_brought_suffices(hub, snapshot, tmp_path, monkeypatch):
    options = HubOptions(download=True)
    list(tq3.compress_checkpoint(MODEL, tmp_path / "out", Recipe(), hub=options))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tq3.compress(MODEL, tmp_path / "offline")
    assert contents(tmp_path / "offline") == contents(tmp_path / "out")


def test_offline_a_cache_that_lacks_a_needed_file_is_refused(hub, snapshot, tmp_path, monkeypatch):
    list(tq3.compress_checkpoint(MODEL, tmp_path / "out", Recipe(), hub=HubOptions(download=True)))
    next(Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/tokenizer.json")).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="not in the Hub cache"):
        tq3.compress(MODEL, tmp_path / "offline")


def test_offline_without_the_model_in_the_cache_is_one_sentence(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="not in the Hub cache, and huggingface_hub is offline"):
        tq3.inspect(MODEL)


def test_a_file_that_is_not_what_the_hub_listed_ends_the_run(hub, models, tmp_path):
    run = tq3.compress_checkpoint(MODEL, tmp_path / "out", Recipe(), workers=1, hub=IMPATIENT)
    hub.control(lie={"tokenizer.json": ["corrupt", 1]})
    with pytest.raises(NetworkError, match="not the content that the Hub names"):
        list(run)
    assert not (tmp_path / "out" / "tq_config.json").exists()


def test_a_folder_comes_before_a_repository(hub, models, tmp_path, monkeypatch):
    monkeypatch.chdir(models)
    assert tq3.inspect(MODEL).path == MODEL
    assert hub.trace() == []


def test_revision_and_download_are_refused_for_a_folder(models, tmp_path):
    for options in ({"revision": "main"}, {"download": True}):
        with pytest.raises(UsageError, match="are for repositories"):
            tq3.compress(str(models / MODEL), tmp_path / "out", **options)


@pytest.mark.parametrize("path", [Path("no/folder"), "./no/folder", "/no/folder", "no/such/folder"])
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(path):
    with pytest.raises(BadInput, match="no such folder"):
        tq3.inspect(path)


def test_ids_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    for name in ("gpt2", "Qwen/Qwen3.6-27B", "a/b", "org/model"):
        assert is_repository_id(name), name
    for name in ("org", ".", "..", "a/", "/a", "./a", "../a", "a/b/c", "~/a", "a b", "a/.b", ""):
        assert not is_repository_id(name), name


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_repositorys_where_huggingface_hub_says_so(name):
    try:
        validate_repo_id(name)
    except HFValidationError:
        assert not is_repository_name(name)
    else:
        assert is_repository_name(name)


def test_a_run_on_the_hub_refuses_to_write_less_than_it_can(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StorageError, match="not enough free space"):
        tq3.compress(MODEL, tmp_path / "out")


def test_columns_are_equalized_over_the_network_too(start_hub, tmp_path):
    folder = tiny_checkpoint(
        tmp_path / "models" / MODEL, whole_llama(), shards=2, config=whole_llama_config()
    )
    start_hub("--seed", tmp_path / "models")
    tq3.compress(MODEL, tmp_path / "out", equalize=True)
    tq3.compress(folder, tmp_path / "same", equalize=True)
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    assert tq3.verify(tmp_path / "out", source=MODEL).faults == ()


def test_a_quantised_model_is_fetched_once_scales_and_all(start_hub, tmp_path, monkeypatch):
    """Scales lie in other shards, and those of a line are needed by a dozen blocks."""
    monkeypatch.setattr(Task.blocks, "__defaults__", (2**16,))
    some = fp8("model.layers.0.mlp.up_proj", (1024, 1000)), fp4("b", (512, 1024))
    path = tiny_checkpoint(tmp_path / "models" / MODEL, around(some), 3)
    places = json.loads((path / INDEX).read_text())["weight_map"]
    assert all(len({places[name] for name in each.tensors}) == 2 for each in some)
    start_hub("--seed", path.parent.parent)
    report = tq3.compress(MODEL, tmp_path / "out")
    assert report.bytes_received is not None
    heads = 3 * 2**16 + 2**12  # what is fetched of each shard for its header, and two JSON files
    assert report.source_bytes <= report.bytes_received <= report.source_bytes + heads
    tq3.compress(path, tmp_path / "by path")
    assert (tmp_path / "out" / SINGLE).read_bytes() == (tmp_path / "by path" / SINGLE).read_bytes()
