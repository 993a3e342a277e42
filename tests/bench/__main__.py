"""Measure, and print the figures.

    python -m tests.bench [--smoke] [--output FILE]
    python -m tests.bench compare A.json B.json

A run starts and ends everything it needs, loads only 127.0.0.1 and writes its figures to FILE as well. A missed target
does not make it fail, because shared machines differ; not having every figure does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.bench.figures import read_results, require_writable, write_results
from tests.bench.pair import running_pair
from tests.bench.plan import FULL, SETTINGS, SMOKE
from tests.bench.report import machine, print_comparison, print_figures
from tests.bench.scenarios import Bench
from tests.bench.site import running_site
from tests.bench.stopping import at_most, exit_code

_MAX_RUN_S = 600
_MAX_SMOKE_S = 120
_TABLE_COLUMNS = 120


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 with a table, 1 without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure Turnpike on this machine.")
    parser.add_argument("--smoke", action="store_true", help="a short run that only shows that the bench works")
    parser.add_argument("--output", type=Path, default=Path("bench-results.json"), help="default: %(default)s")
    commands = parser.add_subparsers(dest="command")
    compare = commands.add_parser("compare", help="hold the results of two runs against each other")
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    options = parser.parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=_TABLE_COLUMNS)
    if options.command == "compare":
        return exit_code(lambda: print_comparison(console, read_results(options.before), read_results(options.after)))
    return exit_code(lambda: _measure(console, options.output, smoke=options.smoke))


def _measure(console: Console, output: Path, *, smoke: bool) -> None:
    started_s = time.monotonic()
    plan, limit_s = (SMOKE, _MAX_SMOKE_S) if smoke else (FULL, _MAX_RUN_S)
    caption = machine()
    require_writable(output)
    with running_site(SETTINGS) as site, running_pair(site, SETTINGS) as pair, at_most(limit_s):
        figures = Bench(site, pair, plan).run()
    took = f"{plan.rounds} alternated rounds in {time.monotonic() - started_s:.0f} s"
    print_figures(console, figures, f"{caption}\n{took}{'; a smoke run: its figures mean little' if smoke else ''}")
    write_results(output, figures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
