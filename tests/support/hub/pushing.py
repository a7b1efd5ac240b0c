"""Checkpoints to push, and what a server saw of a push."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

import tq3
from support.factories import contents, llama_tensors, tiny_checkpoint
from support.hub.hubs import TOKEN, Hub
from tq3.events import Notice

PROGRAM = (sys.executable, "-m", "tq3")
REPO = "acme/tiny-TQ3"
SOURCE = "some-org/some-model"
SOURCE_CARD = """---
license: apache-2.0
language:
- en
- no
pipeline_tag: text-generation
tags:
- chat
- base_model:some-org/older
---

# Some model
"""


def packed(
    folder: Path,
    card: str | None = SOURCE_CARD,
    files: Mapping[str, str] = MappingProxyType({}),
    **options: Any,
) -> Path:
    """A TQ3 checkpoint whose source has this card, and these files, lying in the Hub cache."""
    source = folder / "models--some-org--some-model" / "snapshots" / "0123abcd"
    tiny_checkpoint(source, llama_tensors(), shards=2)
    for name, text in {"tokenizer.json": '{"model": {}}', **files}.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    if card is not None:
        (source / "README.md").write_text(card)
    tq3.compress(source, folder / "out", max_shard_size=40_000, **options)
    return folder / "out"


def notices_of(out: Path, **options: object) -> list[str]:
    """What a push says besides what it does."""
    heard: list[object] = []
    tq3.push(out, REPO, on_event=heard.append, **options)  # type: ignore[arg-type]
    return [event.text for event in heard if isinstance(event, Notice)]


def run_tq3(hub: Hub, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, with this Hub for the Hub."""
    everything = environment_for(hub) | environment
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=everything)


def environment_for(hub: Hub) -> dict[str, str]:
    """What makes this Hub the one that huggingface_hub knows."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    home = str(hub.trace_path.parent / "home")
    return {**plain, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": home}


def answer_in_terminal(hub: Hub, answer: str, *arguments: object) -> tuple[int, str]:
    """Exit code and screen of the program on a terminal of its own, where somebody types."""
    ours, theirs = pty.openpty()
    command = [*PROGRAM, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment_for(hub)
    ) as run:
        os.close(theirs)
        seen = ""
        with suppress(OSError):  # the end of the program is an error of its terminal
            while part := os.read(ours, 1 << 16):
                seen += part.decode()
                if answer and "Type yes" in seen:
                    os.write(ours, f"{answer}\n".encode())
                    answer = ""
        os.close(ours)
        return run.wait(timeout=60), seen


def writes(hub: Hub) -> list[str]:
    """Method and path of all requests that changed something, or that sent a file's bytes."""
    checks = ("/api/validate-yaml", "/preupload/", "/_ctl", "/paths-info/", "/batch")
    return [
        f"{one['m']} {one['p']}"
        for one in hub.requests()
        if one["m"] not in ("GET", "HEAD") and not any(part in one["p"] for part in checks)
    ]


def sent_bytes(hub: Hub) -> int:
    """Of the bodies that hold file contents: LFS objects, and commits with small files in them."""
    return sum(
        int(one["len"] or 0)
        for one in hub.requests()
        if "/lfs/" in one["p"] or (one["m"] == "POST" and "/commit/" in one["p"])
    )


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(map(len, contents(folder).values()))


def remote(hub: Hub, revision: str = "main") -> dict[str, int]:
    """Name -> size of the repository's files, by huggingface_hub, without the Hub's own one."""
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    entries = api.list_repo_tree(REPO, recursive=True, revision=revision)
    files = (one for one in entries if isinstance(one, RepoFile))
    return {one.path: one.size for one in files if one.path != ".gitattributes"}


def fetch(hub: Hub, folder: Path, revision: str = "main") -> Path:
    """The repository as huggingface_hub downloads it."""
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    return Path(api.snapshot_download(REPO, revision=revision, local_dir=folder))
