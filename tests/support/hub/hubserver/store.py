"""Repositories, their commits, and the bytes of their files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from threading import RLock
from typing import Any

LARGE = (
    *(".safetensors", ".bin", ".gguf", ".pt", ".onnx", ".h5", ".parquet", ".zip", ".gz", ".npz"),
    ".model",
)
LARGE_BYTES = 10 * 2**20
PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}

Repo = dict[str, Any]
Commit = dict[str, Any]
File = dict[str, Any]


class Store:
    """All of the server's state, kept in `root`.

    A repository is JSON: id, kind, private, branches, tags, and commits, each with its files:
    path -> oid (Git's), sha256, size, lfs, and with Xet the file's hash.
    """

    def __init__(self, root: Path, local_cas: str | None) -> None:
        self.root = root
        self.local_cas = local_cas
        self.lock = RLock()
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        saved = root / "repos.json"
        self.repos: dict[str, Repo] = json.loads(saved.read_text()) if saved.exists() else {}

    def save(self) -> None:
        draft = self.root / "repos.json.tmp"
        draft.write_text(json.dumps(self.repos))
        draft.replace(self.root / "repos.json")

    def blob(self, sha: str) -> Path:
        return self.root / "blobs" / sha

    def put(self, data: bytes) -> str:
        """Keep these bytes; their SHA-256."""
        sha = hashlib.sha256(data).hexdigest()
        if not self.blob(sha).exists():
            draft = self.root / "blobs" / f"{sha}.{time.monotonic_ns()}"
            draft.write_bytes(data)
            draft.replace(self.blob(sha))
        return sha

    def regular(self, data: bytes) -> File:
        """An entry of a file in Git itself."""
        return {"oid": git_oid(data), "sha256": self.put(data), "size": len(data), "lfs": False}

    def create(self, kind: str, name: str, private: bool = False) -> Repo:
        repo: Repo = {"id": name, "kind": kind, "private": private, "created": now()}
        repo |= {"commits": {}, "branches": {}, "tags": {}}
        rules = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE)
        files = {".gitattributes": self.regular(rules.encode())}
        repo["branches"]["main"] = new_commit(repo, files, None, "initial commit")
        self.repos[f"{kind}/{name}"] = repo
        return repo

    def import_models(self, folder: Path) -> None:
        """Make a repository of each FOLDER/ORGANISATION/NAME/."""
        for path in sorted(folder.glob("*/*")):
            name = path.relative_to(folder).as_posix()
            if f"models/{name}" in self.repos or not path.is_dir():
                continue
            repo = self.create("models", name)
            head = repo["branches"]["main"]
            files = dict(repo["commits"][head]["files"])
            found = (each for each in sorted(path.rglob("*")) if each.is_file())
            files |= {each.relative_to(path).as_posix(): self._import(each) for each in found}
            repo["branches"]["main"] = new_commit(repo, files, head, "import")
        self.save()

    def _import(self, path: Path) -> File:
        size = path.stat().st_size
        if not is_large(path.name, size):
            return self.regular(path.read_bytes())
        sha = sha256_of(path)
        if not self.blob(sha).exists():
            try:
                os.link(path, self.blob(sha))
            except OSError:
                shutil.copyfile(path, self.blob(sha))
        return {"oid": git_oid(pointer(sha, size)), "sha256": sha, "size": size, "lfs": True}


def is_large(name: str, size: int, sample: bytes = b"") -> bool:
    """Whether a file goes to Git LFS or Xet."""
    return name.endswith(LARGE) or size > LARGE_BYTES or b"\0" in sample


def commit_of(repo: Repo, revision: str) -> tuple[str, Commit] | None:
    """The commit that a branch, a tag, or a commit's first digits name."""
    commits = repo["commits"]
    for names in (repo["branches"], repo["tags"]):
        if revision in names:
            return names[revision], commits[names[revision]]
    fits = (oid for oid in commits if oid == revision or (len(revision) >= 7 <= len(oid)))
    found = next((oid for oid in fits if oid.startswith(revision)), None)
    return (found, commits[found]) if found else None


def new_commit(
    repo: Repo, files: dict[str, File], parent: str | None, title: str, message: str = ""
) -> str:
    """Add a commit; the caller moves the branch."""
    content = sorted((path, file["oid"]) for path, file in files.items())
    body = json.dumps([repo["id"], content, parent, title, time.time_ns()])
    oid = hashlib.sha1(body.encode()).hexdigest()
    commit = {"files": files, "parent": parent, "title": title, "message": message, "date": now()}
    repo["commits"][oid] = commit
    return oid


def pointer(sha: str, size: int) -> bytes:
    """What Git holds instead of a large file."""
    first = "version https://git-lfs.github.com/spec/v1"
    return f"{first}\noid sha256:{sha}\nsize {size}\n".encode()


def sha256_of(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**22):
            state.update(part)
    return state.hexdigest()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
