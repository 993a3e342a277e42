"""How values look: tables for people, JSON for programs, and no surprises for terminals.

Tables have lines and colours on a terminal and are plain columns elsewhere. What came from outside never brings
control characters with it.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import click
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Characters that reorder or hide what follows them. Other format characters join letters and emoji and may stay.
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

# A text column folds down to this many cells; below, nobody can read it and the terminal's own wrapping is better.
_FOLDED_WIDTH = 10

_LEVEL_STYLES = {
    "healthy": "green",
    "normal": "green",
    "warning": "yellow",
    "critical": "bold red",
    "rejected": "red",
    "unreadable": "red",
    "invalid": "red",
    "unpriced": "yellow",
}


def console() -> Console:
    """A console on whatever stdout is at the moment."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print rows; columns whose name ends in ">" are numbers and align right. Without rows, print `empty`."""
    lines = [[one_line(cell) for cell in row] for row in rows]
    out = console()
    if not lines:
        click.echo(empty)
    elif out.is_terminal:
        out.print(_framed(columns, lines), crop=False)
    else:
        click.echo("\n".join(plain_table(columns, lines)))


def _framed(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table for a terminal: texts fold where it is too narrow, numbers stay whole."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        width = max(cell_len(cell) for cell in (column.rstrip(">"), *(line[index] for line in lines)))
        if column.endswith(">"):
            table.add_column(column[:-1], justify="right", no_wrap=True, min_width=width)
        else:
            table.add_column(column, overflow="fold", min_width=min(width, _FOLDED_WIDTH))
    for line in lines:
        table.add_row(*[Text(cell, style=_LEVEL_STYLES.get(cell, "")) for cell in line])
    return table


def plain_table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of plain columns, as wide as they need to be."""
    grid = [[column.rstrip(">") for column in columns], *lines]
    widths = [max(cell_len(row[index]) for row in grid) for index in range(len(columns))]
    for row in grid:
        cells = []
        for cell, column, width in zip(row, columns, widths, strict=True):
            padding = " " * (width - cell_len(cell))
            cells.append(padding + cell if column.endswith(">") else cell + padding)
        yield "  ".join(cells).rstrip()


def print_json(value: Any) -> None:
    """Print a value as JSON: money as strings, spans in milliseconds, instants as ISO 8601."""
    click.echo(json.dumps(jsonable(value), indent=2, ensure_ascii=False))


def jsonable(value: Any) -> Any:
    """`value` in the types of JSON. A span `latency` becomes `latency_ms`; messages of the wire are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value) if field.name != "proto"}
    if isinstance(value, Mapping):
        return {_key(name, item): jsonable(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [jsonable(item) for item in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    match value:
        case Decimal():
            return f"{value:f}"
        case timedelta():
            return value / timedelta(milliseconds=1)
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case _:
            return value


def _key(name: str, value: Any) -> str:
    return f"{name}_ms" if isinstance(value, timedelta) else name


def printable(text: str) -> str:
    """`text` without control characters other than line breaks and tabs: it must not steer the reader's terminal."""
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and c not in _BIDI_CONTROLS))


def one_line(text: str) -> str:
    """`text` in one printable line."""
    return " ".join(printable(text).split())


def dollars(amount: Decimal | None) -> str:
    """US dollars with at least two and at most six decimals; "unpriced" for what is unknown."""
    if amount is None:
        return "unpriced"
    text = f"{amount:.6f}".rstrip("0")
    whole, _, decimals = text.partition(".")
    return f"${whole}.{decimals.ljust(2, '0')}"


def duration(value: timedelta | None) -> str:
    """A span as a person says it: "210 ms", "1.23 s", "12 min"; "-" when there is none."""
    if value is None:
        return "-"
    seconds = value.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2f}".rstrip("0").rstrip(".") + " s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def moment(value: datetime) -> str:
    """A point in time to the second, in UTC."""
    return value.strftime("%Y-%m-%d %H:%M:%SZ")


def number(value: Decimal | int) -> str:
    """A count or an amount with thousands apart and no trailing zeros."""
    text = f"{value:,f}" if isinstance(value, Decimal) else f"{value:,}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def yes_no(value: bool) -> str:
    """A statement's truth in a word."""
    return "yes" if value else "no"
