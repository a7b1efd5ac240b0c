"""What tq3 does by default with every tensor of every model class of Transformers.

    python scripts/sweep_policy.py [MODEL ...] [--tensors] [--write FILE]

Builds each class on the meta device, by its default configuration with few layers, once with tied
and once with its own output head, and takes the names under which save_pretrained would save its
tensors. Numbers in names become `{}`. Says which tensors the policy misjudges by what their modules
are: tables, heads, stacks of experts, matrices of linear layers. MODEL: a folder of
transformers/models, such as `llama`. FILE: what tests/plan/test_names_of_transformers.py reads.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from tq3.format.header import FLOATS, TensorInfo
from tq3.format.recipe import Recipe
from tq3.plan.policy import MIN_DIMENSION, Decision, decide

TABLE, HEAD, STACK, MATRIX, OTHER = "table", "head", "stack", "matrix", "other"
_MAX_LAYERS = 4
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_COUNTS = re.compile(r"(num_(hidden_)?layers|n_layers?|(encoder|decoder)_layers|num_blocks)$")
_LISTS = re.compile(r"layer_types|layers_block_type")
# Settings without which a configuration makes no model.
_NEEDED: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 2},
    "informer": {"prediction_length": 2},
    "time_series_transformer": {"prediction_length": 2},
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 128}),
    "dbrx": {"attn_config": {"rope_theta": 1e4}},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 2},
    "esm": {"vocab_size": 33, "pad_token_id": 1},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 256,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "reformer": {"is_decoder": True},
    **dict.fromkeys(("wav2vec2-bert", "wav2vec2-conformer"), {"vocab_size": 32}),
}


class Found(NamedTuple):
    """One tensor, or several that differ by numbers in their names.

    kind: what its module says that it is; module: the name of that one's class
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    module: str

    @property
    def decision(self) -> Decision:
        """The policy's, without any option."""
        return decide(TensorInfo(self.name.replace("{}", "0"), self.dtype, self.shape), Recipe())

    @property
    def is_large(self) -> bool:
        """Whether its shape alone would allow to compress it."""
        is_float = self.dtype in FLOATS and len(self.shape) in (2, 3)
        return is_float and max(self.shape[-2:]) >= MIN_DIMENSION

    @property
    def misjudged(self) -> str | None:
        """What is wrong with the policy's decision."""
        if not self.is_large:
            return None
        is_compressed = self.decision.compress
        if self.kind in (TABLE, HEAD):
            return f"a {self.kind} compressed unasked" if is_compressed else None
        if self.kind == STACK:
            return None if is_compressed else "experts kept"
        if len(self.shape) == 3 and is_compressed:
            return "3-D and no experts, but compressed"
        reason = self.decision.reason
        is_taken_for_a_table = self.kind == MATRIX and reason.startswith(("token", "position"))
        return "a matrix taken for a table" if is_taken_for_a_table else None


def model_classes(models: Collection[str] = ()) -> Iterator[type[PreTrainedModel]]:
    """All of Transformers, or those of the folders `models`."""
    for info in pkgutil.walk_packages(transformers.models.__path__, "transformers.models."):
        if ".modeling_" not in info.name or (models and info.name.split(".")[2] not in models):
            continue
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # of a package that is not installed here
            continue
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == info.name and _is_model(kind):
                yield kind


def tensors_of(kind: type[PreTrainedModel]) -> list[Found]:
    """The tensors of a small model of this class, each name once. Raises what the class raises."""
    found: dict[str, Found] = {}
    for is_tied in (True, False):
        model = _small(kind, is_tied)
        has_head = _head_of(model) is not None
        found |= {tensor.name: tensor for tensor in _saved(model)}
        if not has_head:
            break
    return list(found.values())


def share_kept(tensors: Iterable[Found]) -> float:
    """How much of the weights that are neither tables nor heads stays as it was."""
    kept = total = 0
    for tensor in tensors:
        if tensor.is_large and tensor.kind not in (TABLE, HEAD):
            total += prod(tensor.shape)
            kept += 0 if tensor.decision.compress else prod(tensor.shape)
    return kept / total if total else 0.0


def _is_model(kind: type) -> bool:
    if not issubclass(kind, PreTrainedModel) or kind.__name__.endswith("PreTrainedModel"):
        return False
    return getattr(kind, "config_class", None) is not None


def _small(kind: type[PreTrainedModel], is_tied: bool) -> PreTrainedModel:
    needed = _NEEDED.get(getattr(kind.config_class, "model_type", ""), {})
    for shrink in (_shrink, _leave):
        config = kind.config_class(**needed)
        shrink(config)
        if not is_tied:
            _untie(config)
        try:
            with torch.device("meta"):
                return kind(config)
        except Exception:  # of any kind: some lists of a configuration must fit each other
            if shrink is _leave:
                raise
    raise AssertionError


def _leave(_: PreTrainedConfig) -> None: ...


def _shrink(config: PreTrainedConfig) -> None:
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
        elif type(value) is int and _COUNTS.search(key):
            setattr(config, key, min(value, _MAX_LAYERS))
        elif isinstance(value, list) and _LISTS.search(key):
            setattr(config, key, value[:_MAX_LAYERS])


def _untie(config: PreTrainedConfig) -> None:
    config.tie_word_embeddings = False
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            _untie(value)


def _head_of(model: PreTrainedModel) -> Any:
    head = model.get_output_embeddings()
    return getattr(head, "weight", None)


def _saved(model: PreTrainedModel) -> Iterator[Found]:
    """By the names in a checkpoint. What is joined or split on the way has no module any more."""
    owners = {
        f"{path}.{name}".removeprefix("."): owner
        for path, owner in model.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
    }
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in model.all_tied_weights_keys
    }
    names = {id(tensor): name for name, tensor in state.items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    head = _head_of(model)
    for name, tensor in revert_weight_conversion(model, state).items():
        source = names.get(id(tensor), "")
        is_head = head is not None and parameters.get(source) is head
        kind = HEAD if is_head else _kind(source, owners.get(source), tensor)
        dtype = _DTYPES.get(tensor.dtype, "I64")
        module = type(owners[source]).__name__ if source in owners else "converted"
        template = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1{}", name)
        yield Found(template, dtype, tuple(tensor.shape), kind, module)


def _kind(source: str, owner: nn.Module | None, tensor: torch.Tensor) -> str:
    if isinstance(owner, nn.Embedding):
        return TABLE
    if isinstance(owner, nn.Linear):
        return MATRIX
    is_of_experts = "Expert" in type(owner).__name__ and not source.endswith("bias")
    if is_of_experts or (not source and tensor.ndim == 3):
        return STACK if tensor.ndim in (2, 3) else OTHER
    return OTHER


def _tail(name: str, n_components: int) -> str:
    return ".".join(name.split(".")[-n_components:])


def record(models: dict[str, list[Found]]) -> dict[str, Any]:
    """Names by what they are, each once; of matrices and what else is 3-D the end of the name."""
    large = {tensor for tensors in models.values() for tensor in tensors if tensor.is_large}
    # A class that is a single layer, as part of others, has no name for it.
    every = {tensor for tensor in large if "." in tensor.name}

    def names(of: Callable[[Found], bool], n_components: int = 99) -> list[str]:
        return sorted({_tail(tensor.name, n_components) for tensor in every if of(tensor)})

    return {
        "transformers": transformers.__version__,
        "tables": names(lambda t: t.kind == TABLE),
        "heads": names(lambda t: t.kind == HEAD),
        "stacks": names(lambda t: t.kind == STACK and len(t.shape) == 3),
        "rows of experts": names(lambda t: t.kind == STACK and len(t.shape) == 2),
        "no stacks": names(lambda t: t.kind != STACK and len(t.shape) == 3, 3),
        "matrices": names(lambda t: t.kind == MATRIX and t.decision.compress, 3),
        "matrices kept": names(lambda t: t.kind == MATRIX and not t.decision.compress, 3),
    }


def _report(models: dict[str, list[Found]]) -> None:
    wrong: dict[tuple[str, str], set[str]] = defaultdict(set)
    unknown: dict[str, set[str]] = defaultdict(set)
    for model, tensors in models.items():
        folder = model.split(".")[0]
        for tensor in tensors:
            if tensor.misjudged:
                wrong[tensor.misjudged, tensor.name].add(folder)
            if min(tensor.shape, default=0) >= 2 and "no experts" in tensor.decision.reason:
                unknown[f"{_tail(tensor.name, 3)} {list(tensor.shape)} {tensor.module}"].add(folder)
    for (what, name), folders in sorted(wrong.items()):
        print(f"{what}: {name} ({', '.join(sorted(folders))})")
    print("\n3-D floats that are kept for not being known:")
    for name, folders in sorted(unknown.items()):
        print(f"  {name} ({', '.join(sorted(folders))})")
    print("\nmore than half kept of what is neither table nor head:")
    for model, tensors in models.items():
        if (share := share_kept(tensors)) > 0.5:
            print(f"  {model}: {share:.0%}")
    counts = Counter(what for what, _ in wrong)
    print(f"\n{len(models)} classes; misjudged: {dict(counts) or 'none'}")


def main() -> None:
    """Build, judge, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--tensors", action="store_true", help="each tensor and its fate")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    models: dict[str, list[Found]] = {}
    for kind in model_classes(options.models):
        name = f"{kind.__module__.split('.')[2]}.{kind.__name__}"
        try:
            models[name] = tensors_of(kind)
        except Exception as error:  # of any kind: some need settings, or packages
            print(f"not built: {name}: {type(error).__name__}: {str(error).strip()[:80]!r}")
            continue
        for tensor in models[name] if options.tensors else ():
            fate = "compressed" if tensor.decision.compress else "kept"
            print(name, *tensor[:1], list(tensor.shape), tensor.kind, tensor.module, end=" ")
            print(f"{fate}: {tensor.decision.reason}")
    _report(models)
    if options.write:
        options.write.write_text(json.dumps(record(models), indent=1) + "\n")


if __name__ == "__main__":
    main()
