"""What tq3 push refuses and replaces, and to which branch and repository it pushes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.hub.hubs import Hub
from support.hub.pushing import REPO, fetch, notices_of, packed, remote, writes

import tq3
from tq3.errors import NetworkError, UsageError, VerificationFailed
from tq3.hub.publishing import Branch

# huggingface_hub hands parts of files to its own HTTP client in a way that this one deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def hub(hub_for_pushes: Hub) -> Hub:
    return hub_for_pushes


def test_a_checkpoint_that_is_not_sound_is_not_pushed(hub, out):
    (out / "tokenizer.json").write_text("{}")
    with pytest.raises(VerificationFailed, match=r"TQ403 in tokenizer\.json"):
        tq3.push(out, REPO)
    assert writes(hub) == []


def test_an_ordinary_checkpoint_is_not_pushed(hub, tmp_path, out):
    (source,) = (tmp_path / "models--some-org--some-model" / "snapshots").iterdir()
    with pytest.raises(VerificationFailed, match="not a TQ3 checkpoint"):
        tq3.push(source, REPO)
    assert writes(hub) == []


def test_a_dry_run_tells_everything_and_writes_nothing(hub, out):
    planned = tq3.push(out, REPO, dry_run=True)
    assert planned.planned and writes(hub) == []
    pushed = tq3.push(out, REPO)
    assert planned.uploaded == pushed.uploaded
    assert tq3.push(out, REPO, dry_run=True).uploaded == {}


def test_a_private_repository_is_private(hub, api, out):
    assert tq3.push(out, REPO, private=True).private
    assert api.model_info(REPO).private
    assert tq3.push(out, REPO).private, "and stays so without the option"


def test_a_public_repository_does_not_pass_for_a_private_one(hub, api, out):
    api.create_repo(REPO)
    with pytest.raises(UsageError, match="there already, and it is public"):
        tq3.push(out, REPO, private=True)
    assert remote(hub) == {}


@pytest.mark.parametrize("name", ["a b/c", "a/b/c", "acme/x--y", "a b", ""])
def test_a_name_that_no_repository_can_have_is_refused_before_a_request(hub, out, name):
    seen = len(hub.trace())
    with pytest.raises(UsageError, match="no repository has such a name"):
        tq3.push(out, name)
    with pytest.raises(UsageError, match="no repository has such a name"):
        tq3.make_card(out, name)
    assert len(hub.trace()) == seen


def test_a_name_alone_is_one_of_the_users(hub, api, out):
    assert tq3.push(out, "tiny").repo_id == "tester/tiny"
    assert api.repo_exists("tester/tiny")


def test_a_name_alone_says_nothing_without_a_token(hub, out, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(NetworkError, match="nobody is logged in; log in with `hf auth login`"):
        tq3.push(out, "tiny")


@pytest.mark.parametrize(
    ("token", "words"), [(None, "nobody is logged in"), ("hf_x", "does not know this token")]
)
def test_who_may_not_push_is_told_before_anything_is_verified(hub, out, monkeypatch, token, words):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    heard: list[object] = []
    with pytest.raises(NetworkError, match=words):
        tq3.push(out, REPO, on_event=heard.append)
    assert heard == []
    assert writes(hub) == []


def test_a_revision_is_a_branch_made_where_it_is_missing(hub, api, out):
    pushed = tq3.push(out, REPO, revision="three-bits")
    assert remote(hub) == {}
    assert remote(hub, "three-bits").keys() == pushed.uploaded.keys()
    assert tq3.push(out, REPO, revision="three-bits").uploaded == {}


def test_a_branch_is_made_even_where_main_has_every_file(hub, out):
    tq3.push(out, REPO)
    assert tq3.push(out, REPO, revision="three-bits").uploaded == {}
    assert remote(hub, "three-bits") == remote(hub)


def test_a_pull_request_leaves_main_alone_and_can_be_pushed_to(hub, out, tmp_path):
    pushed = tq3.push(out, REPO, create_pr=True)
    assert pushed.url.endswith(f"{REPO}/discussions/1")
    assert pushed.revision == "refs/pr/1"
    assert remote(hub) == {}
    assert tq3.verify(fetch(hub, tmp_path / "pulled", "refs/pr/1")).ok
    assert tq3.push(out, REPO, revision="refs/pr/1").uploaded == {}
    with pytest.raises(UsageError, match="goes to the main branch"):
        tq3.push(out, REPO, create_pr=True, revision="three-bits")
    with pytest.raises(NetworkError, match="no such revision"):
        tq3.push(out, REPO, revision="refs/pr/7")


def test_weights_of_another_checkpoint_in_the_repository_stop_a_push(hub, api, out, tmp_path):
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="model.safetensors", repo_id=REPO)
    with pytest.raises(UsageError, match="weights that are not of this checkpoint") as caught:
        tq3.push(out, REPO)
    assert caught.value.found == "model.safetensors"
    assert remote(hub).keys() == {"model.safetensors"}


def test_the_weights_of_an_ordinary_model_are_not_replaced_by_ours_of_the_same_name(hub, api, out):
    shard = min(path.name for path in out.glob("*.safetensors"))
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"theirs", path_in_repo=shard, repo_id=REPO)
    with pytest.raises(UsageError, match="weights that are not of this checkpoint") as caught:
        tq3.push(out, REPO)
    assert (caught.value.found, remote(hub)) == (shard, {shard: 6})


def test_an_older_checkpoint_of_ours_is_replaced(hub, tmp_path):
    tq3.push(packed(tmp_path / "older", group_size=64), REPO)
    out = packed(tmp_path / "newer")
    tq3.push(out, REPO)
    assert remote(hub)["tq_config.json"] == (out / "tq_config.json").stat().st_size


def test_somebody_elses_commit_meanwhile_is_not_overwritten(hub, api, out, monkeypatch):
    real = Branch.upload

    def upload(*arguments, **options):
        api.upload_file(path_or_fileobj=b"theirs", path_in_repo="a.txt", repo_id=REPO)
        return real(*arguments, **options)

    monkeypatch.setattr(Branch, "upload", upload)
    with pytest.raises(NetworkError, match="somebody else changed it meanwhile"):
        tq3.push(out, REPO)
    monkeypatch.undo()
    assert remote(hub).keys() == {"a.txt"}


def test_files_that_arrived_otherwise_than_they_left_are_an_error(hub, out, monkeypatch):
    real = Branch.files

    def files(self, revision):
        found = real(self, revision)
        if "tokenizer.json" in found:
            found["tokenizer.json"] = replace(found["tokenizer.json"], etag="0" * 40)
        return found

    monkeypatch.setattr(Branch, "files", files)
    with pytest.raises(NetworkError, match="1 files on the Hub are not those") as caught:
        tq3.push(out, REPO)
    assert caught.value.found == "tokenizer.json"


def test_what_stays_behind_is_told_with_the_reason(hub, out):
    (out / ".cache").mkdir()
    (out / ".cache" / "x").write_text("")
    (out / ".env").write_text("TOKEN=secret")
    notices = notices_of(out)
    assert "not uploaded: .cache/x (a cache)" in notices
    unverified = "not in tq3_manifest.json, so that nobody verified it"
    assert f"not uploaded: .env ({unverified})" in notices
    assert not {".cache/x", ".env"} & set(remote(hub))


def test_weights_that_the_manifest_names_are_published_and_others_stay(hub, tmp_path):
    parts = ("spk_dict.pt", "2_Dense/model.safetensors", "onnx/model.onnx")
    out = packed(tmp_path, also="onnx", files=dict.fromkeys(parts, "weights"))
    (out / "voices.pt").write_text("later")
    unverified = "not in tq3_manifest.json, so that nobody verified it"
    assert f"not uploaded: voices.pt ({unverified})" in notices_of(out)
    assert {*parts} <= remote(hub).keys()
    assert "voices.pt" not in remote(hub)
    tq3.restore(REPO, tmp_path / "back")
    assert all((tmp_path / "back" / name).read_text() == "weights" for name in parts)
    tq3.push(out, REPO)  # nor are they weights of another checkpoint, the second time
