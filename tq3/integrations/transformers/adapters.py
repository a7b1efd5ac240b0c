"""Adapters that ask of packed experts what these can't give end in a sentence.

PEFT changes experts as parameters, and finds none: it would leave them out in silence.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tq3.errors import UsageError
from tq3.runtime.modules import PackedExperts

_MODELS = "_tq3_models"


class _Models:
    """The models that a module is part of, which it does not keep alive.

    PEFT leaves the adapters' settings at one of them, and calls nobody. Copied along with a model;
    what was unpickled knows none.
    """

    def __init__(self, *models: PreTrainedModel) -> None:
        self._references = [weakref.ref(model) for model in models]

    def targets(self) -> set[str]:
        """The parameters that their adapters want to change, as the user named them."""
        models = (reference() for reference in self._references)
        adapters = (vars(model).get("peft_config") or {} for model in models if model is not None)
        configs = (config for each in adapters for config in each.values())
        return {
            target for each in configs for target in getattr(each, "target_parameters", None) or ()
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> _Models:
        models = (reference() for reference in self._references)
        return _Models(*(memo.get(id(model), model) for model in models if model is not None))

    def __reduce__(self) -> tuple[type[_Models], tuple[()]]:
        return _Models, ()


def watch(model: PreTrainedModel) -> None:
    """Refuse adapters that would change packed experts: those of a file when they are loaded, those
    that are made when their model is first called.
    """
    models = _Models(*(each for each in model.modules() if isinstance(each, PreTrainedModel)))
    for path, owner in model.named_modules():
        children = owner.named_children()
        packed = [name for name, child in children if isinstance(child, PackedExperts)]
        if packed:
            owner.register_load_state_dict_pre_hook(_refuse_loaded)
            vars(owner)[_MODELS] = models, [f"{path}.{name}" for name in packed]


def check_targets(owner: nn.Module) -> None:
    """Called with a module of experts before it computes."""
    models, parameters = vars(owner).get(_MODELS, (None, ()))
    for target in models.targets() if models else ():
        found = next((p for p in parameters if f".{p}".endswith(f".{target}")), None)
        if found is not None:
            raise _refusal(owner, found, f"{target!r} in target_parameters")


def _refuse_loaded(owner: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    parts = (name for name in state if name.startswith(prefix))
    found = next((name for name in parts if "lora_" in name), None)
    if found is not None:
        raise _refusal(owner, found)


def _refusal(owner: nn.Module, tensor: str, found: str | None = None) -> UsageError:
    return UsageError(
        f"an adapter can't change the packed experts of {type(owner).__name__}",
        tensor=tensor,
        found=found,
        fix="leave them out of target_parameters, or `tq3 restore` the checkpoint, or compress it "
        "with --keep for its experts",
    )
