"""How a repository of the Hub is read; endpoint, token and cache are huggingface_hub's own."""

from __future__ import annotations

from dataclasses import dataclass

from tq3.errors import UsageError
from tq3.format.arguments import check_fields


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Options of reading from the Hub.

    revision: branch, tag or commit; None for the main branch
    download: whether all files are fetched into the Hub cache first
    show_download: whether huggingface_hub shows its bars meanwhile
    connections: requests at a time, and threads: each fetches a block and encodes it
    opening_patience_seconds: how long the first question is asked again: the name may be mistyped
    patience_seconds: how long a request goes on without a new byte, all its attempts together
    stall_seconds: silence after which an attempt is given up
    first_wait_seconds, longest_wait_seconds: between two attempts; each wait is twice the last
    """

    revision: str | None = None
    download: bool = False
    show_download: bool = False
    connections: int = 8
    opening_patience_seconds: float = 15.0
    patience_seconds: float = 300.0
    stall_seconds: float = 20.0
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.revision == "":
            raise UsageError("--revision is empty", fix="name a branch, a tag or a commit")
        if self.connections < 1:
            raise UsageError(f"connections is {self.connections}", expected="at least 1")
