"""Which repositories are opened, and which are refused and how."""

from __future__ import annotations

import pytest
from hubs import TOKEN
from reading import HASTY, MODEL, WEIGHTS, read

from tq3.errors import NetworkError
from tq3.hub.files import HubFiles
from tq3.hub.options import HubOptions

LEADING_OUT = ["../out-of-here", "/etc/passwd", "a/../../b", "a//b", "."]
ON_WINDOWS = ["a\\..\\..\\b", "C:\\b", "C:b", "\\b", "b\0"]


@pytest.mark.parametrize("name", LEADING_OUT + ON_WINDOWS)
def test_a_listing_with_a_name_that_leads_out_of_the_output_is_refused(hub, name):
    hub.move(MODEL, {name: b"hostile"})
    with pytest.raises(NetworkError, match="not answered as the Hub would"):
        HubFiles(MODEL, HASTY)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (HubOptions(revision="nowhere"), "some-org/some-model at nowhere: no such revision (404)"),
        (HubOptions(revision="0" * 40), "no such revision (404)"),
    ],
)
def test_a_revision_that_is_not_there_is_refused(hub, options, words):
    with pytest.raises(NetworkError) as caught:
        HubFiles(MODEL, options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (None, "gated (401): no token; ask for access on its page, and log in"),
        ("hf_another", "gated (403): this token has no access; ask for access on its page"),
    ],
)
def test_a_gated_repository_is_refused_with_what_to_do(start_hub, folder, token, words):
    hub = start_hub("--seed", folder.parent.parent, token=token)
    hub.control(gated={MODEL: [TOKEN]})
    with pytest.raises(NetworkError) as caught:
        read()
    assert words in str(caught.value)
    assert not caught.value.repeatable


def test_a_gated_repository_is_read_by_who_has_access(start_hub, folder):
    hub = start_hub("--seed", folder.parent.parent, token=TOKEN)
    hub.control(gated={MODEL: [TOKEN]})
    assert read() == (folder / WEIGHTS).read_bytes()[1000:]
