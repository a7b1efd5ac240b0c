"""Forwards of one model that go through its layers together.

A forward is ordinary code of the host, in a thread of its own. At a layer it hands over what the
layer is called with and waits; only one thread runs at a time. So nothing is assumed about what
happens between layers, and large matrices meet the threads of one OpenMP team only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

_here = threading.local()


@dataclass(frozen=True, slots=True)
class LayerCall:
    """A layer that a forward has come to, and the arguments it has for it."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Abandoned(BaseException):
    """Unwinds a forward that nobody will go on with."""


class Forward:
    """One call of a model, which stops at each layer that was `stopped_at`.

    call: the layer that it waits for; None when it has ended
    result: what it returned
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        """Run up to the first layer; whatever `run` raises is raised here or in `go_on`."""
        self.call: LayerCall | None = None
        self.result: Any = None
        self._stops: SimpleQueue[Any] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._run, args=(run,), daemon=True).start()
        self._wait()

    def go_on(self, answer: Any) -> None:
        """Run on with the layer's output, up to the next layer or the end."""
        self._answers.put(answer)
        self._wait()

    def close(self) -> None:
        """Give it up, unless it has ended."""
        if self.call:
            self.call = None
            self._answers.put(_Abandoned())
            self._stops.get()

    def ask(self, call: LayerCall) -> Any:
        """Wait, in the thread, for the answer to this call."""
        self._stops.put(call)
        answer = self._answers.get()
        if isinstance(answer, _Abandoned):
            raise answer
        return answer

    def _wait(self) -> None:
        stop = self._stops.get()
        self.call = stop if isinstance(stop, LayerCall) else None
        if isinstance(stop, BaseException):
            raise stop

    def _run(self, run: Callable[[], Any]) -> None:
        _here.forward = self
        # What lies between layers is small; a team of threads for each forward is not.
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                self.result = run()
        except BaseException as error:
            self._stops.put(error)
        else:
            self._stops.put(None)


def stop_at(layer: nn.Module) -> None:
    """Make every `Forward` stop at this layer; `compute` calls the layer as it was."""
    layer.forward = partial(_hand_over, layer)


def compute(call: LayerCall) -> Any:
    """The layer's output for these arguments."""
    with torch.inference_mode():
        return type(call.layer).forward(call.layer, *call.args, **call.kwargs)


def _hand_over(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    call = LayerCall(layer, args, kwargs)
    forward: Forward | None = getattr(_here, "forward", None)
    return forward.ask(call) if forward else compute(call)
