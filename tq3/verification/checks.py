"""What `tq3 verify` looks for, by identifier, and how what it finds is told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tq3.errors import BadInput, StorageError, Tq3Error, VerificationFailed
from tq3.format.checkpoint import CONTINUE
from tq3.format.json_text import finite
from tq3.units import counted

# Identifiers are stable: scripts look for them. docs/verify.md says more of some.
_FETCH_FILE = "fetch the file again, or compress again"
_FETCH_ALL = "fetch all of it again, from one revision, or compress again"
# Identifier -> what is wrong, and what to do.
_KNOWN = {
    "TQ101": ("an unfinished run", CONTINUE),
    "TQ102": ("no tq_config.json", "fetch tq_config.json, or compress again"),
    "TQ103": (
        "tq_config.json is damaged, or of an unknown format",
        "fetch tq_config.json again; a newer format needs a newer tq3",
    ),
    "TQ104": ("config.json is damaged", "fetch config.json again"),
    "TQ105": (
        "config.json tells hosts something else than tq_config.json",
        "undo the edit of one of them",
    ),
    "TQ106": ("the index is damaged", "fetch the index again"),
    "TQ107": ("a weights file is missing", "fetch the file"),
    "TQ108": (
        "a weights file that the index does not know",
        "take the file away: a host may load it",
    ),
    "TQ109": ("a file can't be read", "look at permissions, links, pipes and the disk"),
    "TQ201": (
        "a shard's header is damaged, or does not fit the file",
        "fetch the shard again, or compress again",
    ),
    "TQ202": (
        "a tensor lies in two files",
        "take away the shard that belongs to another checkpoint",
    ),
    "TQ203": (
        "the index names a tensor that its file does not have",
        "fetch index and shards again, from one revision",
    ),
    "TQ204": (
        "a tensor that the index does not know",
        "fetch index and shards again, from one revision",
    ),
    "TQ205": ("codes without norms, or norms without codes", _FETCH_ALL),
    "TQ206": ("a tensor is stored as it is and as codes", _FETCH_ALL),
    "TQ207": ("codes, norms and tq_config.json contradict each other", _FETCH_ALL),
    "TQ208": ("another number of compressed tensors than recorded", _FETCH_ALL),
    "TQ209": ("tq_config.json names a tensor that is not there", _FETCH_ALL),
    "TQ210": ("a tensor has another width than recorded", _FETCH_ALL),
    "TQ301": ("a norm is not finite", "fetch the shard again, or compress again"),
    "TQ302": ("a norm is negative", "fetch the shard again, or compress again"),
    "TQ401": ("the manifest is damaged", "fetch the manifest again"),
    "TQ402": ("a file of the manifest is missing", "fetch the file"),
    "TQ403": ("a file has another size than the manifest says", _FETCH_FILE),
    "TQ404": ("bytes have another checksum than the manifest says", _FETCH_FILE),
    "TQ405": (
        "a file of the checkpoint is not in the manifest",
        "take the file away, or fetch the manifest again",
    ),
    "TQ501": (
        "a tensor of the source is missing",
        "name the right source, or fetch the checkpoint again",
    ),
    "TQ502": ("a tensor that the source does not have", "name the right source"),
    "TQ503": (
        "a tensor's shape or type does not follow from the source's",
        "name the right source",
    ),
    "TQ504": (
        "a kept tensor is neither exact nor rightly rounded",
        "name the right source, or compress again",
    ),
    "TQ505": (
        "a tensor's error is larger than the format's",
        "name the right source, or compress again",
    ),
    "TQ506": (
        "a group's error is larger than the format's",
        "name the right source, or compress again",
    ),
    "TQ507": (
        "a kept tensor lost what the format keeps",
        "compress again with this version of tq3",
    ),
}
CHECKS = {check: what for check, (what, _) in _KNOWN.items()}
# A damaged file may hold megabytes of anything.
_LONGEST = 400


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    check: a key of CHECKS
    at: byte of the file where it begins, where that says something
    count: how many of this kind the tensor or file has; this is the first of them
    """

    check: str
    message: str
    file: str | None = None
    tensor: str | None = None
    found: str | None = None
    expected: str | None = None
    at: int | None = None
    count: int = 1

    @property
    def text(self) -> str:
        """The message with what was found and expected."""
        details = [f"found {self.found}"] if self.found is not None else []
        details += [f"expected {self.expected}"] if self.expected is not None else []
        more = f", and {self.count - 1} more" if self.count > 1 else ""
        return self.message + (f" ({', '.join(details)})" if details else "") + more

    @property
    def fix(self) -> str:
        """The advice that belongs to the fault."""
        return _KNOWN[self.check][1]


class Faults:
    """The faults so far; of several of one kind in one tensor of one file the first, counted."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str | None, str | None], Fault] = {}

    def add(self, fault: Fault) -> None:
        """Take in one fault."""
        key = fault.check, fault.file, fault.tensor
        known = self._found.get(key)
        if known:
            first = min(known, fault, key=lambda each: -1 if each.at is None else each.at)
            fault = replace(first, count=known.count + fault.count)
        self._found[key] = fault

    @contextmanager
    def catching(self, check: str, file: str, tensor: str | None = None) -> Iterator[None]:
        """An error that a reader raises in the block becomes a fault, and the run goes on."""
        try:
            yield
        except StorageError as error:
            self.add(unreadable(error, file))
        except BadInput as error:
            self.add(_from_error(check, error, file, tensor))

    def take(self, check: str, error: BadInput) -> None:
        """Take in an error that names its file."""
        self.add(_from_error(check, error, str(error.file), None))

    def covers(self, file: str) -> bool:
        """Whether something is wrong with the file as a whole."""
        return any(key[1:] == (file, None) for key in self._found)

    def __iter__(self) -> Iterator[Fault]:
        """The faults in the order of identifier, file and place."""
        return iter(sorted(self._found.values(), key=_order))


def unreadable(error: Tq3Error, file: str) -> Fault:
    """A file that the system would not read, or that is none."""
    return _from_error("TQ109", error, file, None)


def _from_error(check: str, error: Tq3Error, file: str, tensor: str | None) -> Fault:
    details = (error.found, error.expected)
    found, expected = (None if value is None else str(value)[:_LONGEST] for value in details)
    return Fault(check, error.message, file, error.tensor or tensor, found, expected)


def _order(fault: Fault) -> tuple[str, str, int, str]:
    return fault.check, fault.file or "", fault.at or 0, fault.tensor or ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One tensor beside the source's.

    bits: None for a kept tensor, of which this is told:
    exact: whether every value is the source's; stored: its type
    n_rounded: values that its type rounds, by `largest_change` at most; `largest_relative_change`:
    in parts of the value
    Of a compressed one:
    error: relative squared error ||w - d||^2 / ||w||^2
    expected: of Gaussian weights; limit: the largest error that needs no second look
    worst_group_error: of one group, which is `worst_group` of row `worst_row`, counted from 0
    recoded_error: where the error passed the limit, that of encoding the source again
    """

    tensor: str
    bits: int | None
    shape: tuple[int, ...]
    exact: bool | None = None
    stored: str | None = None
    n_rounded: int | None = None
    largest_change: float | None = None
    largest_relative_change: float | None = None
    error: float | None = None
    cosine: float | None = None
    expected: float | None = None
    limit: float | None = None
    worst_group_error: float | None = None
    worst_row: int | None = None
    worst_group: int | None = None
    recoded_error: float | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification: what was looked at, and what was found.

    checksums: whether the bytes were summed: there was a manifest that could be read
    structure_only: whether no weight was read
    bytes_read: of the checkpoint and, in a comparison, of the source
    """

    path: str
    source: str | None
    n_files: int
    n_compressed: int
    n_kept: int
    checksums: bool
    bytes_read: int
    faults: tuple[Fault, ...]
    notices: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    seconds: float
    peak_memory_bytes: int
    backend: str
    workers: int
    structure_only: bool = False
    checks: dict[str, str] = field(default_factory=lambda: CHECKS, repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def worst(self, number: int) -> list[Comparison]:
        """The compressed tensors with the largest errors, the worst first."""
        coded = (each for each in self.comparisons if each.bits)
        return sorted(coded, key=_badness, reverse=True)[:number]

    def rounded(self) -> list[Comparison]:
        """The kept tensors of which some values are rounded, those with most of them first."""
        rounded = (each for each in self.comparisons if each.n_rounded)
        return sorted(rounded, key=lambda each: -(each.n_rounded or 0))

    def refusal(self) -> VerificationFailed:
        """One sentence for a checkpoint that is not sound: its first fault."""
        first = self.faults[0]
        place = ", ".join(filter(None, (first.file, first.tensor)))
        number = counted(len(self.faults), "fault")
        return VerificationFailed(
            f"{number}, the first {first.check} in {place}: {first.text}",
            file=self.path,
            fix=first.fix,
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, for --json; an error that is no number is null."""
        found: dict[str, Any] = finite({"ok": self.ok, **asdict(self)})
        return found


def _badness(comparison: Comparison) -> float:
    error = comparison.error
    return math.inf if error is None or math.isnan(error) else error
