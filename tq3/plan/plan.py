"""The plan of an output checkpoint: every tensor's fate, shard and byte offset.

A plan is a pure function of the source's headers and the request. It is exact to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from math import prod

from tq3.format.checkpoint import Located
from tq3.format.header import FLOATS, TensorInfo, build_header
from tq3.format.layout import GroupLayout
from tq3.format.precision import STRETCH
from tq3.format.weight_files import INDEX, SINGLE

# Large enough that Python's share of the time vanishes; with 16 workers still only 128 MiB.
BLOCK_BYTES = 8 * 2**20
# Transformers refuses a safetensors file that does not say which framework wrote it.
_METADATA = {"format": "pt"}


class Action(Enum):
    """The ways in which a tensor's bytes become those of the output."""

    ENCODE = "compress"
    DECODE = "decompress"
    CAST = "cast"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class Task:
    """One tensor's way from the source into the output.

    units: equal parts of the tensor that can be done in any order by any worker: groups or whole
    rows of a compressed tensor, elements of a cast one, bytes of a copied one. Each source and
    target has the same number of bytes for each unit.
    reason: as the user reads it; nothing that is written depends on it
    must_be_finite: a NaN or infinity among the values is a finding, not data
    scale: how codes are chosen where they are made, one of `format.recipe.SCALES` or CALIBRATED
    """

    name: str
    action: Action
    reason: str = field(compare=False)
    sources: tuple[Located, ...]
    targets: tuple[TensorInfo, ...]
    units: int
    layout: GroupLayout | None = None
    must_be_finite: bool = True
    scale: str = "norm"

    @property
    def bytes_in(self) -> int:
        """Bytes of the source's files."""
        return sum(source.n_bytes for source in self.sources)

    @property
    def bytes_out(self) -> int:
        return sum(target.n_bytes for target in self.targets)

    @property
    def bytes_held(self) -> int:
        """Bytes of all that is read, of what that is decoded to, and of all that is written."""
        decoded = sum(source.info.n_bytes for source in self.sources if source.pieces)
        return self.bytes_in + decoded + self.bytes_out

    @property
    def _units_of_a_decoded_row(self) -> int:
        decoded = self.layout and any(source.pieces for source in self.sources)
        return max(1, self.units // self.layout.rows) if decoded and self.layout else 1

    def blocks(self, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
        """Blocks of about `block_bytes` of input and output together, at least a unit each.

        Those of a cast begin with a stretch of values that are judged together, those of weights
        that are decoded as they are read with a row, where one fits.
        """
        unit_bytes = self.bytes_held / max(self.units, 1)
        step = max(1, int(block_bytes / max(unit_bytes, 1)))
        whole = STRETCH if self.action is Action.CAST else self._units_of_a_decoded_row
        if step > whole:
            step -= step % whole
        for first in range(0, self.units, step):
            yield Block(self, first, min(step, self.units - first))


@dataclass(frozen=True, slots=True)
class Block:
    """Units `first` to `first + count` of a task: what one worker does in one go."""

    task: Task
    first: int
    count: int

    @property
    def key(self) -> tuple[str, int]:
        return self.task.name, self.first

    @property
    def bytes_in(self) -> int:
        """The block's share of the source's bytes; units need not have equal ones."""
        total, units = self.task.bytes_in, self.task.units
        return total * (self.first + self.count) // units - total * self.first // units

    @property
    def weights(self) -> int:
        """Weights that are encoded or decoded."""
        layout = self.task.layout
        return prod(layout.shape) * self.count // self.task.units if layout else 0

    def span(self, n_bytes: int) -> tuple[int, int]:
        """The block's place in a tensor of `n_bytes`: first byte, number of bytes."""
        unit = n_bytes // self.task.units
        return self.first * unit, self.count * unit


@dataclass(frozen=True)
class Shard:
    """One output file: its header, and the absolute offset of each tensor."""

    tasks: tuple[Task, ...]
    header: bytes
    offsets: dict[str, int]

    @cached_property
    def bytes_in(self) -> int:
        return sum(task.bytes_in for task in self.tasks)

    @cached_property
    def bytes_out(self) -> int:
        return sum(task.bytes_out for task in self.tasks)

    @property
    def file_bytes(self) -> int:
        return len(self.header) + self.bytes_out

    def blocks(self) -> Iterator[Block]:
        """The blocks of all tasks."""
        return (block for task in self.tasks for block in task.blocks())


@dataclass(frozen=True, repr=False)
class Plan:
    """All shards of the output, in order.

    joined: tensors that are stored otherwise than was asked for, for others that hosts join them
    with: name -> why
    """

    shards: tuple[Shard, ...]
    joined: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        n = len(self.tasks)
        return f"<Plan of {n} tensors, {self.bytes_out} bytes in {len(self.shards)} shards>"

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(task for shard in self.shards for task in shard.tasks)

    @property
    def bytes_in(self) -> int:
        return sum(shard.bytes_in for shard in self.shards)

    @property
    def bytes_out(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(shard.bytes_out for shard in self.shards)

    @property
    def file_bytes(self) -> int:
        return sum(shard.file_bytes for shard in self.shards)

    @property
    def shard_names(self) -> tuple[str, ...]:
        n = len(self.shards)
        if n == 1:
            return (SINGLE,)
        return tuple(f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1))

    @property
    def index(self) -> dict[str, object] | None:
        """The content of model.safetensors.index.json; none for a single file."""
        if len(self.shards) == 1:
            return None
        weight_map = {
            name: file
            for file, shard in zip(self.shard_names, self.shards, strict=True)
            for name in shard.offsets
        }
        return {
            "metadata": {"total_size": self.bytes_out},
            "weight_map": dict(sorted(weight_map.items())),
        }

    @property
    def weight_files(self) -> tuple[str, ...]:
        """Every file that the plan itself accounts for: shards and index."""
        return self.shard_names if len(self.shards) == 1 else (*self.shard_names, INDEX)


def cast_task(tensor: Located, dtype: str, reason: str) -> Task:
    """A BF16, F16 or F32 tensor stored as `dtype`; any other one as it is."""
    info = tensor.info
    if info.dtype not in FLOATS or (info.dtype == dtype and not tensor.pieces):
        return copy_task(tensor, reason)
    target = TensorInfo(info.name, dtype, info.shape)
    return Task(info.name, Action.CAST, reason, (tensor,), (target,), info.n_elements)


def copy_task(tensor: Located, reason: str) -> Task:
    """A tensor stored as it is; one that is quantised as BF16."""
    if tensor.pieces:
        return cast_task(tensor, tensor.nominal.dtype, reason)
    info = tensor.info
    units = info.n_elements if info.dtype in FLOATS else info.n_bytes
    return Task(info.name, Action.COPY, reason, (tensor,), (info,), units)


def arrange(
    tasks: Iterable[Task], max_shard_bytes: int, joined: Mapping[str, str] | None = None
) -> Plan:
    """Put tasks into shards in order; a shard closes before the task that would pass the limit.

    Greedy and in order, so a change of one task never moves what lies in an earlier shard.
    joined: as in `Plan`
    """
    shards: list[list[Task]] = [[]]
    room = max_shard_bytes
    for task in tasks:
        if task.bytes_out > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(task)
        room -= task.bytes_out
    return Plan(tuple(_shard(tasks) for tasks in shards), joined or {})


def _shard(tasks: list[Task]) -> Shard:
    header, offsets = build_header((info for task in tasks for info in task.targets), _METADATA)
    return Shard(tuple(tasks), header, offsets)
