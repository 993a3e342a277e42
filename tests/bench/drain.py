"""Live calls beside the drain of a backlog: `python -m tests.bench.drain [--backlog N] [--rate N] [--rounds N]`.

The processes of `tests.bench.outage`. The backlog is written into the router's journal by the journal's own code while
the router is stopped, which takes seconds where an outage would take hours. Callers come at a steady rate, open loop:
first with nothing but themselves in the journal; then beside the drain, in turns with times in which usage_service is
frozen, so that both meet the same machine; at last when all is drained. A frozen usage_service takes no core from the
callers, not even for their own events: the ratio by turns is the hardest of the three.

Every event, of the backlog and of the callers, is looked for in the books at the end; a difference fails the run.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc.aio

from router_service.domain.usage import AttemptOpened, AttemptSettled, AttemptStatus, Funding, TokenUsage, UsageSource
from router_service.usage.journal import SqliteJournal
from service_runtime.ids import uuid7
from tests.bench.outage import Callers, Seen, Site, books_differ, drained, on_a_site
from tests.bench.processes import BenchFailed, Tree
from tests.bench.stopping import exit_code
from tests.support.attempts import TENANT, journal_metrics

_WARM_UP_S: Final = 10.0
_LEAST_CALLS: Final = 300  # a p99 of fewer is three calls' luck
_RESUMES_WITHIN_S: Final = 30.0  # the sender's longest pause after failures
_SETTLES_S: Final = 3.0  # what a phase leaves to the next one
_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Phase:
    """From when to when, in monotonic seconds; how many events of the backlog went meanwhile, the CPU seconds that each
    process took, and at its end the router's pace in events a second (0: nothing is held back) and the strain.
    """

    begin_s: float
    end_s: float
    gone: int
    cpu_s: dict[str, float]
    pace_per_s: float
    strain: float


@dataclass
class Drain:
    """One run: the site, its callers, and the phases so far."""

    site: Site
    callers: Callers
    phase_s: float
    alone: list[Phase] = field(default_factory=list)
    beside: list[Phase] = field(default_factory=list)

    async def phase(self) -> Phase:
        """Measure for as long as a phase is."""
        before, begin_s, cpu_s = await asyncio.to_thread(self.site.waiting), time.monotonic(), self._cpu_s()
        await asyncio.sleep(self.phase_s)
        after = await asyncio.to_thread(self.site.waiting)
        taken = {name: total - cpu_s[name] for name, total in self._cpu_s().items()}
        end_s = time.monotonic()
        pace_per_s = await asyncio.to_thread(self.site.metric, "turnpike_router_usage_backlog_events_per_second")
        strain = await asyncio.to_thread(self.site.metric, "turnpike_router_usage_backlog_strain_ratio")
        return Phase(begin_s, end_s, before - after, taken, pace_per_s, strain)

    async def by_turns(self, rounds: int, enough: int) -> None:
        """Beside the drain, then with usage_service frozen, again and again while more than `enough` events wait."""
        while len(self.alone) < rounds and await asyncio.to_thread(self.site.waiting) > enough:
            beside = await self.phase()
            if await asyncio.to_thread(self.site.waiting) <= enough:
                return
            self.site.usage.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(_SETTLES_S)
                alone = await self.phase()
            finally:
                self.site.usage.signal(signal.SIGCONT)
            self.beside.append(beside)
            self.alone.append(alone)
            print(f"beside: {self.line(beside)}\nalone:  {self.line(alone)}", flush=True)
            await self._resumed()

    async def _resumed(self) -> None:
        waiting, give_up_s = await asyncio.to_thread(self.site.waiting), time.monotonic() + _RESUMES_WITHIN_S
        while (now := await asyncio.to_thread(self.site.waiting)) >= waiting:
            waiting = max(waiting, now)
            if time.monotonic() > give_up_s:
                raise BenchFailed("the drain does not go on after usage_service was frozen")
            await asyncio.sleep(0.1)
        await asyncio.sleep(_SETTLES_S)

    def _cpu_s(self) -> dict[str, float]:
        programs = {"router": self.site.router, "usage_service": self.site.usage, "postgres": self.site.postgres}
        return {name: Tree(program.pid).cpu_s() for name, program in programs.items()}

    def line(self, phase: Phase) -> str:
        """A phase in one line."""
        length_s = phase.end_s - phase.begin_s
        cpu = ", ".join(f"{name} {taken / length_s:.2f}" for name, taken in phase.cpu_s.items())
        calls = self.callers.between(phase.begin_s, phase.end_s)
        pace = f", pace {phase.pace_per_s:,.0f} at strain {phase.strain:.2f}" if phase.pace_per_s else ""
        return f"{calls}; {phase.gone / length_s:,.0f} events/s gone{pace}; cores: {cpu}"

    def p99_ms(self, phase: Phase) -> float:
        """Of the calls that were meant to begin in the phase. Raises BenchFailed when they are too few."""
        times = self.callers.took_ms(phase.begin_s, phase.end_s)
        if len(times) < _LEAST_CALLS:
            raise BenchFailed(f"{len(times)} calls in a phase; --phase-s or --rate must be larger for {_LEAST_CALLS}")
        return statistics.quantiles(times, n=100)[98]


async def _fill(directory: Path, count: int) -> list[Seen]:
    """A backlog in a journal that nobody has open, as if as many callers had been served."""
    journal = SqliteJournal.open(
        directory, max_bytes=8 << 30, metrics=journal_metrics(), new_epoch=lambda: str(uuid7())
    )
    requests: list[Seen] = []

    async def worker(number: int) -> None:
        for _ in range(number):
            attempt = _attempt()
            await journal.settled(attempt)
            requests.append(Seen(str(attempt.opened.request_id), 0.0, 0.0))

    await asyncio.gather(*(worker(count // _AT_ONCE) for _ in range(_AT_ONCE)))
    await journal.close()
    return requests


def _attempt() -> AttemptSettled:
    opened = AttemptOpened(
        event_id=uuid7(),
        request_id=uuid7(),
        tenant_id=TENANT,
        attempt=1,
        provider="local",
        model="one",
        funding=Funding.SYSTEM_KEY,
        task_type="chat",
        endpoint="/bench",
        user_id="",
        estimated_input_tokens=12,
        labels={},
    )
    return AttemptSettled(
        opened=opened,
        model="one",
        status=AttemptStatus.SUCCESS,
        usage=TokenUsage(input_tokens=10, output_tokens=50),
        usage_source=UsageSource.PROVIDER,
        latency_s=0.25,
        time_to_first_token_s=0.1,
    )


async def _measure(site: Site, options: argparse.Namespace) -> int:
    """Print the figures; how many differences there are between events and books."""
    seen: list[Seen] = []
    enough = 10 * int(options.rate)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{site.router_port}") as channel:
        async with Callers(channel, options.rate) as callers:
            await asyncio.sleep(_WARM_UP_S)
            run = Drain(site, callers, options.phase_s)
            before = await run.phase()
            print(f"before: {run.line(before)}", flush=True)
        await drained(site, at_most=0)
        seen += callers.seen
        if (code := await site.router.stop()) != 0:
            raise BenchFailed(f"the router ended with exit code {code}:\n{site.router.tail()}")
        began_s = time.monotonic()
        seen += await _fill(site.router_directory / "journal", options.backlog)
        print(f"{options.backlog:,} events written in {time.monotonic() - began_s:.0f} s", flush=True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{site.router_port}") as channel:
        if not await site.router.start():
            raise BenchFailed(f"the router does not start again:\n{site.router.tail()}")
        up_s = time.monotonic()
        async with Callers(channel, options.rate) as callers:
            await asyncio.sleep(_WARM_UP_S)
            run.callers = callers
            await run.by_turns(options.rounds, enough)
            rest, rest_s = await asyncio.to_thread(site.waiting), time.monotonic()
            drained_s = await drained(site, at_most=max(50, int(options.rate)))
            took_s = drained_s - rest_s
            print(f"what the rounds left, {rest:,} events: {took_s:.1f} s, {rest / max(took_s, 0.1):,.0f}/s")
            print(f"  beside: {callers.between(rest_s, drained_s)}")
            await asyncio.sleep(_SETTLES_S)
            after = await run.phase()
        await drained(site, at_most=0)
        seen += callers.seen
    print(f"after:  {run.line(after)}\nthe whole took {drained_s - up_s:.0f} s with the frozen times")
    _print_ratios(run, before, after)
    return await books_differ(site, seen)


def _print_ratios(run: Drain, before: Phase, after: Phase) -> None:
    if not run.beside:
        print("the backlog was gone before the first round was over: a longer one, please")
        return
    besides = [run.p99_ms(phase) for phase in run.beside]
    turns = [one / run.p99_ms(other) for one, other in zip(besides, run.alone, strict=True)]
    # The callers of `before` are none of those that came later.
    print(
        f"p99 beside the drain over frozen, by turns: {statistics.median(turns):.2f} "
        f"({min(turns):.2f} to {max(turns):.2f} in {len(turns)} rounds of {run.phase_s:.0f} s); "
        f"median of the rounds over after: {statistics.median(besides) / run.p99_ms(after):.2f}"
    )
    rates = [phase.gone / (phase.end_s - phase.begin_s) for phase in run.beside]
    print(f"events/s beside the callers: {statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})")


def main() -> int:
    """The exit code: 0 when the books agree with the events, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.drain", description=__doc__)
    parser.add_argument("--backlog", type=int, default=200_000, help="events that wait at first (default 200,000)")
    parser.add_argument("--rate", type=float, default=50.0, help="calls per second (default 50)")
    parser.add_argument("--rounds", type=int, default=5, help="beside the drain and alone, by turns (default 5)")
    parser.add_argument("--phase-s", type=float, default=10.0, help="how long each half of a round is (default 10)")
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to measure")
    options = parser.parse_args()
    return exit_code(lambda: on_a_site(lambda site: _measure(site, options), name="drain", disk=options.directory))


if __name__ == "__main__":
    sys.exit(main())
