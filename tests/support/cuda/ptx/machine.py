"""Blocks of threads that run a kernel together, all threads at one instruction at a time.

Of those that can run, the threads that are furthest behind go on until they branch or come to a
label: so threads that parted meet again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from support.cuda.ptx.accesses import Memory, access
from support.cuda.ptx.copies import Copies
from support.cuda.ptx.elementwise import OPERATIONS
from support.cuda.ptx.memory import Global
from support.cuda.ptx.parsing import Fault, Immediate, Instruction, Kernel, Symbol, Unknown
from support.cuda.ptx.shared import Conflicts, Shared
from support.cuda.ptx.values import Values
from support.cuda.ptx.warps import together

# Threads of as many blocks as fit run at once.
_THREADS_AT_ONCE = 8192
# A loop without an end is a fault, too.
_MOST_STEPS = 1_000_000
_JUMPS = ("bra", "bra.uni", "ret", "exit", "bar.sync")
Grid = tuple[int, int, int]
Do = Callable[[Values, Memory, Instruction], None]


def run(
    kernel: Kernel,
    memory: Global,
    parameters: list[tuple[str, int]],
    grid: Grid,
    threads: int,
    early: bool = False,
    shared_bytes: int = 0,
) -> Conflicts:
    """Launch `grid` blocks of `threads`, whose number is a multiple of 32.

    parameters: type and bits of each; early: maybe before the kernels ahead have ended;
    shared_bytes: of a block, beside what the kernel declares
    """
    found = [type_ for type_, _ in parameters]
    if found != list(kernel.parameters.values()):
        raise Unknown(f"{kernel.name} takes {list(kernel.parameters.values())}, not {found}")
    bits = dict(zip(kernel.parameters, (bits for _, bits in parameters), strict=True))
    x, y, z = grid
    blocks, conflicts = np.arange(x * y * z), Conflicts()
    step = max(1, _THREADS_AT_ONCE // threads)
    with np.errstate(all="ignore"):
        for first in range(0, len(blocks), step):
            some = blocks[first : first + step]
            together = _Blocks(kernel, memory, bits, grid, some, threads, early, shared_bytes)
            together.run()
            conflicts.passes += together.memory.of_blocks.conflicts.passes
            conflicts.ideal += together.memory.of_blocks.conflicts.ideal
    return conflicts


class _Blocks:
    def __init__(
        self,
        kernel: Kernel,
        memory: Global,
        parameters: dict[str, int],
        grid: Grid,
        blocks: np.ndarray,
        threads: int,
        early: bool,
        shared_bytes: int,
    ) -> None:
        self.kernel, self.blocks = kernel, len(blocks)
        shared = Shared(len(blocks), kernel.shared_bytes + shared_bytes, threads)
        copies = Copies(shared, len(blocks) * threads)
        are_early = np.full(len(blocks) * threads, early)
        self.memory = Memory(memory, shared, copies, parameters, are_early)
        self.values = Values(kernel, _special(grid, blocks, threads))
        total = len(blocks) * threads
        self.place = np.zeros(total, np.int64)
        self.done, self.waiting = np.zeros(total, bool), np.zeros(total, bool)
        self._do = [_known(instruction) for instruction in kernel.instructions]
        self._labelled = set(kernel.labels.values())

    def run(self) -> None:
        """Until all threads are done."""
        for _ in range(_MOST_STEPS):
            if self.done.all():
                self.memory.of_blocks.need_no_copies()
                return
            ready = ~self.done & ~self.waiting
            if ready.any():
                self._go_on(ready)
            else:
                self._pass_barriers()
        raise Fault(f"still running after {_MOST_STEPS} steps")

    def _go_on(self, ready: np.ndarray) -> None:
        place = int(self.place[ready].min())
        here = ready & (self.place == place)
        while True:
            if place == len(self._do):
                raise Fault("threads run beyond the last instruction")
            one, do = self.kernel.instructions[place], self._do[place]
            try:
                self.values.activate(here)
                if one.guard:
                    chosen = self.values.read(one.guard.predicate, "pred") == one.guard.wanted
                    self.values.activate(here & chosen)
                if do is None:
                    self._jump(one, place, here)
                    return
                if self.values.active.any():
                    do(self.values, self.memory, one)
            except (Fault, Unknown) as error:
                raise type(error)(f"{error}: {one.text}") from None
            place += 1
            if place in self._labelled:
                self.place[here] = place
                return

    def _jump(self, one: Instruction, place: int, here: np.ndarray) -> None:
        self.place[here] = place + 1
        taken = self.values.active
        if one.opcode.startswith("bra"):
            (label,) = one.operands
            assert isinstance(label, Symbol)
            if label.name not in self.kernel.labels:
                raise Unknown("no such label")
            self.place[taken] = self.kernel.labels[label.name]
        elif one.opcode == "bar.sync":
            if one.operands != (Immediate(0),):
                raise Unknown("a barrier of its own")
            self.values.need_whole_warps()
            self.waiting |= taken
        else:
            self.memory.need_previous(taken, "threads end")
            self.done |= taken

    def _pass_barriers(self) -> None:
        """A block goes on when all of its threads wait."""
        by_block = self.waiting.reshape(self.blocks, -1)
        if (by_block.any(1) & ~by_block.all(1)).any():
            raise Fault("a barrier to which some threads never come")
        self.memory.of_blocks.barrier(np.all(by_block, axis=1))
        self.waiting[:] = False


def _special(grid: Grid, blocks: np.ndarray, threads: int) -> dict[str, np.ndarray]:
    """Special registers of all threads of these blocks; blocks are in a row."""
    x, y, _ = grid
    index = {"x": blocks % x, "y": blocks // x % y, "z": blocks // (x * y)}
    found = {f"%ctaid.{axis}": each.repeat(threads) for axis, each in index.items()}
    thread = np.tile(np.arange(threads), len(blocks))
    found |= {"%tid.x": thread, "%tid.y": 0 * thread, "%tid.z": 0 * thread}
    sizes = {"%ntid.x": threads, "%ntid.y": 1, "%ntid.z": 1}
    sizes |= {f"%nctaid.{axis}": size for axis, size in zip("xyz", grid, strict=True)}
    found |= {name: np.full(len(thread), size) for name, size in sizes.items()}
    return {name: each.astype(np.uint32) for name, each in found.items()}


def _known(one: Instruction) -> Do | None:
    """What carries out an instruction; None for what changes the place."""
    if one.opcode in _JUMPS:
        return None
    if found := access(one.opcode):
        return found
    if of_warp := together(one.opcode):
        return lambda values, _, one: of_warp(values, one)
    operation = OPERATIONS.get(one.opcode)
    if operation is None:
        raise Unknown(f"unknown instruction: {one.text}")

    def compute(values: Values, _: Memory, one: Instruction) -> None:
        result, *sources = one.operands
        read = [values.read(*pair) for pair in zip(sources, operation.sources, strict=True)]
        values.write(result, operation.compute(*read), operation.result)

    return compute
