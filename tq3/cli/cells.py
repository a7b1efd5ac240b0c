"""Tables as all commands print them: rows of facts, or columns with numbers on the right."""

from __future__ import annotations

from typing import Literal

from rich.table import Table

from tq3.units import printable

_NUMERIC = (
    *("compressed", "kept", "weights", "size", "bits a weight", "tensors", "bits", "error"),
    *("width", "share of loss", "next bit saves", "expected", "limit", "cosine", "worst group"),
    *("KL", "99.9 %", "same first choice", "weights lost", "states lost", "added here"),
    *("values", "of", "by at most", "of the value"),
)


def add(table: Table, *cells: str | list[str]) -> None:
    """A row; a list makes a cell of several lines."""
    lines = ([cell] if isinstance(cell, str) else cell for cell in cells)
    table.add_row(*("\n".join(map(printable, cell)) for cell in lines))


def facts() -> Table:
    """A name and what there is to say of it, line by line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def columns(first: str, *others: str) -> Table:
    """Headed columns, of which the first may be broken into lines."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        justify: Literal["left", "right"] = "right" if name in _NUMERIC else "left"
        table.add_column(name, justify=justify, overflow="fold")
    return table
