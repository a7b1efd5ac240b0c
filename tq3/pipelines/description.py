"""What `tq3 inspect` and `--dry-run` tell of a checkpoint: each tensor, sums of them, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tq3.format.config import MeasuredError
from tq3.format.formats import FORMATS
from tq3.format.layout import NORM_DTYPES
from tq3.format.recipe import Code
from tq3.pipelines.roles import Choice
from tq3.plan.classes import LABELS


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One tensor of the original model.

    bits, norm_dtype: width of its codes and type of its norms, None where it is not compressed
    dtype, n_bytes: as stored in the TQ3 checkpoint (codes and norms together)
    loses: what of its values a kept tensor loses, as far as headers tell; None for a compressed one
    transposed: whether hosts have the last two dimensions exchanged
    """

    name: str
    label: str
    shape: tuple[int, ...]
    bits: int | None
    dtype: str
    n_weights: int
    n_bytes: int
    reason: str
    norm_dtype: str | None = None
    loses: str | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class ClassLine:
    """The sums over all tensors of one class."""

    label: str
    n_compressed: int
    n_kept: int
    n_weights: int
    n_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return self.n_bytes * 8 / self.n_weights if self.n_weights else 0.0


@dataclass(frozen=True, slots=True)
class Description:
    """A TQ3 checkpoint, or with `planned` one that compress would make.

    scale, source_bytes, measured_error: None where nobody recorded them
    code: what codes of some tensor stand for, "scalar" where none are of a trellis
    equalized: whether columns were scaled, and what feeds them the other way
    calibration: of the moments under which codes were chosen, as tq_config.json has it
    choice: widths by role, and what they are expected to cost
    peak_memory_bytes: what compress would need, for a plan
    notices: what the user should know beside the figures
    unreachable_target: that nothing as wide as the target is possible, for a plan
    side_files: what compress would copy, with its bytes; left_out: what not, and why; for a plan
    """

    path: str
    planned: bool
    bits: int
    group_size: int
    scale: str | None
    code: Code
    original_model: str | None
    source_revision: str | None
    source_dtype: str | None
    source_bytes: int | None
    writer: str | None
    measured_error: MeasuredError | None
    shards: dict[str, int]
    tensors: tuple[TensorLine, ...]
    choice: Choice
    peak_memory_bytes: int | None = None
    unreachable_target: str | None = None
    notices: tuple[str, ...] = ()
    equalized: bool = False
    calibration: Mapping[str, Any] = field(default_factory=dict)
    side_files: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        return sum(line.n_bytes for line in self.tensors)

    @property
    def n_compressed(self) -> int:
        return sum(line.bits is not None for line in self.tensors)

    @property
    def n_kept(self) -> int:
        return len(self.tensors) - self.n_compressed

    @property
    def norm_dtypes(self) -> dict[str, int]:
        """Type of the norms -> number of tensors with such norms, F32 first."""
        dtypes = [line.norm_dtype for line in self.tensors]
        return {dtype: n for dtype in NORM_DTYPES if (n := dtypes.count(dtype))}

    @property
    def widths(self) -> tuple[int, ...]:
        """Every width that occurs."""
        return tuple(sorted({line.bits for line in self.tensors if line.bits}))

    @property
    def widths_text(self) -> str:
        """3; 3 and 4; 2, 3 and 4."""
        *others, last = map(str, self.widths or (self.bits,))
        return f"{', '.join(others)} and {last}" if others else last

    @property
    def bits_per_weight(self) -> float:
        return self.n_bytes * 8 / max(sum(line.n_weights for line in self.tensors), 1)

    @property
    def classes(self) -> tuple[ClassLine, ...]:
        """The classes that occur, in a fixed order."""
        lines = (_class_line(label, self.tensors) for label in LABELS)
        return tuple(line for line in lines if line.n_compressed or line.n_kept)

    @property
    def kept_reasons(self) -> dict[str, tuple[int, int]]:
        """Reason -> number and bytes of the tensors kept for it, largest first."""
        totals: dict[str, tuple[int, int]] = {}
        for line in self.tensors:
            if line.bits is None:
                count, n_bytes = totals.get(line.reason, (0, 0))
                totals[line.reason] = count + 1, n_bytes + line.n_bytes
        return dict(sorted(totals.items(), key=lambda item: -item[1][1]))

    @property
    def format(self) -> str:
        """The name of the checkpoint's format."""
        return FORMATS[self.code]

    def to_dict(self) -> dict[str, Any]:
        """The description as plain data, for --json."""
        return {
            **asdict(self),
            "format": self.format,
            "n_bytes": self.n_bytes,
            "n_compressed": self.n_compressed,
            "n_kept": self.n_kept,
            "norm_dtypes": self.norm_dtypes,
            "bits_per_weight": self.bits_per_weight,
            "widths": list(self.widths),
            "classes": [
                {**asdict(line), "bits_per_weight": line.bits_per_weight} for line in self.classes
            ],
        }


def _class_line(label: str, tensors: Iterable[TensorLine]) -> ClassLine:
    members = [line for line in tensors if line.label == label]
    n_compressed = sum(line.bits is not None for line in members)
    return ClassLine(
        label=label,
        n_compressed=n_compressed,
        n_kept=len(members) - n_compressed,
        n_weights=sum(line.n_weights for line in members),
        n_bytes=sum(line.n_bytes for line in members),
    )
