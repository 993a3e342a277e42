"""What belongs to no tenant: event ids, and the positions of the routers' journals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from usage_service.domain.audit import (
    CheckResult,
    Discrepancy,
    JournalTrace,
    LedgerCheck,
    Results,
    Scope,
    merged_ranges,
    sequence_gaps,
    subtracted,
)
from usage_service.domain.journal import Journal, SequenceRange
from usage_service.domain.window import Window
from usage_service.storage.audit_checks import QUERIES, bounded, counted
from usage_service.storage.journals import journals_in

if TYPE_CHECKING:
    from asyncpg import Record

    from service_runtime.postgres import Connection
    from usage_service.metering.auditing import HeldRows

_WEEK = timedelta(weeks=1)
# What is stored for longer than this without its predecessor has lost it, where no report of the router tells.
_SETTLED = timedelta(minutes=10)
# A journal without gaps has one run a week and a few at midnight; this many are no journal's any more.
_MAX_RUNS = 100_000

_Epoch = tuple[str, str]


@dataclass(slots=True)
class _Traces:
    """The rows' sequences by router and epoch, gathered week by week."""

    runs: dict[_Epoch, list[SequenceRange]] = field(default_factory=dict)
    settled_to: dict[_Epoch, int] = field(default_factory=dict)
    rows: int = 0

    def add(self, record: Record) -> None:
        epoch = (record["router_id"], record["router_epoch"])
        self.runs.setdefault(epoch, []).append(SequenceRange(record["first"], record["last"]))
        self.settled_to[epoch] = max(self.settled_to.get(epoch, 0), record["settled_to"] or 0)
        self.rows += record["rows"]


async def verify_journals(
    connection: Connection,
    window: Window,
    held: HeldRows,
    *,
    now: datetime,
    open_since: datetime,
    accept_back: timedelta,
    most: int,
) -> Results:
    """See `metering.auditing.AuditStore.verify_journals`; the caller has begun the snapshot."""
    duplicates = CheckResult()
    for week in weeks(window):
        duplicates += await bounded(connection, _name(week), partial(_duplicate_events, connection, week, most))
    results = {
        LedgerCheck.DUPLICATE_EVENT: duplicates,
        LedgerCheck.OPEN_ATTEMPT: await bounded(
            connection, "the routers' reports", partial(_open_attempts, connection, open_since, most)
        ),
    }
    traces, repeated = _Traces(), CheckResult()
    for week in weeks(window):
        repeated += await bounded(connection, _name(week), partial(_runs_of, connection, week, now, traces, most))
    results[LedgerCheck.DUPLICATE_SEQUENCE] = _across_weeks(traces, repeated, most)
    # Without the runs of one week nothing can be said of what is missing.
    results[LedgerCheck.SEQUENCE_GAP] = CheckResult(unchecked=repeated.unchecked)
    if not repeated.unchecked:
        results[LedgerCheck.SEQUENCE_GAP] = await bounded(
            connection,
            "the routers' journals",
            partial(_gaps, connection, window, held, traces, accept_back=accept_back, now=now, most=most),
        )
    return results


async def _duplicate_events(connection: Connection, week: Window, most: int) -> CheckResult:
    fetched = await connection.fetch(QUERIES["duplicate_events"], week.start, week.end, most)
    return counted(
        fetched, lambda record: Discrepancy(f"event {record['id']}", "1 row", f"{record['copies']} rows"), "id"
    )


async def _open_attempts(connection: Connection, open_since: datetime, most: int) -> CheckResult:
    record = await connection.fetchrow(QUERIES["open_attempts"], open_since)
    assert record is not None, "an aggregate returns a row"
    return CheckResult(
        record["checked"],
        record["wrong"],
        tuple(
            Discrepancy(f"router {journal}", f"no attempt open since before {open_since:%Y-%m-%dT%H:%M:%SZ}", f"{at}")
            for journal, at in zip(record["journals"] or (), record["opened_at"] or (), strict=True)
        )[:most],
    )


async def _runs_of(connection: Connection, week: Window, now: datetime, traces: _Traces, most: int) -> CheckResult:
    """Gather the runs of a week, and find sequences that more than one of its rows has."""
    fetched = await connection.fetch(QUERIES["sequence_runs"], week.start, week.end, now - _SETTLED, _MAX_RUNS)
    if len(fetched) == _MAX_RUNS:
        return CheckResult(unchecked=(_name(week),))
    wrong = 0
    named: list[Discrepancy] = []
    for record in fetched:
        traces.add(record)
        surplus = record["rows"] - (record["last"] - record["first"] + 1)
        wrong += surplus
        if surplus and len(named) < most:
            named += [
                Discrepancy(
                    f"router {record['router_id']} epoch {record['router_epoch']} sequence {one['router_sequence']}",
                    "1 event",
                    ", ".join(str(event_id) for event_id in one["ids"]),
                )
                for one in await connection.fetch(
                    QUERIES["duplicate_sequences"],
                    week.start,
                    week.end,
                    record["router_id"],
                    record["router_epoch"],
                    record["first"],
                    record["last"],
                    most - len(named),
                )
            ]
    return CheckResult(sum(record["rows"] for record in fetched), wrong, tuple(named))


def _across_weeks(traces: _Traces, repeated: CheckResult, most: int) -> CheckResult:
    """Add the sequences that rows of different weeks share."""
    named, wrong = list(repeated.discrepancies), repeated.wrong
    for (router_id, epoch), runs in traces.runs.items():
        ordered = sorted(runs)
        reached = 0
        for run in ordered:
            shared = min(reached, run.last) - run.first + 1
            if shared > 0:
                wrong += shared
                key = f"router {router_id} epoch {epoch} {_sequences(SequenceRange(run.first, run.first + shared - 1))}"
                named.append(Discrepancy(key, "1 event each", "events in more than one week"))
            reached = max(reached, run.last)
    return CheckResult(repeated.checked, wrong, tuple(named[:most]), repeated.unchecked)


async def _gaps(
    connection: Connection,
    window: Window,
    held: HeldRows,
    traces: _Traces,
    *,
    accept_back: timedelta,
    now: datetime,
    most: int,
) -> CheckResult:
    gaps = await _missing(connection, window, held, traces, accept_back=accept_back, now=now)
    wrong = sum(gap.count for found in gaps.values() for gap in found)
    named = [
        Discrepancy(f"router {router_id} epoch {epoch} {_sequences(gap)}", "a row, or a place in quarantine", "neither")
        for (router_id, epoch), found in sorted(gaps.items())
        for gap in found[:most]
    ]
    return CheckResult(traces.rows + wrong, wrong, tuple(named[:most]))


async def _missing(
    connection: Connection,
    window: Window,
    held: HeldRows,
    traces: _Traces,
    *,
    accept_back: timedelta,
    now: datetime,
) -> dict[_Epoch, list[SequenceRange]]:
    journals = {(one.router_id, one.epoch): one for one in await journals_in(connection)}
    aside: dict[_Epoch, list[SequenceRange]] = {}
    for record in await connection.fetch(QUERIES["quarantined_sequences"]):
        sequence = record["router_sequence"]
        aside.setdefault((record["router_id"], record["router_epoch"]), []).append(SequenceRange(sequence, sequence))
    reaches_oldest = not held.some_were_dropped and window.start <= held.since
    scope = Scope(reaches_oldest, window.end > now)
    gaps = _gaps_of(traces, aside, journals, scope)
    if gaps and held.some_were_dropped and window.start < held.since + accept_back:
        # Rows of these sequences may have been dropped: an event may be this much older than its place in the journal.
        scope = Scope(False, scope.reaches_newest, await _judged_from(connection, held.since + accept_back, window.end))
        gaps = _gaps_of(traces, aside, journals, scope)
    if gaps:
        beside = await _runs_beside(connection, window, held, gaps, accept_back=accept_back, now=now)
        gaps = {epoch: left for epoch, found in gaps.items() if (left := subtracted(found, beside.get(epoch, ())))}
    return gaps


def _gaps_of(
    traces: _Traces, aside: dict[_Epoch, list[SequenceRange]], journals: dict[_Epoch, Journal], scope: Scope
) -> dict[_Epoch, list[SequenceRange]]:
    epochs = {*traces.runs, *journals} if scope.reaches_newest or scope.reaches_oldest else {*traces.runs}
    found = {
        epoch: sequence_gaps(
            JournalTrace(
                *epoch,
                present=traces.runs.get(epoch, ()),
                settled_to=traces.settled_to.get(epoch, 0),
                kept_aside=aside.get(epoch, ()),
                journal=journals.get(epoch),
            ),
            scope,
        )
        for epoch in epochs
    }
    return {epoch: gaps for epoch, gaps in found.items() if gaps}


async def _judged_from(connection: Connection, since: datetime, end: datetime) -> dict[_Epoch, int]:
    lowest: dict[_Epoch, int] = {}
    if since < end:
        for week in weeks(Window(since, end)):
            for record in await connection.fetch(QUERIES["first_sequences"], week.start, week.end):
                epoch = (record["router_id"], record["router_epoch"])
                lowest[epoch] = min(lowest.get(epoch, record["first"]), record["first"])
    return lowest


async def _runs_beside(
    connection: Connection,
    window: Window,
    held: HeldRows,
    gaps: dict[_Epoch, list[SequenceRange]],
    *,
    accept_back: timedelta,
    now: datetime,
) -> dict[_Epoch, list[SequenceRange]]:
    """Which of the gaps have a row before the window or after it."""
    wanted = [(*epoch, found[0].first, found[-1].last) for epoch, found in gaps.items()]
    columns = [list(column) for column in zip(*wanted, strict=True)]
    beside: dict[_Epoch, list[SequenceRange]] = {}
    spans = [(max(held.since, window.start - accept_back), window.start), (window.end, now + _WEEK)]
    for start, end in spans:
        if start >= end:
            continue
        for week in weeks(Window(start, end)):
            for record in await connection.fetch(
                QUERIES["sequence_runs_between"], week.start, week.end, *columns, _MAX_RUNS
            ):
                epoch = (record["router_id"], record["router_epoch"])
                beside.setdefault(epoch, []).append(SequenceRange(record["first"], record["last"]))
    return {epoch: merged_ranges(found) for epoch, found in beside.items()}


def weeks(window: Window) -> Iterator[Window]:
    """The window cut at every Monday in UTC, where partitions begin."""
    start = window.start
    while start < window.end:
        monday = start - timedelta(days=start.weekday(), hours=start.hour, minutes=start.minute, seconds=start.second)
        end = min(monday.replace(microsecond=0) + _WEEK, window.end)
        yield Window(start, end)
        start = end


def _name(week: Window) -> str:
    return f"{week.start:%Y-%m-%d} to {week.end:%Y-%m-%d}"


def _sequences(gap: SequenceRange) -> str:
    return f"sequence {gap.first}" if gap.first == gap.last else f"sequences {gap.first} to {gap.last}"
