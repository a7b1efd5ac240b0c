"""Tiny models with a tokenizer, and their moments."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from support.evaluation.evaluated import byte_tokenizer
from support.models.tiny_models import ARCHITECTURES, Architecture, write_checkpoint
from tq3.calibration.calibrate import Calibrated, calibrate
from tq3.events import follow

TOKENS, CONTEXT = 300, 50
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


class Case(NamedTuple):
    """A source, the moments that random tokens gave, and what was said of them."""

    architecture: Architecture
    source: Path
    moments: Path
    result: Calibrated


def make_case(name: str, folder: Path) -> Case:
    source, moments = folder / name, folder / f"{name}.safetensors"
    write_checkpoint(BY_NAME[name], source)
    byte_tokenizer().save_pretrained(source)
    run = calibrate(source, moments, tokens=TOKENS, context=CONTEXT)
    return Case(BY_NAME[name], source, moments, follow(run))
