"""Packed matrices that no layer of vLLM's holds packed: vLLM's loaders get them decoded.

What a model's code does with the weights of a dense checkpoint, it then does with these: turn them
around, repeat rows for each rank, put them into layers that no plugin is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from vllm.logger import init_logger
from vllm.model_executor.models.utils import WeightsMapper

from tq3.format.config import TqConfig
from tq3.format.layout import NORMS, PACKED, exchanged
from tq3.integrations.stored import Matrix
from tq3.runtime import rows

# Below vLLM's own logger, so that its settings hold for it.
logger = init_logger("vllm.plugins.tq3")

Weights = Iterable[tuple[str, torch.Tensor]]


class Decoded(torch.Tensor):
    """The values of codes and norms, decoded when an operation first needs them.

    A loader passes over tensors that its model has no layer for, and over those of other ranks.
    """

    _decode: Callable[[], torch.Tensor]
    _found: torch.Tensor | None

    @staticmethod
    def __new__(
        cls, shape: tuple[int, ...], dtype: torch.dtype, decode: Callable[[], torch.Tensor]
    ) -> Decoded:
        made: Decoded = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
        made._decode, made._found = decode, None
        return made

    def _read(self) -> torch.Tensor:
        if self._found is None:
            self._found = self._decode()
        return self._found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(cls, cls._read, (args, kwargs or {}))
        return func(*args, **kwargs)


class Decoder:
    """Makes dense matrices of one checkpoint's codes and norms, and tells which of them were used.

    packed: source name -> matrix, of all that are packed
    taken: source names of those that a layer holds packed
    read_record: what the checkpoint's tq_config.json says of the matrices' shapes
    """

    def __init__(
        self,
        packed: Mapping[str, Matrix],
        taken: Iterable[str],
        group: int,
        read_record: Callable[[], TqConfig | None],
    ) -> None:
        self.packed = packed
        self.taken = frozenset(taken)
        self.group = group
        self.read_record = read_record
        # Bytes that each matrix has decoded; 0 for as long as no layer was loaded from it.
        self.n_bytes: dict[str, int] = {}

    def apply(self, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        """The same tensors, but one in the place of two where a matrix is to be decoded."""
        halves: dict[str, torch.Tensor] = {}
        for name, tensor in weights:
            stem = name.removesuffix(PACKED).removesuffix(NORMS)
            source = self._source(stem) if stem != name else None
            if source is None or source in self.taken:
                yield name, tensor
            elif stem not in halves:
                halves[stem] = tensor
            else:
                pair = halves.pop(stem), tensor
                packed, norms = sorted(pair, key=torch.is_floating_point)
                self.n_bytes[source] = 0
                yield stem, self._decoded(source, packed, norms)
        self._report()

    def _source(self, stem: str) -> str | None:
        """The checkpoint's name of what a model may have given a component before, or taken one."""
        if stem in self.packed:
            return stem
        ends = (n for n in self.packed if n.endswith(f".{stem}") or stem.endswith(f".{n}"))
        return max(ends, key=len, default=None)

    def _decoded(self, source: str, packed: torch.Tensor, norms: torch.Tensor) -> Decoded:
        matrix, dtype = self.packed[source], torch.get_default_dtype()
        shape = self._shape(source, matrix)
        if matrix.transposed:
            shape = *norms.shape[:-1], shape[-1]

        def decode() -> torch.Tensor:
            of_rows = matrix.bits, self.group, shape[-1], dtype
            values = rows.decode(packed, norms.float().flatten(0, -2), *of_rows).view(shape)
            self.n_bytes[source] = values.nbytes
            return values.mT.contiguous() if matrix.transposed else values

        return Decoded(exchanged(shape) if matrix.transposed else shape, dtype, decode)

    def _shape(self, source: str, matrix: Matrix) -> tuple[int, ...]:
        record = self._record
        columns = matrix.groups * self.group
        if record is None:
            return matrix.rows, columns
        return record.shapes.get(source) or (
            matrix.rows,
            record.original_in_dims.get(source, columns),
        )

    def _report(self) -> None:
        used = {name: n for name, n in self.n_bytes.items() if n}
        if used:
            logger.warning(
                "tq3: %d of %d packed matrices are held decoded, %d MB and not %d, as vLLM takes "
                "them only so: %s",
                len(used),
                len(self.packed),
                round(sum(used.values()) / 1e6),
                round(sum(self.packed[name].n_bytes(self.group) for name in used) / 1e6),
                few(sorted(used)),
            )
        if left := sorted(self.n_bytes.keys() - used):
            logger.info(
                "tq3: %d of %d packed matrices belong to no layer that vLLM built on this rank, "
                "and are not read: %s",
                len(left),
                len(self.packed),
                few(left),
            )

    @cached_property
    def _record(self) -> TqConfig | None:
        return self.read_record()


@dataclass
class CheckpointMapper(WeightsMapper):
    """Renames as vLLM's mappers do, after matrices that no layer holds packed were decoded.

    A loader joins its own mapper with the one of the quantisation by `|` and applies the result.
    """

    decoder: Decoder | None = None

    def __or__(self, other: WeightsMapper) -> CheckpointMapper:
        return self._with(super().__or__(other))

    def __ror__(self, other: WeightsMapper) -> CheckpointMapper:
        return self._with(WeightsMapper.__or__(other, self))

    def _with(self, mapper: WeightsMapper) -> CheckpointMapper:
        renames = {field.name: getattr(mapper, field.name) for field in fields(WeightsMapper)}
        return CheckpointMapper(**renames, decoder=self.decoder)

    def apply(self, weights: Weights) -> Iterable[tuple[str, torch.Tensor]]:
        return super().apply(self.decoder.apply(weights) if self.decoder else weights)


def few(items: Sequence[str]) -> str:
    """The first of them."""
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")
