"""What a router does with several times the load that it can serve, with and without its two lines of defence.

    python -m tests.bench.overload [--times 5] [--seconds 10] [--deadline-s 5]

"Told no" is every answer without content in time: calls that gRPC's core resets because too many wait, refusals at the
entry, and those that the router gives when a deadline is about to pass. Goodput is what was served before the flood
ended; the peak is that of a closed loop of the same client just before. Bulkheads are out of the way (4,000 at a time),
so that nothing but the two lines of defence stands between load and router. Client, provider, ledger and Postgres share
the machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.bench.figures import percentile
from tests.bench.open_flood import flood, saturate
from tests.bench.processes import BenchFailed, idle_s
from tests.bench.report import machine
from tests.bench.site import Site, running_site

_WARM_UP_S: Final = 2.0
_PEAK_S: Final = 5.0
_PEAK_IN_FLIGHT: Final = 64
_QUIET_RATE_PER_S: Final = 20.0
_QUIET_CALLS: Final = 60
_RECOVERY_S: Final = 5.0  # the promise is thirty
_MAX_RUN_S: Final = 300
_WIDE: Final = {"ROUTER_MAX_RUNNING_PER_TENANT": "4000", "ROUTER_MAX_RUNNING_PER_PROVIDER": "4000"}
_UNBOUNDED: Final = {**_WIDE, "ROUTER_MAX_WAITING_RPCS": "100000"}
_ARMS: Final[Mapping[str, Mapping[str, str]]] = {
    "as it comes": _WIDE,
    "gate only": _UNBOUNDED,
    "neither": {**_UNBOUNDED, "ROUTER_SHED_LATE_CALLS": "false"},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One arm: calls per second, milliseconds, and shares of the flood."""

    peak_per_s: float
    begun_per_s: float
    goodput_per_s: float
    served: int
    refused: int
    codes: Mapping[str, int]
    late: int
    served_p50_ms: float
    refused_p50_ms: float
    refused_p99_ms: float
    quiet_before_ms: float
    quiet_after_ms: float
    router_cores: float
    idle_cores: float


def measure(site: Site, *, times: float, seconds: float, deadline_s: float) -> Outcome:
    """Peak, quiet, flood, quiet again. Raises BenchFailed when a call outside of the flood fails."""
    saturate(site.router, site.tenants, in_flight=_PEAK_IN_FLIGHT, seconds=_WARM_UP_S)
    peak_per_s = saturate(site.router, site.tenants, in_flight=_PEAK_IN_FLIGHT, seconds=_PEAK_S)
    quiet_before_ms = _quiet_ms(site)
    rate_per_s = times * peak_per_s
    router_s, idle_s_before, began_s = site.router_process.cpu_s(), idle_s(), time.monotonic()
    told = flood(site.router, site.tenants, per_s=rate_per_s, seconds=seconds, deadline_s=deadline_s)
    passed_s = time.monotonic() - began_s
    router_s, idle = site.router_process.cpu_s() - router_s, idle_s() - idle_s_before
    time.sleep(_RECOVERY_S)
    served, refused = told.served_ms, told.refused_ms
    return Outcome(
        peak_per_s=peak_per_s,
        begun_per_s=told.begun / told.seconds,
        goodput_per_s=told.served_meanwhile / told.seconds,
        served=len(served),
        refused=len(refused),
        codes=told.codes,
        late=told.begun - len(served) - len(refused),
        served_p50_ms=percentile(served, 0.5) if served else 0.0,
        refused_p50_ms=percentile(refused, 0.5) if refused else 0.0,
        refused_p99_ms=percentile(refused, 0.99) if refused else 0.0,
        quiet_before_ms=quiet_before_ms,
        quiet_after_ms=_quiet_ms(site),
        router_cores=router_s / passed_s,
        idle_cores=idle / passed_s,
    )


def _quiet_ms(site: Site) -> float:
    answer = _run(site, "open", count=_QUIET_CALLS, rate_per_s=_QUIET_RATE_PER_S)
    return percentile(answer["first_content_ms"], 0.5)


def _run(site: Site, kind: str, **command: Any) -> Mapping[str, Any]:
    return site.run(kind, site.router, within_s=120.0, method="complete", model="one", tenants=site.tenants, **command)


def print_outcomes(console: Console, outcomes: Mapping[str, Outcome], caption: str) -> None:
    table = Table(title="Overload", caption=caption, caption_justify="left")
    table.add_column("")
    for arm in outcomes:
        table.add_column(arm, justify="right")
    rows: dict[str, Callable[[Outcome], str]] = {
        "peak, calls/s": lambda o: f"{o.peak_per_s:.0f}",
        "begun in the flood, calls/s": lambda o: f"{o.begun_per_s:.0f}",
        "goodput in the flood, calls/s": lambda o: f"{o.goodput_per_s:.0f}",
        "goodput over peak": lambda o: f"{o.goodput_per_s / o.peak_per_s:.0%}",
        "served in time / told no / late": lambda o: f"{o.served} / {o.refused} / {o.late}",
        "told no by core / gate / clock": lambda o: " / ".join(str(o.codes.get(code, 0)) for code in ("1", "8", "4")),
        "served p50, ms": lambda o: f"{o.served_p50_ms:.0f}",
        "told no p50 / p99, ms": lambda o: f"{o.refused_p50_ms:.0f} / {o.refused_p99_ms:.0f}",
        f"quiet p50 before / {_RECOVERY_S:g} s after, ms": lambda o: (
            f"{o.quiet_before_ms:.1f} / {o.quiet_after_ms:.1f}"
        ),
        "cores in the flood: router / idle": lambda o: f"{o.router_cores:.2f} / {o.idle_cores:.2f}",
    }
    for name, value in rows.items():
        table.add_row(name, *(value(outcome) for outcome in outcomes.values()))
    console.print(table)


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 with a table, 1 without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.overload", description="Overload one router.")
    parser.add_argument("--times", type=float, default=5.0, help="load over peak; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the flood; default: %(default)s")
    parser.add_argument("--deadline-s", type=float, default=5.0, help="of each call; default: %(default)s")
    parser.add_argument("--arms", nargs="+", choices=tuple(_ARMS), default=tuple(_ARMS), metavar="ARM")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(_MAX_RUN_S)
    outcomes: dict[str, Outcome] = {}
    try:
        for arm in options.arms:
            with running_site(_ARMS[arm]) as site:
                outcomes[arm] = measure(
                    site, times=options.times, seconds=options.seconds, deadline_s=options.deadline_s
                )
    except (BenchFailed, AssertionError, OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    how = f"{options.times:g} times the peak for {options.seconds:g} s, Complete, deadline {options.deadline_s:g} s"
    print_outcomes(Console(width=120), outcomes, f"{machine()}\n{how}")
    return 0


def _out_of_time(_number: int, _frame: object) -> None:
    raise BenchFailed("out of time: the machine is too busy, or something hangs")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
