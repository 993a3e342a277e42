"""What an audit of the ledger finds, and which sequences of a router's journal are missing.

sequences that must be there  =  those the router no longer holds, those the ledger answered for
minus those of rows, minus those in quarantine  =  gaps
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from usage_service.domain.journal import Journal, SequenceRange
from usage_service.domain.window import Window


class LedgerCheck(StrEnum):
    """What must hold. The values are the metric's labels."""

    MINUTE_ROLLUP = "minute_rollup"
    HOUR_ROLLUP = "hour_rollup"
    DAY_ROLLUP = "day_rollup"
    COST = "cost"
    ADJUSTMENTS = "adjustments"
    ROW = "row"
    FINAL_ATTEMPT = "final_attempt"
    DUPLICATE_EVENT = "duplicate_event"
    DUPLICATE_SEQUENCE = "duplicate_sequence"
    SEQUENCE_GAP = "sequence_gap"
    OPEN_ATTEMPT = "open_attempt"


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One thing that does not agree: which, what it should be and what it is, in words."""

    key: str
    expected: str
    actual: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What came of one check: `unchecked` names parts that could not be looked at."""

    checked: int = 0
    wrong: int = 0
    discrepancies: tuple[Discrepancy, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __add__(self, other: CheckResult) -> CheckResult:
        return CheckResult(
            self.checked + other.checked,
            self.wrong + other.wrong,
            self.discrepancies + other.discrepancies,
            self.unchecked + other.unchecked,
        )


Results = Mapping[LedgerCheck, CheckResult]


def added(one: Results, other: Results, *, most: int) -> dict[LedgerCheck, CheckResult]:
    """Both together, with at most `most` discrepancies and unchecked parts named for each check."""
    total: dict[LedgerCheck, CheckResult] = {}
    for check in LedgerCheck:
        if check in one or check in other:
            both = one.get(check, CheckResult()) + other.get(check, CheckResult())
            total[check] = CheckResult(both.checked, both.wrong, both.discrepancies[:most], both.unchecked[:most])
    return total


@dataclass(frozen=True, slots=True)
class AuditPart:
    """What is verified on one snapshot: a tenant's whole UTC days. Finer rollups are whole since these times."""

    tenant_id: UUID
    window: Window
    minutes_since: datetime
    hours_since: datetime

    @property
    def name(self) -> str:
        """The part in words."""
        return f"tenant {self.tenant_id}, {self.window.start:%Y-%m-%d} to {self.window.end:%Y-%m-%d}"


def day_runs(window: Window, rows_by_day: Mapping[datetime, int], *, most_rows: int) -> list[Window]:
    """Cut a window of whole UTC days into runs of days with at most `most_rows` rows, or of one day with more."""
    day = timedelta(days=1)
    runs: list[Window] = []
    start, held, at = window.start, 0, window.start
    while at < window.end:
        rows = rows_by_day.get(at, 0)
        if held and held + rows > most_rows:
            runs.append(Window(start, at))
            start, held = at, 0
        held += rows
        at += day
    return [*runs, Window(start, window.end)]


@dataclass(frozen=True, slots=True)
class JournalTrace:
    """What rows and quarantine hold of one epoch of a router.

    `present` are the sequences of rows in the audited window, `settled_to` the highest of them that has been stored for
    so long that those before it should be, too. `kept_aside` are those of quarantined events.
    """

    router_id: str
    epoch: str
    present: Sequence[SequenceRange] = ()
    settled_to: int = 0
    kept_aside: Sequence[SequenceRange] = ()
    journal: Journal | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """Which sequences an audit may judge: whether the window holds the ledger's oldest and its newest rows, and, where
    retention has dropped some, from which sequence on, by router and epoch, it cannot have dropped any.
    """

    reaches_oldest: bool
    reaches_newest: bool
    judged_from: Mapping[tuple[str, str], int] | None = None


def sequence_gaps(trace: JournalTrace, scope: Scope) -> list[SequenceRange]:
    """Sequences that should have a row in the window and have none there, ascending.

    Some may have one outside of the window: usage times are those of an attempt's start, sequences those of its end.
    """
    present = merged_ranges(trace.present)
    answered = trace.journal.answered if trace.journal else ()
    first = 1 if scope.reaches_oldest else present[0].first if present else None
    last = None if scope.reaches_newest else present[-1].last if present else 0
    if first is None:
        return []
    if scope.judged_from is not None:
        judged_from = scope.judged_from.get((trace.router_id, trace.epoch))
        if judged_from is None:
            return []
        first = max(first, judged_from)
    # What no row begins before may lie with a ledger that was emptied, or with a journal that is older than it.
    settled_from = max(first, present[0].first) if present and not (trace.journal and trace.journal.report) else first
    expected = [SequenceRange(settled_from, _settled_to(trace)), *answered]
    return subtracted(clipped(expected, first, last), [*present, *trace.kept_aside])


def _settled_to(trace: JournalTrace) -> int:
    """Up to where every sequence should have arrived, as far as the router or the rows themselves tell."""
    report = trace.journal.report if trace.journal else None
    if report is None:
        return trace.settled_to
    return report.first_waiting_sequence - 1 if report.first_waiting_sequence > 0 else report.last_sequence


def merged_ranges(ranges: Iterable[SequenceRange]) -> list[SequenceRange]:
    """The same sequences in as few ascending ranges as possible; empty ranges vanish."""
    found: list[SequenceRange] = []
    for one in sorted(one for one in ranges if one.first <= one.last):
        if found and one.first <= found[-1].last + 1:
            found[-1] = SequenceRange(found[-1].first, max(found[-1].last, one.last))
        else:
            found.append(one)
    return found


def clipped(ranges: Iterable[SequenceRange], first: int, last: int | None) -> list[SequenceRange]:
    """What of the ranges lies between two sequences, both included; None is no end."""
    return [
        SequenceRange(max(one.first, first), one.last if last is None else min(one.last, last))
        for one in ranges
        if one.last >= first and (last is None or one.first <= last)
    ]


def subtracted(ranges: Iterable[SequenceRange], others: Iterable[SequenceRange]) -> list[SequenceRange]:
    """What of the ranges lies in none of the others, ascending."""
    left: list[SequenceRange] = []
    taken = merged_ranges(others)
    place = 0
    for one in merged_ranges(ranges):
        at = one.first
        while place < len(taken) and taken[place].last < at:
            place += 1
        reached = place
        while reached < len(taken) and taken[reached].first <= one.last:
            if taken[reached].first > at:
                left.append(SequenceRange(at, taken[reached].first - 1))
            at = max(at, taken[reached].last + 1)
            reached += 1
        if at <= one.last:
            left.append(SequenceRange(at, one.last))
    return left
