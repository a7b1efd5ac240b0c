"""tq3 push asks before it makes public what the source's licence or gate speaks against."""

from __future__ import annotations

import pytest
from support.hub.hubs import Hub
from support.hub.pushing import REPO, SOURCE, SOURCE_CARD, notices_of, packed, remote, writes

import tq3
from tq3.errors import NetworkError, UsageError

# huggingface_hub hands parts of files to its own HTTP client in a way that this one deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")


@pytest.fixture
def hub(hub_for_pushes: Hub) -> Hub:
    return hub_for_pushes


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
