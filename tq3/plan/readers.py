"""What readers other than ours make of a checkpoint: they know two widths, the second by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from tq3.format.config import TqConfig
from tq3.format.files import CONFIG, Files
from tq3.format.widths import QKV, Width
from tq3.plan.names import without_expert
from tq3.plan.roles import fused_set_of, role_of


def obstacles(
    widths: Mapping[str, Width],
    norm_dtypes: Iterable[str],
    config: TqConfig,
    *,
    transposed: bool = False,
) -> tuple[str, ...]:
    """Why other readers can't read a checkpoint; nothing where they can.

    widths: of each matrix by name, None for one that is not compressed
    norm_dtypes: those that occur
    config: tq_config.json, as it is or would be: only it decides what names can tell
    transposed: whether there are stacks whose rows are outputs, where hosts have inputs as rows
    """
    halves = ("norms are F16: they take them for F32",) if "F16" in norm_dtypes else ()
    turned = ("experts are stored with outputs as rows: they take rows for inputs",)
    trellis = ("codes are those of a trellis, not levels",) if config.code == "trellis" else ()
    return (*_obstacles(widths, config), *halves, *(turned if transposed else ()), *trellis)


def missing_config(files: Files) -> tuple[str, ...]:
    """A sentence where config.json is missing: no host loads what is made of such a folder."""
    if files.has(CONFIG):
        return ()
    return (f"no {CONFIG} in {files.label}: no host will load what is made of it",)


def _obstacles(widths: Mapping[str, Width], config: TqConfig) -> Iterator[str]:
    packed = {name: bits for name, bits in widths.items() if bits}
    used = sorted(set(packed.values()))
    if len(used) > 2:
        yield f"{len(used)} widths ({', '.join(map(str, used))} bits): they know two"
    elif any(config.width_by_name(name) != bits for name, bits in packed.items()):
        yield "tq_config.json has no parts of names that tell the tensors of its two widths apart"
    attention: defaultdict[str, set[Width]] = defaultdict(set)
    for name, bits in sorted(widths.items()):  # a checkpoint has them in another order
        role = role_of(name)
        if role in ("lm_head", "embeddings") and bits:
            yield f"{name} is packed: they take it as it is"
        elif role in QKV:
            attention[fused_set_of(name, split_qkv=False)].add(bits)
    if any(len(found) > 1 for found in attention.values()):
        yield "q, k and v of a layer differ in width: they join them into one matrix"


def substrings(wanted: Iterable[str], others: Iterable[str]) -> tuple[str, ...] | None:
    """Texts of which each name in `wanted` contains one and no other name does; None: impossible.

    A short list: the text that tells most names apart first. Texts are whole components, from a
    layer's number or its parts on, so they hold where a host puts another path before them.
    """
    wanted = list(wanted)
    others = list(others)
    # Names of experts differ in a number that no text contains.
    left = dict.fromkeys(without_expert(name, "0") for name in wanted)
    rest = "\n".join(dict.fromkeys(without_expert(name, "0") for name in others))
    texts = {text for name in left for text in _texts(name) if text not in rest}
    covered = {text: {name for name in left if text in name} for text in texts}
    found: list[str] = []
    missing = set(left)
    while missing:
        left_by = {text: len(missing - names) for text, names in covered.items()}
        best = min(left_by, key=lambda text: (left_by[text], len(text), text), default="")
        if not covered.get(best, set()) & missing:
            return None
        found.append(best)
        missing -= covered[best]
    exact = all(any(text in name for text in found) for name in wanted)
    return tuple(found) if exact and not _any_in(found, others) else None


def _any_in(texts: Iterable[str], names: Iterable[str]) -> bool:
    together = "\n".join(names)
    return any(text in together for text in texts)


def _texts(name: str) -> Iterator[str]:
    """Parts of a name that may tell it apart; none has the number of an expert in it."""
    parts = name.removesuffix(".weight").split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    last = numbers[-1] + 1 if numbers else 0
    for i in range(last, len(parts)):
        yield ".".join(parts[i:])
    if not numbers:
        return
    first = numbers[0]
    end = numbers[1] if len(numbers) > 1 else len(parts)
    for i in range(1, first + 1):  # a whole tower
        yield ".".join(parts[:i]) + "."
    for i in range(first + 1, end + 1):  # a layer, or a part of it
        dot = "." if i < len(parts) else ""
        for start in {max(first - 1, 0), 0}:
            yield ".".join(parts[start:i]) + dot
    for i in range(first + 1, end):  # a part of every layer
        yield "." + ".".join(parts[first + 1 : i + 1]) + ("." if i + 1 < len(parts) else "")
