"""What tq3 push refuses, asks, keeps and replaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hubs import TOKEN, Hub
from huggingface_hub import HfApi, constants
from pushing import REPO, SOURCE, SOURCE_CARD, fetch, packed, remote, writes

import tq3
from tq3.errors import BadInput, NetworkError, UsageError, VerificationFailed
from tq3.hub.publishing import Branch
from tq3.pipelines.events import Notice

# huggingface_hub hands parts of files to its own HTTP client in a way that this one deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def hub(start_hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A server for people with a token, and a client that sends large files by LFS."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return start_hub("--token", TOKEN, token=TOKEN)


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=TOKEN)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return packed(tmp_path)


def notices_of(out: Path, **options: object) -> list[str]:
    """What a push says besides what it does."""
    heard: list[object] = []
    tq3.push(out, REPO, on_event=heard.append, **options)  # type: ignore[arg-type]
    return [event.text for event in heard if isinstance(event, Notice)]


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


@pytest.mark.parametrize("name", ["a b/c", "a/b/c", "acme/x--y"])
def test_a_name_that_no_repository_can_have_is_one_sentence(hub, out, name):
    with pytest.raises(NetworkError, match="no repository has such a name"):
        tq3.push(out, name)


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


# Sharing.

NON_COMMERCIAL = SOURCE_CARD.replace("apache-2.0", "cc-by-nc-4.0")
GATED = SOURCE_CARD.replace("language:", "extra_gated_prompt: Agree first.\nlanguage:")


@pytest.mark.parametrize(
    ("card", "reason"),
    [(NON_COMMERCIAL, "cc-by-nc-4.0, does not allow commercial use"), (GATED, "is gated")],
)
def test_a_public_push_needs_consent_where_the_source_asks_for_thought(hub, tmp_path, card, reason):
    out = packed(tmp_path, card)
    with pytest.raises(UsageError, match=f"without your consent: .*{reason}.*--yes"):
        tq3.push(out, REPO)
    assert writes(hub) == []
    assert any(reason in text for text in notices_of(out, dry_run=True))
    assert any(reason in text for text in notices_of(out, yes=True))
    assert remote(hub)


def test_a_private_push_needs_no_consent(hub, tmp_path):
    out = packed(tmp_path, NON_COMMERCIAL)
    assert notices_of(out, private=True) == []
    assert notices_of(out) == [], "nor does a later one to the same private repository"


def test_the_hub_is_asked_whether_the_source_is_gated(hub, api, out):
    api.create_repo(SOURCE)
    hub.control(gated={SOURCE: []})
    with pytest.raises(UsageError, match="is gated"):
        tq3.push(out, REPO)
    hub.control(gated={}, fail={f"GET /api/models/{SOURCE}": [503, 1]})
    with pytest.raises(NetworkError, match="the Hub fails"):
        tq3.push(out, REPO)
    assert notices_of(out) == []


def test_the_licence_that_the_hub_shows_counts_where_no_card_travelled_along(hub, api, tmp_path):
    out = packed(tmp_path, card=None)
    api.create_repo(SOURCE)
    card = NON_COMMERCIAL.replace("- no\n", "").encode()  # which the Hub would take for False
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=SOURCE)
    with pytest.raises(UsageError, match="does not allow commercial use") as caught:
        tq3.push(out, REPO)
    assert str(caught.value).count("cc-by-nc-4.0") == 1
    tq3.push(packed(tmp_path / "b", NON_COMMERCIAL), REPO, private=True)


def test_a_source_that_the_hub_does_not_show_is_told(hub, out):
    assert notices_of(out) == [f"the Hub does not tell whether {SOURCE} is gated: look there"]


# Cards.


def card_of(hub: Hub, tmp_path: Path) -> str:
    return (fetch(hub, tmp_path / "pulled") / "README.md").read_text()


def test_a_card_in_the_folder_is_the_users_and_is_pushed(hub, out, tmp_path):
    (out / "README.md").write_text("# Mine\n")
    assert tq3.push(out, REPO).card == "README.md of the folder"
    assert card_of(hub, tmp_path) == "# Mine\n"
    assert tq3.push(out, REPO, overwrite_card=True).card == "generated"
    assert card_of(hub, tmp_path).startswith("---\nbase_model: some-org/some-model\n")
    assert (out / "README.md").read_text() == "# Mine\n"


def test_a_card_of_ours_in_the_folder_is_written_anew(hub, out, tmp_path):
    (out / "README.md").write_text(tq3.make_card(out, "somebody/else"))
    assert tq3.push(out, REPO).card == "generated"
    assert "vllm serve acme/tiny-TQ3" in card_of(hub, tmp_path)


def test_a_card_that_was_edited_on_the_hub_is_kept(hub, api, out, tmp_path):
    tq3.push(out, REPO)
    ours = card_of(hub, tmp_path)
    edited = ours.replace("# tiny-TQ3", "# A better title")
    api.upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=REPO)
    assert "the repository's README.md was edited, and is kept (or --overwrite-card)" in (
        notices_of(out)
    )
    assert card_of(hub, tmp_path) == edited
    tq3.push(out, REPO, overwrite_card=True)
    assert card_of(hub, tmp_path) == ours


def test_a_card_of_ours_that_nobody_touched_is_brought_up_to_date(hub, out, tmp_path):
    tq3.push(out, REPO, base_model="some-org/other")
    assert tq3.push(out, REPO).uploaded.keys() == {"README.md"}
    assert "base_model: some-org/some-model\n" in card_of(hub, tmp_path)


def test_a_card_that_the_hub_would_refuse_is_refused_before_anything_is_sent(hub, out):
    (out / "README.md").write_text("---\nbase_model_relation: cousin\n---\n# Mine\n")
    with pytest.raises(BadInput, match="base_model_relation"):
        tq3.push(out, REPO)
    assert writes(hub) == []


def test_a_source_that_nobody_recorded_is_asked_for(hub, out):
    config = out / "tq_config.json"
    (out / "tq3_manifest.json").unlink()
    config.write_text(
        config.read_text()
        .replace('"some-org/some-model"', '"folder"')
        .replace('"tq3 ', '"another ')
    )
    assert any("--base-model ORG/NAME" in text for text in notices_of(out))
