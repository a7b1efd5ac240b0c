"""Every way in which the Hub can refuse or be away is one sentence with what to do, exit code 6."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from support.factories import tiny_checkpoint
from support.hub.hubs import TOKEN

from tq3.errors import NetworkError
from tq3.hub.failures import asking

MODEL = "some-org/some-model"
INFO = "GET /api/models/some-org/some-model"


@pytest.fixture
def seed(tmp_path: Path) -> str:
    tiny_checkpoint(tmp_path / "models" / MODEL)
    return str(tmp_path / "models")


def ask(revision: str | None = None, name: str = MODEL, file: str | None = None) -> NetworkError:
    """The error for asking about a model or a file of it."""
    api = HfApi(endpoint=constants.ENDPOINT)
    with pytest.raises(NetworkError) as caught, asking(name):
        if file:
            url = huggingface_hub.hf_hub_url(name, file, endpoint=constants.ENDPOINT)
            huggingface_hub.get_hf_file_metadata(url)
        else:
            api.model_info(name, revision=revision)
    assert caught.value.exit_code == 6
    return caught.value


CASES: dict[str, tuple[dict[str, Any], list[object], str | None, str, str]] = {
    # name: what is asked, the answer (status, times, code), the token, what is said, what to do
    "no repository and no token": (
        {"name": "some-org/other"},
        [],
        None,
        "no such repository, or a private one (401)",
        "correct the name or the path; where it is private, log in with `hf auth login`",
    ),
    "no repository for this token": (
        {"name": "some-org/other"},
        [],
        TOKEN,
        "no such repository, or a private one (404)",
        "use a token that may",
    ),
    "no revision": ({"revision": "nowhere"}, [], None, "no such revision (404)", "name a branch"),
    "no file": ({"file": "none.json"}, [], None, "no such file (404)", "this revision's files"),
    "a wrong token": ({}, [401, 1], TOKEN, "the Hub does not know this token (401)", "HF_TOKEN"),
    "no permission": ({}, [403, 1], TOKEN, "not permitted (403)", "use a token that may"),
    "gated, without a token": (
        {},
        [401, 1, "GatedRepo"],
        None,
        "gated (401): no token",
        "ask for access on its page, and log in",
    ),
    "gated, with a token": (
        {},
        [403, 1, "GatedRepo"],
        TOKEN,
        "gated (403): this token has no access",
        "ask for access on its page",
    ),
    "too many requests": ({}, [429, 9], None, "too many requests (429)", "again later"),
    "a Hub that fails": ({}, [503, 9], None, "the Hub fails (503)", "again later"),
    "something else": (
        {},
        [418, 1],
        None,
        "refused (418): injected failure",
        "correct the request",
    ),
    "no name at all": ({"name": "a/b/c"}, [], None, "no repository has such a name", "write it as"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_refusal_is_a_sentence_with_what_to_do(start_hub: Callable[..., Any], seed, case):
    asked, answer, token, told, fix = CASES[case]
    hub = start_hub("--seed", seed, token=token)
    if answer:
        hub.control(fail={INFO: answer})
    error = ask(**asked)
    assert told in error.message
    assert fix in (error.fix or "")
    assert error.file == asked.get("name", MODEL)
    assert error.repeatable == (case in ("too many requests", "a Hub that fails"))


def test_a_hub_that_is_not_there_is_a_sentence(start_hub):
    start_hub().close()
    error = ask()
    assert error.message.startswith("not reachable: ")
    assert "HF_ENDPOINT" in (error.fix or "")
    assert error.repeatable


def test_offline_mode_is_a_sentence(start_hub, monkeypatch):
    start_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = ask()
    assert "offline" in error.message
    assert error.fix == "unset HF_HUB_OFFLINE"


def test_what_has_nothing_to_do_with_the_hub_stays_what_it_is():
    with pytest.raises(FileNotFoundError), asking(MODEL):
        raise FileNotFoundError("a file of this machine")
