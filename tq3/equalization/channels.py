"""Which tensors feed which, in the architectures that tq3 knows: what equalized columns need.

Decided from names, shapes and config.json. A layer with a tensor that is not expected here is
refused: it might read what would be scaled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tq3.errors import BadInput, UsageError
from tq3.format.checkpoint import Checkpoint
from tq3.format.files import CONFIG


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between architectures.

    offset: what a norm adds to its stored weights to get its gains
    sandwiched: attention and MLP have a norm behind them, too (Gemma)
    """

    offset: float = 0.0
    sandwiched: bool = False


_GAINS, _GAINS_LESS_ONE = Family(), Family(offset=1.0)
FAMILIES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "qwen3_moe"), _GAINS),
    "qwen3_next": _GAINS_LESS_ONE,
    **dict.fromkeys(("qwen3_5", "qwen3_5_text"), _GAINS_LESS_ONE),
    **dict.fromkeys(("qwen3_5_moe", "qwen3_5_moe_text"), _GAINS_LESS_ONE),
    **dict.fromkeys(("gemma3", "gemma3_text"), Family(offset=1.0, sandwiched=True)),
}
# Where the layers of the text model lie; vision towers and MTP are left alone.
_PREFIXES = ("model.language_model.", "language_model.model.", "model.")
_LINEAR_READERS = tuple(
    f"linear_attn.in_proj_{part}.weight" for part in ("qkv", "z", "qkvz", "a", "b", "ba")
)
# What no factor touches: it lies behind a matrix that is scaled as a whole, or beside the channels.
_UNTOUCHED = re.compile(
    r"self_attn\.([qk]_norm\.weight|[qko]_proj\.bias|rotary_emb\.inv_freq)"
    r"|linear_attn\.(conv1d\.(weight|bias)|A_log|dt_bias|norm\.weight)"
    r"|mlp\.(gate|down)_proj\.bias"
)
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(act(gate(x)) * up(x)); in a stack of experts gate and up are halves of one tensor."""

    gate: str
    up: str
    down: str

    @property
    def is_routed(self) -> bool:
        """Whether it is one of several experts, or all of them."""
        return ".experts." in self.down

    @property
    def readers(self) -> tuple[str, ...]:
        return (self.gate,) if self.gate == self.up else (self.gate, self.up)


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """The tensors of one layer by what they do.

    readers, others: matrices that read the first and the second norm; others: beside the MLPs
    value: None for linear attention, whose convolution stands between its input and `out`
    after: norms behind attention and MLPs, None where there are none
    """

    norm: str
    readers: tuple[str, ...]
    value: str | None
    out: str
    mlp_norm: str
    others: tuple[str, ...]
    mlps: tuple[Mlp, ...]
    after: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class TextModel:
    """The layers in order, and what all of them have in common."""

    family: Family
    embeddings: str
    layers: tuple[LayerTensors, ...]
    head_dim: int


@dataclass
class _Tensors:
    """The tensors of one layer, taken one after the other."""

    prefix: str
    file: str
    left: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def take(self, part: str) -> str:
        """The full name of a part that must be there."""
        if part not in self.left:
            raise BadInput(
                "a tensor of the layer is missing",
                file=self.file,
                tensor=self.prefix + part,
            )
        del self.left[part]
        return self.prefix + part

    def take_any(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Full names of the parts that are there; the others are skipped."""
        return tuple(self.take(part) for part in parts if part in self.left)


def text_model(checkpoint: Checkpoint) -> TextModel:
    """Raises UsageError for an architecture that is not known, BadInput for one that is not so."""
    config = checkpoint.config
    if "model_type" not in config:
        raise UsageError(
            "which tensors feed which is decided by model_type",
            file=CONFIG,
            found="no model_type" if config else "no such file, or nothing in it",
        )
    text_config = config.get("text_config")
    text_config = text_config if isinstance(text_config, dict) else config
    kinds = [str(each.get("model_type")) for each in (config, text_config)]
    family = FAMILIES.get(kinds[0]) if kinds[1] in FAMILIES else None
    if family is None:
        raise UsageError(
            "not known which tensors of this architecture feed which",
            file=CONFIG,
            found=f"model_type {next(kind for kind in kinds if kind not in FAMILIES)!r}",
        )
    shapes = {tensor.info.name: tensor.info.shape for tensor in checkpoint.tensors}
    prefix = next((p for p in _PREFIXES if f"{p}embed_tokens.weight" in shapes), None)
    layers = _layers(f"{prefix}layers.", shapes, checkpoint) if prefix else []
    if prefix is None or not layers:
        raise BadInput("no layers of a text model", file=checkpoint.weight_files[0])
    found = tuple(_layer(tensors, family) for tensors in layers)
    return TextModel(family, f"{prefix}embed_tokens.weight", found, _head_dim(text_config))


def _layers(
    prefix: str, shapes: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint
) -> list[_Tensors]:
    found: dict[int, _Tensors] = {}
    for tensor in checkpoint.tensors:
        number, dot, part = tensor.info.name.removeprefix(prefix).partition(".")
        if tensor.info.name.startswith(prefix) and dot and number.isdecimal():
            layer = _Tensors(f"{prefix}{number}.", tensor.file)
            found.setdefault(int(number), layer).left[part] = shapes[tensor.info.name]
    return [found[number] for number in sorted(found)]


def _layer(tensors: _Tensors, family: Family) -> LayerTensors:
    norm = tensors.take("input_layernorm.weight")
    if "linear_attn.out_proj.weight" in tensors.left:
        value, out = None, tensors.take("linear_attn.out_proj.weight")
        readers = tensors.take_any(_LINEAR_READERS)
    else:
        readers = tuple(tensors.take(f"self_attn.{part}_proj.weight") for part in "qkv")
        value, out = readers[-1], tensors.take("self_attn.o_proj.weight")
        tensors.take_any(("self_attn.v_proj.bias",))
    second = "pre_feedforward" if family.sandwiched else "post_attention"
    layer = LayerTensors(
        norm=norm,
        readers=readers,
        value=value,
        out=out,
        mlp_norm=tensors.take(f"{second}_layernorm.weight"),
        others=tensors.take_any(("mlp.gate.weight", "mlp.shared_expert_gate.weight")),
        mlps=tuple(_mlps(tensors)),
        after=_after(tensors) if family.sandwiched else None,
    )
    unknown = [part for part in tensors.left if not _UNTOUCHED.fullmatch(part)]
    if unknown:
        raise BadInput(
            "not known what this tensor reads",
            file=tensors.file,
            tensor=tensors.prefix + unknown[0],
        )
    return layer


def _after(tensors: _Tensors) -> tuple[str, str]:
    names = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    return tensors.take(names[0]), tensors.take(names[1])


def _mlps(tensors: _Tensors) -> Iterator[Mlp]:
    """One MLP, or all experts."""
    experts = {found[1] for part in tensors.left if (found := _EXPERT.match(part))}
    places = [f"mlp.experts.{number}." for number in sorted(experts, key=int)]
    places += ["mlp.shared_expert."] if "mlp.shared_expert.up_proj.weight" in tensors.left else []
    if "mlp.experts.gate_up_proj" in tensors.left:
        both = tensors.take("mlp.experts.gate_up_proj")
        yield Mlp(both, both, tensors.take("mlp.experts.down_proj"))
    elif not places:
        places = ["mlp."]
    for place in places:
        yield Mlp(*(tensors.take(f"{place}{part}_proj.weight") for part in ("gate", "up", "down")))
        tensors.take_any((f"{place}up_proj.bias",))


def _head_dim(config: Mapping[str, Any]) -> int:
    found = config.get("head_dim")
    if found is None:
        hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
        if type(hidden) is int and type(heads) is int and heads:
            found = hidden // heads
    if type(found) is not int or found < 1:
        raise BadInput(
            "no head_dim",
            file=CONFIG,
            found=found,
            expected="head_dim, or hidden_size and num_attention_heads, as whole numbers",
        )
    return found
