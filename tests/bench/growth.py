"""How the router's cost grows with the tenants it knows and with the streams it has open. One table.

    python -m tests.bench.growth [tenants] [streams] [--smoke] [--output FILE]

Tenants: every one is created, forgotten by the router's cache and served once, which has rows of its own: a first
request reads the tenant's configuration, and soon its limits, and must cost more. Then requests go round among all of
them. The last row asks the first ten again while all are known, so that drift of the machine during the run shows as a
difference between it and the first row.

Streams: an open loop whose rate times a stream's duration is the number wanted. How many calls the router had open just
before the last began, and how many cores it took then, stand beside: a router whose one thread is full lets new streams
wait. Gaps of 10 ms up to 32 streams, of 250 ms from there: a thousand streams 10 ms apart are 100,000 chunks a second,
which no Python serves. Compare rows of one gap only.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc
from rich.console import Console
from rich.table import Table

from tests.bench.fake_provider import DELTAS, GAP_S, SLOW_GAP_S
from tests.bench.figures import Figure, percentile, require_writable, write_results
from tests.bench.processes import BenchFailed
from tests.bench.report import machine
from tests.bench.site import Site, running_site
from tests.bench.stopping import at_most, exit_code
from turnpike.router.v1 import tenant_service_pb2, tenant_service_pb2_grpc

PARTS: Final = ("tenants", "streams")
_TENANTS: Final = "tenants"
_FIRST: Final = "first requests"
# More than the streams wanted, since a stream takes longer where the machine is busy.
# A load that is late itself begins hundreds at once, which on its own is no flood.
_SETTINGS: Final = {
    "ROUTER_MAX_RUNNING_PER_TENANT": "1000",
    "ROUTER_MAX_RUNNING_PER_PROVIDER": "4000",
    "ROUTER_MAX_WAITING_RPCS": "2000",
}
_IN_FLIGHT: Final = 32
_CREATORS: Final = 16
_SETTLE_S: Final = 0.7
_LIMITS_ASKED_S: Final = 3.0  # in which limits are asked about that the last requests of all began to need
_LIMIT_S: Final = 120.0  # for one load
_MAX_RUN_S: Final = 420


@dataclass(frozen=True, slots=True)
class Level:
    """A number of streams, how far apart their deltas are, and for how long new ones begin."""

    streams: int
    gap_s: float
    seconds: float

    @property
    def model(self) -> str:
        return "paced" if self.gap_s == GAP_S else "slow"

    @property
    def rate_per_s(self) -> float:
        return self.streams / (self.gap_s * DELTAS)

    @property
    def name(self) -> str:
        return f"{self.streams:,} streams, {self.gap_s * 1e3:g} ms apart"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    tenants: Sequence[int]
    rounds: int
    requests: int
    open_loop: int
    open_rate_per_s: float
    levels: Sequence[Level]


FULL: Final = Plan(
    tenants=(10, 100, 1_000, 10_000),
    rounds=2,
    requests=500,
    open_loop=75,
    open_rate_per_s=50.0,
    levels=(
        Level(1, GAP_S, 6.0),
        Level(10, GAP_S, 5.0),
        Level(32, GAP_S, 5.0),
        Level(32, SLOW_GAP_S, 13.0),
        Level(1_000, SLOW_GAP_S, 13.0),
    ),
)
SMOKE: Final = Plan(
    tenants=(10, 20),
    rounds=1,
    requests=50,
    open_loop=10,
    open_rate_per_s=50.0,
    levels=(Level(4, GAP_S, 1.0), Level(20, SLOW_GAP_S, 1.0)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: of a call of a request or a stream; `kind` is the same for those that may be compared."""

    kind: str
    name: str
    cpu_ms: float
    told: str
    p50_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Streamed:
    """What came of a level: `cores` that the router took while the last fifth of the streams began."""

    calls: int
    open_at_once: int
    cores: float
    cpu_s: float
    took_s: float
    answer: Any


@dataclass(slots=True)
class Growth:
    """One part over a site. `figures` is in the order of measuring."""

    site: Site
    plan: Plan
    figures: list[Figure] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def tenants(self) -> None:
        """More and more tenants, and the first of them once more."""
        tenants: list[str] = []
        idle = self._idle_share()
        with ThreadPoolExecutor(_CREATORS) as pool, grpc.insecure_channel(self.site.router) as channel:
            stub = tenant_service_pb2_grpc.TenantServiceStub(channel)
            for count in self.plan.tenants:
                tenants += pool.map(lambda number: _create(stub, number), range(len(tenants), count))
                stub.InvalidateCache(tenant_service_pb2.InvalidateCacheRequest(), timeout=30)
                time.sleep(_SETTLE_S)  # every router is told, which takes a moment
                self._first_requests(tenants, idle)
                self._requests(f"{count:,} tenants", tenants)
        first = tenants[: self.plan.tenants[0]]
        self._requests(f"the first {len(first)} of {len(tenants):,} tenants", first)

    def _first_requests(self, tenants: Sequence[str], idle: float) -> None:
        """The one request of each tenant that has to read its configuration; `idle` is taken off."""
        before_s, started_s = self.site.router_process.cpu_s(), time.monotonic()
        self._load("closed", "one", tenants, count=len(tenants), in_flight=_IN_FLIGHT)
        time.sleep(_LIMITS_ASKED_S)
        cpu_s = self.site.router_process.cpu_s() - before_s - idle * (time.monotonic() - started_s)
        cpu_ms = cpu_s / len(tenants) * 1e3
        name = f"first request of each of {len(tenants):,} tenants"
        self.rows.append(Row(_FIRST, name, cpu_ms, "each reads its tenant's configuration"))
        how = f"Complete, {_IN_FLIGHT} in flight; user + system time of the router's process"
        self.figures.append(Figure(f"CPU per unary request, {name}", "ms", [cpu_ms], how))

    def _requests(self, name: str, tenants: Sequence[str]) -> None:
        # In another order than they were created in: neighbours may lie side by side.
        asked = random.Random(1).sample(tenants, len(tenants))
        asked = asked[: self.plan.requests]
        cpu_ms: list[float] = []
        p50_ms: list[float] = []
        all_ms: list[float] = []
        for _ in range(self.plan.rounds):
            before_s = self.site.router_process.cpu_s()
            self._load("closed", "one", asked, count=self.plan.requests, in_flight=_IN_FLIGHT)
            time.sleep(_SETTLE_S)
            cpu_ms.append((self.site.router_process.cpu_s() - before_s) / self.plan.requests * 1e3)
            answer = self._load("open", "one", asked, count=self.plan.open_loop, rate_per_s=self.plan.open_rate_per_s)
            p50_ms.append(percentile(answer["first_content_ms"], 0.5))
            all_ms = sorted([*all_ms, *answer["first_content_ms"]])
        spread = f"p50 {min(p50_ms):.2f} .. {max(p50_ms):.2f}"
        self.rows.append(Row(_TENANTS, name, median(cpu_ms), spread, median(p50_ms), percentile(all_ms, 0.99)))
        closed = f"Complete, {_IN_FLIGHT} in flight; user + system time of the router's process"
        opened = f"Complete, open loop at {self.plan.open_rate_per_s:g}/s from the intended start"
        self.figures.append(Figure(f"CPU per unary request, {name}", "ms", cpu_ms, closed))
        self.figures.append(Figure(f"unary p50, {name}", "ms", p50_ms, opened))

    def _load(self, kind: str, model: str, tenants: Sequence[str], **command: Any) -> Any:
        return self.site.run(
            kind,
            self.site.router,
            within_s=_LIMIT_S,
            method="complete",
            model=model,
            tenants=tenants,
            **command,
        )

    def streams(self) -> None:
        """More and more streams at a time."""
        self._stream(Level(10, GAP_S, 1.0))
        idle = self._idle_share()
        for level in self.plan.levels:
            ran = self._stream(level)
            calls, seen = ran.calls, ran.open_at_once
            cpu_ms = (ran.cpu_s - idle * ran.took_s) / calls * 1e3
            p50_ms, p99_ms = (percentile(ran.answer["first_content_ms"], fraction) for fraction in (0.5, 0.99))
            told = f"{seen} open on {ran.cores:.2f} cores, {ran.answer['messages'] / calls:.1f} messages each"
            self.rows.append(Row(f"streams {level.gap_s:g}", level.name, cpu_ms, told, p50_ms, p99_ms))
            how = (
                f"{DELTAS}-delta streams, open loop at {level.rate_per_s:g}/s, {calls} calls, {seen} open at once, the "
                f"router then on {ran.cores:.2f} cores"
            )
            cpu = f"{how}; user + system time of the router's process, less what it takes when idle"
            self.figures.append(Figure(f"CPU per stream, {level.name}", "ms", [cpu_ms], cpu))
            self.figures.append(Figure(f"first token p50, {level.name}", "ms", [p50_ms], how))
            self.figures.append(Figure(f"first token p99, {level.name}", "ms", [p99_ms], how))

    def _stream(self, level: Level) -> Streamed:
        """Open streams for as long as a level says, and wait for all of them."""
        process = self.site.router_process
        calls = max(2, round(level.rate_per_s * level.seconds))
        before_s, started_s = process.cpu_s(), time.monotonic()
        self.site.begin(
            "open",
            self.site.router,
            method="stream",
            model=level.model,
            tenants=self.site.tenants,
            channels=8,
            count=calls,
            rate_per_s=level.rate_per_s,
        )
        time.sleep(level.seconds * 0.75)
        late_s, late_cpu_s = time.monotonic(), process.cpu_s()
        time.sleep(level.seconds * 0.2)
        cores = (process.cpu_s() - late_cpu_s) / (time.monotonic() - late_s)
        seen = self.site.calls_running()
        try:
            answer = self.site.finish(within_s=_LIMIT_S)
        except BenchFailed as failure:
            raise BenchFailed(f"{level.name}, {seen} calls open: {failure}") from failure
        time.sleep(_SETTLE_S)
        cpu_s, took_s = process.cpu_s() - before_s, time.monotonic() - started_s
        return Streamed(calls, seen, cores, cpu_s, took_s, answer)

    def _idle_share(self) -> float:
        """CPU seconds per second of a router without requests."""
        before_s, started_s = self.site.router_process.cpu_s(), time.monotonic()
        time.sleep(3.0)
        return (self.site.router_process.cpu_s() - before_s) / (time.monotonic() - started_s)


def _create(stub: Any, number: int) -> str:
    config = tenant_service_pb2.InferenceConfig(preferred_provider="local", allowed_providers=["local"])
    request = tenant_service_pb2.CreateTenantRequest(name=f"Growing {number}", inference_config=config)
    tenant_id: str = stub.CreateTenant(request, timeout=30).tenant.id
    return tenant_id


def table_of(rows: Sequence[Row]) -> Table:
    """All rows, each with its cost over that of the first of its kind."""
    table = Table(title="How the router's cost grows")
    table.add_column("")
    for heading in ("CPU ms per call", "over the first", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    table.add_column("")
    first: dict[str, Row] = {}
    for row in rows:
        over = row.cpu_ms / first.setdefault(row.kind, row).cpu_ms
        latencies = ("" if value is None else f"{value:.1f}" for value in (row.p50_ms, row.p99_ms))
        table.add_row(row.name, f"{row.cpu_ms:.2f}", f"{over:.2f} x", *latencies, row.told)
    return table


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 with the tables, 1 without."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description="How the router's cost grows.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: both")
    parser.add_argument("--smoke", action="store_true", help="a short run that only shows that it works")
    parser.add_argument("--output", type=Path, default=Path("bench-growth-results.json"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"{', '.join(unknown)}: no part; there are {', '.join(PARTS)}")
    return exit_code(lambda: _measure(options.parts or PARTS, SMOKE if options.smoke else FULL, options.output))


def _measure(parts: Sequence[str], plan: Plan, output: Path) -> None:
    require_writable(output)
    caption, started_s = machine(), time.monotonic()
    console = Console() if sys.stdout.isatty() else Console(width=120)
    measured: list[Growth] = []
    try:
        with at_most(_MAX_RUN_S):
            for part in parts:
                # A Turnpike for each: a router that has just served 10,000 tenants follows their limits for a minute.
                with running_site(_SETTINGS) as site:
                    measured.append(Growth(site, plan))
                    getattr(measured[-1], part)()
    finally:
        # What there is: a later level may have failed.
        console.print(table_of([row for growth in measured for row in growth.rows]))
    console.print(f"{caption}\n{time.monotonic() - started_s:.0f} s")
    write_results(output, [figure for growth in measured for figure in growth.figures])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
