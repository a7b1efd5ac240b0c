"""Equalized columns, by the product's own factors, for any way to write a matrix.

Matrices are scaled, written, and scaled back: the same as a checkpoint that holds the scaled
matrices and the other gains, as `tq3 compress --equalize` writes it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quality.ours import Coded, Way
from tq3.equalization.estimate import estimate_factors
from tq3.equalization.scaled_source import factors_of
from tq3.equalization.scalings import Link, Scaling, plan_scalings
from tq3.events import follow
from tq3.format.checkpoint import read_checkpoint
from tq3.storage.local import LocalFiles


class Factors:
    """Factors of columns and rows of all matrices of the checkpoint in `folder`."""

    def __init__(self, folder: Path) -> None:
        with LocalFiles(folder) as files:
            checkpoint = read_checkpoint(files)
            scalings = plan_scalings(checkpoint)
            self._scalings = scalings.by_name
            self._exponents = follow(estimate_factors(files, checkpoint, scalings, workers=2))

    def way(self, inner: Way) -> Way:
        """`inner` on the equalized matrices, what comes out scaled back."""

        def code(name: str, weight: Tensor) -> Coded | None:
            factors = self._factors(self._scalings[name])
            coded = inner(name, (weight * factors).contiguous())
            return coded and Coded(coded.weight / factors, coded.bits)

        return code

    def columns(self, name: str) -> np.ndarray | None:
        """Of the columns of a matrix.  (1, columns) float32"""
        link = replace(self._scalings[name], rows=None)
        return self._factors(link).numpy() if link.columns else None

    def _factors(self, scaling: Scaling) -> Tensor:
        """Of each weight of a matrix.  (rows, columns) or what broadcasts to it"""
        factors = torch.ones(1, 1)
        if scaling.columns:
            runs = self._of(scaling.columns).view(-1, 1, scaling.run)
            factors = runs.expand(-1, scaling.repeats, -1).reshape(1, -1)
        return factors / self._of(scaling.rows)[:, None] if scaling.rows else factors

    def _of(self, link: Link) -> Tensor:
        return torch.from_numpy(factors_of(self._exponents[link.name]))
