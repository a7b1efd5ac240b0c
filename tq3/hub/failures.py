"""What the Hub, or the network before it, answers when it does not give what was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tq3.errors import NetworkError

# huggingface_hub talks through httpx up to its version 1 and through httpx2 from 2 on. The base of
# its own errors is that of every error of the one in use.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

LATER = "run the same command again later"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_ASKING = "ask for access on its page"
_ASKING_FIRST = f"{_ASKING}, and {LOGIN}"
_OTHER_TOKEN = "use a token that may (hf auth login, or HF_TOKEN)"
_CONNECTION = "look at the connection, the proxy and HF_ENDPOINT, and " + LATER
_ONLINE = "unset HF_HUB_OFFLINE"
_Sentence = tuple[str, str]  # what happened, what to do


@contextmanager
def asking(what: object) -> Iterator[None]:
    """Raise NetworkError for what huggingface_hub or its HTTP client raises in the block.

    what: the repository or file that is asked for; the sentence begins with it
    """
    try:
        yield
    except (
        HTTPError,  # HfHubHTTPError is one too
        EntryNotFoundError,
        FileMetadataError,
        HFValidationError,
        OfflineModeIsEnabled,
    ) as error:
        raise failure(error, what) from error


def failure(error: Exception, what: object) -> NetworkError:
    """One sentence for an error of huggingface_hub or its HTTP client."""
    told, fix = _refused(error) if isinstance(error, HfHubHTTPError) else _unanswered(error)
    return NetworkError(told, file=what, fix=fix, repeatable=is_passing(error))


def is_passing(error: Exception) -> bool:
    """Whether the same request may do better later: the network's fault, or a busy Hub."""
    if isinstance(error, HfHubHTTPError):
        return is_passing_status(error.response.status_code)
    if isinstance(error, LocalEntryNotFoundError):  # it looked in the cache when the Hub was away
        return not constants.HF_HUB_OFFLINE
    return isinstance(error, HTTPError)


def is_passing_status(status: int) -> bool:
    """Whether an answer of this status may become another one by itself."""
    return status in (408, 425, 429) or status >= 500


class Busy(NetworkError):
    """An answer that may become another one by itself; seconds: to wait before, at least."""

    seconds = 0.0


def check_passing(status: int, headers: Mapping[str, str], what: object) -> None:
    """Raise Busy for an answer of a status that may become another one by itself."""
    if is_passing_status(status):
        told, fix = _by_status(status, None)
        busy = Busy(told, file=what, fix=fix, repeatable=True)
        busy.seconds = _seconds(headers)
        raise busy


def retry_after(error: NetworkError) -> float:
    """Seconds that the Hub asks to wait before the next attempt; 0 if it says nothing of it."""
    if isinstance(error, Busy):
        return error.seconds
    cause = error.__cause__
    return _seconds(cause.response.headers) if isinstance(cause, HfHubHTTPError) else 0.0


def _seconds(headers: Mapping[str, str]) -> float:
    said = str(headers.get("Retry-After", ""))
    return float(said) if said.isdecimal() else 0.0


def _unanswered(error: Exception) -> _Sentence:
    """No answer of the Hub, or one that it would not have given."""
    if isinstance(error, OfflineModeIsEnabled):
        return "not asked for: huggingface_hub is offline", _ONLINE
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return "not in the Hub cache, and huggingface_hub is offline", _ONLINE
    if isinstance(error, LocalEntryNotFoundError):
        return "neither in the Hub cache nor reachable", _CONNECTION
    if isinstance(error, HFValidationError):
        return "no repository has such a name", "write it as NAME or ORGANISATION/NAME"
    if isinstance(error, FileMetadataError):
        return "not answered as the Hub would", "look at HF_ENDPOINT and the proxy"
    return _unreachable(error)


def _unreachable(error: Exception) -> _Sentence:
    kind = type(error).__name__
    return f"not reachable: {str(error) or kind} ({kind})", _CONNECTION


def _refused(error: HfHubHTTPError) -> _Sentence:
    """An answer of the Hub that is no success; the first line that fits."""
    status, has_token = error.response.status_code, get_token() is not None
    private = _OTHER_TOKEN if has_token else LOGIN
    whose = "this token has no access" if has_token else "no token"
    kinds: dict[type[Exception], _Sentence] = {
        GatedRepoError: (f"gated ({status}): {whose}", _ASKING if has_token else _ASKING_FIRST),
        DisabledRepoError: (f"disabled by the Hub ({status})", "use another repository"),
        RevisionNotFoundError: (f"no such revision ({status})", "name a branch, a tag or a commit"),
        RemoteEntryNotFoundError: (f"no such file ({status})", "look at this revision's files"),
        RepositoryNotFoundError: (
            f"no such repository, or a private one ({status})",
            f"correct the name or the path; where it is private, {private}",
        ),
    }
    if status == 401 and has_token and not isinstance(error, GatedRepoError):
        return "the Hub does not know this token (401)", "correct HF_TOKEN, or `hf auth login` anew"
    fitting = (sentence for kind, sentence in kinds.items() if isinstance(error, kind))
    return next(fitting, None) or _by_status(status, error.server_message)


def _by_status(status: int, reason: str | None) -> _Sentence:
    known = {
        401: ("not without a token (401)", LOGIN),
        403: ("not permitted (403)", _OTHER_TOKEN),
        404: (f"not found (404) at {constants.ENDPOINT}", "correct the name or the path"),
        429: ("too many requests (429)", f"{LATER}; with a token more are allowed"),
    }
    failing = (f"the Hub fails ({status})", LATER)
    other = (f"refused ({status}): {reason or 'no reason given'}", "correct the request")
    return known.get(status, failing if is_passing_status(status) else other)
