"""What only the values can tell, and headers can't: it changes the plan while it is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Learned:
    """Tensors that are stored in another way than the recipe asks for: name -> why.

    exact: those that keep their source dtype
    float32_norms: compressed ones whose norms stay F32
    """

    exact: Mapping[str, str] = field(default_factory=dict)
    float32_norms: Mapping[str, str] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[str, str]:
        """The reason for each of these tensors."""
        return {**self.exact, **self.float32_norms}

    def __or__(self, more: Learned) -> Learned:
        """The sum of what two runs learned; a tensor of both kinds is kept exact."""
        exact = {**self.exact, **more.exact}
        norms = {**self.float32_norms, **more.float32_norms}
        return Learned(exact, {name: why for name, why in norms.items() if name not in exact})

    def to_record(self) -> dict[str, Any]:
        """The record as JSON; what is empty is left out."""
        kinds = {"exact": self.exact, "float32_norms": self.float32_norms}
        return {kind: dict(names) for kind, names in kinds.items() if names}


NOTHING_LEARNED = Learned()


def learned_from_record(record: Mapping[str, Any]) -> Learned:
    """The inverse of `Learned.to_record`; other keys are ignored."""
    return Learned(record.get("exact", {}), record.get("float32_norms", {}))
