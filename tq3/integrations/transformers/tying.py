"""Packed weights that modules share, such as an output head tied to the embeddings.

Transformers ties parameters by their names, `lm_head.weight` to `model.embed_tokens.weight`. Where
these are packed it is told to tie their codes and norms: it loads, places, offloads and saves them
as it does with any tied parameters, once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from transformers import PreTrainedModel

from tq3.format.layout import NORMS, PACKED
from tq3.integrations.transformers.placing import Place


def shared_places(ties: Mapping[str, str], places: Iterable[Place], kept: set[str]) -> list[Place]:
    """Places of the parameters that are tied to packed ones and are not in the checkpoint.

    ties: parameter -> the one that it is tied to; kept: parameters that the checkpoint has as
    they were
    """
    found = {place.parameter: place for place in places}
    groups: dict[str, list[str]] = {}
    for target, source in ties.items():
        groups.setdefault(source, [source]).append(target)
    shared = []
    for names in groups.values():
        owner = next((found[name] for name in names if name in found), None)
        without = [name for name in names if name not in found and name not in kept]
        shared += [replace(owner, parameter=name) for name in without if owner]
    return shared


def tie(model: PreTrainedModel, packed: set[str]) -> None:
    """Have the host tie codes and norms of these parameters, which still are whole.

    A packed and an unpacked one are tied no longer: both are in the checkpoint.
    """
    for prefix, part in model.named_modules():
        if isinstance(part, PreTrainedModel):
            start = prefix and prefix + "."
            part.all_tied_weights_keys = _of_parts(part.all_tied_weights_keys, start, packed)
            # Of this class alone, and empty where config.json says that nothing is tied.
            ties = part.get_expanded_tied_weights_keys()
            if ties:
                part._tied_weights_keys = _of_parts(ties, start, packed)


def _of_parts(ties: Mapping[str, str], start: str, packed: set[str]) -> dict[str, str]:
    found = {}
    for target, source in ties.items():
        n_packed = sum(start + name in packed for name in (target, source))
        if n_packed == 0:
            found[target] = source
        elif n_packed == 2:
            found |= {target + part: source + part for part in (PACKED, NORMS)}
    return found
