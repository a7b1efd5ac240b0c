"""Which repositories are opened, and which are refused and how."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import constants
from support.hub.hubs import TOKEN
from support.hub.reading import HASTY, MODEL, WEIGHTS, read

import tq3
from tq3.errors import BadInput, NetworkError, StorageError
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


def test_a_name_that_is_neither_here_nor_reachable_may_be_a_mistyped_folder(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkError) as caught:
        tq3.verify("mymodle")
    told = "mymodle: no folder of that name is here, nor can a repository be read: not reachable"
    assert str(caught.value).startswith(told)
    assert "; correct the path, or look at the connection" in str(caught.value)


def test_a_name_without_an_organisation_is_asked_for_once(start_hub):
    hub = start_hub()
    hub.control(fail={"GET /api/models/": [503, 9]})
    with pytest.raises(NetworkError, match="no folder of that name is here"):
        tq3.verify("mymodle")
    assert [line["p"] for line in hub.requests() if "mymodle" in line["p"]] == [
        "/api/models/mymodle?blobs=true"
    ]


def test_a_name_in_a_folder_that_is_here_is_a_path_unless_the_hub_is_meant(
    hub, folder, tmp_path, monkeypatch
):
    (tmp_path / "some-org").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = len(hub.requests())
    with pytest.raises(BadInput, match="found some-org, and no some-model in it"):
        tq3.inspect(MODEL)
    assert len(hub.requests()) == asked
    assert tq3.inspect(MODEL, revision="main").planned


def test_a_user_without_a_home_reads_by_ranges_and_is_told_what_the_cache_needs(
    hub, folder, monkeypatch, tmp_path
):
    # So huggingface_hub spells its folders where neither HOME nor the user database knows one.
    for name, below in (("HF_HUB_CACHE", "hub"), ("HF_TOKEN_PATH", "token")):
        monkeypatch.setattr(constants, name, f"~nobody-of-this-name/.cache/{below}")
    monkeypatch.chdir(tmp_path)
    assert read() == (folder / WEIGHTS).read_bytes()[1000:]
    with pytest.raises(StorageError, match="no home folder, and so no Hub cache; set HF_HOME"):
        HubFiles(MODEL, replace(HASTY, download=True))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match="no home folder"):
        tq3.inspect(MODEL)
    assert not list(tmp_path.glob("~*"))
