"""A router through an outage of the ledger: `python -m tests.bench.outage [--seconds N] [--rate N]`.

Real processes on loopback: Postgres, usage_service, one router, a provider that costs next to nothing. Callers come at
a steady rate, open loop, before, during and after: usage_service is stopped for so long, then started again, and the
router's backlog drains beside the callers. The router's memory is sampled throughout; at the end the books are
compared with what the callers saw, and a difference fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import asyncpg
import grpc.aio
import uvloop

from service_runtime.ids import uuid7
from tests.bench.processes import BenchFailed, Helper, Tree
from tests.bench.stopping import exit_code
from tests.chaos.processes import Program
from tests.support.ports import free_ports
from turnpike.router.v1 import completion_pb2, router_service_pb2
from turnpike_client import UsageClient

_STREAM: Final = "/turnpike.router.v1.RouterService/StreamCompletion"
_TIMEOUT_S: Final = 30.0
_WARM_UP_S: Final = 15.0
_BESIDE_S: Final = 20.0  # what the time before the outage is measured for
_DRAINED_WITHIN_S: Final = 600.0
_TENANTS: Final = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as its caller saw it: when it was meant to begin, and how long its result took from then on."""

    request_id: str
    at_s: float
    took_ms: float
    error: str = ""


@dataclass
class Callers:
    """An open loop: a call begins each `1 / rate_per_s` seconds, whatever became of those before."""

    channel: grpc.aio.Channel
    rate_per_s: float
    seen: list[Seen] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _load: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._load = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Begin no more calls, and wait for those under way."""
        assert self._load is not None
        self._stop.set()
        await self._load

    async def _run(self) -> None:
        tenants = [str(uuid7()) for _ in range(_TENANTS)]
        began_s, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while not self._stop.is_set():
                intended_s = began_s + number / self.rate_per_s
                await asyncio.sleep(max(0.0, intended_s - time.monotonic()))
                group.create_task(self._one(tenants[number % _TENANTS], intended_s))
                number += 1

    async def _one(self, tenant_id: str, intended_s: float) -> None:
        request_id, error = str(uuid7()), ""
        message = completion_pb2.ChatMessage(role=completion_pb2.ROLE_USER, content="Tell me about turnpikes.")
        request = router_service_pb2.StreamCompletionRequest(
            tenant_id=tenant_id, request_id=request_id, messages=[message], model="one", provider="local"
        )
        method: Callable[..., Any] = self.channel.unary_stream(_STREAM)  # whose type wants serializers
        try:
            async for _ in method(request.SerializeToString(), timeout=_TIMEOUT_S):
                pass
        except grpc.aio.AioRpcError as failure:
            error = f"{failure.code().name}: {failure.details()}"
        self.seen.append(Seen(request_id, intended_s, (time.monotonic() - intended_s) * 1000, error))

    def took_ms(self, begin_s: float, end_s: float) -> list[float]:
        """What the calls took that were meant to begin in that time and succeeded."""
        return [seen.took_ms for seen in self.seen if begin_s <= seen.at_s < end_s and not seen.error]

    def between(self, begin_s: float, end_s: float) -> str:
        """p50 and p99 of the calls that were meant to begin in that time."""
        times = self.took_ms(begin_s, end_s)
        if len(times) < 2:
            return "too short to tell"
        cuts = statistics.quantiles(times, n=100)
        return f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms of {len(times):,} calls"


@dataclass(frozen=True, slots=True)
class Sample:
    """The router's resident memory, MiB, and the events that wait in its journal; at a monotonic time in seconds."""

    at_s: float
    rss_mib: float
    waiting: int


@dataclass
class Site:
    """The processes of a run."""

    router: Program
    usage: Program
    postgres: Program
    router_directory: Path
    router_port: int
    usage_port: int
    dsn: str
    samples: list[Sample] = field(default_factory=list)

    def waiting(self) -> int:
        """Events in the router's journal that the ledger has not acknowledged."""
        return int(self.metric("turnpike_router_journal_waiting_events"))

    def metric(self, name: str) -> float:
        """A metric of the router that has no labels, as it is now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.router_port + 1000}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[-1])
        raise BenchFailed(f"the router does not say {name}")

    async def sample(self) -> None:
        """Look at the router once a second, for ever."""
        process = Tree(self.router.pid)
        while True:
            waiting = await asyncio.to_thread(self.waiting)
            self.samples.append(Sample(time.monotonic(), process.rss_mib(), waiting))
            await asyncio.sleep(1.0)

    def rss(self, begin_s: float, end_s: float) -> float:
        """The median of that time, MiB."""
        found = [sample.rss_mib for sample in self.samples if begin_s <= sample.at_s <= end_s]
        return statistics.median(found) if found else 0.0


@asynccontextmanager
async def running_site(directory: Path) -> AsyncIterator[Site]:
    """Everything on free ports, with data of its own in `directory`."""
    postgres = Program("postgres", "tests.chaos.postgres", [str(directory / "postgres")], directory=directory)
    started = [postgres]
    with Helper("tests.bench.fake_provider") as provider:
        try:
            await _begin(postgres)
            dsn = (directory / "postgres" / "dsn").read_text()
            usage_port, router_port = free_ports(), free_ports()
            common = {"TURNPIKE_DATABASE_URL": dsn, "USAGE_PORT": str(usage_port)}
            usage = Program(
                "usage",
                "usage_service",
                directory=directory,
                environment=common | {"TURNPIKE_DATA_DIR": str(directory / "usage")},
            )
            address = f"http://127.0.0.1:{int(provider.read_line(within_s=20))}/v1"
            router = Program(
                "router",
                "router_service",
                directory=directory,
                environment=common
                | {
                    "TURNPIKE_DATA_DIR": str(directory / "router"),
                    "ROUTER_PORT": str(router_port),
                    "ROUTER_LOCAL_BASE_URL": address,
                    "ROUTER_LOCAL_MODEL": "one",
                },
            )
            for program in (usage, router):
                started.append(program)
                await _begin(program)
            yield Site(router, usage, postgres, directory / "router", router_port, usage_port, dsn)
        finally:
            for program in reversed(started):
                await program.stop()


async def _begin(program: Program) -> None:
    if not await program.start():
        raise BenchFailed(f"{program.name} does not start:\n{program.tail()}")


async def _measure(site: Site, seconds: float, rate_per_s: float) -> int:
    """Print the figures; how many differences there are between callers and books."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{site.router_port}") as channel:
        async with Callers(channel, rate_per_s) as callers:
            watch = asyncio.create_task(site.sample())
            await asyncio.sleep(_WARM_UP_S + _BESIDE_S)
            if (code := await site.usage.stop()) != 0:
                raise BenchFailed(f"usage_service ended with exit code {code}:\n{site.usage.tail()}")
            outage_s = time.monotonic()
            await asyncio.sleep(seconds)
            if watch.done():
                watch.result()
            back_s, backlog = time.monotonic(), await asyncio.to_thread(site.waiting)
            await _begin(site.usage)
            up_s = time.monotonic()
            drained_s = await drained(site, at_most=max(50, int(rate_per_s)))
            await asyncio.sleep(_BESIDE_S)
        await drained(site, at_most=0)
        watch.cancel()
        ended_s = time.monotonic()
    tenth = min(60.0, seconds / 10)
    waiting_rss = [sample.rss_mib for sample in site.samples if outage_s <= sample.at_s <= back_s]
    print(f"outage of {seconds:.0f} s at {rate_per_s:g} calls/s; {backlog:,} events waited at its end")
    print(
        f"  RSS of the router: before {site.rss(outage_s - _BESIDE_S, outage_s):.1f} MiB, "
        f"its first {tenth:.0f} s {site.rss(outage_s, outage_s + tenth):.1f}, "
        f"median {statistics.median(waiting_rss):.1f}, its last {tenth:.0f} s {site.rss(back_s - tenth, back_s):.1f}, "
        f"at most {max(waiting_rss):.1f}; at the end {site.rss(ended_s - 10, ended_s):.1f}"
    )
    tenths = [outage_s + number * seconds / 10 for number in range(11)]
    by_tenth = (f"{site.rss(begin_s, end_s):.1f}" for begin_s, end_s in pairwise(tenths))
    print(f"  RSS by tenths of the outage: {' '.join(by_tenth)}")
    print(f"  drain: {drained_s - up_s:.1f} s once usage_service was up, {backlog / (drained_s - up_s):,.0f} events/s")
    print(f"  calls before: {callers.between(outage_s - _BESIDE_S, outage_s)}")
    print(f"  calls during: {callers.between(outage_s, back_s)}")
    print(f"  calls beside the drain: {callers.between(up_s, drained_s)}")
    print(f"  calls after:  {callers.between(drained_s, ended_s)}")
    return await books_differ(site, callers.seen)


async def drained(site: Site, *, at_most: int) -> float:
    """When no more events wait than that. Raises BenchFailed when they go on waiting."""
    give_up_s = time.monotonic() + _DRAINED_WITHIN_S
    while (waiting := await asyncio.to_thread(site.waiting)) > at_most:
        if time.monotonic() > give_up_s:
            raise BenchFailed(f"{waiting} events still wait after {_DRAINED_WITHIN_S:.0f} s")
        await asyncio.sleep(0.1)
    return time.monotonic()


async def books_differ(site: Site, seen: Sequence[Seen]) -> int:
    """Callers against tables: every success booked once, nothing that nobody asked for, no number missing.

    Prints the differences; how many there are.
    """
    connection = await asyncpg.connect(site.dsn, timeout=30, command_timeout=120)
    try:
        rows = await connection.fetch(
            "SELECT request_id::text AS request_id, status, router_epoch, router_sequence FROM model_usage_stats"
        )
    finally:
        await connection.close(timeout=10)
    asked = {each.request_id for each in seen}
    succeeded = {each.request_id for each in seen if not each.error}
    booked = Counter(row["request_id"] for row in rows if row["status"] == "success")
    numbers = Counter((row["router_epoch"], row["router_sequence"]) for row in rows)
    last: dict[str, int] = {}
    for epoch, number in numbers:
        last[epoch] = max(number, last.get(epoch, 0))
    lost = sum(1 for request_id in succeeded if not booked[request_id])
    missing = sum(last.values()) - len(numbers)
    duplicated = sum(count - 1 for count in (*booked.values(), *numbers.values()))
    wrong = sum(1 for row in rows if row["request_id"] not in asked)
    async with UsageClient(f"127.0.0.1:{site.usage_port}") as client:
        wrong += sum(1 for result in (await client.verify()).results if not result.is_right)
    failed = Counter(each.error for each in seen if each.error)
    print(
        f"  {len(seen):,} calls, {len(succeeded):,} succeeded, {len(rows):,} rows; failures: {dict(failed) or 'none'}"
    )
    print(f"  lost {lost}, missing numbers {missing}, duplicated {duplicated}, wrong {wrong}")
    return int(lost + missing + duplicated + wrong)


def on_a_site(measure: Callable[[Site], Awaitable[int]], *, name: str, disk: Path | None) -> int:
    """Run `measure` on a site whose directory is made for it, on the disk of `disk`; 1 when it found differences."""
    directory = Path(tempfile.mkdtemp(prefix=f"turnpike-{name}-", dir=disk))
    directory.chmod(0o755)  # the embedded Postgres may run as another user

    async def run() -> int:
        async with running_site(directory) as site:
            return await measure(site)

    try:
        return 1 if uvloop.run(run()) else 0
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """The exit code: 0 when the books agree with the callers, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.outage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long usage_service is away (default 600)")
    parser.add_argument("--rate", type=float, default=50.0, help="calls per second (default 50)")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args()
    return exit_code(
        lambda: on_a_site(
            lambda site: _measure(site, options.seconds, options.rate), name="outage", disk=options.directory
        )
    )


if __name__ == "__main__":
    sys.exit(main())
