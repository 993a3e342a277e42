"""What a router does with several times the load that it can serve, with and without its two lines of defence.

    python -m tests.bench.overload [--times 5] [--seconds 10] [--deadline-s 5] [--rounds 3]

"Told no" is every answer without content in time: calls that gRPC's core resets because too many wait, refusals at the
entry, and those that the router gives when a deadline is about to pass. Goodput is what was served before the flood
ended; the peak is that of a closed loop of the same client just before and after, because on a shared machine it is
another one a minute later. Bulkheads are out of the way (4,000 at a time), so that nothing but the two lines of defence
stands between load and router. Client, provider, ledger and Postgres share the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console

from tests.bench.core_time import CoreTime, core_time
from tests.bench.figures import Figure, Target, percentile
from tests.bench.open_flood import flood, saturate
from tests.bench.report import machine, print_figures
from tests.bench.site import Site, running_site
from tests.bench.stopping import at_most, exit_code

_WARM_UP_S: Final = 2.0
_PEAK_S: Final = 4.0
_PEAK_IN_FLIGHT: Final = 64
_QUIET_RATE_PER_S: Final = 20.0
_QUIET_CALLS: Final = 60
_RECOVERY_S: Final = 5.0  # the promise is thirty
_MAX_RUN_S: Final = 600
_WIDE: Final = {"ROUTER_MAX_RUNNING_PER_TENANT": "4000", "ROUTER_MAX_RUNNING_PER_PROVIDER": "4000"}
_UNBOUNDED: Final = {**_WIDE, "ROUTER_MAX_WAITING_RPCS": "100000"}
_AS_IT_COMES: Final = "as it comes"
_ARMS: Final[Mapping[str, Mapping[str, str]]] = {
    _AS_IT_COMES: _WIDE,
    "gate only": _UNBOUNDED,
    "neither": {**_UNBOUNDED, "ROUTER_SHED_LATE_CALLS": "false"},
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One round: calls per second, milliseconds, and counts of the flood's calls."""

    peak_before_per_s: float
    peak_after_per_s: float
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
    at_peak: CoreTime  # before the flood
    in_flood: CoreTime

    @property
    def peak_per_s(self) -> float:
        return (self.peak_before_per_s + self.peak_after_per_s) / 2


def rounds(site: Site, *, count: int, times: float, seconds: float, deadline_s: float) -> Sequence[Outcome]:
    """`count` of them, after a warm-up. Raises BenchFailed when a call outside of the flood fails."""
    _peak_per_s(site, _WARM_UP_S)
    return [_round(site, times=times, seconds=seconds, deadline_s=deadline_s) for _ in range(count)]


def _round(site: Site, *, times: float, seconds: float, deadline_s: float) -> Outcome:
    """Quiet, peak, flood, quiet again, peak again."""
    quiet_before_ms = _quiet_ms(site)
    looks: list[CoreTime] = []

    def look() -> None:
        looks.append(core_time(site.router_process))

    peak_before_per_s = _peak_per_s(site, _PEAK_S, look)
    rate_per_s = times * peak_before_per_s
    told = flood(site.router, site.tenants, per_s=rate_per_s, seconds=seconds, deadline_s=deadline_s, look=look)
    peak_begins, peak_ends, flood_begins, flood_ends = looks
    time.sleep(_RECOVERY_S)
    quiet_after_ms = _quiet_ms(site)
    served, refused = told.served_ms, told.refused_ms
    return Outcome(
        peak_before_per_s=peak_before_per_s,
        peak_after_per_s=_peak_per_s(site, _PEAK_S),
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
        quiet_after_ms=quiet_after_ms,
        at_peak=peak_ends.since(peak_begins),
        in_flood=flood_ends.since(flood_begins),
    )


def _peak_per_s(site: Site, seconds: float, look: Callable[[], None] = lambda: None) -> float:
    return saturate(site.router, site.tenants, in_flight=_PEAK_IN_FLIGHT, seconds=seconds, look=look)


def _quiet_ms(site: Site) -> float:
    answer = _run(site, "open", count=_QUIET_CALLS, rate_per_s=_QUIET_RATE_PER_S)
    return percentile(answer["first_content_ms"], 0.5)


def _run(site: Site, kind: str, **command: Any) -> Mapping[str, Any]:
    return site.run(kind, site.router, within_s=120.0, method="complete", model="one", tenants=site.tenants, **command)


def figures(arm: str, outcomes: Sequence[Outcome]) -> Sequence[Figure]:
    """What came of the rounds of one arm; the promises are held against the router as it comes."""

    def of(name: str, unit: str, samples: Sequence[float], target: Target | None = None) -> Figure:
        return Figure(f"{arm}: {name}", unit, samples, "", target if arm == _AS_IT_COMES else None)

    def told_no(name: str, code: str) -> Figure:
        return of(f"  told no by {name}", "calls", [o.codes.get(code, 0) for o in outcomes])

    return [
        of("peak", "calls/s", [o.peak_per_s for o in outcomes]),
        of("  after over before: the noise", "x", [o.peak_after_per_s / o.peak_before_per_s for o in outcomes]),
        of("begun in the flood", "calls/s", [o.begun_per_s for o in outcomes]),
        of("goodput in the flood", "calls/s", [o.goodput_per_s for o in outcomes]),
        of(
            "goodput over peak",
            "%",
            [100 * o.goodput_per_s / o.peak_per_s for o in outcomes],
            Target(80.0, is_at_most=False),
        ),
        of("served in time", "calls", [o.served for o in outcomes]),
        of("told no", "calls", [o.refused for o in outcomes]),
        told_no("core", "1"),
        told_no("the gate", "8"),
        told_no("the clock", "4"),
        of("late", "calls", [o.late for o in outcomes]),
        of("served p50", "ms", [o.served_p50_ms for o in outcomes]),
        of("told no p50", "ms", [o.refused_p50_ms for o in outcomes]),
        of("told no p99", "ms", [o.refused_p99_ms for o in outcomes], Target(50.0)),
        of("quiet p50 before", "ms", [o.quiet_before_ms for o in outcomes]),
        of(f"quiet p50 {_RECOVERY_S:g} s after", "ms", [o.quiet_after_ms for o in outcomes]),
        *_cores("at the peak", of, [o.at_peak for o in outcomes]),
        *_cores("in the flood", of, [o.in_flood for o in outcomes]),
    ]


def _cores(
    when: str, of: Callable[[str, str, Sequence[float]], Figure], shares: Sequence[CoreTime]
) -> Sequence[Figure]:
    """What tells whether the router is at its limit, or the machine on which the load runs as well."""
    return [
        of(f"cores {when}: the router", "", [share.router for share in shares]),
        of("  its event loop", "", [share.loop for share in shares]),
        of("  its event loop ready, without one", "", [share.loop_waited for share in shares]),
        of("  whoever makes the calls", "", [share.load for share in shares]),
        of("  idle", "", [share.idle for share in shares]),
    ]


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 with a table, 1 without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.overload", description="Overload one router.")
    parser.add_argument("--times", type=float, default=5.0, help="load over peak; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the flood; default: %(default)s")
    parser.add_argument("--deadline-s", type=float, default=5.0, help="of each call; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="of each arm; default: %(default)s")
    parser.add_argument("--arms", nargs="+", choices=tuple(_ARMS), default=tuple(_ARMS), metavar="ARM")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> None:
    conditions, found = machine(), list[Figure]()
    for arm in options.arms:
        with running_site(_ARMS[arm]) as site, at_most(_MAX_RUN_S):
            outcomes = rounds(
                site,
                count=options.rounds,
                times=options.times,
                seconds=options.seconds,
                deadline_s=options.deadline_s,
            )
        found += figures(arm, outcomes)
    how = (
        f"{options.times:g} times the peak for {options.seconds:g} s, Complete, deadline {options.deadline_s:g} s; "
        f"{options.rounds} rounds of each arm"
    )
    print_figures(Console(width=120), found, f"{conditions}\n{how}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
