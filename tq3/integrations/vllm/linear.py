"""Linear layers of vLLM whose weights stay packed, fused and split over ranks as vLLM does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from vllm.config import get_current_vllm_config_or_none
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    ReplicatedLinear,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.parameter import ModelWeightParameter
from vllm.model_executor.utils import replace_parameter

from tq3.errors import BadInput
from tq3.integrations.stored import Matrix, groups_of_a_rank, runs, spread
from tq3.integrations.vllm.kept import KeptLinearMethod
from tq3.runtime import tiled  # noqa: F401  it defines torch.ops.tq3
from tq3.runtime.cuda import ready, support
from tq3.runtime.cuda.layout import Tiles, repack

Loader = Callable[..., Any]
# Parameters of a layer. Most have the first two; `weight` holds rows that are not packed.
PACKED_PARAMETERS = ("weight_packed", "weight_norms")
PARAMETERS = (*PACKED_PARAMETERS, "weight")


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring rows of one width, and where they start in each parameter.

    bits: 0 for rows that are not packed
    """

    bits: int
    rows: int
    first_byte: int
    first_norm: int
    first_row: int


class Rows(ModelWeightParameter):
    """The rows of a layer's partitions, each of its own length; 0 for one that lies elsewhere.

    vLLM's loaders find the place of a partition by its first row. Where all rows are equally long
    the data has two dimensions, otherwise one.
    """

    def __init__(
        self, data: torch.Tensor, partitions: Sequence[tuple[int, int]], weight_loader: Loader
    ) -> None:
        super().__init__(data=data, input_dim=1, output_dim=0, weight_loader=weight_loader)
        self._places = {}
        row = start = 0
        for rows, length in partitions:
            self._places[row] = slice(start, start + rows * length)
            row, start = row + rows, start + rows * length

    def load_merged_column_weight(self, loaded_weight: torch.Tensor, **where: Any) -> None:
        self._load(loaded_weight, self.tp_rank, where["shard_offset"], where["shard_size"])

    def load_qkv_weight(self, loaded_weight: torch.Tensor, **where: Any) -> None:
        # Heads of keys and values are there several times where they are fewer than ranks.
        rank = self.tp_rank if where["shard_id"] == "q" else self.tp_rank // where["num_heads"]
        self._load(loaded_weight, rank, where["shard_offset"], where["shard_size"])

    def _load(self, loaded: torch.Tensor, rank: int, row: int, rows: int) -> None:
        place = self.data.view(-1)[self._places[row]].view(rows, loaded.shape[1])
        place.copy_(loaded.narrow(0, rank * rows, rows))


@register_weight_loader_v2_supported_method
class Tq3LinearMethod(LinearMethodBase):
    """Packed rows go from the file into the parameter as they are, and are multiplied as they are.

    parts: the matrices of the checkpoint that the layer is loaded from, in order
    decode: is called where the layer can't hold them packed; their values are loaded instead
    """

    # Whether vLLM fills up the rows of a matrix with zeros.
    is_filled_up = False

    def __init__(self, parts: Sequence[Matrix], group: int, decode: Callable[[], None]) -> None:
        self.parts = parts
        self.group = group
        self.decode = decode

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make the parameters of this rank, and note which of their rows have which width."""
        columns, group = input_size_per_partition, self.group
        n_stored = -(-input_size // group)
        parts = self._spread(n_stored, getattr(layer, "output_sizes", [output_size]))
        if not parts:
            self.decode()
            layer.quant_method = KeptLinearMethod()
            sizes = input_size_per_partition, output_partition_sizes, input_size, output_size
            layer.quant_method.create_weights(layer, *sizes, params_dtype, **extra_weight_attrs)
            return
        n = groups_of_a_rank(input_size, columns, group, layer.prefix)
        widths = [part.bits for part in parts]
        rows = list(zip(widths, output_partition_sizes, strict=True))
        loader = extra_weight_attrs["weight_loader"]

        def load_codes(param: torch.Tensor, loaded: torch.Tensor, *where: Any, **by: Any) -> Any:
            return loader(param, loaded.reshape(-1, n_stored * loaded.shape[-1]), *where, **by)

        def add(name: str, lengths: list[int], dtype: torch.dtype, load: Loader) -> None:
            if any(lengths):
                partitions = list(zip(output_partition_sizes, lengths, strict=True))
                data = _empty(partitions, dtype)
                layer.register_parameter(
                    name, Rows(data=data, partitions=partitions, weight_loader=load)
                )

        add("weight_packed", [n * group * b // 8 for b in widths], torch.uint8, load_codes)
        add("weight_norms", [n * bool(b) for b in widths], torch.float32, loader)
        add("weight", [columns * (not b) for b in widths], params_dtype, loader)
        layer.weight_norms.data.fill_(torch.nan)  # until they are loaded
        layer.tq3_runs = _runs(rows, n * group)
        layer.tq3_dtype = params_dtype

    def process_weights_after_loading(self, layer: Any) -> None:
        """What was loaded is what is served, on a GPU with kernels brought into their tiles."""
        check_loaded(layer.weight_norms, layer.prefix)
        tiles = self._tiles(layer)
        for name in PARAMETERS:
            if hasattr(layer, name):
                replace_parameter(layer, name, getattr(layer, name).data)
        if tiles:
            for name in PACKED_PARAMETERS:
                delattr(layer, name)
            hold_tiles(layer, tiles)
            # Latent attention decodes kv_b_proj by a product with the identity, on the device of
            # whatever holds its codes: it knows three names for that. No parameter, nothing new.
            layer.qweight = next(iter(tiles.values()))[0].data
            for parts in tiles.values():
                ready.linear(Tiles(*parts), self.group, layer.tq3_dtype)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x (..., columns) -> (..., rows) in x's dtype."""
        parts = [self._multiply(layer, x, run) for run in layer.tq3_runs]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return out if bias is None else out + bias

    def _multiply(self, layer: Any, x: torch.Tensor, run: Run) -> torch.Tensor:
        if not run.bits:
            return F.linear(x, layer.weight[run.first_row : run.first_row + run.rows])
        if tiles := tiles_of(layer, run.first_norm):
            return torch.ops.tq3.linear_tiled(x, *tiles, run.rows, self.group)
        packed, norms = self._parts(layer, run)
        return torch.ops.tq3.linear(x, packed, norms, run.bits, self.group)

    def _parts(self, layer: Any, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and norms of a run, as they were loaded."""
        packed, norms = layer.weight_packed, layer.weight_norms
        if len(layer.tq3_runs) > 1:
            norms = norms[run.first_norm : run.first_norm + run.rows]
            n_bytes = norms.numel() * self.group * run.bits // 8
            packed = packed.view(-1)[run.first_byte : run.first_byte + n_bytes]
        return packed, norms

    def _tiles(self, layer: Any) -> dict[int, list[torch.nn.Parameter]]:
        """Words and norms of each packed run, by its first norm; none without a GPU with kernels.

        A head that shares the embeddings' codes shares their tiles: these are kept beside the codes
        until both have been asked for.
        """
        if support.launcher(layer.weight_norms.device) is None:
            return {}
        shared = vars(layer.weight_packed)
        if "tq3_tiles" not in shared:
            shared["tq3_tiles"] = {
                run.first_norm: [
                    torch.nn.Parameter(part, requires_grad=False)
                    for part in repack(*self._parts(layer, run), run.bits, self.group)
                ]
                for run in layer.tq3_runs
                if run.bits
            }
        found: dict[int, list[torch.nn.Parameter]] = shared["tq3_tiles"]
        return found

    def _spread(self, groups: int, sizes: Sequence[int]) -> list[Matrix]:
        """The matrix of each partition; none where they are not as high and wide as vLLM's layer.

        Of Mamba 2 with one group vLLM repeats rows for each rank, of other models it turns matrices
        around while it loads them.
        """
        if any(part.is_packed and part.groups != groups for part in self.parts):
            return []
        rows = sum(part.rows for part in self.parts)
        if len(sizes) == 1 and rows != sizes[0] and not self.is_filled_up:
            return []
        return spread(self.parts, sizes)


def config_of_the_model() -> Any:
    """tq3's configuration of the model that is being built; None for a model of another kind."""
    current = get_current_vllm_config_or_none()
    config = current and current.quant_config
    return config if hasattr(config, "packs") else None


class PackedReplicatedLinear(ReplicatedLinear):
    """vLLM's layer, packed where the checkpoint's is.

    Models build routers and gates without a quantisation, but a checkpoint may have packed them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        call = signature(super().__init__).bind(*args, **options)
        config = config_of_the_model()
        if call.arguments.get("quant_config") is None and config:
            is_packed = config.packs(call.arguments.get("prefix", ""))
            call.arguments["quant_config"] = config if is_packed else None
        super().__init__(*call.args, **call.kwargs)


class PackedGateLinear(GateLinear, PackedReplicatedLinear):
    """vLLM's router, whose base becomes the class above."""


# For vLLM's registry of layers: name of the layer -> what is built in its place.
LAYERS = {"ReplicatedLinear": PackedReplicatedLinear, "GateLinear": PackedGateLinear}


def hold_tiles(layer: Any, tiles: Mapping[int, Sequence[torch.nn.Parameter]]) -> None:
    """Give the layer words and norms of tiles as parameters, under these numbers."""
    for number, parts in tiles.items():
        for name, part in zip(_names(number), parts, strict=True):
            layer.register_parameter(name, part)


def tiles_of(layer: Any, number: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What `hold_tiles` was given under this number; None where codes are not in tiles."""
    words, norms = _names(number)
    return (getattr(layer, words), getattr(layer, norms)) if hasattr(layer, words) else None


def _names(number: int) -> tuple[str, str]:
    return f"tq3_words_{number}", f"tq3_norms_{number}"


def check_loaded(norms: torch.Tensor, name: str) -> None:
    """Raise BadInput if there are norms that nothing was loaded into."""
    missing = int(norms.isnan().sum())
    if missing:
        raise BadInput(
            "not everything of this layer was in the checkpoint, or vLLM did not load it",
            tensor=name,
            found=f"{missing} of {norms.numel()} norms are missing",
            fix="`tq3 verify` tells whether the checkpoint is whole; a model that vLLM loads by "
            "hand needs --load-format tq3",
        )


def _empty(partitions: Sequence[tuple[int, int]], dtype: torch.dtype) -> torch.Tensor:
    lengths = {length for _, length in partitions if length}
    n_elements = sum(rows * length for rows, length in partitions)
    data = torch.empty(n_elements, dtype=dtype)
    return data.view(-1, *lengths) if len(lengths) == 1 else data


def _runs(rows: Sequence[tuple[int, int]], padded_columns: int) -> tuple[Run, ...]:
    found = []
    first_byte = first_norm = first_row = 0
    for bits, n_rows in runs(rows):
        found.append(Run(bits, n_rows, first_byte, first_norm, first_row))
        if bits:
            first_byte += n_rows * padded_columns * bits // 8
            first_norm += n_rows
        else:
            first_row += n_rows
    return tuple(found)
