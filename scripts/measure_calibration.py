"""Measure what calibration is worth: the table of docs/calibration.md, a row for each text.

    python scripts/measure_calibration.py WORK random self quotations.txt

WORK is the folder of scripts/measure_quality.py, with its models and texts. Names of text files are
those of what is sent through the models; moments and figures stay in WORK. About two minutes a row
on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from quality.allocation import Costs, Sensitivity, layer_of
from quality.bench import Bench
from quality.calibrated import calibrated
from quality.curve import BASES, SMALL
from quality.equalize import Factors
from quality.models import TWINS
from quality.ours import Format, Way
from quality.texts import ASIDE, TUNING
from transformers.utils import logging

from tq3.calibration.calibrate import calibrate
from tq3.events import follow
from tq3.plan.roles import role_of

FAMILIES = {"gemma-twin": "F16 norms of 128", "smollm2-twin": SMALL}
SENSITIVITY = Path(__file__).parents[1] / "docs" / "quality" / "sensitivity.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="random, self, or a file")
    parser.add_argument("--tokens", type=int, default=4096, help="to calibrate and to measure with")
    parser.add_argument("--bits", type=float, default=3.3, help="a weight, widths chosen")
    parser.add_argument("--aside", action="store_true", help="also on the text set aside")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bench = Bench(options.work, options.tokens)
    names = (TUNING, ASIDE) if options.aside else (TUNING,)
    for model in TWINS:
        formats = chosen(bench, model, options.bits)
        factors = Factors(bench.folder(model))
        ways: dict[str, Way] = {"none": factors.way(plain(formats))}
        for text in options.texts:
            file = moments(bench.folder(model), options.work, text, options.tokens)
            ways[Path(text).stem] = calibrated(file, formats, factors)
        for label, way in ways.items():
            key = f"calibrated {label}, {options.bits} bits"
            for text, figure in bench.figures(model, key, way, names).items():
                print(f"{model}, {text}, {label}: {figure} ± {figure.kl_error:.4f}", flush=True)


def chosen(bench: Bench, model: str, bits: float) -> Callable[[str], Format]:
    """The format of each matrix, widths as docs/quality.md chooses them."""
    base = BASES[FAMILIES[model]]
    figures = json.loads(SENSITIVITY.read_text())
    sensitivity = Sensitivity(figures["combined"], figures["combined_depth"])
    plan = Costs(bench.subject(model, TUNING).weights, base).best(sensitivity, bits)
    if plan is None:
        raise SystemExit(f"{bits} bits are less than 2 everywhere")
    return lambda name: replace(base, bits=plan.widths[layer_of(name), role_of(name)])


def plain(formats: Callable[[str], Format]) -> Way:
    return lambda name, weight: formats(name).code(weight)


def moments(source: Path, work: Path, text: str, tokens: int) -> Path:
    """The file of moments, made now unless it is there."""
    file = work / f"{source.name}-{Path(text).stem}-{tokens}.safetensors"
    follow(calibrate(source, file, text=text, tokens=tokens, reuse=True))
    return file


if __name__ == "__main__":
    main()
