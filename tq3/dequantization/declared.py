"""What config.json and its like say of a quantised source: method, blocks that share a scale, bits.

ModelOpt writes a file of its own, and Mistral's format has another config, `params.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tq3.format.files import CONFIG, Files, read_object
from tq3.plan.quantised import declared_quantizations

# Rows and columns that share a scale; 0 stands for all of them.
Block = tuple[int, int]

PER_TENSOR: Block = (0, 0)
PER_ROW: Block = (1, 0)
_EXPONENTS: Block = (1, 32)
_KINDS = {
    "fp8": {"e4m3", "e2m1"},  # DeepSeek V4 has experts in FP4 beside it
    "fbgemm_fp8": {"e4m3"},
    "mxfp8": {"e4m3"},
    "mxfp4": {"e2m1", "e4m3"},
    "compressed-tensors": {"e4m3", "e2m1", "nvfp4", "packed_int"},
    "modelopt": {"e4m3", "e2m1", "nvfp4"},
    "modelopt_fp4": {"e4m3", "nvfp4"},
    "modelopt_mxfp8": {"e4m3"},
    "modelopt_mixed": {"e4m3", "nvfp4"},
}
_BLOCKS = {
    "fbgemm_fp8": (PER_ROW,),
    "mxfp8": (_EXPONENTS,),
    "modelopt_mxfp8": (_EXPONENTS,),
    "FP8": (PER_TENSOR,),
    "FP8_PER_CHANNEL_PER_TOKEN": (PER_ROW,),
    "FP8_PB_WO": ((128, 128),),
    "MXFP8": (_EXPONENTS,),
}
# Beside these keys a folder would mislead a host once its weights are decoded.
LEFT_OUT = ("quantization_config", "compression_config", "expert_dtype", "store_dtype")
PARAMS = "params.json"
IN_PARAMS = "quantization"
_BESIDE = ("hf_quant_config.json", PARAMS)


@dataclass(frozen=True, slots=True)
class Integers:
    """How compressed-tensors packs whole numbers.

    group: columns that share a scale, 0 for all
    targets: the modules that are packed so: names, classes, or "re:" and a pattern
    """

    bits: int
    group: int
    is_symmetric: bool
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Declared:
    """What config.json says; empty where it says nothing.

    methods: of quantisation
    blocks: by which 8-bit floats may have scales, each with the words that say so; empty: any
    integers: each way in which they may be packed
    bytes_blocks: as blocks, for integers of 8 bits that are not packed
    experts: their type, "fp4" or "fp8"
    beyond: what can't be decoded, in words
    record: the keys as they are, for tq_config.json
    """

    methods: tuple[str, ...] = ()
    blocks: Mapping[Block, str] = field(default_factory=dict)
    integers: tuple[Integers, ...] = ()
    bytes_blocks: Mapping[Block, str] = field(default_factory=dict)
    experts: object = None
    beyond: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    def allows(self, kind: str) -> bool:
        """Whether a weight of this kind can be of one of the methods."""
        return not self.methods or any(kind in _KINDS.get(name, ()) for name in self.methods)


def declared_beside(files: Files) -> dict[str, dict[str, Any]]:
    """The files beside config.json that tell of the quantisation -> what they say. May raise."""
    said = ((name, read_object(files, name)) for name in _BESIDE if files.has(name))
    return {name: {IN_PARAMS: one[IN_PARAMS]} for name, one in said if one.get(IN_PARAMS)}


def declared(
    config: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> Declared:
    """Gather what config.json says, in whatever config inside of it, and the files beside it."""
    methods: dict[str, None] = {}
    blocks: dict[Block, str] = {}
    integers: dict[Integers, None] = {}
    bytes_blocks: dict[Block, str] = {}
    experts = config.get("expert_dtype")
    beyond: list[str] = []
    for file, value in _values({CONFIG: config, **beside}):
        method = str(value.get("quant_method", "modelopt" if "quant_algo" in value else ""))
        if "qformat_weight" in value:
            method = "fp8"
        methods |= {method: None} if method else {}
        blocks |= {block: f"{text} of {file}" for block, text in _blocks(method, value)}
        integers |= dict.fromkeys(_integers(value))
        experts = experts or value.get("expert_dtype")  # there in DeepSeek V4.1
        beyond += _beyond(value)
        of_bytes = _blocks_of_groups(value, "int")
        bytes_blocks |= {block: f"{text} of {file}" for block, text in of_bytes}
    record = {key: config[key] for key in (*LEFT_OUT, "quantization") if config.get(key)}
    record |= _nested_records(config) | dict(beside)
    return Declared(
        tuple(methods), blocks, tuple(integers), bytes_blocks, experts, tuple(beyond), record
    )


def _values(
    configs: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file, config in configs.items():
        for value in declared_quantizations(config):
            yield file, value


def _blocks(method: str, value: Mapping[str, Any]) -> Iterator[tuple[Block, str]]:
    if "weight_block_size" in value:
        size = value["weight_block_size"]
        if size is None:
            yield from dict.fromkeys((PER_TENSOR, PER_ROW), "weight_block_size null").items()
        elif _is_pair(size):
            yield (size[0], size[1]), f"weight_block_size {size}"
    algorithm = str(value.get("quant_algo", "")).upper()  # ModelOpt writes some in small letters
    for block in _BLOCKS.get(method, _BLOCKS.get(algorithm, ())):
        yield block, f"{method} {algorithm}".strip()
    yield from _blocks_of_groups(value, "float")


def _blocks_of_groups(value: Mapping[str, Any], kind: str) -> Iterator[tuple[Block, str]]:
    for weights, _ in _groups(value):
        if weights.get("type") == kind and weights.get("num_bits") == 8:
            yield from _blocks_of_group(weights)


def _blocks_of_group(weights: Mapping[str, Any]) -> Iterator[tuple[Block, str]]:
    strategy: Any = weights.get("strategy")
    structure: Any = weights.get("block_structure")
    group: Any = weights.get("group_size")
    text = f"strategy {strategy!r}"
    if strategy == "tensor":
        yield PER_TENSOR, text
    elif strategy == "channel":
        yield PER_ROW, text
    elif strategy == "block" and _is_pair(structure):
        yield (structure[0], structure[1]), f"{text} with block_structure {structure}"
    elif strategy == "group" and _is_size(group):
        yield (1, group), f"{text} with group_size {group}"


def _integers(value: Mapping[str, Any]) -> Iterator[Integers]:
    for weights, targets in _groups(value):
        bits: Any = weights.get("num_bits")
        group: Any = weights.get("group_size")
        strategy = weights.get("strategy")
        if weights.get("type", "int") != "int" or not _is_size(bits) or not 3 <= bits <= 8:
            continue
        is_symmetric = weights.get("symmetric") is not False
        if strategy == "group" and _is_size(group):
            yield Integers(bits, group, is_symmetric, targets)
        elif strategy == "channel":
            yield Integers(bits, 0, is_symmetric, targets)


def _beyond(value: Mapping[str, Any]) -> Iterator[str]:
    if _turns_activations(value.get("transform_config")):
        yield "transform_config, by which a host rotates what goes into these weights"
    for weights, _ in _groups(value):
        if weights.get("type") == "float" and weights.get("num_bits") == 6:
            yield "floats of 6 bits"


def _turns_activations(transforms: Any) -> bool:
    """Whether more than weights is rotated: these lie rotated on the disk, and stay so."""
    try:
        schemes = transforms["config_groups"].values() if transforms else ()
        places = [each["location"] for scheme in schemes for each in scheme["apply"]]
    except (AttributeError, KeyError, TypeError):
        return True
    return any(place not in ("weight_input", "weight_output") for place in places)


def _groups(value: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], tuple[str, ...]]]:
    """How the weights of each group are stored, and the modules that it is meant for."""
    groups = value.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            targets = group.get("targets")
            named = targets if isinstance(targets, list) else []
            yield weights, tuple(each for each in named if isinstance(each, str))


def _nested_records(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and key not in (*LEFT_OUT, "quantization"):
            inner = {name: value[name] for name in LEFT_OUT if value.get(name)}
            found |= {key: inner} if inner else {}
    return found


def _is_pair(size: object) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(map(_is_size, size))


def _is_size(size: object) -> bool:
    return type(size) is int and 0 < size < 2**31
