"""Which parts of a divided run stand, as far as their own folders tell."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tq3.errors import BadInput, UsageError
from tq3.format.command_line import option_changes
from tq3.format.parts import Part, numbers_in_words
from tq3.plan.identity import Identity
from tq3.storage.failures import reading
from tq3.storage.part_factors import shared_digest
from tq3.storage.part_manifest import PartManifest, read_part_manifest
from tq3.storage.parts import held, part_folder, parts_in, whole_run, written_draft

MISSING = "missing"
UNFINISHED = "not complete"
BEING_WRITTEN = "being written"
OF_ANOTHER = "of another run"


@dataclass(frozen=True, slots=True)
class Standing:
    """The parts of the run that a target folder has: who is whole, and what is wrong with others.

    of: how many parts there are
    whole: the manifests of the parts that are complete and of one run, by number
    faults: why each of the others can't be joined; a part that has nothing to do may be among them
    """

    path: str
    of: int
    whole: Mapping[int, PartManifest] = field(default_factory=dict)
    faults: Mapping[int, str] = field(default_factory=dict)

    def part(self, number: int) -> Part:
        """The part of this number."""
        return Part(number, self.of)

    @property
    def n_bytes(self) -> int:
        """Bytes of tensors that whole parts have written."""
        return sum(shard.n_bytes for each in self.whole.values() for shard in each.shards.values())

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON."""
        shards = {number: sorted(each.shards) for number, each in self.whole.items()}
        return {
            "path": self.path,
            "parts": self.of,
            "whole": {str(n): [shard + 1 for shard in shards[n]] for n in sorted(shards)},
            "faults": {str(n): self.faults[n] for n in sorted(self.faults)},
            "bytes_written": self.n_bytes,
        }


def find_parts(out: Path, busy: Collection[int] | None = None) -> Standing:
    """The parts that lie in the unfinished target `out`, each read by its manifest.

    busy: the numbers of those that are being written, where that is known

    Raises UsageError where there are none, or such of several divisions.
    """
    found = parts_in(out)
    of = _division(out, found)
    if busy is None:
        with held(out, found) as now:
            busy = now
    faults = dict.fromkeys(range(1, of + 1), MISSING)
    manifests = {}
    for part in found:
        try:
            manifest = read_part_manifest(part_folder(out, part))
        except BadInput:
            faults[part.number] = "its manifest is damaged"
            continue
        if part.number in busy:
            faults[part.number] = BEING_WRITTEN
        elif manifest is None or manifest.part != part:
            faults[part.number] = UNFINISHED
        else:
            manifests[part.number] = manifest
            del faults[part.number]
    stale = dict.fromkeys(
        _of_other_factors(out, manifests),
        f"{OF_ANOTHER} (its factors of columns were replaced since)",
    )
    foreign = _foreign({n: manifests[n] for n in manifests if n not in stale}) | stale
    whole = {n: manifest for n, manifest in manifests.items() if n not in foreign}
    return Standing(str(out), of, whole, {**faults, **foreign})


def look_at_parts(out: Path) -> Standing:
    """The same, and whether the drafts that the whole parts wrote have their sizes."""
    standing = find_parts(out)
    if whole_run(out):
        return standing  # `finish` has begun: it has looked, and may have given drafts their names
    faults: dict[int, str] = {}
    for n, manifest in standing.whole.items():
        for number, shard in manifest.shards.items():
            draft = written_draft(out, standing.part(n), number)
            if fault := size_fault(draft, shard.end):
                faults.setdefault(n, fault)
    whole = {n: each for n, each in standing.whole.items() if n not in faults}
    return replace(standing, whole=whole, faults={**standing.faults, **faults})


def size_fault(draft: Path, n_bytes: int) -> str | None:
    """What is wrong with the size of a shard's draft, in words. May raise StorageError."""
    with reading(draft):
        if not draft.is_file():
            return f"damaged: {draft.name} is gone"
        found = draft.stat().st_size
    if n_bytes and found != n_bytes:
        return f"damaged: {draft.name} has {found:,} bytes, not {n_bytes:,}"
    return None


def _division(out: Path, found: Sequence[Part]) -> int:
    """By how many the run is divided that these are parts of."""
    if not found:
        raise UsageError(
            "no parts of a divided run are here",
            file=out,
            fix="write them first: tq3 compress SOURCE OUT --part 1/N, and so on to N/N",
        )
    divisions = sorted({part.of for part in found})
    if len(divisions) > 1:
        raise UsageError(
            "parts of several divisions",
            file=out,
            found="; ".join(
                f"of {of}: {numbers_in_words([part.number for part in found if part.of == of])}"
                for of in divisions
            ),
            fix="run each part with --overwrite, which removes those of another division",
        )
    return divisions[0]


def faults_in_words(faults: Mapping[int, str]) -> str:
    """Parts by what is wrong with them."""
    alike: dict[str, list[int]] = {}
    for number in sorted(faults):
        alike.setdefault(faults[number], []).append(number)
    return "; ".join(
        f"{'parts' if len(numbers) > 1 else 'part'} {numbers_in_words(numbers)}: {why}"
        for why, numbers in alike.items()
    )


def shared_request(manifest: PartManifest) -> dict[str, Any]:
    """What all parts must have in common beside the identity: not where the source lies."""
    return {name: value for name, value in manifest.request.items() if name != "source"}


def _of_other_factors(out: Path, manifests: Mapping[int, PartManifest]) -> list[int]:
    """The parts that were written with other factors than the parts now share."""
    scaled = {n: each.identity["factors"] for n, each in manifests.items()}
    shared = shared_digest(out) if any(scaled.values()) else None
    return [n for n, digest in scaled.items() if shared and digest and digest != shared]


def _foreign(manifests: Mapping[int, PartManifest]) -> dict[int, str]:
    """Why parts don't belong to the run that most belong to; the first part's, of two so large."""
    keys = {
        n: json.dumps([dict(each.identity), shared_request(each)], sort_keys=True)
        for n, each in sorted(manifests.items())
    }
    if len(set(keys.values())) < 2:
        return {}
    (most, _), *_ = Counter(keys.values()).most_common(1)
    usual = next(manifests[n] for n, key in keys.items() if key == most)
    return {
        n: f"{OF_ANOTHER} ({_difference(usual, manifests[n])})"
        for n, key in keys.items()
        if key != most
    }


def _difference(usual: PartManifest, odd: PartManifest) -> str:
    """The first thing that differs, in words."""
    told = Identity(**usual.identity).differences(odd.identity, stamps=False)
    told += option_changes(odd.identity["options"], usual.identity["options"])
    theirs, ours = shared_request(odd), shared_request(usual)
    told += [f"{name} {theirs.get(name)} became {ours[name]}" for name in ours]
    changed = [text for text in told if not _says_the_same(text)]
    return changed[0].replace(" became ", ", the others ") if changed else "its record"


def _says_the_same(text: str) -> bool:
    before, became, after = text.partition(" became ")
    return bool(became) and before.endswith(f" {after}")
