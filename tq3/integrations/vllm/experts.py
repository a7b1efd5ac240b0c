"""Mixtures of experts whose weights stay packed, loaded from fused or from single experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from vllm.model_executor.layers.fused_moe import FusedMoEMethodBase, RoutedExperts
from vllm.model_executor.layers.fused_moe.activation import (
    ApplyMoEActivationConfig,
    apply_moe_activation,
)
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEQuantConfig
from vllm.model_executor.utils import replace_parameter, set_weight_attrs

from tq3.integrations.stored import Stored, groups_of_a_rank
from tq3.integrations.vllm.linear import check_loaded
from tq3.runtime import tiled  # noqa: F401  it defines torch.ops.tq3
from tq3.runtime.cuda import ready, support
from tq3.runtime.cuda.layout import repack

# What vLLM calls a stack of matrices of all experts: gate and up on each other, and down.
GATE_UP, DOWN = "w13", "w2"
# As the whole of it is called in checkpoints, beside the names of single matrices.
_STACKS = {GATE_UP: {"gate_up_proj", "w13", "w13_weight"}, DOWN: {"w2_weight"}}


class ExpertBits(NamedTuple):
    """Widths of the experts' two stacks."""

    gate_up: int
    down: int


class Tq3ExpertsMethod(FusedMoEMethodBase):
    """Two stacks of packed matrices, of which only the experts that tokens are sent to are read."""

    def __init__(self, moe: FusedMoEConfig, bits: ExpertBits, group: int) -> None:
        super().__init__(moe)
        self.bits = bits
        self.group = group

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
        shards = 2 if self.moe.is_act_and_mul else 1
        gate_up = _Loader(layer, rows=inner * ranks, shards=shards, splits="rows")
        down = _Loader(layer, rows=hidden_size, shards=1, splits="columns")
        for stack, rows, n, bits, loader in (
            (GATE_UP, shards * inner, n_hidden, self.bits.gate_up, gate_up),
            (DOWN, hidden_size, n_inner, self.bits.down, down),
        ):
            codes = torch.empty(num_experts, rows, n * self.group * bits // 8, dtype=torch.uint8)
            norms = torch.full((num_experts, rows, n), torch.nan, dtype=torch.float32)
            for part, data in (("packed", codes), ("norms", norms)):
                parameter = torch.nn.Parameter(data, requires_grad=False)
                set_weight_attrs(parameter, {"weight_loader": loader})
                layer.register_parameter(f"{stack}_weight_{part}", parameter)

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        """What was loaded is what is served, on a GPU with kernels brought into their tiles."""
        for stack, bits in ((GATE_UP, self.bits.gate_up), (DOWN, self.bits.down)):
            names = f"{stack}_weight_packed", f"{stack}_weight_norms"
            packed, norms = (getattr(layer, name).data for name in names)
            check_loaded(norms, layer.layer_name)
            parts: Sequence[torch.Tensor] = packed, norms
            if support.launcher(norms.device) is not None:
                parts = tiles = repack(packed, norms, bits, self.group)
                ready.experts(tiles, self.group, self.moe.in_dtype)
            for name, part in zip(names, parts, strict=True):
                replace_parameter(layer, name, part)

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
        stack = layer.w13_weight_packed, layer.w13_weight_norms
        routed = self._routed(stack[0], experts)
        gate_up = self._project(x, *stack, routed, self.bits.gate_up, shards * inner)
        activated = x.new_empty(len(x), inner)
        config = self.get_fused_moe_quant_config(layer)
        apply_moe_activation(
            layer.activation,
            activated,
            gate_up,
            activation_config=ApplyMoEActivationConfig.from_configs(self.moe, config),
        )
        stack = layer.w2_weight_packed, layer.w2_weight_norms
        return self._project(activated, *stack, routed, self.bits.down, x.shape[1])

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


def expert_bits(
    stored: Stored, stacks: Mapping[str, Sequence[str]], layer: RoutedExperts
) -> ExpertBits | None:
    """How the experts are packed; None where vLLM has to hold them decoded.

    That is where they have biases, where one of them or a whole stack is kept, where gate and up or
    experts differ in width, where they are stored transposed, and where vLLM has other names for
    them.
    """
    moe = layer.moe_config
    gate_up, down = ([stored.matrices[name] for name in stacks[stack]] for stack in (GATE_UP, DOWN))
    is_packed = all(matrix.is_packed for matrix in gate_up + down)
    widths = [{matrix.bits for matrix in stack} for stack in (gate_up, down)]
    if moe.has_bias or not is_packed or any(len(bits) != 1 for bits in widths):
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
