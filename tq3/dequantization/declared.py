"""What config.json and its like say of a quantised source: method, blocks that share a scale, bits.

ModelOpt writes a file of its own, and Mistral's format has another config, `params.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tq3.dequantization.parsing import Weights, block_size, check_objects, groups
from tq3.format.files import CONFIG, Files, read_object
from tq3.plan.quantised import declared_quantizations, is_quantization

# Rows and columns that share a scale; 0 stands for all of them.
Block = tuple[int, int]

PER_TENSOR: Block = (0, 0)
PER_ROW: Block = (1, 0)
_EXPONENTS: Block = (1, 32)
# FP4 as gpt-oss stores it, in blocks, which are e2m1 else.
GPT_OSS = "blocks of e2m1"
_KINDS = {
    "fp8": {"e4m3", "e2m1"},  # DeepSeek V4 has experts in FP4 beside it
    "fbgemm_fp8": {"e4m3"},
    "mxfp8": {"e4m3"},
    "mxfp4": {"e2m1", GPT_OSS, "e4m3"},
    "compressed-tensors": {"e4m3", "e2m1", GPT_OSS, "nvfp4", "packed_int"},
    "modelopt": {"e4m3", "e2m1", GPT_OSS, "nvfp4"},
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
# Algorithms of ModelOpt whose weights are all FP8.
_ALL_FP8 = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8")
# FP4 by its groups: these columns share a scale, whatever config.json says.
_GROUPS_OF_FP4 = {"nvfp4": 16, "e2m1": 32, GPT_OSS: 32}
# Beside these keys a folder would mislead a host once its weights are decoded.
LEFT_OUT = ("quantization_config", "compression_config", "expert_dtype", "store_dtype")
PARAMS = "params.json"
IN_PARAMS = "quantization"
_BESIDE = ("hf_quant_config.json", PARAMS)


def is_left_out(key: str, value: object) -> bool:
    """Whether a member of config.json tells of the source's quantisation."""
    return key in LEFT_OUT or (key == IN_PARAMS and is_quantization(value))


@dataclass(frozen=True, slots=True)
class Integers:
    """How compressed-tensors stores whole numbers.

    block: rows and columns that share a scale, 0 for all
    targets: the modules that are stored so: names, classes, or "re:" and a pattern
    """

    bits: int
    block: Block
    is_symmetric: bool
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Declared:
    """What config.json says; empty where it says nothing.

    methods: of quantisation
    blocks: by which 8-bit floats may have scales, each with the words that say so; empty: any
    integers: each way in which they may be stored
    experts: their type, "fp4" or "fp8"
    beyond: what can't be decoded, in words
    against: kinds of weights that can't be there, each with the words that say so
    record: the keys as they are, for tq_config.json
    """

    methods: tuple[str, ...] = ()
    blocks: Mapping[Block, str] = field(default_factory=dict)
    integers: tuple[Integers, ...] = ()
    experts: object = None
    beyond: tuple[str, ...] = ()
    against: Mapping[str, str] = field(default_factory=dict)
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
    """Gather what config.json says, in whatever config inside of it, and the files beside it.

    Raises BadInput for what can't be read.
    """
    methods: dict[str, None] = {}
    blocks: dict[Block, str] = {}
    integers: dict[Integers, None] = {}
    experts = config.get("expert_dtype")
    beyond: list[str] = []
    against: dict[str, str] = {}
    for file, value in _values({CONFIG: config, **beside}):
        method = _method(value)
        weights = tuple(groups(file, value))
        methods |= {method: None} if method else {}
        blocks |= {block: f"{text} of {file}" for block, text in _blocks(file, method, value)}
        blocks |= {block: f"{text} of {file}" for block, text in _blocks_of_floats(weights)}
        integers |= dict.fromkeys(_integers(weights))
        experts = experts or value.get("expert_dtype")  # there in DeepSeek V4.1
        beyond += _beyond(value, weights)
        against |= {kind: f"{text} of {file}" for kind, text in _against(value, weights)}
    record = {key: config[key] for key in LEFT_OUT if config.get(key)}
    record |= {IN_PARAMS: config[IN_PARAMS]} if config.get(IN_PARAMS) else {}
    record |= _nested_records(config) | dict(beside)
    return Declared(
        tuple(methods), blocks, tuple(integers), experts, tuple(beyond), against, record
    )


def _against(value: Mapping[str, Any], of_all: Sequence[Weights]) -> Iterator[tuple[str, str]]:
    """Kinds of weights that can't be there, with the words that say so."""
    algorithm = _algorithm(value)
    if algorithm in _ALL_FP8:
        yield from ((kind, f"quant_algo {algorithm!r}") for kind in _GROUPS_OF_FP4)
    if str(value.get("fmt") or "").lower() in ("e5m2", "float8_e5m2"):
        yield "e4m3", f"fmt {value['fmt']!r}"
    sizes = {each.group for each in of_all if (each.type, each.bits) == ("float", 4) and each.group}
    if "NVFP4" in algorithm and type(value.get("group_size")) is int:
        sizes.add(value["group_size"])
    if sizes:
        text = f"group_size {' and '.join(map(str, sorted(sizes)))}"
        yield from ((kind, text) for kind, size in _GROUPS_OF_FP4.items() if size not in sizes)


def _algorithm(value: Mapping[str, Any]) -> str:
    """ModelOpt's algorithm in capitals: it writes some in small letters."""
    return str(value.get("quant_algo") or "").upper()


def _method(value: Mapping[str, Any]) -> str:
    """The name of the method in small letters, as most write it; empty where none is named."""
    if "qformat_weight" in value:
        return "fp8"
    return str(value.get("quant_method") or ("modelopt" if "quant_algo" in value else "")).lower()


def _values(
    configs: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file, config in configs.items():
        check_objects(file, config)
        for value in declared_quantizations(config):
            yield file, value


def _blocks(file: str, method: str, value: Mapping[str, Any]) -> Iterator[tuple[Block, str]]:
    if "weight_block_size" in value:
        size = block_size(file, value["weight_block_size"])
        if size:
            yield size, f"weight_block_size {list(size)}"
        else:
            yield from dict.fromkeys((PER_TENSOR, PER_ROW), "weight_block_size null").items()
    algorithm = _algorithm(value)
    for block in _BLOCKS.get(method, _BLOCKS.get(algorithm, ())):
        yield block, f"{method} {algorithm}".strip()


def _blocks_of_floats(of_all: Sequence[Weights]) -> Iterator[tuple[Block, str]]:
    for weights in of_all:
        block = _block(weights)
        if weights.type == "float" and weights.bits == 8 and block:
            text = f"strategy {weights.strategy!r}"
            if weights.strategy == "block":
                text += f" with block_structure {list(block)}"
            elif weights.strategy == "group":
                text += f" with group_size {weights.group}"
            yield block, text


def _block(weights: Weights) -> Block | None:
    """Rows and columns that share a scale by the strategy; None where it is none of weights."""
    if weights.strategy == "tensor":
        return PER_TENSOR
    if weights.strategy == "channel":
        return PER_ROW
    if weights.strategy == "block":
        return weights.block
    return (1, weights.group) if weights.strategy == "group" and weights.group else None


def _integers(of_all: Sequence[Weights]) -> Iterator[Integers]:
    for weights in of_all:
        block = _block(weights)
        if weights.type != "float" and weights.bits and 3 <= weights.bits <= 8 and block:
            yield Integers(weights.bits, block, weights.is_symmetric, weights.targets)


def _beyond(value: Mapping[str, Any], of_all: Sequence[Weights]) -> Iterator[str]:
    if _turns_activations(value.get("transform_config")):
        yield "transform_config, by which a host rotates what goes into these weights"
    for weights in of_all:
        if weights.type == "float" and weights.bits == 6:
            yield "floats of 6 bits"
        if weights.is_reordered:
            yield (
                "actorder 'group', by which columns of one scale are no neighbours, and no "
                "weight_g_idx that names them"
            )


def _turns_activations(transforms: Any) -> bool:
    """Whether more than weights is rotated: these lie rotated on the disk, and stay so."""
    try:
        schemes = transforms["config_groups"].values() if transforms else ()
        places = [each["location"] for scheme in schemes for each in scheme["apply"]]
    except (AttributeError, KeyError, TypeError):
        return True
    return any(place not in ("weight_input", "weight_output") for place in places)


def _nested_records(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and key not in (*LEFT_OUT, IN_PARAMS):
            inner = {name: value[name] for name in LEFT_OUT if value.get(name)}
            if is_quantization(value.get(IN_PARAMS)):
                inner[IN_PARAMS] = value[IN_PARAMS]
            found |= {key: inner} if inner else {}
    return found
