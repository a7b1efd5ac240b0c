"""What an evaluation found, for tables, JSON and plots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tq3.evaluation.measures import Measures
from tq3.evaluation.streaming import LayerLost
from tq3.format.json_text import finite


@dataclass(frozen=True, slots=True)
class TensorError:
    """One compressed tensor. error: ||w - ours||^2 / ||w||^2 over all its weights"""

    name: str
    label: str
    bits: int
    weights: int
    error: float


@dataclass(frozen=True, slots=True)
class ClassLost:
    """The model of which only this class of tensors is ours, beside the source.

    bits_per_weight: of the class, what is kept included
    """

    label: str
    n_compressed: int
    bits_per_weight: float
    measures: Measures


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A TQ3 checkpoint beside its source, on one text.

    n_tokens: of the text; bos: the token before each sequence, None for none
    layers: in the order in which they are computed
    classes: empty unless they were asked for; together they lose about what the whole does
    """

    path: str
    source: str
    text: str
    n_tokens: int
    context: int
    bos: int | None
    dtype: str
    bits_per_weight: float
    measures: Measures
    layers: tuple[LayerLost, ...]
    tensors: tuple[TensorError, ...]
    classes: tuple[ClassLost, ...]
    seconds: float
    peak_memory_bytes: int

    def worst_tensors(self, number: int) -> list[TensorError]:
        """The tensors of the largest relative error."""
        return sorted(self.tensors, key=lambda tensor: -tensor.error)[:number]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values; infinities, which JSON does not have, become None."""
        found: dict[str, Any] = finite(asdict(self))
        return found
