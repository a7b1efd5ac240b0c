"""Every error a user can cause, and the exit code of each kind."""

from __future__ import annotations

from typing import TypeVar

Kind = TypeVar("Kind", bound="Tq3Error")
_LONGEST = 400


class Tq3Error(Exception):
    """One sentence for the user: where, what was found, what was expected, what to do next.

    repeatable: the same command may do better, once there is room again or the disk works
    """

    exit_code = 1
    repeatable = False

    def __init__(
        self,
        message: str,
        *,
        file: object = None,
        tensor: str | None = None,
        found: object = None,
        expected: object = None,
        fix: str | None = None,
        repeatable: bool | None = None,
    ) -> None:
        self.message = message
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.found = found
        self.expected = expected
        self.fix = fix
        if repeatable is not None:
            self.repeatable = repeatable
        super().__init__(f"{self.reason}; {fix}" if fix else self.reason)

    @classmethod
    def retold(
        cls: type[Kind], error: Tq3Error, before: str, *, file: str | None, fix: str | None
    ) -> Kind:
        """An error of a part as one of the file that it was read from."""
        return cls(
            f"{before}: {error.message}",
            file=file,
            tensor=error.tensor,
            found=error.found,
            expected=error.expected,
            fix=fix,
        )

    @property
    def reason(self) -> str:
        """The sentence without what to do next."""
        parts = [self.file] if self.file else []
        parts += [f"tensor {_brief(self.tensor)!r}"] if self.tensor else []
        details = []
        if self.found is not None:
            details.append(f"found {_brief(self.found)}")
        if self.expected is not None:
            details.append(f"expected {_brief(self.expected)}")
        parts.append(_brief(self.message) + (f" ({', '.join(details)})" if details else ""))
        return ": ".join(parts)


def _brief(value: object) -> str:
    """A value shortened to what people read: a damaged file may hold megabytes of anything."""
    text = str(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]}... ({len(text)} characters)"


class UsageError(Tq3Error):
    """The request itself: an option, a name, a target folder that is not free."""

    exit_code = 2


class BadInput(Tq3Error):
    """What was to be read: not there, damaged, contradictory, already quantised, not finite."""

    exit_code = 3


class StorageError(Tq3Error):
    """No room, no memory, or a failed read or write; what is done is kept."""

    exit_code = 4
    repeatable = True


class VerificationFailed(Tq3Error):
    """What `tq3 verify` looked at is not sound."""

    exit_code = 5


class NetworkError(Tq3Error):
    """The Hub: not reached, no permission, no such repository, or it answered something wrong."""

    exit_code = 6


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether Python had no room for an object, a thread or a library."""
    words = ("can't start new thread", "failed to map segment", "annot allocate memory")
    kinds = (RuntimeError, ImportError)
    refused = isinstance(error, kinds) and any(word in str(error) for word in words)
    return refused or isinstance(error, MemoryError)
