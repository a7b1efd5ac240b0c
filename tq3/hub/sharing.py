"""What speaks against showing a copy of a model to everybody."""

from __future__ import annotations

import re
from dataclasses import dataclass

from huggingface_hub import HfApi, constants

from tq3.errors import NetworkError
from tq3.hub.failures import asking
from tq3.hub.metadata import Metadata

_LIMITS = (
    (r"(^|-)nc(-|$)|non-?commercial", "does not allow commercial use"),
    (r"(^|-)nd(-|$)", "does not allow to share what was made from the model"),
    (r"(^|-)research(-|$)|^(apple-amlr|mrl|mnpl)$", "allows research only"),
)
_GATE = "extra_gated_"
_IS_PRIVATE = "the source is private, and a public copy shows it to everybody"
_IS_GATED = "the source is gated: people accept its terms first, and a public copy asks nobody"


def licence_limits(metadata: Metadata) -> list[str]:
    """A sentence for each thing that the licence in the source's metadata does not allow."""
    names = [metadata.get("license"), metadata.get("license_name")]
    names = [one for name in names for one in (name if isinstance(name, list) else [name])]
    told = [name for name in names if isinstance(name, str)]
    return [
        f"the source's licence, {name}, {what}"
        for name in told
        for pattern, what in _LIMITS
        if re.search(pattern, re.sub(r"[\s_.]+", "-", name.lower()))
    ]


def asks_for_terms(metadata: Metadata) -> bool:
    """Whether the source's card has a text that people agree to before they get the model."""
    return any(key.startswith(_GATE) for key in metadata)


@dataclass(frozen=True, slots=True)
class Shown:
    """A model as the Hub shows it; metadata: of its card as it is there now."""

    private: bool
    gated: bool
    metadata: Metadata


def look_up(model: str) -> Shown | None:
    """The model as the Hub shows it; None for one that is hidden, gone, or was never there.

    Raises NetworkError where the Hub may tell later.
    """
    try:
        with asking(model):
            info = HfApi(endpoint=constants.ENDPOINT).model_info(model)
    except NetworkError as error:
        if error.repeatable:
            raise
        return None
    return Shown(
        bool(info.private), bool(info.gated), vars(info.card_data) if info.card_data else {}
    )


def reasons_to_ask(card: Metadata, shown: Shown | None) -> list[str]:
    """Why somebody should think before a public push.

    card: metadata of the card that travelled along; shown: the source as it is on the Hub
    """
    reasons = [_IS_PRIVATE] if shown and shown.private else []
    if asks_for_terms(card) or (shown and shown.gated):
        reasons.append(_IS_GATED)
    limits = [*licence_limits(card), *licence_limits(shown.metadata if shown else {})]
    return [*reasons, *dict.fromkeys(limits)]
