"""What a tensor does in its layer, and which tensors hosts join into one.

The only place where this is decided. Recipes name widths by role, sensitivities are measured by
role. Patterns match whole components at the end of a name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tq3.format.widths import QKV
from tq3.plan.classes import (
    ATTENTION,
    COMPRESSOR,
    EMBEDDINGS,
    EXPERTS,
    INDEXER,
    LINEAR_ATTENTION,
    LM_HEAD,
    MLP,
    MTP,
    POSITION_EMBEDDING,
    ROUTED_EXPERTS,
    SHARED_EXPERTS,
    TOKEN_EMBEDDING,
    VISION,
    class_of,
)
from tq3.plan.names import whatever_its_numbers, without_expert

OTHER = "other"
# Hosts join these of one layer into one matrix, or run all experts of a layer in one kernel.
_EXPERT_SETS = {"expert_gate_up", "expert_down"}
_JOINED = {*_EXPERT_SETS, "gate_up", "shared_gate_up", "linear_in", "linear_gates"}


def _compiled(*parts: tuple[str, str]) -> tuple[tuple[str, re.Pattern[str]], ...]:
    # Without .weight only fused experts are matrices; with .bias nothing is.
    return tuple((role, re.compile(rf"(?:^|\.)(?:{ends})(?:\.weight)?$")) for role, ends in parts)


# Kimi K3's experts have narrower rows than the layer: by what they do, not by their names, the
# matrices that lead there and back are halves of an MLP.
_GATE_UP = (
    r"gate_proj|up_proj|gate_up_proj|w1|w3|v1|c_fc|fc1|fc_in|linear_fc1|lin1|dense_h_to_4h"
    r"|wi|wi_[01]|intermediate\.dense|input_linear|(?:shared_)?w13_weight|routed_expert_down_proj"
)
_DOWN = (
    r"down_proj|w2|c_proj|fc2|fc_out|linear_fc2|lin2|dense_4h_to_h|wo|output\.dense"
    r"|output_linear|(?:shared_)?w2_weight|routed_expert_up_proj"
)
# What makes the gates of a state is tiny, and its error stays in the state. Kimi Delta Attention
# calls it b (strength) and f (forgetting), and itself as any attention.
_KDA_GATES = r"b_proj|f_a_proj|f_b_proj|f_proj"
_ATTENTION_PARTS = _compiled(
    ("qkv", r"qkv_proj|qkv|c_attn|query_key_value|[Ww]qkv|W_pack"),
    # JetMoe's attention has experts of its own for queries and output.
    ("router", r"experts\.router\.layer"),
    (
        "q",
        r"q_proj|q|query|wq|q_lin|to_q|query_proj|q_a_proj|q_b_proj|wq_a|wq_b|wq_du"
        r"|experts\.input_linear",
    ),
    ("k", r"k_proj|k|key|wk|k_lin|to_k|key_proj|wk_dv"),
    # Keys and values from one matrix (multi-head latent attention) are as sensitive as values.
    (
        "v",
        r"v_proj|v|value|wv|v_lin|to_v|value_proj|kv_proj|kv|kv_a_proj|kv_a_proj_with_mqa|kv_b_proj"
        r"|wkv|wkv_a_with_mqa|wkv_b|wv_dv",
    ),
    # A gate of the output is multiplied with what o_proj takes, and is as sensitive.
    (
        "o",
        r"o_proj|o|out_proj|wo|dense|c_proj|proj|out_lin|to_out(?:\.\d)?|output\.dense"
        r"|wo_a|wo_b|o_a_proj|o_b_proj|wo_ud|g_proj|g_a_proj|g_b_proj|output_gate|gate_attn"
        r"|experts\.output_linear",
    ),
    ("linear_gates", _KDA_GATES),
)
_MLP_PARTS = _compiled(
    (
        "router",
        r"gate|gate\.wg|moe_gate|router|router\.(?:layer|classifier|gate|proj)|shared_expert_gate",
    ),
    ("gate_up", _GATE_UP),
    ("down", _DOWN),
)
_PARTS = {
    ATTENTION: _ATTENTION_PARTS,
    LINEAR_ATTENTION: _compiled(
        ("linear_gates", r"in_proj_a|in_proj_b|in_proj_ba|x_proj|dt_proj"),
        ("linear_in", r"in_proj_qkv|in_proj_z|in_proj_qkvz|in_proj"),
        ("linear_out", r"out_proj"),
        ("router", r"mixer\.gate"),  # Nemotron-H calls every layer a mixer
    ),
    MLP: _MLP_PARTS,
    EXPERTS: _MLP_PARTS,
}
# Inside a vision tower or an MTP layer the same parts are joined.
_ANYWHERE = (*_ATTENTION_PARTS, *_MLP_PARTS)
# First match wins: position_embedding would do for a token embedding, too.
_TABLES = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        (OTHER, POSITION_EMBEDDING),
        ("lm_head", LM_HEAD),
        ("embeddings", TOKEN_EMBEDDING),
    )
)
_EXPERTS = (("shared", re.compile(SHARED_EXPERTS)), ("expert", re.compile(ROUTED_EXPERTS)))
_NAMED_AS_ATTENTION = re.compile(f"{INDEXER}|{COMPRESSOR}")
_LAYER = re.compile(r"(?:^|\.)(\d{1,9})\.")


class _Part(NamedTuple):
    """role: at its place; start: where in the name the components begin that say so."""

    role: str
    start: int | None = None


@whatever_its_numbers
def role_of(name: str) -> str:
    """The role of a tensor, one of `format.widths.ROLES`; that of a vector is `other`."""
    label = class_of(name)
    if label in (VISION, MTP):
        return label.lower()
    if label == EMBEDDINGS:
        return next(role for role, pattern in _TABLES if pattern.search(name))
    return _part_of(name).role


def part_role_of(name: str) -> str:
    """The role of a tensor in its layer, also in a vision tower's or an MTP layer."""
    return _part_of(name).role


def fused_set_of(name: str, *, split_qkv: bool) -> str:
    """A key that all tensors share that must have one width; the name of one that is alone.

    split_qkv: whether q, k and v of a layer may differ
    """
    part = _part_of(name)
    if part.role in QKV and not split_qkv:
        return _set_key(name, part, "qkv")
    return _set_key(name, part, part.role) if part.role in _JOINED else name


def expert_set_of(name: str) -> str | None:
    """The half of a layer's experts that a tensor is of, `path:role`; None for any other tensor.

    No host takes such a half in which tensors are packed differently.
    """
    part = _part_of(name)
    return _set_key(name, part, part.role) if part.role in _EXPERT_SETS else None


def _set_key(name: str, part: _Part, role: str) -> str:
    container = without_expert(f"{name[: part.start]}.").removesuffix(".")
    return f"{container}:{role}"


def name_in_layer(name: str) -> str:
    """The name from what follows the number of its layer on; all of it outside of layers."""
    found = _LAYER.search(name.partition("experts.")[0])
    return name[found.end() :] if found else name


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None outside of layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


@whatever_its_numbers
def _part_of(name: str) -> _Part:
    label = class_of(name)
    if _NAMED_AS_ATTENTION.search(name):
        return _Part(OTHER)
    for role, pattern in _ANYWHERE if label in (VISION, MTP) else _PARTS.get(label, ()):
        if found := pattern.search(name):
            of_experts = _of_experts(name) if role in ("gate_up", "down") else None
            return _Part(f"{of_experts}_{role}" if of_experts else role, found.start())
    return _Part(OTHER)


def _of_experts(name: str) -> str | None:
    return next((kind for kind, pattern in _EXPERTS if pattern.search(name)), None)
