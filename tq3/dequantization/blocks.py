"""Shapes of quantised weights: of the weights that are meant, and of the blocks that share a scale.

The size of blocks comes from config.json, where it says one, and is held against the scales: a last
block may be cut off, so that the shapes alone don't tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tq3.dequantization.completeness import MADE_FROM, told
from tq3.dequantization.declared import PER_ROW, PER_TENSOR, Block, Declared, Integers
from tq3.dequantization.layouts import Match
from tq3.dequantization.targets import meant_for
from tq3.errors import BadInput
from tq3.format.checkpoint import Located
from tq3.format.files import CONFIG
from tq3.format.quantised import Encoding

_BYTE_BITS = 8
_BY_32, _BY_16 = (1, 32), (1, 16)
_USUAL = (PER_TENSOR, PER_ROW, (128, 128), (32, 32))
Shape = tuple[int, ...]


def logical_shape(found: Match) -> Shape:
    """The shape of the weight that these codes are. Raises BadInput for what can't be one."""
    shape, dtype = found.codes.info.shape, found.codes.info.dtype
    if found.layout.codes == "_blocks":
        if len(shape) < 3 or shape[-1] != 16:
            raise _misfit(found.codes, "[..., rows, groups, 16]", "gpt-oss packs 32 codes in 16")
        return (*shape[:-2], shape[-2] * 32)
    if not 1 <= len(shape) <= 3 or 0 in shape:
        raise _misfit(found.codes, "a matrix or a stack of matrices", "weights with a scale")
    if dtype == "F4" and shape[-1] % 2:
        raise _misfit(found.codes, "an even number of columns", "two codes in a byte")
    is_paired = found.layout.kind in ("e2m1", "nvfp4") and dtype != "F4"
    return (*shape[:-1], shape[-1] * 2) if is_paired else shape


def bytes_shape(found: Match, said: Declared) -> Shape:
    """The shape of integers of 8 bits that are not packed. Raises BadInput.

    Others store other codes in bytes with such a scale, so config.json has to say these.
    """
    of_bytes = [each for each in said.integers if each.bits == _BYTE_BITS]
    if not of_bytes:
        raise BadInput(
            f"{CONFIG} does not say that these bytes are integers",
            file=found.codes.file,
            tensor=found.codes.info.name,
            found=f"I8 with {found.scales.info.dtype} scales",
            expected="num_bits 8 and type int in config_groups of quantization_config",
            fix=f"get {CONFIG} of the revision that the weights are from, or compress what they "
            "were made from",
        )
    if not _meant(found, said):
        raise _contradiction(found, of_bytes)
    shape = logical_shape(found)
    if shape[-1] % 4:
        raise _misfit(
            found.codes,
            "a multiple of 4 columns",
            "integers of 8 bits",
            MADE_FROM,
        )
    return shape


def packed_integers(found: Match, said: Declared) -> tuple[int, int, Shape]:
    """Bits, columns that share a scale, shape. Raises BadInput where config.json does not say."""
    codes, scales = found.codes.info.shape, found.scales.info.shape
    are_matrices = len(codes) == len(scales) == 2 and 0 not in codes
    fitting: dict[tuple[int, int, Shape], Integers] = {}
    for each in _meant(found, said) if are_matrices else ():
        group = each.block[1]
        columns = scales[-1] * group if group else codes[-1] * 32 // each.bits
        if columns and -(-columns * each.bits // 32) == codes[-1]:
            fitting.setdefault((each.bits, group or columns, (codes[0], columns)), each)
    if len(fitting) == 1:
        return next(iter(fitting))
    if fitting:
        raise BadInput(
            f"these integers may be packed in {len(fitting)} ways, and targets don't tell in which",
            file=found.codes.file,
            tensor=found.codes.info.name,
            found=" or ".join(map(_in_words, fitting.values())),
            expected=f"one group in config_groups of {CONFIG} whose targets name {found.stem!r}",
            fix=f"add the name to the targets of the group that is meant, in {CONFIG}",
        )
    raise _contradiction(found, said.integers)


def _meant(found: Match, said: Declared) -> list[Integers]:
    """The ways of config.json that may be those of this weight, whatever its shape."""
    is_symmetric = found.zero_points is None
    return [
        each
        for each in meant_for(found.stem, said.integers)
        if each.is_symmetric == is_symmetric
        and (each.bits == _BYTE_BITS if found.layout.is_signed else each.block[0] == 1)
    ]


def _contradiction(found: Match, said: Sequence[Integers]) -> BadInput:
    points = "zero points" if found.zero_points else "no zero points"
    return BadInput(
        f"{CONFIG} and the tensors contradict each other"
        if said
        else f"{CONFIG} does not say how these integers are packed",
        file=found.codes.file,
        tensor=found.codes.info.name,
        found=f"codes {list(found.codes.info.shape)}, scales {list(found.scales.info.shape)}, "
        f"{points}",
        expected=" or ".join(map(_in_words, said))
        if said
        else "num_bits and group_size in config_groups of quantization_config",
        fix=f"get {CONFIG} and weights from one revision",
    )


def _in_words(integers: Integers) -> str:
    rows, columns = integers.block
    by = f"blocks of {rows} x {columns}"
    if rows < 2:
        of_row = f"groups of {columns}" if columns else "one scale for a row"
        by = of_row if rows else "one scale"
    points = "symmetric" if integers.is_symmetric else "with zero points"
    return f"{integers.bits} bits, {by}, {points}"


def block_of(found: Match, shape: Shape, said: Declared, group: int | None) -> Block:
    """Rows and columns that share a scale, whose number is that of the scales. Raises BadInput."""
    kind, scales = found.layout.kind, found.scales
    words: dict[Block, str] = {}
    is_said = True
    if found.layout.is_signed:
        words = {each.block: f"{_in_words(each)} of {CONFIG}" for each in _meant(found, said)}
    elif group:
        words = {(1, group): f"group_size {group}"}
    elif kind == "nvfp4":
        words = {_BY_16: "16 codes share a scale in NVFP4"}
    elif kind == "e2m1":
        words = {_BY_32: "32 codes share a scale in MXFP4"}
    elif said.blocks:
        words = dict(said.blocks)
    else:
        first = (_BY_32,) if scales.info.dtype in ("U8", "F8_E8M0") else ()
        words = dict.fromkeys((*first, *_USUAL), f"no word in {CONFIG}")
        is_said = False
    *stack, rows, columns = (1, *shape)[-max(2, len(shape)) :]
    fitting: dict[Block, tuple[Block, str]] = {}
    for (row_block, column_block), text in words.items():
        block = row_block or rows, column_block or columns
        if _fits(scales.info.shape, prod(stack), (-(-rows // block[0]), -(-columns // block[1]))):
            fitting.setdefault((min(block[0], rows), min(block[1], columns)), (block, text))
    if len(fitting) > 1 and is_said:
        raise BadInput(
            f"its scales may be those of {len(fitting)} kinds of blocks",
            file=scales.file,
            tensor=scales.info.name,
            found=" or ".join(text for _, text in fitting.values()),
            expected="one of them",
            fix=f"take the others out of {CONFIG}",
        )
    if fitting:
        return next(iter(fitting.values()))[0]
    expected = " or ".join(
        f"{list((*stack, *_grid((rows, columns), block)))} by {text}"
        for block, text in words.items()
    )
    raise _misfit(scales, expected, f"the weight has shape {list(shape)}")


def check_others(found: Match, shape: Shape, encoding: Encoding) -> None:
    """Raise BadInput for global scales, zero points or a shape that are none of this weight."""
    if found.global_scale:
        info, stack = found.global_scale.info, prod(shape[:-2])
        if info.dtype != "F32" or info.n_elements not in (1, stack):
            raise _misfit(found.global_scale, f"{stack} of F32", "one scale, or one for a matrix")
    if found.zero_points and encoding.is_signed:
        info = found.zero_points.info
        if info.dtype != "I8" or info.n_elements != found.scales.info.n_elements:
            raise _misfit(
                found.zero_points, f"I8 {list(found.scales.info.shape)}", "one for each scale"
            )
    elif found.zero_points:
        rows, groups = encoding.grid(*shape[-2:])
        expected = -(-rows * encoding.bits // 32), groups
        if found.zero_points.info.dtype != "I32" or found.zero_points.info.shape != expected:
            raise _misfit(found.zero_points, f"I32 {list(expected)}", "packed along the rows")
    if found.width and (found.width.info.dtype, found.width.info.shape) != ("I64", (2,)):
        raise _misfit(found.width, "I64 [2]", "rows and columns")


def _grid(shape: tuple[int, int], block: Block) -> tuple[int, int]:
    return (
        -(-shape[0] // (block[0] or shape[0])),
        -(-shape[1] // (block[1] or shape[1])),
    )


def _fits(shape: Shape, stack: int, grid: tuple[int, int]) -> bool:
    """Whether scales of this shape are such a grid for each of a stack, or one for all."""
    if grid == (1, 1) and prod(shape) == 1:
        return True
    whole: Shape = (stack, *grid) if stack > 1 else grid
    plain: list[Shape] = [whole]
    if stack > 1 and grid == (1, 1):
        plain += [(stack,), (stack, 1)]
    if grid[1] == 1:
        plain += [whole[:-1]]
    if stack == 1:
        plain += [(1, *grid), (grid[0], 1, grid[1], 1)]  # the last one as ModelOpt stores blocks
    return shape in plain


def _misfit(
    tensor: Located,
    expected: str,
    why: str,
    fix: str = f"get {CONFIG} and weights from one revision",
) -> BadInput:
    return BadInput(
        f"its shape does not fit: {why}",
        file=tensor.file,
        tensor=tensor.info.name,
        found=told(tensor),
        expected=expected,
        fix=fix,
    )
