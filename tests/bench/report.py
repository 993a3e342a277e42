"""The table of a run, and of one run held against another."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Figure


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


def print_comparison(
    console: Console,
    before: Mapping[str, Mapping[str, str | float]],
    after: Mapping[str, Mapping[str, str | float]],
) -> None:
    """Ratios of the medians, and whether the spreads are apart: where they are not, the ratio may be noise."""
    table = Table(title="B over A")
    table.add_column("figure")
    for heading in ("A", "B", "B / A"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    table.add_column("")
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            table.add_row(name, *(_number(side[name]["median"]) if name in side else "-" for side in (before, after)))
            continue
        first, second = before[name], after[name]
        ratio = f"{float(second['median']) / float(first['median']):.2f}" if float(first["median"]) else "-"
        are_apart = float(second["min"]) > float(first["max"]) or float(second["max"]) < float(first["min"])
        values = [_number(side["median"]) for side in (first, second)]
        table.add_row(name, *values, ratio, str(second["unit"]), "" if are_apart else "spreads overlap")
    console.print(table)


def _number(value: str | float) -> str:
    number = float(value)
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def _verdict(figure: Figure) -> str:
    if figure.target is None:
        return ""
    return "[green]met[/]" if figure.target.is_met_by(figure.median) else "[red]missed[/]"
