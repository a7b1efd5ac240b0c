"""Again and again, with growing waits, until patience ends."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from tq3.errors import NetworkError
from tq3.hub.failures import asking, retry_after
from tq3.hub.options import HubOptions

_MOST_REFUSALS = 5

Result = TypeVar("Result")


class GivenUp(NetworkError):
    """The run ends for another reason; nobody waits for these bytes any more."""


class Attempts:
    """The attempts of one request: each new byte begins their patience anew.

    what: that is asked for, as an error names it
    stop: set when nobody waits for the answer any more
    """

    def __init__(self, what: str, options: HubOptions, stop: Event) -> None:
        self.what = what
        self._options = options
        self._stop = stop
        self.advance()

    def advance(self) -> None:
        """Something arrived."""
        self._end = time.monotonic() + self._options.patience_seconds
        self._wait = self._options.first_wait_seconds
        self._refusals = 0

    def check(self) -> None:
        """Raise GivenUp if nobody waits for the answer any more."""
        if self._stop.is_set():
            raise GivenUp("given up", file=self.what)

    def pause(self, error: NetworkError, after: float = 0.0) -> None:
        """Wait for the next attempt, `after` seconds at least, or raise `error`: no patience."""
        # Jitter: the connections of a run, and those of other people, shall not come back at once.
        wait = max(after, self._wait * random.uniform(0.5, 1.0))
        if time.monotonic() + wait > self._end:
            raise error
        self._wait = min(2 * self._wait, self._options.longest_wait_seconds)
        self._stop.wait(wait)
        self.check()

    def refused(self, error: NetworkError) -> None:
        """Count an answer that a new address may mend; raise `error` when several did not."""
        self._refusals += 1
        if self._refusals >= _MOST_REFUSALS:
            raise error


def ask(what: str, call: Callable[[], Result], options: HubOptions, stop: Event) -> Result:
    """The answer of a call to huggingface_hub. Raises NetworkError."""
    attempts = Attempts(what, options, stop)
    while True:
        attempts.check()
        try:
            with asking(what):
                return call()
        except NetworkError as error:
            if not error.repeatable:
                raise
            attempts.pause(error, retry_after(error))
