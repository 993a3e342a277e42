"""The table of a run, and of one run held against another."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Entry, Figure
from tests.bench.processes import BenchFailed


def machine() -> str:
    """What the figures were measured on, as one line."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "aiohttp", "httpx", "uvloop", "protobuf"))
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{packages}; load average before {load:.1f}"
    )


def print_figures(console: Console, figures: Sequence[Figure], caption: str) -> None:
    table = Table(title="Turnpike bench", caption=caption, caption_justify="left")
    table.add_column("figure")
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    table.add_column("target", justify="right")
    table.add_column("")
    for figure in figures:
        values = [_number(value) for value in (figure.median, min(figure.samples), max(figure.samples))]
        target = "" if figure.target is None else str(figure.target)
        table.add_row(figure.name, *values, figure.unit, target, _verdict(figure))
    console.print(table)


def print_comparison(console: Console, before: Mapping[str, Entry], after: Mapping[str, Entry]) -> None:
    """Ratios of the medians, and what speaks against reading them. Raises BenchFailed when nothing can be compared."""
    if before.keys().isdisjoint(after):
        raise BenchFailed("the two files have no figure in common; compare two runs of the same bench")
    table = Table(title="B over A")
    table.add_column("figure")
    for heading in ("A", "B", "B / A"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    table.add_column("")
    for name in [*before, *(name for name in after if name not in before)]:
        first, second = before.get(name), after.get(name)
        if first is None or second is None:
            medians = ["-" if side is None else _number(side.median) for side in (first, second)]
            table.add_row(name, *medians, "-", "", "only in B" if first is None else "only in A")
            continue
        # What is added may be below zero, and a ratio then says nothing.
        can_divide = first.unit == second.unit and first.median > 0 and second.median > 0
        ratio = f"{second.median / first.median:.2f}" if can_divide else "-"
        table.add_row(name, _number(first.median), _number(second.median), ratio, second.unit, _caveat(first, second))
    console.print(table)


def _caveat(first: Entry, second: Entry) -> str:
    if first.unit != second.unit:
        return f"A is in {first.unit}"
    if first.conditions != second.conditions:
        return "other conditions"
    if first.min == first.max or second.min == second.max:
        return "spread unknown"
    are_apart = second.min > first.max or second.max < first.min
    return "" if are_apart else "spreads overlap"


def _number(number: float) -> str:
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def _verdict(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return "[green]met[/]" if figure.target.is_met_by(figure.median) else "[red]missed[/]"
