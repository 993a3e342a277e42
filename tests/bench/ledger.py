"""Measure the ledger, and print the figures.

    python -m tests.bench.ledger [PART ...] [--smoke] [--rows N,N,...] [--events N] [--output FILE]

The parts are `ingest` (beside the bare statement), `replay` (events sent again and again) and `growth` (reports and
ingest on ledgers of different size); without a name all three run. Everything is on this machine, in a Postgres of its
own whose data goes at the end. A missed target does not make a run fail; a wrong sum or a lost event does.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench import ledger_growth, ledger_ingest, ledger_replay
from tests.bench.figures import Figure, require_writable, write_results
from tests.bench.ledger_growth import INGEST, REPORTS, Growth
from tests.bench.ledger_site import running_postgres
from tests.bench.report import machine, print_figures
from tests.bench.stopping import exit_code

PARTS: Final = ("ingest", "replay", "growth")
_TABLE_COLUMNS: Final = 130


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    rounds: int = 5
    batches: int = 60
    events: int = 1_000_000
    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    calls: int = 400
    growth_rounds: int = 3
    growth_batches: int = 20


FULL: Final = Plan()
SMOKE: Final = Plan(rounds=1, batches=4, events=3_000, rows=(3_000, 6_000), calls=8, growth_rounds=1, growth_batches=2)


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 with a table, 1 without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ledger", description="Measure the ledger.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; default: all")
    parser.add_argument("--smoke", action="store_true", help="a short run that only shows that the bench works")
    parser.add_argument(
        "--rows", type=_sizes, help="sizes of the ledgers of `growth`, ascending, such as 10000,1000000"
    )
    parser.add_argument("--events", type=int, help="different events of `replay`")
    parser.add_argument("--output", type=Path, default=Path("bench-ledger-results.json"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    plan = SMOKE if options.smoke else FULL
    console = Console() if sys.stdout.isatty() else Console(width=_TABLE_COLUMNS)
    return exit_code(
        lambda: _measure(
            console,
            options.parts or PARTS,
            plan,
            rows=options.rows or plan.rows,
            events=options.events or plan.events,
            output=options.output,
        )
    )


def _measure(
    console: Console, parts: Sequence[str], plan: Plan, *, rows: Sequence[int], events: int, output: Path
) -> None:
    require_writable(output)
    started_s, caption = time.monotonic(), machine()
    figures: list[Figure] = []
    growth: Growth | None = None

    def say(text: str) -> None:
        print(f"bench: {text}", file=sys.stderr, flush=True)

    for part in parts:
        say(part)
        # The server belongs to the thread that started it, so outside of any loop; each part has an empty one.
        with running_postgres() as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            if part == "ingest":
                figures += runner.run(ledger_ingest.measure(server, rounds=plan.rounds, batches=plan.batches))
            elif part == "replay":
                figures += runner.run(ledger_replay.measure(server, events=events))
            else:
                growth = runner.run(
                    ledger_growth.measure(
                        server,
                        sizes=rows,
                        rounds=plan.growth_rounds,
                        calls=plan.calls,
                        batches=plan.growth_batches,
                        say=say,
                    )
                )
    shown = list(figures)
    if growth is not None:
        grown = growth.figures()
        shown += [figure for figure in grown if " at " not in figure.name]
        figures += grown
    print_figures(console, shown, f"{caption}\nledger; {time.monotonic() - started_s:.0f} s in all")
    if growth is not None:
        _print_growth(console, growth)
    write_results(output, figures)


def _print_growth(console: Console, growth: Growth) -> None:
    table = Table(
        title="As the ledger grows",
        caption=f"p50 / p99 in ms, medians of the rounds; {growth.calls} calls of each a round, in turns on all sizes",
        caption_justify="left",
    )
    table.add_column("rows in the ledger")
    for size in growth.sizes:
        table.add_column(f"{size:,}", justify="right")
    for report in REPORTS:
        values = [
            " / ".join(f"{_median(by[report, size]):.1f}" for by in (growth.p50_ms, growth.p99_ms))
            for size in growth.sizes
        ]
        table.add_row(report, *values)
    for name in dict.fromkeys(name for name, _ in growth.ingest):
        unit = "" if name == INGEST else ", us"
        table.add_row(f"{name}{unit}", *(f"{_median(growth.ingest[name, size]):,.0f}" for size in growth.sizes))
    console.print(table)


def _median(samples: Sequence[float]) -> float:
    return sorted(samples)[len(samples) // 2]


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(int(part) for part in text.split(","))
    if list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"must be ascending numbers of rows such as 10000,1000000, not {text}")
    return sizes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
