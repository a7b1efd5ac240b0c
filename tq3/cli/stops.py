"""What Ctrl-C, SIGTERM and a closed terminal do: before a run, during it, and when it has ended.

The first module that the program imports: nothing else may come before its handlers.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

INTERRUPTED = 130
SENTENCE = "tq3: interrupted"
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_at_once() -> None:
    """Until a run begins: there is nothing to clear up, and an exception might be swallowed."""
    for number in _STOPS:
        # nohup has SIGHUP ignored, a shell SIGINT in the background, and both want it so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def interrupt_runs() -> None:
    """Make a stop raise KeyboardInterrupt from now on, where it would leave at once."""
    for number in _STOPS:
        if signal.getsignal(number) is _leave:
            signal.signal(number, _stop)


def restore_signals(*, failed: bool) -> None:
    """The run has ended: let its error be told and its exit code stand, or die as others do."""
    for number in _STOPS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_IGN if failed else signal.SIG_DFL)


def _leave(*_: object) -> NoReturn:
    try:
        os.write(2, f"{SENTENCE}\n".encode())
    finally:
        os._exit(INTERRUPTED)


def _stop(*_: object) -> NoReturn:
    """End the run, once: Ctrl-C is pressed twice, a closed terminal sends SIGHUP twice."""
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
