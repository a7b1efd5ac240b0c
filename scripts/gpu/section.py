"""A part of the table, as text to paste; as it is, it is also what JSON gets."""

from __future__ import annotations

from typing import NamedTuple

Row = dict[str, str | int | float | None]


class Section(NamedTuple):
    """rows: cells by the names of columns, which say units; None for an empty cell

    faults: what makes the whole check fail
    """

    title: str
    rows: list[Row]
    notes: list[str]
    faults: list[str]


def text(section: Section) -> str:
    """Columns in the order of the first row's, numbers to the right."""
    header = list(section.rows[0]) if section.rows else []
    cells = [[shown(row[name]) for name in header] for row in section.rows]
    lines = [header, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    is_text = [isinstance(section.rows[0][name], str) for name in header]
    aligned = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in lines
    ]
    faults = [f"FAULT: {fault}" for fault in section.faults]
    return "\n".join([f"\n## {section.title}", *aligned, *section.notes, *faults])


def shown(value: str | float | None) -> str:
    """Three digits of what was measured, all of what was counted."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return value if isinstance(value, str) else f"{value:,}"
