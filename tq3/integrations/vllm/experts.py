"""Mixtures of experts whose weights stay packed, loaded from fused or from single experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from vllm.model_executor.layers.activation import SwigluOAIAndMul
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import (
    ApplyMoEActivationConfig,
    MoEActivation,
    apply_moe_activation,
)
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEQuantConfig
from vllm.model_executor.utils import replace_parameter, set_weight_attrs

from tq3.integrations.stored import Stored, groups_of_a_rank
from tq3.integrations.vllm import names
from tq3.integrations.vllm.linear import check_loaded
from tq3.runtime import tiled  # noqa: F401  it defines torch.ops.tq3
from tq3.runtime.cuda import ready, support
from tq3.runtime.cuda.layout import repack

# What vLLM calls a stack of matrices of all experts: gate and up on each other, and down.
GATE_UP, DOWN = "w13", "w2"
# Their parameters, less `_packed` and `_norms`.
_USUAL, _TURNED = ("w13_weight", "w2_weight"), (names.TURNED_GATE_UP, names.TURNED_DOWN)
# As the whole of it is called in checkpoints, beside the names of single matrices.
_STACKS = {GATE_UP: {"gate_up_proj", "w13", "w13_weight"}, DOWN: {"w2_weight"}}


class ExpertBits(NamedTuple):
    """Widths of the experts' two stacks."""

    gate_up: int
    down: int


class Tq3ExpertsMethod(FusedMoEMethodBase):
    """Two stacks of packed matrices, of which only the experts that tokens are sent to are read."""

    def __init__(
        self, moe: FusedMoEConfig, bits: ExpertBits, group: int, *, turned: bool = False
    ) -> None:
        """turned: vLLM's loaders would exchange rows and columns of these stacks."""
        super().__init__(moe)
        self.bits = bits
        self.group = group
        self.gate_up, self.down = _TURNED if turned else _USUAL
        # Gate and up, in turns, in one matrix.
        self.is_interleaved = moe.activation == MoEActivation.SWIGLUOAI
        is_missing = not hasattr(torch.ops._C, "swigluoai_and_mul")  # as on processors
        self._activation = SwigluOAIAndMul() if self.is_interleaved and is_missing else None

    def create_weights(
        self,
        layer: RoutedExperts,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make the parameters of this rank's experts."""
        inner = intermediate_size_per_partition
        ranks = self.moe.moe_parallel_config.tp_size
        n_inner = groups_of_a_rank(inner * ranks, inner, self.group, layer.layer_name)
        n_hidden = -(-hidden_size // self.group)
        n_matrices = 2 if self.moe.is_act_and_mul else 1
        shards = 1 if self.is_interleaved else n_matrices
        matrix_rows = n_matrices * inner * ranks // shards
        gate_up = _Loader(layer, rows=matrix_rows, shards=shards, splits="rows")
        down = _Loader(layer, rows=hidden_size, shards=1, splits="columns")
        for stack, rows, n, bits, loader in (
            (self.gate_up, n_matrices * inner, n_hidden, self.bits.gate_up, gate_up),
            (self.down, hidden_size, n_inner, self.bits.down, down),
        ):
            codes = torch.empty(num_experts, rows, n * self.group * bits // 8, dtype=torch.uint8)
            norms = torch.full((num_experts, rows, n), torch.nan, dtype=torch.float32)
            for part, data in (("packed", codes), ("norms", norms)):
                parameter = torch.nn.Parameter(data, requires_grad=False)
                set_weight_attrs(parameter, {"weight_loader": loader})
                layer.register_parameter(f"{stack}_{part}", parameter)
        biases = {"w13_bias": n_matrices * inner, "w2_bias": hidden_size}
        for name, rows in biases.items() if self.moe.has_bias else ():
            bias = torch.zeros(num_experts, rows, dtype=params_dtype)
            layer.register_parameter(name, torch.nn.Parameter(bias, requires_grad=False))

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        """What was loaded is what is served, on a GPU with kernels brought into their tiles."""
        for stack, bits in ((self.gate_up, self.bits.gate_up), (self.down, self.bits.down)):
            packed, norms = (part.data for part in self._stack(layer, stack))
            check_loaded(norms, layer.layer_name)
            parts: Sequence[torch.Tensor] = packed, norms
            if support.launcher(norms.device) is not None:
                parts = tiles = repack(packed, norms, bits, self.group)
                ready.experts(tiles, self.group, self.moe.in_dtype)
            for name, part in zip(("packed", "norms"), parts, strict=True):
                replace_parameter(layer, f"{stack}_{name}", part)

    def get_fused_moe_quant_config(self, layer: RoutedExperts) -> FusedMoEQuantConfig:
        """The parameters of vLLM's activation, and no quantisation of the inputs."""
        return FusedMoEQuantConfig.make(
            gemm1_alpha=layer.swiglu_alpha,
            gemm1_beta=layer.swiglu_beta,
            gemm1_clamp_limit=layer.swiglu_limit,
        )

    def apply(
        self,
        layer: RoutedExperts,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """x (tokens, hidden) through each token's experts: the weighted sum, (tokens, hidden)."""
        experts = topk_ids.long()
        if layer.expert_map is not None:
            experts = layer.expert_map[experts].long()
        of_others = experts < 0  # on other ranks, if there are any; here they add nothing
        pairs = x[:, None].expand(-1, experts.shape[1], -1)  # (tokens, k, hidden)
        if layer.apply_router_weight_on_input:
            pairs = pairs * topk_weights[..., None].to(x.dtype)
            topk_weights = torch.ones_like(topk_weights)
        out = self._each_pair(layer, pairs.flatten(0, 1), experts.clamp(min=0).flatten())
        weighted = out.view(pairs.shape).float() * topk_weights[..., None]
        return weighted.masked_fill(of_others[..., None], 0).sum(1).to(x.dtype)

    def _each_pair(
        self, layer: RoutedExperts, x: torch.Tensor, experts: torch.Tensor
    ) -> torch.Tensor:
        """(pairs, hidden) -> (pairs, hidden)"""
        inner = self.moe.intermediate_size_per_partition
        shards = 2 if self.moe.is_act_and_mul else 1
        stack = self._stack(layer, self.gate_up)
        routed = self._routed(stack[0], experts)
        gate_up = self._project(x, *stack, routed, self.bits.gate_up, shards * inner)
        if self.moe.has_bias:
            gate_up = gate_up + layer.w13_bias[experts]
        activated, stack = self._activated(layer, gate_up), self._stack(layer, self.down)
        out = self._project(activated, *stack, routed, self.bits.down, x.shape[1])
        return out + layer.w2_bias[experts] if self.moe.has_bias else out

    def _stack(self, layer: RoutedExperts, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return getattr(layer, f"{name}_packed"), getattr(layer, f"{name}_norms")

    def _activated(self, layer: RoutedExperts, gate_up: torch.Tensor) -> torch.Tensor:
        """(pairs, gate and up) -> (pairs, inner)"""
        if self._activation is not None:
            return self._activation.forward_native(gate_up)
        activated = gate_up.new_empty(len(gate_up), self.moe.intermediate_size_per_partition)
        config = self.get_fused_moe_quant_config(layer)
        apply_moe_activation(
            layer.activation,
            activated,
            gate_up,
            activation_config=ApplyMoEActivationConfig.from_configs(self.moe, config),
        )
        return activated

    def _routed(self, packed: torch.Tensor, experts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each pair's expert, for both stacks: as kernels take it where these are in tiles."""
        if packed.dtype == torch.int32:
            order, jobs = torch.ops.tq3.route(experts, len(packed), self.group)
            return order, jobs
        return (experts,)

    def _project(
        self,
        x: torch.Tensor,
        packed: torch.Tensor,
        norms: torch.Tensor,
        routed: tuple[torch.Tensor, ...],
        bits: int,
        rows: int,
    ) -> torch.Tensor:
        if packed.dtype == torch.int32:  # in tiles
            return torch.ops.tq3.experts_tiled(x, packed, norms, *routed, rows, self.group)
        return torch.ops.tq3.experts(x, packed, norms, *routed, bits, self.group)


def stacks_below(stored: Stored, prefix: str, layer: RoutedExperts) -> dict[str, list[str]]:
    """The matrices below `prefix` that belong to each of the two stacks, by their names."""
    gate_up = {layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name} | _STACKS[GATE_UP]
    components = {GATE_UP: gate_up, DOWN: {layer.ckpt_down_proj_name} | _STACKS[DOWN]}
    below = stored.below(prefix)
    return {
        stack: [f"{prefix}.{name}" for name in below if known & set(name.split("."))]
        for stack, known in components.items()
    }


def are_turned(stored: Stored, stacks: Mapping[str, Sequence[str]]) -> bool:
    """Whether the rows of these codes are outputs, where the model has inputs as rows."""
    return any(stored.matrices[name].transposed for names in stacks.values() for name in names)


def expert_bits(
    stored: Stored, stacks: Mapping[str, Sequence[str]], layer: RoutedExperts, *, turns: bool
) -> ExpertBits | None:
    """How the experts are packed; None where vLLM has to hold them decoded.

    That is where one of them or a whole stack is kept, where gate and up or experts differ in
    width, where rows of fused codes are not the outputs, and where vLLM has other names for them.
    turns: vLLM exchanges rows and columns of this model's fused experts
    """
    moe = layer.moe_config
    gate_up, down = ([stored.matrices[name] for name in stacks[stack]] for stack in (GATE_UP, DOWN))
    is_packed = all(matrix.is_packed for matrix in gate_up + down)
    widths = [{matrix.bits for matrix in stack} for stack in (gate_up, down)]
    if not is_packed or any(len(bits) != 1 for bits in widths):
        return None
    is_fused = len(gate_up) == len(down) == 1
    is_turned = turns and is_fused
    if any(m.transposed != is_turned for m in gate_up + down) or moe.has_bias and not is_turned:
        return None
    hidden, inner = moe.hidden_dim_unpadded, moe.intermediate_size
    n_hidden, n_inner = (-(-columns // stored.group) for columns in (hidden, inner))
    fits = all(m.groups == n_hidden and m.rows % inner == 0 for m in gate_up)
    fits &= all(m.groups == n_inner and m.rows % hidden == 0 for m in down)
    return ExpertBits(gate_up[0].bits, down[0].bits) if fits else None


class _Loader:
    """Puts what vLLM finds in the checkpoint into one stack: this rank's rows or groups of it.

    rows: of one matrix in the checkpoint, which has `shards` of them for an expert
    splits: what tensor parallelism divides
    """

    # vLLM asks loaders of experts for this.
    supports_moe_loading = True

    def __init__(self, layer: RoutedExperts, rows: int, shards: int, splits: str) -> None:
        parallel = layer.moe_config.moe_parallel_config
        self.experts = layer.expert_map_manager
        self.rank, self.ranks = parallel.tp_rank, parallel.tp_size
        self.rows = rows
        self.shards = shards
        self.splits = splits

    def __call__(
        self,
        param: torch.nn.Parameter,
        loaded_weight: torch.Tensor,
        weight_name: str = "",
        shard_id: str = "",
        expert_id: int = 0,
        return_success: bool = False,
    ) -> bool | None:
        """Codes or norms of one expert's matrix or, fused, of all of them at once.

        Without a shard all that belongs to the parameter is given.
        """
        length = param.shape[-1] * (self.ranks if self.splits == "columns" else 1)
        matrices = loaded_weight.reshape(-1, self.rows, length)
        shards = {"w3": [1], "": range(self.shards)}.get(shard_id, [0])
        if len(matrices) == 1:
            places = [(expert_id, shards[0], matrices[0])]
        else:
            places = [
                (expert, shard, matrix)
                for shard in shards
                for expert, matrix in enumerate(matrices[shard :: self.shards])
            ]
        loaded = [self._load(param, matrix, shard, e) for e, shard, matrix in places]
        return any(loaded) if return_success else None

    def _load(self, param: torch.Tensor, matrix: torch.Tensor, shard: int, expert: int) -> bool:
        local = self.experts.map_global_to_local(expert)
        if local < 0:
            return False  # another rank's
        place = param.data[local].chunk(self.shards)[shard]
        dimension = 0 if self.splits == "rows" else 1
        size = place.shape[dimension]
        place.copy_(matrix.narrow(dimension, self.rank * size, size))
        return True
