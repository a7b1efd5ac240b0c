"""This project's format: what a matrix decodes to, and its bits, norms and padding counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tq3.codec.backend import get_backend
from tq3.plan.roles import role_of

# How to write a matrix, by the tensor's name; None leaves it exact.
Way = Callable[[str, torch.Tensor], "Coded | None"]
RULES = ("least squares", "norm-preserving", "unbiased")


@dataclass(frozen=True)
class Coded:
    """A matrix decoded, float32, and the bits that its stored form takes."""

    weight: torch.Tensor
    bits: int


def everywhere(written: Format) -> Way:
    """Every matrix in one format."""
    return lambda _, weight: written.code(weight)


def by_role(formats: Mapping[str, Format]) -> Way:
    """Each matrix as its role (`tq3.plan.roles`) says; roles that are not named stay exact."""

    def code(name: str, weight: torch.Tensor) -> Coded | None:
        written = formats.get(role_of(name))
        return None if written is None else written.code(weight)

    return code


@dataclass(frozen=True)
class Format:
    """One way to write a matrix.

    scale: "search" or "norm"; norms: "float32" or "float16"; rule: one of RULES, for searches
    """

    bits: int
    group: int = 128
    scale: str = "search"
    norms: str = "float32"
    rule: str = "least squares"

    def code(self, weight: torch.Tensor) -> Coded:
        """weight: (rows, cols) float32, contiguous"""
        rows, cols = weight.shape
        n = -(-cols // self.group)
        packed = np.empty((rows * n, self.group * self.bits // 8), np.uint8)
        norms = np.empty((rows, n), np.float32)
        words = weight.numpy().view(np.uint32)
        backend = get_backend()
        backend.encode(words, "F32", self.bits, self.group, packed, norms, self.scale)
        if self.rule != "least squares":
            norms = self._other_norms(weight, packed, norms)
        return self.decoded(packed, norms, cols)

    def decoded(self, packed: np.ndarray, norms: np.ndarray, cols: int) -> Coded:
        """What these codes and norms stand for, in rows of `cols`, norms rounded as they say."""
        norms = norms.astype(np.dtype(self.norms)).astype(np.float32)
        size = norms.size * (self.group * self.bits + 8 * np.dtype(self.norms).itemsize)
        return Coded(self._decoded(packed, norms, cols), size)

    def _decoded(self, packed: np.ndarray, norms: np.ndarray, cols: int) -> torch.Tensor:
        out = np.empty((len(norms), cols), np.float32)
        words = out.view(np.uint32)
        get_backend().decode(packed, norms, self.bits, self.group, words, "F32")
        return torch.from_numpy(out)

    def _other_norms(
        self, weight: torch.Tensor, packed: np.ndarray, norms: np.ndarray
    ) -> np.ndarray:
        """Of the same codes c. With the angle a between a group x and c, least squares stores
        |x| cos a / |c|; |x| / |c| keeps the norm, and |x| / (|c| cos a) makes x.w = x.x."""
        rows, n = norms.shape
        padded = torch.zeros(rows, n * self.group)
        padded[:, : weight.shape[1]] = weight
        unit = self._decoded(packed, np.ones_like(norms), n * self.group)
        x, c = (each.view(rows, n, self.group).norm(dim=-1).numpy() for each in (padded, unit))
        keeping = x / c
        if self.rule == "norm-preserving":
            return np.asarray(keeping)
        found = np.zeros_like(norms)
        np.divide(keeping**2, norms, out=found, where=norms > 0)
        return found
