"""One run: storms of faults with a calm after each, then the end, then the witnesses are heard.

In every calm everything must recover by itself: all processes ready, a success from each router within 10 s, and, with
the clients pausing, empty journals within 60 s.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import plan
from tests.chaos.books import read_books
from tests.chaos.checker import Case, Finding, check
from tests.chaos.faults import Faults
from tests.chaos.processes import ChaosFailed, Unplanned
from tests.chaos.site import Site
from tests.chaos.witnesses import Call, Row, parse_line, read_history, read_provider_log, successes

SUCCESS_WITHIN_S = 10.0
DRAINED_WITHIN_S = 60.0
_WARM_UP_S = 1.5
_POLL_S = 0.1
_LAST_ANSWERS_S = 30.0
_STOPPED_BY_SIGTERM = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """How a run is made: `storms` of `storm_s` seconds with a fault every `mean_gap_s` seconds on average."""

    seed: int
    storms: int
    storm_s: float = 22.0
    mean_gap_s: float = 0.8
    kinds: Mapping[str, plan.Kind] = field(default_factory=lambda: plan.KINDS)
    sabotage: str = ""
    think_s: float = 0.4  # between two requests of one of a client's workers


@dataclass
class Outcome:
    """Everything that is told of a run."""

    shape: Shape
    disk: str
    faults: Faults
    calls: Sequence[Call] = ()
    rows: Sequence[Row] = ()
    provider_requests: int = 0
    findings: Sequence[Finding] = ()
    violations: list[str] = field(default_factory=list)  # of liveness, and of the order to end well
    first_success_s: list[float] = field(default_factory=list)
    drain_s: list[float] = field(default_factory=list)
    deepest_backlog: int = 0
    start_times_s: Mapping[str, Sequence[float]] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def kills_by_others(self) -> list[Unplanned]:
        return [end for end in self.faults.unplanned if end.is_kill]

    @property
    def crashes(self) -> list[Unplanned]:
        return [end for end in self.faults.unplanned if not end.is_kill]


async def run(shape: Shape, directory: Path) -> Outcome:
    """Carry out a run in a directory of its own. Raises ChaosFailed when it cannot be brought to its end."""
    began_s = time.monotonic()
    rng = random.Random(shape.seed)
    storms = [
        plan.storm(rng, length_s=shape.storm_s, mean_gap_s=shape.mean_gap_s, kinds=shape.kinds)
        for _ in range(shape.storms)
    ]
    site = Site(directory, shape.seed, shape.think_s, shape.sabotage)
    try:
        await site.start()
        outcome = Outcome(shape, site.disk.how, Faults(site, random.Random(shape.seed + 1)))
        watch = asyncio.create_task(_watch(site, outcome))
        await asyncio.sleep(_WARM_UP_S)
        try:
            for storm in storms:
                await outcome.faults.carry_out(storm)
                await _recover(site, outcome)
        finally:
            watch.cancel()
        await _end(site, outcome)
        await _hear_the_witnesses(site, outcome)
    except* ChaosFailed as failures:
        raise ChaosFailed("; ".join(map(str, _flat(failures)))) from None
    finally:
        await site.stop()
    outcome.took_s = time.monotonic() - began_s
    return outcome


async def _watch(site: Site, outcome: Outcome) -> None:
    """Notice ends that nobody asked for, and bring the process back, so that the run tells what else there is."""
    while True:
        waiting = await site.waiting_events()
        outcome.deepest_backlog = max(outcome.deepest_backlog, waiting or 0)
        for program in list(site.programs.values()):
            if (end := program.unplanned()) is None:
                continue
            program.is_wanted = False
            outcome.faults.unplanned.append(end)
            if program.name in plan.SERVICES:
                await program.start()
            elif program.name in plan.CLIENTS:
                site.launch_client(program.name)
        await asyncio.sleep(_POLL_S)


async def _recover(site: Site, outcome: Outcome) -> None:
    """The calm: everything is healed and up. Must succeed within 10 s, and drain within 60 s."""
    healed_at, healed_s = time.time(), time.monotonic()
    missing = set(plan.ROUTERS)
    while missing and time.monotonic() < healed_s + SUCCESS_WITHIN_S:
        missing -= {router for at, router in _successes(site) if at > healed_at}
        await asyncio.sleep(_POLL_S)
    if missing:
        outcome.violations.append(
            f"no success from {', '.join(sorted(missing))} within {SUCCESS_WITHIN_S:.0f} s after everything was healed"
        )
    else:
        outcome.first_success_s.append(time.monotonic() - healed_s)
    _signal_clients(site, signal.SIGUSR1)
    await _drain(site, outcome, healed_s)
    _signal_clients(site, signal.SIGUSR2)


async def _drain(site: Site, outcome: Outcome, since_s: float) -> None:
    began_s = time.monotonic()
    while (waiting := await site.waiting_events()) != 0:
        if time.monotonic() > began_s + DRAINED_WITHIN_S:
            outcome.violations.append(f"{waiting} events wait {DRAINED_WITHIN_S:.0f} s after everything was healed")
            return
        await asyncio.sleep(_POLL_S)
    outcome.drain_s.append(time.monotonic() - since_s)


async def _end(site: Site, outcome: Outcome) -> None:
    """Clients first, then the journals must be empty, then everything ends by SIGTERM."""
    for name in plan.CLIENTS:
        code = await site.programs[name].stop()
        if code != _STOPPED_BY_SIGTERM:
            outcome.violations.append(f"{name} ended with exit code {code}:\n{site.programs[name].tail()}")
    await _settled(site, outcome)
    outcome.violations += await site.audit()
    for name in (*plan.ROUTERS, "usage"):
        code = await site.programs[name].stop()
        outcome.faults.exit_codes[name, code] += 1
    outcome.start_times_s = {name: site.programs[name].start_times_s[1:] for name in plan.SERVICES}
    outcome.violations += [
        f"{name} ended {times} times with exit code {code} after SIGTERM"
        for (name, code), times in outcome.faults.exit_codes.items()
        if code != _STOPPED_BY_SIGTERM
    ]


async def _settled(site: Site, outcome: Outcome) -> None:
    """Wait until no request runs any more, also those that go on without their caller, and their events are sent."""
    give_up_at = time.monotonic() + _LAST_ANSWERS_S
    quiet_polls = 0
    while quiet_polls < 15 and time.monotonic() < give_up_at:
        quiet_polls = quiet_polls + 1 if await site.waiting_events() == 0 else 0
        await asyncio.sleep(_POLL_S)
    await _drain(site, outcome, time.monotonic())


async def _hear_the_witnesses(site: Site, outcome: Outcome) -> None:
    calls = [call for history in site.histories for call in read_history(history)]
    served = read_provider_log(site.provider_log)
    books = await read_books(site.dsn)
    outcome.calls, outcome.rows, outcome.provider_requests = calls, books.rows, len(served)
    outcome.findings = check(Case(calls, served, books, outcome.faults.garblings))


def _successes(site: Site) -> list[tuple[float, str]]:
    """The latest successes of the clients that run; enough of each history's end to hold some seconds."""
    found = []
    for history in site.histories[-len(plan.CLIENTS) - 2 :]:
        with history.open("rb") as file:
            file.seek(max(0, history.stat().st_size - (128 << 10)))
            lines = [parse_line(text) for text in file.read().decode(errors="replace").splitlines()]
        found += list(successes(line for line in lines if line is not None))
    return found


def _signal_clients(site: Site, number: signal.Signals) -> None:
    for name in plan.CLIENTS:
        site.programs[name].signal(number)


def _flat(group: BaseExceptionGroup[ChaosFailed]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _flat(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def ends_of(calls: Sequence[Call]) -> Counter[str]:
    """How the requests ended for their callers."""
    return Counter(call.outcome or "client killed" for call in calls)
