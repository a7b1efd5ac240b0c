"""tq3 push as users run it, with the stock client in both its modes, against a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard, constants
from support.factories import contents
from support.hub.hubs import TOKEN, Hub
from support.hub.pushing import (
    REPO,
    SOURCE,
    fetch,
    packed,
    remote,
    run_tq3,
    sent_bytes,
    size_of,
    writes,
)

import tq3

StartHub = Callable[..., Hub]


class Mode:
    """One way of huggingface_hub to send large files."""

    def __init__(self, name: str, folder: Path, start_hub: StartHub) -> None:
        self.store = folder / "store"
        self.store.mkdir()
        options = ("--xet", f"local://{self.store}") if name == "xet" else ()
        self.hub = start_hub("--token", TOKEN, "--chunk", "20000", *options, token=TOKEN)
        self.environment = {} if name == "xet" else {"HF_HUB_DISABLE_XET": "1"}

    def push(self, out: Path, *options: str) -> Any:
        """What a successful push tells."""
        done = run_tq3(self.hub, "push", out, REPO, "--json", *options, **self.environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @property
    def sent(self) -> int:
        """Bytes of files that reached the server or its store, however."""
        return sent_bytes(self.hub) + size_of(self.store)


@pytest.fixture(params=["xet", "lfs"])
def mode(request, tmp_path: Path, start_hub: StartHub, monkeypatch: pytest.MonkeyPatch) -> Mode:
    made = Mode(request.param, tmp_path, start_hub)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return made


def test_what_is_pushed_comes_back_sound_and_a_second_push_sends_nothing(mode, tmp_path):
    out = packed(tmp_path)
    told = mode.push(out)
    names = {*contents(out), "README.md"}
    assert told["uploaded"].keys() == remote(mode.hub).keys() == names
    assert told["repo_id"] == REPO and not told["private"]
    assert mode.sent > size_of(out)

    pulled = fetch(mode.hub, tmp_path / "pulled")
    assert tq3.verify(pulled).ok
    here = contents(out)
    assert "README.md" not in here, "nothing is written into the folder"
    assert {name: data for name, data in contents(pulled).items() if name in here} == here
    card = ModelCard((pulled / "README.md").read_text())
    if huggingface_hub.__version__ >= "2":  # older ones ask huggingface.co, whatever the endpoint
        card.validate()
    assert card.data.to_dict()["base_model"] == SOURCE

    before, done = mode.sent, len(writes(mode.hub))
    again = mode.push(out)
    assert again["uploaded"] == {} and again["unchanged"].keys() == names
    assert (mode.sent, len(writes(mode.hub))) == (before, done)


def test_what_is_pushed_is_inspected_verified_and_restored_by_its_id(mode, tmp_path):
    out = packed(tmp_path)
    told = mode.push(out)
    description = tq3.inspect(REPO)
    assert description.path == f"{REPO} at {told['revision'][:12]}"
    assert description.classes == tq3.inspect(out).classes
    assert tq3.verify(REPO, structure=True).ok
    assert tq3.verify(REPO).ok
    tq3.restore(REPO, tmp_path / "restored")
    tq3.restore(out, tmp_path / "restored-locally")
    theirs, ours = (contents(tmp_path / name) for name in ("restored", "restored-locally"))
    assert theirs == ours, "README.source.md is the source's README.md again in both"


def test_a_push_that_ended_before_its_commit_sends_no_large_file_twice(mode, tmp_path):
    out = packed(tmp_path)
    mode.hub.control(fail={f"POST /api/models/{REPO}/commit/": [403, 1]})
    failed = run_tq3(mode.hub, "push", out, REPO, **mode.environment)
    assert failed.returncode == 6
    assert f"tq3: error: {REPO}: not permitted (403)" in failed.stderr
    assert remote(mode.hub) == {}
    shards = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    stored = size_of(mode.store) + sum(int(one["len"]) for one in _parts(mode.hub))
    assert stored >= shards

    mode.push(out)
    assert size_of(mode.store) + sum(int(one["len"]) for one in _parts(mode.hub)) < stored + 2000
    assert tq3.verify(fetch(mode.hub, tmp_path / "pulled")).ok


def _parts(hub: Hub) -> list[dict[str, Any]]:
    return [one for one in hub.requests() if one["m"] == "PUT" and "/lfs/" in one["p"]]


def test_a_push_that_broke_off_amid_the_files_goes_on_with_the_rest(tmp_path, start_hub):
    mode = Mode("lfs", tmp_path, start_hub)
    out = packed(tmp_path)
    # Of a shard that goes in parts, one is refused; the shards beside it arrive.
    mode.hub.control(fail={"PUT /lfs/part/[0-9a-f]*/2": [403, 1]})
    failed = run_tq3(mode.hub, "push", out, REPO, **mode.environment)
    assert failed.returncode == 6, failed.stderr
    assert remote(mode.hub) == {}
    before = len(_parts(mode.hub))
    mode.push(out)
    shards = [path.stat().st_size for path in out.glob("*.safetensors")]
    later = sum(int(one["len"]) for one in _parts(mode.hub)[before:])
    assert 0 < later < sum(shards)


def test_one_changed_file_is_all_that_a_later_push_sends(mode, tmp_path):
    out = packed(tmp_path)
    mode.push(out)
    before = mode.sent
    (out / "README.md").write_text("# Mine\n")
    told = mode.push(out)
    assert told["uploaded"].keys() == {"README.md"}
    assert mode.sent - before < 2000


def test_a_busy_hub_is_asked_again(mode, tmp_path):
    out = packed(tmp_path)
    asked = ("GET /api/models/", "POST /api/validate-yaml", "POST .*/preupload/", "POST .*/commit/")
    mode.hub.control(fail={request: [503, 1] for request in asked})
    assert mode.push(out)["uploaded"]
    assert not mode.push(out)["uploaded"]
