"""The store that the client's hf_xet keeps in a folder when it is told local:// as its server."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import time
from pathlib import Path

from support.hub.hubserver.store import Store, sha256_of

_SCHEME = "local://"
_ENTRY = 48  # bytes of every record of a shard
_END = b"\xff" * 32
_HAS_VERIFICATION, _HAS_SHA256 = 0x80000000, 0x40000000


def index(local_cas: str) -> dict[str, tuple[str, int]]:
    """SHA-256 -> Xet hash and size of every file, from the shards that the client left."""
    folder = Path(local_cas.removeprefix(_SCHEME)) / "xet" / "xorbs" / "shards"
    found: dict[str, tuple[str, int]] = {}
    for path in folder.glob("*.mdb") if folder.is_dir() else ():
        found |= _shard(path.read_bytes())
    return found


def _shard(data: bytes) -> dict[str, tuple[str, int]]:
    """The files of one shard, each with its segments, perhaps as many checks, and a SHA-256."""
    found, at = {}, _ENTRY
    while (name := data[at : at + 32]) != _END:
        flags, count = struct.unpack("<II", data[at + 32 : at + 40])
        at += _ENTRY
        sizes = (data[at + _ENTRY * i + 36 : at + _ENTRY * i + 40] for i in range(count))
        size = sum(int.from_bytes(each, "little") for each in sizes)
        at += _ENTRY * count * (2 if flags & _HAS_VERIFICATION else 1)
        if flags & _HAS_SHA256:
            found[_hex(data[at : at + 32])] = _hex(name), size
            at += _ENTRY
    return found


def _hex(raw: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def fetch(store: Store, sha: str, xet_hash: str, size: int) -> None:
    """Rebuild the plain file, so that ranges of it can be read, too."""
    import hf_xet  # noqa: PLC0415  only servers with --xet need it

    assert store.local_cas
    draft = store.root / "blobs" / f"{sha}.xet"
    # The client that uploads holds the store's lock still: read a copy, of links and a small index.
    copy = tempfile.mkdtemp(dir=store.root, prefix="cas-")
    shutil.copytree(
        store.local_cas.removeprefix(_SCHEME), copy, dirs_exist_ok=True, copy_function=_link
    )
    with hf_xet.XetSession().new_file_download_group(
        endpoint=_SCHEME + os.path.abspath(copy),
        token="xet_local",
        token_expiry_unix_secs=int(time.time()) + 3600,
    ) as group:
        group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(draft))
    shutil.rmtree(copy, ignore_errors=True)
    assert sha256_of(draft) == sha, "another content in Xet"
    draft.replace(store.blob(sha))


def _link(source: str, target: str) -> None:
    if source.endswith(".redb"):
        shutil.copy2(source, target)
    else:
        os.link(source, target)
