"""A text model as equalization sees it: the names of each layer's tensors by what they do."""

from __future__ import annotations

from dataclasses import dataclass

from tq3.equalization.families import Family


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(act(gate(x)) * up(x)); where gate and up are halves of one tensor, that is both."""

    gate: str
    up: str
    down: str

    @property
    def is_routed(self) -> bool:
        """Whether it is one of several experts, or all of them."""
        return ".experts." in self.down or ".block_sparse_moe." in self.down

    @property
    def readers(self) -> tuple[str, ...]:
        return (self.gate,) if self.gate == self.up else (self.gate, self.up)


@dataclass(frozen=True, slots=True)
class Latent:
    """A norm in latent attention, the matrix whose first rows it norms, and what reads it."""

    norm: str
    source: str
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """The matrix whose last rows are values: of all of it, or of each of `heads` of rows.

    size: of these rows, all heads together; None for all rows
    """

    matrix: str
    size: int | None = None
    heads: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """MLPs that read one norm.

    others: matrices beside them that read it, such as routers; after: the norm behind them
    """

    norm: str | None
    others: tuple[str, ...]
    mlps: tuple[Mlp, ...]
    after: str | None = None

    @property
    def readers(self) -> tuple[str, ...]:
        return (*(name for mlp in self.mlps for name in mlp.readers), *self.others)


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """The tensors of one layer by what they do.

    norm, readers: in front of attention, and matrices that read it
    value: None where something stands between values and `out`: a convolution, a norm, a clamp
    blocks: of MLPs, side by side
    after: norms behind attention and behind all blocks
    scalar: what the residual stream is multiplied by in the end
    """

    norm: str | None
    readers: tuple[str, ...]
    latents: tuple[Latent, ...]
    value: Value | None
    out: str
    blocks: tuple[Block, ...]
    after: tuple[str, str] | None
    scalar: str | None


@dataclass(frozen=True, slots=True)
class TextModel:
    """The layers in order, and what all of them have in common.

    head_dim: of values; None where no layer has factors for them
    """

    family: Family
    embeddings: str
    layers: tuple[LayerTensors, ...]
    head_dim: int | None
