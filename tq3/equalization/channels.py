"""Which tensors feed which, in the architectures that tq3 knows: what equalized columns need.

Decided from names, shapes and config.json. A layer with a tensor that is not expected here is
refused: it might read what would be scaled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tq3.equalization.families import FAMILIES, Family
from tq3.equalization.layers import Block, Latent, LayerTensors, Mlp, TextModel, Value
from tq3.errors import BadInput, UsageError
from tq3.format.checkpoint import Checkpoint
from tq3.format.files import CONFIG

# Where the layers of the text model lie; vision towers and MTP are left alone. Models of embeddings
# are often saved without a head, and without a prefix then.
_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
_LINEAR_READERS = tuple(
    f"linear_attn.in_proj_{part}.weight" for part in ("qkv", "z", "qkvz", "a", "b", "ba")
)
# Latent attention: queries, or their latent; and what selects keys (DeepSeek's sparse attention).
_LATENT_READERS = (
    *("self_attn.q_proj.weight", "self_attn.q_a_proj.weight"),
    *("self_attn.indexer.wk.weight", "self_attn.indexer.weights_proj.weight"),
)
_QUERIES = ("self_attn.q_b_proj.weight", "self_attn.indexer.wq_b.weight")
# Where an MLP or experts lie in a layer, and what their matrices are called: gate, up, down.
_PLACES = ("mlp.", "block_sparse_moe.", "")
_MATRICES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_FUSED = (("gate_up_proj.weight", "down_proj.weight"),)
_STACKED = (
    ("experts.gate_up_proj", "experts.down_proj"),
    ("input_linear.weight", "output_linear.weight"),
)
_ROUTERS = ("gate.weight", "router.weight", "router.layer.weight", "shared_expert_gate.weight")
# What no factor touches: it lies behind a matrix that is scaled as a whole, or beside the channels.
_UNTOUCHED = re.compile(
    r"self_attn\.(([qk]_norm|(query|key)_layernorm)\.weight|([qko]|q_a)_proj\.bias|kv_a_proj_with_mqa\.bias)"
    r"|self_attn\.(rotary_emb\.inv_freq|indexer\.k_norm\.(weight|bias))"
    r"|linear_attn\.(conv1d\.(weight|bias)|A_log|dt_bias|norm\.weight)"
    r"|mlp\.(gate|down)_proj\.bias|(mlp\.gate|block_sparse_moe)\.e_score_correction_bias"
    # Gemma 4: they read the residual stream, which has no factors.
    r"|per_layer_(input_gate|projection)\.weight|post_per_layer_input_norm\.weight|layer_scalar"
    r"|router\.(scale|per_expert_scale|proj\.weight)"
)


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
                "a tensor of the layer is missing", file=self.file, tensor=self.prefix + part
            )
        del self.left[part]
        return self.prefix + part

    def take_any(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Full names of the parts that are there; the others are skipped."""
        return tuple(self.take(part) for part in parts if part in self.left)

    def take_norm(self, stem: str) -> str:
        """The full name of a norm's gains; its bias is found beside them."""
        self.take_any((f"{stem}.bias",))
        return self.take(f"{stem}.weight")

    def has(self, *parts: str) -> bool:
        return all(part in self.left for part in parts)


def text_model(checkpoint: Checkpoint) -> TextModel:
    """The tensors of a checkpoint's text model by what they do.

    Raises UsageError for a model_type that is not known, BadInput where a layer has a tensor more
    or less than that architecture, or config.json no number that is needed.
    """
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
    if prefix is None:
        raise BadInput("no token embeddings", file=checkpoint.weight_files[0])
    layers = _layers(f"{prefix}layers.", shapes, checkpoint, text_config)
    if not layers:
        raise BadInput("no layers of a text model", file=checkpoint.weight_files[0])
    found = tuple(_layer(tensors, family, text_config) for tensors in layers)
    has_values = any(layer.value for layer in found)
    head_dim = _whole(text_config, "head_dim", "num_attention_heads") if has_values else None
    return TextModel(family, f"{prefix}embed_tokens.weight", found, head_dim)


def _layers(
    prefix: str,
    shapes: Mapping[str, tuple[int, ...]],
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
) -> list[_Tensors]:
    """The layers that config.json counts: those with higher numbers predict further tokens."""
    count = config.get("num_hidden_layers")
    found: dict[int, _Tensors] = {}
    for tensor in checkpoint.tensors:
        number, dot, part = tensor.info.name.removeprefix(prefix).partition(".")
        if not (tensor.info.name.startswith(prefix) and dot and number.isdecimal()):
            continue
        if type(count) is not int or int(number) < count:
            layer = _Tensors(f"{prefix}{number}.", tensor.file)
            found.setdefault(int(number), layer).left[part] = shapes[tensor.info.name]
    return [found[number] for number in sorted(found)]


def _layer(tensors: _Tensors, family: Family, config: Mapping[str, Any]) -> LayerTensors:
    norm, mlp_norm = (stem and tensors.take_norm(stem) for stem in family.norms)
    after = family.after
    readers, latents, value, out = _attention(tensors, config)
    layer = LayerTensors(
        norm=norm,
        readers=readers,
        latents=latents,
        value=value if family.values and not config.get("clip_qkv") else None,
        out=out,
        blocks=tuple(_blocks(tensors, mlp_norm, family)),
        after=(tensors.take_norm(after[0]), tensors.take_norm(after[1])) if after else None,
        scalar=tensors.prefix + "layer_scalar" if tensors.has("layer_scalar") else None,
    )
    unknown = [part for part in tensors.left if not _UNTOUCHED.fullmatch(part)]
    if unknown:
        raise BadInput(
            "not known what this tensor reads",
            file=tensors.file,
            tensor=tensors.prefix + unknown[0],
        )
    return layer


_Attention = tuple[tuple[str, ...], tuple[Latent, ...], Value | None, str]


def _attention(tensors: _Tensors, config: Mapping[str, Any]) -> _Attention:
    """What reads the norm, latents, values and the matrix behind: of any kind of attention."""
    if tensors.has("linear_attn.out_proj.weight"):
        out = tensors.take("linear_attn.out_proj.weight")
        return tensors.take_any(_LINEAR_READERS), (), None, out
    if tensors.has("self_attn.kv_b_proj.weight"):
        return _latent_attention(tensors, config)
    out = tensors.take("self_attn.o_proj.weight")
    if tensors.has("self_attn.qkv_proj.weight"):
        both = tensors.take("self_attn.qkv_proj.weight")
        tensors.take_any(("self_attn.qkv_proj.bias",))
        heads = "num_key_value_heads" if "num_key_value_heads" in config else "num_attention_heads"
        size = _whole(config, "head_dim", "num_attention_heads") * _whole(config, heads)
        return (both,), (), Value(both, size), out
    # Gemma 4: layers that share keys and values of another one have none, or keys alone.
    names = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
    tensors.take_any(("self_attn.v_proj.bias",))
    readers = (tensors.take(names[0]), *tensors.take_any(names[1:]))
    value = Value(readers[2]) if len(readers) == len(names) else None
    return readers, (), value, out


def _latent_attention(tensors: _Tensors, config: Mapping[str, Any]) -> _Attention:
    keys = tensors.take("self_attn.kv_a_proj_with_mqa.weight")
    values = tensors.take("self_attn.kv_b_proj.weight")
    latents = [Latent(tensors.take_norm("self_attn.kv_a_layernorm"), keys, (values,))]
    if tensors.has("self_attn.q_a_proj.weight"):
        source = tensors.prefix + "self_attn.q_a_proj.weight"
        norm = tensors.take_norm("self_attn.q_a_layernorm")
        latents.append(Latent(norm, source, tensors.take_any(_QUERIES)))
    readers = (keys, *tensors.take_any(_LATENT_READERS))
    n_heads = _whole(config, "num_attention_heads")
    size = _whole(config, "v_head_dim") * n_heads
    out = tensors.take("self_attn.o_proj.weight")
    return readers, tuple(latents), Value(values, size, n_heads), out


def _blocks(tensors: _Tensors, norm: str | None, family: Family) -> Iterator[Block]:
    """All MLPs of a layer. Gemma 4's experts lie beside one, behind a norm of their own."""
    norms = family.experts_norms
    if norms and tensors.has(f"{norms[0]}.weight"):
        before, behind_mlp, behind = map(tensors.take_norm, norms)
        yield Block(before, (), (_fused(tensors, *_STACKED[0]),), behind)
        yield Block(norm, (), tuple(_mlps(tensors, "mlp.")), behind_mlp)
        return
    place = next((p for p in _PLACES if any(part.startswith(p) for part in tensors.left)), "")
    others = tensors.take_any(tuple(place + router for router in _ROUTERS))
    yield Block(norm, others, tuple(_mlps(tensors, place)))


def _mlps(tensors: _Tensors, place: str) -> Iterator[Mlp]:
    """One MLP, or all experts."""
    experts = re.compile(re.escape(place) + r"experts\.(\d+)\.")
    numbers = {found[1] for part in tensors.left if (found := experts.match(part))}
    places = [f"{place}experts.{number}." for number in sorted(numbers, key=int)]
    for both, down in _STACKED:
        if tensors.has(place + both):
            yield _fused(tensors, place + both, place + down)
            break
    else:
        places = places or [place]
    for shared in (f"{place}shared_expert.", f"{place}shared_experts."):
        places += [shared] if any(part.startswith(shared) for part in tensors.left) else []
    for each in places:
        yield _mlp(tensors, each)


def _mlp(tensors: _Tensors, place: str) -> Mlp:
    for both, down in _FUSED:
        if tensors.has(place + both):
            return _fused(tensors, place + both, place + down)
    names = next((n for n in _MATRICES if tensors.has(f"{place}{n[0]}.weight")), _MATRICES[0])
    tensors.take_any((f"{place}{names[1]}.bias",))
    return Mlp(*(tensors.take(f"{place}{name}.weight") for name in names))


def _fused(tensors: _Tensors, both: str, down: str) -> Mlp:
    name = tensors.take(both)
    return Mlp(name, name, tensors.take(down))


def _whole(config: Mapping[str, Any], key: str, parts: str = "") -> int:
    """A whole number of config.json; with `parts`, where it is missing, hidden_size over these."""
    found = config.get(key)
    if found is None and parts:
        hidden, number = config.get("hidden_size"), config.get(parts)
        if type(hidden) is int and type(number) is int and number:
            found = hidden // number
    if type(found) is not int or found < 1:
        expected = f"{key}, or hidden_size and {parts}, as whole numbers" if parts else "a number"
        raise BadInput(f"no {key}", file=CONFIG, found=found, expected=expected)
    return found
