"""Measure what a read window saves and what it costs.

    python -m tests.bench.read_windows [--windows-ms 0 20 40] [--rounds N] [--smoke]

For each window a Turnpike of its own, beside the naive proxy, in turns: CPU of streams whose deltas are apart in time
and of those that come in one write, the messages they become, and how much later a stream ends than straight at the
provider. The ratio to the naive proxy is taken in each round; between windows only ratios can be compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from tests.bench.fake_provider import DELTAS, GAP_S
from tests.bench.figures import percentile
from tests.bench.report import machine
from tests.bench.site import Site, running_site
from tests.bench.stopping import exit_code

_IN_FLIGHT = 32
_RATE_PER_S = 20.0
_SETTLE_S = 0.7
_WITHIN_S = 60.0

_Samples = Mapping[str, Sequence[float]]


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 with a table, 1 without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.read_windows", description="What a read window saves.")
    parser.add_argument("--windows-ms", type=float, nargs="+", default=[0, 10, 20, 25, 40, 50], metavar="MS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="few streams; shows only that it works")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _measure(options.windows_ms, options.rounds, 32 if options.smoke else 256))


def _measure(windows_ms: Sequence[float], rounds: int, streams: int) -> None:
    rows = [(window_ms, _measured(window_ms, rounds, streams)) for window_ms in windows_ms]
    _print(rows, f"{machine()}\n{rounds} rounds, medians; in brackets the smallest and the largest")


def _measured(window_ms: float, rounds: int, streams: int) -> _Samples:
    samples: dict[str, list[float]] = defaultdict(list)
    with running_site({"ROUTER_READ_WINDOW_MS": f"{window_ms:g}"}) as site:
        for target in (site.router, site.naive):
            for model in ("burst", "paced"):
                _streams(site, target, model, streams // 4)
        for number in range(rounds):
            proxies = [("router", site.router, site.router_process), ("naive", site.naive, site.naive_process)]
            for model, factor in (("paced", 1), ("burst", 2)):
                cost_ms: dict[str, float] = {}
                for name, target, process in proxies if number % 2 == 0 else reversed(proxies):
                    before_s = process.cpu_s()
                    messages = _streams(site, target, model, streams * factor)
                    time.sleep(_SETTLE_S)
                    cost_ms[name] = (process.cpu_s() - before_s) / (streams * factor) * 1e3
                    if name == "router":
                        samples[f"{model} messages"].append(messages)
                samples[f"{model} ms"].append(cost_ms["router"])
                samples[f"{model} ratio"].append(cost_ms["naive"] / cost_ms["router"])
            direct, routed = _open_loop(site, site.provider), _open_loop(site, site.router)
            for what, times in (("first", "first_content_ms"), ("whole", "whole_ms")):
                samples[f"added {what}"].append(percentile(routed[times], 0.5) - percentile(direct[times], 0.5))
    return samples


def _streams(site: Site, target: str, model: str, count: int) -> float:
    """Carry out `count` streams; the messages that each brought."""
    asked = {"method": "stream", "model": model, "tenants": site.tenants, "count": count, "in_flight": _IN_FLIGHT}
    messages: float = site.run("closed", target, within_s=_WITHIN_S, **asked)["messages"]
    return messages / count


def _open_loop(site: Site, target: str) -> Mapping[str, Sequence[float]]:
    method = "direct" if target == site.provider else "stream"
    asked = {"method": method, "model": "paced", "tenants": site.tenants, "count": 80, "rate_per_s": _RATE_PER_S}
    return site.run("open", target, within_s=_WITHIN_S, **asked)


def _print(rows: Sequence[tuple[float, _Samples]], caption: str) -> None:
    paced = f"paced {GAP_S * 1e3:g} ms"
    table = Table(title=f"{DELTAS}-delta streams by read window", caption=caption)
    columns = {
        f"{paced}: CPU-ms": "paced ms",
        "naive over it": "paced ratio",
        "messages": "paced messages",
        "burst: CPU-ms": "burst ms",
        "naive over it ": "burst ratio",
        f"{paced}: added to first token, ms": "added first",
        "added to the end, ms": "added whole",
    }
    for name in ("window, ms", *columns):
        table.add_column(name, justify="right")
    for window_ms, samples in rows:
        table.add_row(f"{window_ms:g}", *(_spread(samples[key]) for key in columns.values()))
    Console(width=140).print(table)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
