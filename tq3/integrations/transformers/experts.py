"""Mixtures of experts from packed weights, by Transformers' interface for such implementations."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tq3.errors import UsageError
from tq3.format.layout import GroupLayout
from tq3.integrations.transformers.adapters import check_targets
from tq3.runtime.cuda.pairs import Routing
from tq3.runtime.modules import PackedExperts

IMPLEMENTATION = "tq3"
_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")
# By name: a module of the host that only some models need is not imported.
_REPEATING = {"Llama4TextExperts"}


def register() -> None:
    """Make the implementation known, once."""
    if IMPLEMENTATION not in ALL_EXPERTS_FUNCTIONS.valid_keys():
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, forward)


def are_experts(owner: nn.Module, name: str, layout: GroupLayout) -> bool:
    """Whether `owner.name` can be PackedExperts: the class lets its arithmetic be chosen, or it is
    known, and the rows of the codes are outputs.
    """
    is_known = type(owner).__name__ in _REPEATING or isinstance(owner, RepeatedExperts)
    is_transposed = True if is_known else getattr(owner, "is_transposed", None)
    return name in _WEIGHTS and is_transposed is layout.transposed


def can_be_chosen(owner: nn.Module) -> bool:
    """Whether the class of `owner` lets its arithmetic be chosen."""
    return hasattr(owner, "is_transposed") and not isinstance(owner, RepeatedExperts)


def owners_of_packed(model: nn.Module) -> list[Any]:
    """The modules whose experts are packed."""
    return [m for m in model.modules() if any(isinstance(c, PackedExperts) for c in m.children())]


def choose(model: PreTrainedModel, implementation: str | dict[str, str]) -> None:
    """What `PreTrainedModel.set_experts_implementation` does, but for packed experts."""
    owners = list(filter(can_be_chosen, owners_of_packed(model)))
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
        of_pairs = weight[experts].mT if self.is_transposed else weight[experts]
        y = torch.bmm(of_pairs, x[:, :, None])[:, :, 0]
    return y + getattr(self, f"{name}_bias")[experts] if self.has_bias else y


class RepeatedExperts(nn.Module):
    """Experts that are called with all tokens, once for each of them (Llama 4).

    Before, tokens were multiplied by the scores of their experts: those that are not sent to an
    expert are zeros there, of which every expert makes zeros. These are left out. `becomes` turns
    a module of the host into one, `back` undoes it.
    """

    has_bias, is_transposed = False, True
    gate_up_proj: Any
    act_fn: Any

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(experts * tokens, columns), in the order of the experts -> the same"""
        check_targets(self)
        n_experts = len(self.gate_up_proj)
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        experts = torch.arange(n_experts, device=x.device).repeat_interleave(len(x) // n_experts)
        if torch.compiler.is_compiling():  # which knows no shapes that depend on values
            return self._each(x, experts)
        sent = x.any(-1).nonzero()[:, 0]
        return torch.zeros_like(x).index_copy(0, sent, self._each(x[sent], experts[sent]))

    def _each(self, x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        routed = _routed(self, experts)
        gate, up = _project(self, "gate_up_proj", x, routed).chunk(2, dim=-1)
        return _project(self, "down_proj", up * self.act_fn(gate), routed)

    @classmethod
    def becomes(cls, owner: nn.Module) -> None:
        """Let a module of a class that is known compute so."""
        if type(owner).__name__ in _REPEATING:
            vars(owner)["_tq3_before"] = type(owner)
            owner.__class__ = cls

    def back(self) -> None:
        """Make it what it once was."""
        self.__class__ = vars(self).pop("_tq3_before")
