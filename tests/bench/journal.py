"""What the journal costs, and what a backlog and an outage do to it: `python -m tests.bench.journal [--backlog N]`.

The journal and its sender as the router has them, on this machine's disk, against a usage_service in a process of its
own that answers at once: what is measured is the router's side. Percentiles are of this run alone.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from router_service.usage.channel import usage_channel
from router_service.usage.journal import SqliteJournal
from router_service.usage.sender import UsageSender
from service_runtime.ids import uuid7
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt
from tests.support.fake_usage_service import FakeUsageService, serving


class _Counting(FakeUsageService):
    """Answers everything and keeps nothing: a million events would fill its memory."""

    async def RecordUsage(self, request, context):  # type: ignore[no-untyped-def]  # as the base has it
        response = await super().RecordUsage(request, context)
        self.batches.clear()
        return response


def _open(directory: Path) -> SqliteJournal:
    return SqliteJournal.open(directory, max_bytes=8 << 30, metrics=journal_metrics(), new_epoch=lambda: str(uuid7()))


async def _attempts(journal: SqliteJournal, count: int, at_once: int) -> tuple[float, list[float]]:
    """Seconds for `count` attempts, and those that each `opened` took."""
    waits: list[float] = []

    async def worker(number: int) -> None:
        for _ in range(number):
            event_id = uuid7()
            began = time.perf_counter()
            await journal.opened(opened_attempt(event_id))
            waits.append(time.perf_counter() - began)
            await journal.settled(settled_attempt(event_id))

    began = time.perf_counter()
    await asyncio.gather(*(worker(count // at_once) for _ in range(at_once)))
    return time.perf_counter() - began, waits


def _ms(waits: Sequence[float]) -> str:
    cuts = statistics.quantiles(waits, n=100)
    return f"p50 {cuts[49] * 1000:.2f} ms, p99 {cuts[98] * 1000:.2f} ms"


async def _cost(directory: Path) -> None:
    for at_once, count in ((1, 1_000), (32, 16_000)):
        journal = _open(directory / f"cost-{at_once}")
        seconds, waits = await _attempts(journal, count, at_once)
        print(f"{at_once:>3} at a time: {count / seconds:,.0f} attempts/s, both records synced; opened {_ms(waits)}")
        await journal.close()


async def _backlog(directory: Path, count: int, target: str) -> None:
    """Live attempts beside a backlog that drains, over live attempts alone."""
    journal = _open(directory / "backlog")
    await _attempts(journal, count, 256)
    alone = (await _paced(journal, 5.0))[1]
    began = time.perf_counter()
    async with usage_channel(target) as channel:
        sender = UsageSender(journal, channel, router_id="bench", metrics=journal_metrics())
        sender.start()
        beside: list[float] = []
        while (await journal.state()).waiting > 500:
            beside += (await _paced(journal, 1.0))[1]
        seconds = time.perf_counter() - began
        await sender.stop(30)
    await journal.close()
    print(f"backlog of {count:,} drained at {count / seconds:,.0f}/s beside 100 live attempts/s")
    print(f"  live, alone:  opened {_ms(alone)}\n  live, beside: opened {_ms(beside)}")


async def _paced(journal: SqliteJournal, seconds: float) -> tuple[int, list[float]]:
    """One hundred attempts a second, for so long."""
    waits: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        waits += (await _attempts(journal, 1, 1))[1]
        await asyncio.sleep(0.01)
    return len(waits), waits


async def _outage(directory: Path, seconds: float) -> None:
    """Memory while nobody takes the events."""
    journal = _open(directory / "outage")
    async with usage_channel("127.0.0.1:9") as channel:
        sender = UsageSender(journal, channel, router_id="bench", metrics=journal_metrics())
        sender.start()
        until, samples, written = time.perf_counter() + seconds, [], 0
        while time.perf_counter() < until:
            await _attempts(journal, 2_000, 32)
            written += 2_000
            samples.append(_rss_mib())
        await sender.stop(1)
    await journal.close()
    tenth = max(1, len(samples) // 10)
    first, last = statistics.median(samples[tenth : 2 * tenth]), statistics.median(samples[-tenth:])
    print(f"outage of {seconds:.0f} s, {written:,} attempts: RSS {first:.0f} MiB after a tenth, {last:.0f} at the end")


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _usage_service(pipe: Connection) -> None:
    async def serve() -> None:
        async with serving(_Counting()) as target:
            pipe.send(target)
            await asyncio.Event().wait()

    uvloop.run(serve())


async def _run(options: argparse.Namespace, target: str) -> None:
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        await _cost(Path(directory))
        await _backlog(Path(directory), options.backlog, target)
        await _outage(Path(directory), options.outage_s)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=100_000, help="events that wait when the ledger comes back")
    parser.add_argument("--outage-s", type=float, default=30.0, help="how long nobody takes the events")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    service = context.Process(target=_usage_service, args=(theirs,), daemon=True)
    service.start()
    try:
        uvloop.run(_run(options, ours.recv()))
    finally:
        service.kill()


if __name__ == "__main__":
    main()
