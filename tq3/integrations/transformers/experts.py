"""Mixtures of experts from packed weights, by Transformers' interface for such implementations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tq3.errors import UsageError
from tq3.integrations.transformers.adapters import check_targets
from tq3.runtime.cuda.pairs import Routing
from tq3.runtime.modules import PackedExperts

IMPLEMENTATION = "tq3"
_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


def register() -> None:
    """Make the implementation known, once."""
    if IMPLEMENTATION not in ALL_EXPERTS_FUNCTIONS.valid_keys():
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, forward)


def are_experts(owner: nn.Module, name: str) -> bool:
    """Whether `owner.name` can be PackedExperts: the class lets its arithmetic be chosen, and its
    weights are (experts, rows, columns).
    """
    return name in _WEIGHTS and getattr(owner, "is_transposed", None) is False


def choose(model: PreTrainedModel, implementation: str | dict[str, str]) -> None:
    """What `PreTrainedModel.set_experts_implementation` does, but for packed experts."""
    owners = [m for m in model.modules() if any(isinstance(c, PackedExperts) for c in m.children())]
    models = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    configs = {id(module.config): module.config for module in (*models, *owners)}
    before = [(config, config._experts_implementation) for config in configs.values()]
    type(model).set_experts_implementation(model, implementation)
    if any(owner.config._experts_implementation != IMPLEMENTATION for owner in owners):
        for config, name in before:
            config._experts_implementation_internal = name
        raise UsageError(
            "packed experts are computed by one implementation alone",
            found=implementation,
            expected=repr(IMPLEMENTATION),
            fix="`model.dequantize()` makes a dense model, which takes others",
        )


def asked_for(config: PreTrainedConfig) -> list[str]:
    """Other implementations than ours that a config asks for, also one of its parts."""
    parts = (config, *(getattr(config, name, None) for name in config.sub_configs))
    found = {str(getattr(part, "_experts_implementation", None)) for part in parts}
    return sorted(found - {"None", IMPLEMENTATION})


def forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """(tokens, columns) through top_k experts for each token, weighted and added up."""
    check_targets(self)
    experts = top_k_index.reshape(-1)  # (pairs,): the choices of the first token, of the second...
    routed = _routed(self, experts)
    x = hidden_states.repeat_interleave(top_k_index.shape[-1], dim=0)
    if self.has_gate:
        x = self._apply_gate(_project(self, "gate_up_proj", x, routed))
    else:
        x = self.act_fn(_project(self, "up_proj", x, routed))
    x = _project(self, "down_proj", x, routed)
    if getattr(self, "has_post_expert_norm", False):
        x = self.post_expert_norm(x)
    weighted = x * top_k_weights.reshape(-1, 1)
    out: torch.Tensor = weighted.view(*top_k_index.shape, -1).sum(dim=1)
    return out.to(hidden_states.dtype)


class _Routed(NamedTuple):
    """Each pair's expert. routing: the same as stacks in tiles take it; None where none is"""

    experts: torch.Tensor
    routing: Routing | None


def _routed(self: Any, experts: torch.Tensor) -> _Routed:
    stacks = (getattr(self, name, None) for name in _WEIGHTS)
    in_tiles = (each for each in stacks if isinstance(each, PackedExperts) and each.is_tiled)
    first = next(in_tiles, None)
    return _Routed(experts, first.route(experts) if first else None)


def _project(self: Any, name: str, x: torch.Tensor, routed: _Routed) -> torch.Tensor:
    weight, experts = getattr(self, name), routed.experts
    y: torch.Tensor
    if isinstance(weight, PackedExperts):
        y = weight(x, routed.routing if weight.is_tiled else experts)
    else:  # kept as it was while others were compressed
        y = torch.bmm(weight[experts], x[:, :, None])[:, :, 0]
    return y + getattr(self, f"{name}_bias")[experts] if self.has_bias else y
