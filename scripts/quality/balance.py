"""Columns of equal size: what a writer could do before it rotates, and what that would gain.

A rotation spreads a group's error evenly over its columns, also over those whose weights are small
because what they multiply is large. Let a factor divide each column and multiply the channel that
feeds it: the gain of the norm before q, k and v or before gate and up, the rows of up before down,
the rows of v before o. The model computes the same, and the columns of a matrix are equally large.

Here matrices are scaled, written, and scaled back: the same as a checkpoint that holds the scaled
matrices and the other gains. `tq3` itself doesn't do this.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from ours import Coded, Way
from torch import Tensor

# Matrices that read one norm's output, by where they lie in a layer.
_READ_TOGETHER = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)


class Balance:
    """Factors of columns and rows of all matrices of a Llama or Gemma 3 model."""

    def __init__(self, weights: Mapping[str, Tensor], head_dim: int) -> None:
        """weights: by name, each (rows, cols) float32"""
        self._columns: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        for layer in dict.fromkeys(
            name.split(".self_attn.")[0] for name in weights if ".self_attn." in name
        ):
            for together in _READ_TOGETHER:
                names = [f"{layer}.{part}.weight" for part in together]
                factors = _sizes(torch.cat([weights[name] for name in names]))
                self._columns |= dict.fromkeys(names, factors)
            up, down = (f"{layer}.mlp.{part}_proj.weight" for part in ("up", "down"))
            self._columns[down] = self._rows[up] = _sizes(weights[down])
            v, o = (f"{layer}.self_attn.{part}_proj.weight" for part in "vo")
            # A head of values feeds several heads of o's columns: one factor for all of them.
            n_values = len(weights[v]) // head_dim
            heads = weights[o].view(len(weights[o]), n_values, -1, head_dim)
            factors = _sizes(heads.transpose(1, 2).reshape(-1, n_values * head_dim))
            self._rows[v] = factors
            shared = factors.view(n_values, 1, head_dim).expand(-1, heads.shape[2], -1)
            self._columns[o] = shared.reshape(-1)

    def way(self, inner: Way) -> Way:
        """`inner` on the balanced matrices, what comes out scaled back."""

        def code(name: str, weight: Tensor) -> Coded | None:
            factors = self._rows.get(name, torch.ones(len(weight)))[:, None] / self._columns[name]
            coded = inner(name, (weight * factors).contiguous())
            return coded and Coded(coded.weight / factors, coded.bits)

        return code


def _sizes(matrix: Tensor) -> Tensor:
    """Root mean square of each column, over the geometric mean of all.  (cols,)"""
    sizes = (matrix**2).mean(0).sqrt()
    return sizes / sizes.log().mean().exp()
