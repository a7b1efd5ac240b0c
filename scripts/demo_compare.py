"""Let the original, the restored and the packed model finish the same sentence, and compare them.

    python scripts/demo_compare.py ORIGINAL COMPRESSED RESTORED

Each generates in a process of its own, greedily, with activations in bf16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPT = "Photosynthesis is the process by which"
MEASURE = Path(__file__).parent / "measure_generation.py"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a model before and after compression.")
    for name in ("original", "compressed", "restored"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    folders = parser.parse_args()
    kinds = {
        "original": folders.original,
        "restored": folders.restored,
        "packed": folders.compressed,
    }
    print("Each model finishes the same sentence, by itself (up to a minute) ...", flush=True)
    found = {kind: generation(folder) for kind, folder in kinds.items()}
    show_figures(kinds, found)
    print(f"\n{PROMPT} ...")
    for kind, figures in found.items():
        print(f"  {kind:10}{figures['text']!r}")
    print(
        "\nGreedy text. A model of 135 million weights has few to spare: with 4 bits and equalized"
        "\ncolumns it stays sane, with 3 bits it would not. Its embedding, kept in 16 bits, is half"
        "\nof the packed bytes."
    )


def generation(folder: Path) -> dict[str, Any]:
    """Text and figures, measured in a process of its own."""
    command = (sys.executable, MEASURE, folder, "--prompt", PROMPT)
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, Any] = json.loads(run.stdout)
    return figures


def show_figures(kinds: dict[str, Path], found: dict[str, dict[str, Any]]) -> None:
    """A line for each model."""
    columns = ("on disk", "weights", "resident", "tokens/s")
    print(f"{'':10}" + "".join(f"{column:>12}" for column in columns))
    for kind, folder in kinds.items():
        figures = found[kind]
        sizes = (weight_file_bytes(folder), figures["weight_bytes"], figures["resident_bytes"])
        cells = [f"{size / 1e6:.1f} MB" for size in sizes]
        cells.append(f"{figures['tokens_per_second']:.1f}")
        print(f"{kind:10}" + "".join(f"{cell:>12}" for cell in cells))
    libraries = found["packed"]["library_bytes"] / 1e6
    print(
        "weights: bytes of all parameters in memory; resident: what loading and generating added"
        f"\nto the process, beside the {libraries:.0f} MB of Python and its libraries."
    )


def weight_file_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    main()
