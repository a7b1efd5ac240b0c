"""What is measured, in the order of its worth; each section in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from gpu import exactness, experts, layers, model, peers, tools
from gpu.machine import Machine
from gpu.rows import Cases, Row, Skipped

Tell = Callable[[Row], None]


class Section(NamedTuple):
    """cases: what is measured, in turn, within `seconds`. title: of its table

    inner: a section that a tool of NVIDIA's runs; `cases` then takes the command for it, too
    """

    title: str
    seconds: int
    cases: Callable[..., Cases]
    inner: str = ""


SECTIONS = {
    "smoke": Section("The machine, and one launch of each kind", 90, exactness.smoke),
    "limits": Section("What memory and launches allow", 40, layers.limits),
    "serving": Section("Results of what models are served with", 90, exactness.serving),
    "kernels": Section("Layers, groups of 128, bfloat16", 150, layers.kernels),
    "crossings": Section("Integers, or decoding and GEMM, 3 bits", 90, layers.crossings),
    "model": Section("A model of 27B's widths", 200, model.model),
    "experts": Section("Experts, groups of 128, bfloat16", 60, experts.experts),
    "peers": Section("What others' kernels take", 60, peers.peers),
    "sanitizer": Section("compute-sanitizer", 180, tools.sanitizer, inner="few"),
    "profile": Section("ncu", 90, tools.profile, inner="launches"),
    "others": Section("Results of all other instances", 180, exactness.others),
}
# Only started by those above.
INNER = {
    "few": Section("One case of each kind", 180, exactness.few),
    "launches": Section("A layer's launches", 90, tools.launches),
}


def measure(cases: Cases, gpu: Machine, deadline: float, tell: Tell) -> None:
    """Tell of each case that it begins, and its row when it is measured.

    What goes wrong is the row's "fault". After an error of CUDA nothing in this process can be
    trusted: it ends the section. So does the deadline, by `time.monotonic`.
    """
    name = "before the first case"
    try:
        for name, task in cases:
            if time.monotonic() > deadline:
                tell({"case": name, "skipped": "out of time, as is what follows"})
                return
            tell({"begins": name})
            start, lost = time.monotonic(), False
            try:
                row = task()
                gpu.wait()
            except Skipped as reason:
                row = {"skipped": str(reason)}
            except torch.OutOfMemoryError:
                row = {"skipped": "it does not fit into this GPU's memory"}
            except Exception as error:
                # As torch and as tq3 begin an error of CUDA.
                row, lost = {"fault": _text(error)}, str(error).startswith("CUDA")
            tell({"case": name} | row | {"s": round(time.monotonic() - start, 2)})
            if lost:
                return
    except Exception as error:  # of the section itself, between two cases
        tell({"case": f"after {name}", "fault": _text(error)})


def _text(error: Exception) -> str:
    # torch's may have a hundred lines.
    first_line = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"
