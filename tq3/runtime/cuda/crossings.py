"""From how many tokens on a layer is decoded for torch's GEMM, and in what pieces: by architecture.

crossings.json has the numbers. `scripts/gpu_check.py --crossings` measures a GPU's and writes them
there, with its name and the day; until then they are estimated (docs/kernels.md).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

PATH = Path(__file__).with_suffix(".json")
OTHERS = "others"


class Crossing(NamedTuple):
    """most_tokens: up to so many, tensor cores multiply bytes; beyond, decoded weights are given to
    torch's GEMM. piece_weights: so many decoded ones at a time. origin: "estimated", or which GPU
    was measured and when.
    """

    most_tokens: int
    piece_weights: int
    origin: str


def table(path: Path = PATH) -> dict[str, Crossing]:
    """Crossings by architecture, such as "sm_90"; OTHERS for those that have no row."""
    rows = json.loads(path.read_text())
    return {architecture: Crossing(**row) for architecture, row in rows.items()}


@cache
def crossing_of(architecture: str) -> Crossing:
    """The crossing of devices that code is compiled for as for `architecture`."""
    rows = table()
    return rows.get(architecture, rows[OTHERS])


def write(architecture: str, crossing: Crossing, path: Path = PATH) -> None:
    """Put a row into the table, in the place of an older one."""
    rows = {**table(path), architecture: crossing}
    text = json.dumps({of: rows[of]._asdict() for of in sorted(rows)}, indent=2)
    path.write_text(text + "\n")
