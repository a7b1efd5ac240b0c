"""Rows of a file as Markdown, for docs/kernels.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from gpu.rows import Row
from gpu.sections import SECTIONS

# Of every row; not of a table.
NOT_SHOWN = {"section", "s", "shape", "tokens"}


def markdown(rows: list[Row]) -> str:
    """A table for each section; then what went wrong and what was skipped."""
    parts = []
    for name, section in SECTIONS.items():
        mine = [row for row in rows if row["section"] == name]
        if mine:
            parts += [f"**{section.title}**", _of_section(mine)]
    for word in ("fault", "skipped"):
        found = [row for row in rows if word in row]
        parts += [f"* {word}: {row['section']}, {row['case']}: {row[word]}" for row in found]
    return "\n\n".join(parts) + "\n"


def _of_section(rows: list[Row]) -> str:
    measured = [row for row in rows if "fault" not in row and "skipped" not in row]
    facts = [row for row in measured if "kind" not in row]
    equal = Counter(row["kind"] for row in measured if "kind" in row)
    counted = [{"case": kind, "equal": count} for kind, count in equal.items()]
    tables = [_table(each) for each in (*_alike(facts), counted) if each]
    return "\n\n".join(tables) or "nothing was measured"


def _alike(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows with the same columns, in the order in which those came first."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row), []).append(row)
    return list(found.values())


def _table(rows: list[Row]) -> str:
    columns = [column for column in rows[0] if column not in NOT_SHOWN]
    lines = [columns, ["---"] * len(columns)]
    lines += [[shown(row[column]) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: object) -> str:
    """Three digits of what was measured, all of what was counted."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {shown(part)}" for name, part in value.items())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
