"""Machine code of kernels, read without a GPU: what its hot loop issues, and what it holds."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# Which pipe of a multiprocessor an instruction goes to, by the word before its first dot.
PIPES = {
    "alu": "LOP3 PLOP3 SHF PRMT IADD3 IADD VIADD ISETP FSETP SEL FSEL LEA IMNMX VIMNMX VIADDMNMX "
    "FMNMX SGXT P2R R2P I2FP",
    "fma": "IMAD FMUL FADD FFMA IDP FMUL2 FADD2 FFMA2",
    "convert": "I2F F2I F2F MUFU",
    "tensor": "IMMA",
    "memory": "LDG STG LDS STS LDL STL SHFL LDC LDCU ATOMG LDGSTS LDGDEPBAR DEPBAR",
    # Those of the uniform datapath, of control, and those that any pipe takes.
    "other": "MOV CS2R S2R UMOV ULDC UIADD3 UIMAD ULEA USHF ULOP3 UISETP S2UR R2UR USEL UPLOP3 "
    "UPRMT BRA BREAK CALL WARPSYNC BSSY BSYNC EXIT BAR NOP ACQBULK PREEXIT",
}
_PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names.split()}
_INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+\s+)?([A-Z][\w.]*)[^;]*);")
_LABEL = re.compile(r"(\.L_x_\d+):")
_FACT = re.compile(
    r"EIATTR_(REGCOUNT|FRAME_SIZE)\n(?:.*\n){1,8}?.*index@\((\w+)\)\n.*\.word\s+(0x[0-9a-f]+)"
)
_FUNCTION = re.compile(r"^\.text\.(\w+):$", re.MULTILINE)
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")


@dataclass(frozen=True, slots=True)
class Code:
    """A function: opcodes in order, loops as ranges of them. registers: of a thread; frame: bytes
    of its stack.
    """

    opcodes: tuple[str, ...]
    loops: tuple[range, ...]
    registers: int
    frame: int

    @property
    def spills(self) -> int:
        """Instructions that read or write a thread's own memory."""
        return sum(name(opcode) in ("LDL", "STL") for opcode in self.opcodes)

    def hot_loop(self, opcode: str = "IMMA") -> tuple[str, ...]:
        """The opcodes of the innermost loop that has most of `opcode`."""

        def worth(loop: range) -> tuple[int, int]:
            found = sum(name(self.opcodes[i]) == opcode for i in loop)
            return found, -len(loop)

        best = max(self.loops, key=worth, default=range(0))
        if not worth(best)[0]:
            raise AssertionError(f"no loop has {opcode}")
        return tuple(self.opcodes[i] for i in best)


def name(opcode: str) -> str:
    """ "IMAD" of "IMAD.WIDE.U32" """
    return opcode.split(".", maxsplit=1)[0]


def pipes(opcodes: tuple[str, ...]) -> Counter[str]:
    """How many instructions go to each pipe; one whose pipe is not known is an error."""
    unknown = {name(opcode) for opcode in opcodes} - _PIPE_OF.keys()
    if unknown:
        raise AssertionError(f"of no known pipe: {', '.join(sorted(unknown))}")
    return Counter(_PIPE_OF[name(opcode)] for opcode in opcodes)


def read(disassembly: str) -> dict[str, Code]:
    """The functions of a cubin, by name, from what nvdisasm writes of it."""
    facts = {(of, fact): int(value, 16) for fact, of, value in _FACT.findall(disassembly)}
    _, *parts = _FUNCTION.split(disassembly)
    found = {}
    for of, text in zip(parts[::2], parts[1::2], strict=True):
        if (of, "REGCOUNT") not in facts or (of, "FRAME_SIZE") not in facts:
            raise AssertionError(f"no registers or stack of {of}")
        registers, frame = facts[of, "REGCOUNT"], facts[of, "FRAME_SIZE"]
        found[of] = Code(*_instructions(text), registers, frame)
    return found


def _instructions(text: str) -> tuple[tuple[str, ...], tuple[range, ...]]:
    """Opcodes and loops of a function."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops: list[range] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        if (found := _INSTRUCTION.match(line)) is None:
            continue
        target = _TARGET.search(found[2])
        start = labels.get(target[1], len(opcodes)) if target else len(opcodes)
        # After the code follow branches to themselves, which nothing reaches, and back from where
        # diverged lanes would meet: no loops.
        meets = any(name(opcode) == "ENDCOLLECTIVE" for opcode in opcodes[start:])
        if name(found[3]) == "BRA" and start < len(opcodes) and not meets:
            loops.append(range(start, len(opcodes) + 1))
        opcodes.append(found[3])
    return tuple(opcodes), tuple(loops)


def disassembler() -> Path | None:
    """NVIDIA's, where it is installed."""
    try:
        files = metadata.files("nvidia-cuda-nvdisasm") or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == "nvdisasm"), None)


def disassembled(cubin: bytes, folder: Path) -> str:
    """folder: for a file"""
    path = folder / "code.cubin"
    path.write_bytes(cubin)
    command = [str(disassembler()), "--no-dataflow", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
