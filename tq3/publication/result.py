"""What a push did, or would do: plain data, which needs no huggingface_hub."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Publication:
    """A checkpoint and its repository on the Hub.

    planned: nothing was written there (a dry run)
    private: whether only some see the repository
    revision: where the files are now: a branch, a commit, a pull request such as refs/pr/1
    url: of the repository, or of the commit or pull request if this run made one
    card: where README.md is from
    uploaded, unchanged: files; of the first, what the Hub did not have yet
    others: files of the repository that the checkpoint does not have
    """

    path: str
    repo_id: str
    url: str
    revision: str
    private: bool
    planned: bool
    card: str
    uploaded: dict[str, int]
    unchanged: dict[str, int]
    others: tuple[str, ...]
    seconds: float

    @property
    def bytes_uploaded(self) -> int:
        return sum(self.uploaded.values())

    @property
    def bytes_unchanged(self) -> int:
        return sum(self.unchanged.values())

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data, for --json."""
        sums = {"bytes_uploaded": self.bytes_uploaded, "bytes_unchanged": self.bytes_unchanged}
        return {**asdict(self), **sums}
