"""How many parameters a packed model has: weights, not the bytes of their codes."""

from __future__ import annotations

from torch import nn

from tq3.runtime.modules import PackedWeight


def num_parameters(
    model: nn.Module, only_trainable: bool = False, exclude_embeddings: bool = False
) -> int:
    """What `PreTrainedModel.num_parameters` says of the dense model; nothing packed is trainable.

    What modules share counts once.
    """
    counts: dict[int, int] = {}
    excluded: set[int] = set()
    for module in model.modules():
        if isinstance(module, PackedWeight):
            counts[id(module.tq_packed)] = 0 if only_trainable else module.numel()
        else:
            own = module.parameters(recurse=False)
            counts |= {id(p): p.numel() for p in own if p.requires_grad or not only_trainable}
        if isinstance(module, nn.Embedding):
            table = module.weight
            excluded.add(id(table.tq_packed if isinstance(table, PackedWeight) else table))
    return sum(n for i, n in counts.items() if not exclude_embeddings or i not in excluded)
