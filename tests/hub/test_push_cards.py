"""Which model card tq3 push publishes: the folder's, the repository's or its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.hub.hubs import Hub
from support.hub.pushing import REPO, fetch, notices_of, writes

import tq3
from tq3.errors import BadInput

# huggingface_hub hands parts of files to its own HTTP client in a way that this one deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def hub(hub_for_pushes: Hub) -> Hub:
    return hub_for_pushes


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
