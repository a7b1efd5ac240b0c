"""A Hub of our own for a test, and huggingface_hub told to use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from support.factories import random_tensor, tiny_checkpoint
from support.hub.hubs import TOKEN, Hub
from support.hub.pushing import packed
from support.hub.reading import MODEL


@pytest.fixture
def start_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    """Starts a server with some options, and makes it huggingface_hub's for this test."""
    hubs: list[Hub] = []

    def start(*options: str, token: str | None = None) -> Hub:
        root = tmp_path / f"hub-{len(hubs)}"
        root.mkdir()
        hub = Hub(root, *options)
        hubs.append(hub)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        urls = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", urls)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        return hub

    yield start
    for hub in hubs:
        hub.close()
    huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two tensors and a tokenizer."""
    tensors = {"a.weight": random_tensor(256, 1024), "b.weight": random_tensor(64, 1024, seed=1)}
    path = tiny_checkpoint(tmp_path / "models" / MODEL, tensors)
    (path / "tokenizer.json").write_text('{"tokens": []}')
    return path


@pytest.fixture
def hub(start_hub, folder):
    """A server that has it."""
    return start_hub("--seed", folder.parent.parent)


@pytest.fixture
def hub_for_pushes(start_hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A server for people with a token, and a client that sends large files by LFS."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return start_hub("--token", TOKEN, token=TOKEN)


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=TOKEN)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return packed(tmp_path)
