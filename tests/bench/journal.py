"""What the journal costs, and what a backlog and an outage do to it: `python -m tests.bench.journal [--backlog N]`.

The journal and its sender as the router has them, on this machine's disk, against a usage_service in a process of its
own that answers at once: what is measured is the router's side. Percentiles are of this run alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop
from prometheus_client import Histogram

from router_service.usage.channel import usage_channel
from router_service.usage.journal import SqliteJournal
from router_service.usage.metrics import UsageMetrics
from router_service.usage.right_of_way import RightOfWay
from router_service.usage.sender import UsageSender
from service_runtime.ids import uuid7
from tests.bench.journal_timeline import Span, Timeline, watching
from tests.bench.stopping import exit_code
from tests.bench.usage_sink import usage_sink
from tests.support.attempts import journal_metrics, opened_attempt, settled_attempt

_ROUND_S = 4.0
_COMMIT_BYTES = 5 * 4096  # what SQLite's log grows by for one record
_SYNCS_AT_ONCE = 150
_SLOWEST = 8


def _open(directory: Path, metrics: UsageMetrics | None = None) -> SqliteJournal:
    return SqliteJournal.open(
        directory, max_bytes=8 << 30, metrics=metrics or journal_metrics(), new_epoch=lambda: str(uuid7())
    )


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


def _cuts(waits: Sequence[float]) -> list[float]:
    return statistics.quantiles(waits, n=100)


def _ms(waits: Sequence[float]) -> str:
    cuts = _cuts(waits)
    return f"p50 {cuts[49] * 1000:.2f} ms, p99 {cuts[98] * 1000:.2f} ms"


async def _cost(directory: Path) -> None:
    for at_once, count in ((1, 1_000), (32, 16_000)):
        metrics = journal_metrics()
        journal = _open(directory / f"cost-{at_once}", metrics)
        syncs = _bare_syncs(directory)
        began_cpu_s = time.process_time()
        seconds, waits = await _attempts(journal, count, at_once)
        cpu_us = (time.process_time() - began_cpu_s) / count * 1e6
        syncs += _bare_syncs(directory)
        print(
            f"{at_once:>3} at a time: {count / seconds:,.0f} attempts/s, that is {2 * count / seconds:,.0f} records/s, "
            f"all synced; opened {_ms(waits)}; CPU {cpu_us:.0f} us an attempt\n     {_commits(metrics, seconds)}\n"
            f"     a bare sync just before and after: {_ms(syncs)}"
        )
        await journal.close()


def _commits(metrics: UsageMetrics, seconds: float) -> str:
    """How many records shared a sync, and how much of the time the thread spent on commits and rotations."""
    count, in_commits_s = _count_and_sum(metrics.commit_seconds)
    rotations, in_rotations_s = _count_and_sum(metrics.rotation_seconds)
    _, records = _count_and_sum(metrics.group_size)
    return (
        f"{records / count:.1f} records a commit, {in_commits_s / count * 1000:.2f} ms each, "
        f"{in_commits_s / seconds:.0%} of the time; {rotations:.0f} rotations, {in_rotations_s / seconds:.1%}"
    )


def _count_and_sum(histogram: Histogram) -> tuple[float, float]:
    (family,) = histogram.collect()
    values = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples}
    return values["count"], values["sum"]


def _bare_syncs(directory: Path) -> list[float]:
    """What the disk asks for as many bytes as a commit writes, in a file that need not grow: the least there is."""
    path = directory / "bare"
    path.write_bytes(bytes(_SYNCS_AT_ONCE * _COMMIT_BYTES))
    waits: list[float] = []
    with path.open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
        for _ in range(_SYNCS_AT_ONCE):
            began = time.perf_counter()
            file.write(b"x" * _COMMIT_BYTES)
            os.fdatasync(file.fileno())
            waits.append(time.perf_counter() - began)
    return waits


async def _backlog(directory: Path, count: int, target: str, rounds: int) -> None:
    """See `_by_turns`; afterwards the slowest `opened` with what went on meanwhile."""
    async with watching(directory) as timeline:
        await _by_turns(directory, count, target, rounds, timeline)
    for line in timeline.slowest(_SLOWEST):
        print(f"  slow: {line}")


async def _by_turns(directory: Path, count: int, target: str, rounds: int, timeline: Timeline) -> None:
    """Live attempts beside a backlog that drains, over live attempts alone: by turns, so that both have one machine."""
    journal = _open(directory / "backlog")
    await _settle(journal, count)
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    sent, took_s = 0, 0.0
    right_of_way = RightOfWay.beside(journal, journal_metrics())  # one for all rounds: it learns its pace
    async with usage_channel(target) as channel:
        while journal.waiting > 500:
            alone.append(await _paced(journal, _ROUND_S, timeline, "alone") if len(alone) < rounds else [])
            sender = UsageSender(
                journal, channel, router_id="bench", metrics=journal_metrics(), right_of_way=right_of_way
            )
            before, began = journal.waiting, time.perf_counter()
            sender.start()
            beside.append([])
            while journal.waiting > 500 and (len(beside) >= rounds or time.perf_counter() < began + _ROUND_S):
                beside[-1] += await _paced(journal, 0.25, timeline, "beside")
            sent, took_s = sent + before - journal.waiting, took_s + time.perf_counter() - began
            await sender.stop(0)
    await right_of_way.close()
    await journal.close()
    pairs = [(one, two) for one, two in zip(alone, beside, strict=True) if len(one) > 100 and len(two) > 100]
    print(f"backlog of {count:,} drained at {sent / took_s:,.0f}/s beside 100 live attempts/s")
    if not pairs:
        print("  it is drained too soon for a ratio: a longer one, please")
        return
    for cut, name in ((49, "p50"), (98, "p99")):
        ratios = [_cuts(two)[cut] / _cuts(one)[cut] for one, two in pairs]
        print(
            f"  live opened {name}, beside over alone: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds of {_ROUND_S:.0f} s)"
        )
    together = [[wait for waits in each for wait in waits] for each in (alone, beside)]
    print(f"  all rounds, alone:  opened {_ms(together[0])}\n  all rounds, beside: opened {_ms(together[1])}")


async def _settle(journal: SqliteJournal, count: int) -> None:
    """A backlog, as fast as it can be written."""

    async def worker(number: int) -> None:
        for _ in range(number):
            await journal.settled(settled_attempt(uuid7()))

    await asyncio.gather(*(worker(count // 500) for _ in range(500)))


async def _paced(journal: SqliteJournal, seconds: float, timeline: Timeline, what: str) -> list[float]:
    """One hundred attempts a second, for so long: what each waited for its `opened`."""
    waits: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        waits += (await _attempts(journal, 1, 1))[1]
        timeline.opened.append(Span(began, began + waits[-1], what))
        await asyncio.sleep(0.01)
    return waits


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
    first, last = statistics.median(samples[: 2 * tenth]), statistics.median(samples[-tenth:])
    print(
        f"outage of {seconds:.0f} s, {written:,} attempts: "
        f"RSS {first:.0f} MiB in its first fifth, {last:.0f} at the end"
    )


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


async def _run(options: argparse.Namespace, target: str) -> None:
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        await _cost(Path(directory))
        await _backlog(Path(directory), options.backlog, target, options.rounds)
        await _outage(Path(directory), options.outage_s)


def main() -> int:
    """The exit code: 0 with the figures, 1 without."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=200_000, help="events that wait when the ledger comes back")
    parser.add_argument("--rounds", type=int, default=8, help="of live attempts alone and beside the backlog")
    parser.add_argument("--outage-s", type=float, default=30.0, help="how long nobody takes the events")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args()
    return exit_code(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> None:
    with usage_sink() as target:
        uvloop.run(_run(options, target))


if __name__ == "__main__":
    sys.exit(main())
