"""The plan of a restoration: pairs of packed codes and norms become ordinary tensors again."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint, Located, refuse_unfinished
from tq3.format.config import FILE_NAME, TqConfig, find_in_model_config, parse_tq_config
from tq3.format.files import CONFIG, Files, read_text
from tq3.format.header import TensorInfo
from tq3.format.layout import NORM_DTYPES, NORMS, PACKED, SUFFIXES, GroupLayout, stem_of_codes
from tq3.format.recipe import TRELLIS_WIDTHS, Code
from tq3.format.widths import WIDTHS
from tq3.plan.classes import EXPERT_ROWS, EXPERT_STACK, SHARED_EXPERTS
from tq3.plan.plan import Action, Plan, Task, arrange, cast_task
from tq3.plan.precision import dtype_where_kept

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_EXPERT_COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")


def plan_restoration(
    checkpoint: Checkpoint, config: TqConfig, dtype: str, max_shard_bytes: int
) -> Plan:
    """An ordinary checkpoint whose floats have the safetensors dtype `dtype`. Raises BadInput."""
    layouts = all_layouts(checkpoint, config)
    tensors = {tensor.info.name: tensor for tensor in checkpoint.tensors}
    tasks: list[Task] = []
    for name, tensor in tensors.items():
        stem, _ = stem_of_codes(name) or (name, "")
        if stem in layouts and stem != name:
            tasks.append(_decode_task(stem, tensor, tensors[stem + NORMS], layouts[stem], dtype))
        elif name.removesuffix(NORMS) not in layouts:
            tasks.append(_kept_task(tensor, config, dtype))
    return arrange(tasks, max_shard_bytes)


def find_tq_config(files: Files, model_config: Mapping[str, Any]) -> TqConfig | None:
    """tq_config.json of a folder, or what stands for it in config.json. Raises BadInput."""
    if files.has(FILE_NAME):
        return parse_tq_config(read_text(files, FILE_NAME))
    found = find_in_model_config(model_config)
    if found:
        refuse_unfinished(files)
    return found


def read_tq_config(files: Files, model_config: Mapping[str, Any]) -> TqConfig:
    """tq_config.json of a folder, or what stands for it. Raises BadInput where there is none."""
    found = find_tq_config(files, model_config)
    if not found:
        refuse_unfinished(files)
        raise BadInput(
            "not a TQ3 checkpoint",
            file=files.label,
            expected=FILE_NAME,
            fix="give a folder that `tq3 compress` wrote",
        )
    return found


def all_layouts(checkpoint: Checkpoint, config: TqConfig) -> dict[str, GroupLayout]:
    """Name -> layout of every compressed tensor, as tq_config.json records them all."""
    layouts = packed_layouts(checkpoint, config)
    names = {tensor.info.name for tensor in checkpoint.tensors}
    # What tq3 wrote down is true to the last tensor. Other writers may count differently.
    for _, error in record_faults(config, names, layouts) if config.writer else ():
        raise error
    return layouts


def packed_layouts(checkpoint: Checkpoint, config: TqConfig) -> dict[str, GroupLayout]:
    """Name -> layout of every compressed tensor. Raises BadInput for a broken pair."""
    tensors = {tensor.info.name: tensor for tensor in checkpoint.tensors}
    layouts = {}
    for name, tensor in tensors.items():
        _check_whole(name, tensor, tensors)
        if found := stem_of_codes(name):
            stem, code = found
            parts = tensor, tensors[stem + NORMS]
            layouts[stem] = _layout(stem, *parts, code, checkpoint.config, config)
    return layouts


def _check_whole(name: str, tensor: Located, tensors: Collection[str]) -> None:
    """Raise BadInput for a part whose other part is missing, and for what is stored twice."""
    stem, _ = stem_of_codes(name) or (name.removesuffix(NORMS), "")
    kinds = [suffix for suffix in SUFFIXES.values() if stem + suffix in tensors]
    partner = None
    if name.endswith(NORMS) and not kinds:
        partner = PACKED
    elif stem_of_codes(name) and stem + NORMS not in tensors:
        partner = NORMS
    if partner:
        raise BadInput(f"its {partner} is missing", file=tensor.file, tensor=name)
    if stem == name and kinds:
        raise BadInput("stored twice: as it is and as codes", file=tensor.file, tensor=name)
    if len(kinds) > 1:
        raise BadInput("stored twice: " + " and ".join(kinds), file=tensor.file, tensor=name)


def record_faults(
    config: TqConfig, names: Collection[str], layouts: Mapping[str, GroupLayout]
) -> Iterator[tuple[str, BadInput]]:
    """What tq_config.json says of tensors and is not so: the check of `tq3 verify`, and the error.

    names: of all stored tensors; layouts: of the compressed ones whose parts agree
    """
    stems = {found[0] for name in names if (found := stem_of_codes(name))}
    n_compressed = len(stems)
    if config.compressed_layers not in (None, n_compressed):
        yield (
            "TQ208",
            BadInput(
                "not all compressed tensors are there, or too many",
                file=FILE_NAME,
                found=f"{n_compressed} tensors",
                expected=config.compressed_layers,
                fix="fetch the checkpoint again",
            ),
        )
    for key, named, there in (
        ("kept_source_dtype", config.kept_source_dtype, names),
        ("shapes", config.shapes, stems),
        ("orig_in_dims", config.original_in_dims, stems),
    ):
        for name in named:
            if name not in there:
                message = f"{key} names a tensor that is not there"
                yield "TQ209", BadInput(message, file=FILE_NAME, tensor=name)
    # Two widths at most are recorded, and none where parts of names can't tell their tensors apart.
    # Other writers do not record every width.
    is_recorded = config.sensitive_bits or len({each.bits for each in layouts.values()}) == 1
    for name, layout in layouts.items() if config.writer and is_recorded else ():
        if layout.bits != config.width_by_name(name):
            yield (
                "TQ210",
                BadInput(
                    "its width is not the recorded one",
                    file=FILE_NAME,
                    tensor=name,
                    found=f"{layout.bits} bits",
                    expected=config.width_by_name(name),
                ),
            )


def _kept_task(tensor: Located, config: TqConfig, dtype: str) -> Task:
    """The task of a kept tensor; one in F32 whose low bits count stays F32."""
    if dtype_where_kept(tensor.info, config.source_dtype) == "F32":
        dtype = "F32"
    return replace(cast_task(tensor, dtype, "not compressed"), must_be_finite=False)


def _decode_task(
    name: str, packed: Located, norms: Located, layout: GroupLayout, dtype: str
) -> Task:
    return Task(
        name=name,
        action=Action.DECODE,
        reason="compressed",
        sources=(packed, norms),
        targets=(TensorInfo(name, dtype, layout.host_shape),),
        # What is turned lies in one piece only as whole matrices.
        units=layout.shape[0] if layout.transposed else layout.units,
        layout=layout,
    )


def _layout(
    name: str,
    packed: Located,
    norms: Located,
    code: Code,
    model_config: Mapping[str, Any],
    config: TqConfig,
) -> GroupLayout:
    """The layout that the stored shapes and tq_config.json agree on."""
    bits = packed.info.n_bytes * 8 // max(norms.info.n_elements * config.group_size, 1)
    norm_dtype = norms.info.dtype
    widths = TRELLIS_WIDTHS if code == "trellis" else WIDTHS
    if bits not in widths or len(norms.info.shape) not in (2, 3) or norm_dtype not in NORM_DTYPES:
        raise _mismatch(packed, norms)
    *stack, groups_per_row = norms.info.shape
    is_transposed, rows = len(stack) == 2, prod(stack)
    # Padding does not show in the bytes: where columns are said twice, both must agree.
    says_columns = config.writer or name in config.original_in_dims
    cols = config.original_in_dims.get(name, groups_per_row * config.group_size)
    shape = config.shapes.get(name) or (
        (*stack, cols) if is_transposed else _guess_shape(name, rows, cols, model_config)
    )
    if says_columns and shape[-1] != cols:
        raise _mismatch(packed, norms, f"columns {cols} and {shape[-1]}")
    layout = GroupLayout(shape, bits, config.group_size, norm_dtype, is_transposed, code)
    if layout.tensors(name) != (packed.info, norms.info):
        raise _mismatch(packed, norms)
    return layout


def _guess_shape(
    name: str, rows: int, cols: int, model_config: Mapping[str, Any]
) -> tuple[int, ...]:
    """Existing writers flatten fused experts and don't say how many there are: config.json does."""
    is_matrix = name.endswith(".weight") or re.search(EXPERT_ROWS, name)
    is_shared = re.search(SHARED_EXPERTS, name)
    if is_matrix or is_shared or not re.search(EXPERT_STACK, name):
        return rows, cols
    text_config = model_config.get("text_config")
    text_config = text_config if isinstance(text_config, dict) else {}
    for key in _EXPERT_COUNT_KEYS:
        experts = model_config.get(key, text_config.get(key))
        if type(experts) is int and experts > 0 and rows % experts == 0:
            return experts, rows // experts, cols
    raise BadInput(
        "fused experts, but it does not say how many",
        file=CONFIG,
        tensor=name,
        expected=" or ".join(_EXPERT_COUNT_KEYS),
    )


def _mismatch(packed: Located, norms: Located, *recorded: str) -> BadInput:
    return BadInput(
        "codes, norms and tq_config.json contradict each other",
        file=packed.file,
        tensor=packed.info.name,
        found=", ".join((f"codes {_text(packed.info)}", f"norms {_text(norms.info)}", *recorded)),
        expected="U8 [rows*n, group*bits/8], and F32 or F16 [rows, n]",
    )


def _text(info: TensorInfo) -> str:
    return f"{info.dtype} {list(info.shape)}"
